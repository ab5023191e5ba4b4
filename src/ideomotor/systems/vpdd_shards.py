"""A fine-tuned VPDD as a few small files, for a machine from which only small files come back."""

from __future__ import annotations

from pathlib import Path

from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.systems.shards import LIMIT, MANIFEST, Classes, read_shards, write_shards
from ideomotor.systems.stages import FAST_FILE
from ideomotor.systems.vpdd_stages import load_models
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.checkpoint import write_json
from ideomotor.training.config import config_to_json

__all__ = ["LIMIT", "MANIFEST", "pack", "unpack"]

_CLASSES: Classes = {
    "tokenizer": (VQVAE3D, VQVAE3DConfig),
    "predictor": (DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig),
    "policy": (DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig),
}
_HOW = (
    "The weights of a fine-tuned VPDD, in bf16, its buffers as they were. Back to a folder that `ideomotor vpdd "
    "evaluate` and load_agent read: from ideomotor.systems.vpdd_shards import unpack; unpack(THIS_FOLDER, OUT)"
)


def pack(folder: Path, out: Path, limit: int = LIMIT) -> list[Path]:
    """Writes a fine-tuning stage's models as shards and ``weights.json``, and returns the files; see ``write_shards``.

    Raises:
        ValueError: the stage has not finished, or one tensor alone is larger than ``limit`` bytes.
    """
    config, *models = load_models(folder)
    named = {name: model for name, model in zip(_CLASSES, models, strict=True) if model is not None}
    if "policy" not in named:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpdd finetune`")
    return write_shards(named, folder, out, {"how": _HOW, "vpdd": config_to_json(config)}, limit)


def unpack(packed: Path, folder: Path) -> None:
    """Makes a stage's folder of what ``pack`` wrote, as ``load_agent`` and ``evaluate`` read it.

    Raises:
        FileNotFoundError: there is no manifest, or a shard is missing.
        ValueError: another format, or tensors that do not fit the models.
    """
    write_json(folder / FAST_FILE, read_shards(packed, _CLASSES, folder)["vpdd"])
