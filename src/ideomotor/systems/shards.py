"""Models of a stage as a few small files, for a machine from which only small files come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ideomotor.files import replacing
from ideomotor.systems.sources import DATA_FILE, read_facts
from ideomotor.systems.stages import learned_with
from ideomotor.training.checkpoint import read_json, save_model, write_json
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import check_tensors

LIMIT = 15_000_000  # bytes of tensors a file: with its header it stays below 16 MB
MANIFEST = "weights.json"
Classes = Mapping[str, tuple[type[nn.Module], type]]
"""Of each model of a stage, in the order of learning: what builds it, and its config."""
_FORMAT = 1


def write_shards(
    models: Mapping[str, nn.Module], folder: Path, out: Path, facts: Mapping[str, Any], limit: int = LIMIT
) -> list[Path]:
    """Writes the models of the stage in ``folder`` as shards and a manifest with ``facts``, and returns the files.

    Weights are rounded to bf16, in which the networks compute anyway; buffers are kept as they are. The same stage
    gives the same files.

    Raises:
        ValueError: one tensor alone is larger than ``limit`` bytes.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards = {f"weights-{i}.safetensors": shard for i, shard in enumerate(_shards(models, limit))}
    for name, shard in shards.items():
        with replacing(out / name) as draft:
            save_file(shard, draft)
            draft.chmod(out.stat().st_mode & 0o666)  # it would be the owner's alone
    manifest = {
        "format": _FORMAT,
        "shards": list(shards),
        "models": {name: config_to_json(model.config) for name, model in models.items()},
        "data": [asdict(noted) for noted in read_facts(folder)],
    }
    write_json(out / MANIFEST, {**facts, **manifest})  # last: with it the shards are complete
    return [*(out / name for name in shards), out / MANIFEST]


def read_shards(packed: Path, classes: Classes, folder: Path) -> dict[str, Any]:
    """Makes the models of a stage's folder again, and the note of its data; returns the manifest.

    Raises:
        FileNotFoundError: there is no manifest, or a shard is missing.
        ValueError: another format, or tensors that do not fit the models.
    """
    manifest = dict(read_json(packed / MANIFEST))
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"{packed / MANIFEST} has format {manifest.get('format')}; this version reads {_FORMAT}")
    tensors: dict[str, Tensor] = {}
    for shard in manifest["shards"]:
        tensors |= load_file(packed / shard)
    folder.mkdir(parents=True, exist_ok=True)
    for name, described in manifest["models"].items():
        cls, config_cls = classes[name]
        config: Any = config_from_json(config_cls, described)
        model = cls(config)
        prefix = f"{name}."
        mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        check_tensors(model.state_dict(), mine, f"the {name} in {packed}")
        model.load_state_dict(mine)
        others = list(classes)[: list(classes).index(name)]
        save_model(folder / name, model, config, {"unpacked": True} | learned_with(folder, *others))
    write_json(folder / DATA_FILE, {"datasets": manifest["data"]})
    return manifest


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
