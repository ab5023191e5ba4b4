"""A fine-tuned VPDD as a few small files, for a machine from which only small files come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ideomotor.files import replacing
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.systems.sources import DATA_FILE, read_facts
from ideomotor.systems.stages import learned_with
from ideomotor.systems.vpdd_stages import load_models
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.checkpoint import read_json, save_model, write_json
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import check_tensors

LIMIT = 15_000_000  # bytes of tensors a file: with its header it stays below 16 MB
MANIFEST = "weights.json"
_FORMAT = 1
_CLASSES: dict[str, tuple[type[nn.Module], type]] = {
    "tokenizer": (VQVAE3D, VQVAE3DConfig),
    "predictor": (DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig),
    "policy": (DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig),
}
_HOW = (
    "The weights of a fine-tuned VPDD, in bf16, its buffers as they were. Back to a folder that `ideomotor vpdd "
    "evaluate` and load_agent read: from ideomotor.systems.vpdd_shards import unpack; unpack(THIS_FOLDER, OUT)"
)


def pack(folder: Path, out: Path, limit: int = LIMIT) -> list[Path]:
    """Writes a fine-tuning stage's models as shards and ``weights.json``, and returns the files.

    Weights are rounded to bf16, in which the networks compute anyway; buffers (the bins of actions) are kept as they
    are. The same stage gives the same files.

    Raises:
        ValueError: the stage has not finished, or one tensor alone is larger than ``limit`` bytes.
    """
    config, *models = load_models(folder)
    named = {name: model for name, model in zip(_CLASSES, models, strict=True) if model is not None}
    if "policy" not in named:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpdd finetune`")
    out.mkdir(parents=True, exist_ok=True)
    shards = {f"weights-{i}.safetensors": shard for i, shard in enumerate(_shards(named, limit))}
    for name, shard in shards.items():
        with replacing(out / name) as draft:
            save_file(shard, draft)
            draft.chmod(out.stat().st_mode & 0o666)  # it would be the owner's alone
    manifest = {
        "how": _HOW,
        "format": _FORMAT,
        "shards": list(shards),
        "vpdd": config_to_json(config),
        "models": {name: config_to_json(model.config) for name, model in named.items()},
        "data": [asdict(facts) for facts in read_facts(folder)],
    }
    write_json(out / MANIFEST, manifest)  # last: with it the shards are complete
    return [*(out / name for name in shards), out / MANIFEST]


def unpack(packed: Path, folder: Path) -> None:
    """Makes a stage's folder of what ``pack`` wrote, as ``load_agent`` and ``evaluate`` read it.

    Raises:
        FileNotFoundError: there is no manifest, or a shard is missing.
        ValueError: another format, or tensors that do not fit the models.
    """
    manifest = read_json(packed / MANIFEST)
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"{packed / MANIFEST} has format {manifest.get('format')}; this version reads {_FORMAT}")
    tensors: dict[str, Tensor] = {}
    for shard in manifest["shards"]:
        tensors |= load_file(packed / shard)
    folder.mkdir(parents=True, exist_ok=True)
    for name, described in manifest["models"].items():
        cls, config_cls = _CLASSES[name]
        config: Any = config_from_json(config_cls, described)
        model = cls(config)
        prefix = f"{name}."
        mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        check_tensors(model.state_dict(), mine, f"the {name} in {packed}")
        model.load_state_dict(mine)
        others = list(_CLASSES)[: list(_CLASSES).index(name)]
        save_model(folder / name, model, config, {"unpacked": True} | learned_with(folder, *others))
    write_json(folder / DATA_FILE, {"datasets": manifest["data"]})
    write_json(folder / "vpdd.json", manifest["vpdd"])


def _shards(models: Mapping[str, nn.Module], limit: int) -> list[dict[str, Tensor]]:
    """Fills one shard after the other, in the order of the state dicts."""
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, model in models.items():
        weights = {key for key, _ in model.named_parameters()}
        for key, value in model.state_dict().items():
            tensor = (value.to(torch.bfloat16) if key in weights else value).contiguous()
            if tensor.nbytes > limit:
                raise ValueError(f"{name}.{key} alone has {tensor.nbytes} bytes; a shard may have {limit}: raise limit")
            if tensor.nbytes > room:
                shards.append({})
                room = limit
            shards[-1][f"{name}.{key}"] = tensor
            room -= tensor.nbytes
    return shards
