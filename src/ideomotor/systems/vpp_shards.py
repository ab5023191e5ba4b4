"""A trained VPP policy, and all that it looks with, as a few small files; see ``shards``."""

from __future__ import annotations

from pathlib import Path

from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.policies.own_robots import OwnRobotConfig
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig
from ideomotor.systems.shards import LIMIT, MANIFEST, Classes, read_shards, write_shards
from ideomotor.systems.stages import VPP_FILE
from ideomotor.systems.vpp import VPP, Looking
from ideomotor.systems.vpp_stages import load_models
from ideomotor.systems.vpp_text import OWN
from ideomotor.tokenizers.image_encoder import ImageEncoder, ImageEncoderConfig
from ideomotor.tokenizers.patch_pca import PatchPCA, PatchPCAConfig
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig
from ideomotor.training.checkpoint import read_json, write_json
from ideomotor.training.config import config_from_json, config_to_json

_CLASSES: Classes = {
    "vae": (SVDVAE, SVDVAEConfig),
    "predictor": (LatentDiffusion, LatentDiffusionConfig),
    "encoder": (ImageEncoder, ImageEncoderConfig),
    "looking": (Looking, VPP),
    "robot": (RobotActions, OwnRobotConfig),
    "policy": (EDMTransformer, EDMTransformerConfig),
}
_PATCHES: Classes = {**_CLASSES, "vae": (PatchPCA, PatchPCAConfig)}
_HOW = (
    "The weights of a VPP policy, in bf16, its buffers as they were. Back to a folder that `ideomotor vpp evaluate` "
    "and load_agent read: from ideomotor.systems.vpp_shards import unpack; unpack(THIS_FOLDER, OUT)"
)


def pack(folder: Path, out: Path, limit: int = LIMIT) -> list[Path]:
    """Writes a policy stage's models as shards and ``weights.json``, and returns the files; see ``write_shards``.

    Raises:
        ValueError: the stage has not finished, or one tensor alone is larger than ``limit`` bytes.
    """
    config, *models = load_models(folder)
    named = {name: model for name, model in zip(_CLASSES, models, strict=True) if model is not None}
    if config.text == OWN:
        raise ValueError(f"{folder} is an import, whose text towers are no part of its models: copy the folder itself")
    if "policy" not in named:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpp policy`")
    return write_shards(named, folder, out, {"how": _HOW, "vpp": config_to_json(config)}, limit)


def unpack(packed: Path, folder: Path) -> None:
    """Makes a stage's folder of what ``pack`` wrote, as ``load_agent`` and ``evaluate`` read it.

    Raises:
        FileNotFoundError: there is no manifest, or a shard is missing.
        ValueError: another format, or tensors that do not fit the models.
    """
    config = config_from_json(VPP, read_json(packed / MANIFEST)["vpp"])
    classes = _PATCHES if isinstance(config.vae, PatchPCAConfig) else _CLASSES
    write_json(folder / VPP_FILE, read_shards(packed, classes, folder)["vpp"])
