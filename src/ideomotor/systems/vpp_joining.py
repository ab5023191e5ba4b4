"""A published video model as a folder of stage 1, and joined with a published policy as one of stage 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ideomotor.layers.clip_folders import clip_tokenizer
from ideomotor.layers.text_tokens import TextTokensConfig
from ideomotor.layers.video_former import VideoFormer
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.svd_unet import SVDUNetConfig, unet_files
from ideomotor.systems.importing import filled
from ideomotor.systems.stages import VPP_FILE, learned_with
from ideomotor.systems.vpp import VPP, Looking
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.systems.vpp_scales import ROBOT, robot_of
from ideomotor.systems.vpp_text import GOAL_TEXT, OWN, VIDEO_TEXT, goal_encoder, token_encoder
from ideomotor.systems.vpp_towers import Tower, read_tower, refuse_other_tokens, write_tower
from ideomotor.tokenizers.svd_vae import SVDVAE, load_diffusers
from ideomotor.training.checkpoint import save_model, write_json
from ideomotor.training.config import config_to_json


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What an import is joined with, and what no file of it tells.

    Attributes:
        video: a diffusers folder with the policy's video model; None to import the policy's parts alone.
        text: a folder of CLIP: the tokenizer, and the text tower where the checkpoint holds none.
        size: pixels a side of the square frames that the video model was trained on.
        positions: whether the video model was trained with positions added to the words.
        preset: of a video model alone, whose settings of use it gets.
        scales: of a two-arm policy, the release's file of percentiles.
        bf16: of a policy, whether it acts in bfloat16.
    """

    video: Path | None = None
    text: Path | None = None
    size: int = 256
    positions: bool = False
    preset: Literal["published", "svd"] = "published"
    scales: Path | None = None
    bf16: bool = False


class Whole(NamedTuple):
    """A stage's models, in the order in which they learned; of a video model alone all behind the predictor is None."""

    config: VPP
    vae: SVDVAE
    predictor: LatentDiffusion
    texts: Mapping[str, Tower]
    tokenizer: Any
    looking: Looking | None = None
    robot: RobotActions | None = None
    policy: EDMTransformer | None = None


def video_alone(folder: Path, joining: Joining) -> Whole:
    """Returns a published video model, as stage 1 leaves one.

    Raises:
        FileNotFoundError: the folder holds no autoencoder.
        ValueError: it holds no video model, or text and video model do not fit each other.
    """
    sizes, clip = _sizes(folder), _clip(joining)
    tokenizer, tower = clip_tokenizer(clip), read_tower(clip)
    refuse_other_tokens(tower, VIDEO_TEXT, tokenizer, clip)
    form = PRESETS[joining.preset]()
    words = _words(folder, sizes, tower, joining.positions)
    width = sum(sizes.shape(tap, 1, 1)[0] for tap in form.foresight.layers)
    vae = load_diffusers(folder)
    config = replace(
        form,
        size=joining.size,
        text=OWN,
        vae=vae.config,
        video=replace(form.video, unet=sizes, text=words, latent_scale=vae.scale),
        former=replace(form.former, feature_width=width),
        policy=replace(form.policy, goal_width=tower.goal_width),
    )
    return Whole(config, vae, _predictor(config, folder), {VIDEO_TEXT: tower}, tokenizer)


def joined(
    former: VideoFormer, policy: EDMTransformer, texts: Mapping[str, Tower], calvin: bool, joining: Joining
) -> Whole:
    """Returns a published policy with all that it looks with, as stage 2 leaves one.

    Raises:
        FileNotFoundError: the folder of the video model holds no autoencoder.
        ValueError: policy, video model and text do not fit each other, or something that the checkpoint lacks was not
            given.
    """
    assert joining.video is not None
    _refuse_idle(calvin, joining)
    robot = None if calvin else robot_of(policy.config, joining.scales)
    sizes = _sizes(joining.video)
    layers = layers_of(former.config.feature_width, sizes)
    tokenizer, texts = _texts(texts, policy.config.goal_width, _clip(joining))
    # The published two-arm policies always add positions.
    words = _words(joining.video, sizes, texts[VIDEO_TEXT], joining.positions or not calvin)
    if calvin:
        policy = _without_the_unused(policy)
    form, frames, chunk = PRESETS["published"](), former.config.frames, policy.config.chunk
    vae = load_diffusers(joining.video)
    config = replace(
        form,
        size=joining.size,
        views=2 if calvin else 3,  # as published; no weight tells
        window=replace(form.window, horizon=frames - 1, chunk=chunk),
        execute=chunk,
        text=OWN,
        foresight=replace(form.foresight, layers=layers),
        vae=vae.config,
        video=replace(form.video, unet=sizes, text=words, frames=frames, latent_scale=vae.scale),
        former=former.config,
        policy=policy.config,
        policy_stage=replace(form.policy_stage, optim=replace(form.policy_stage.optim, bf16=joining.bf16)),
        robot="" if calvin else ROBOT,
    )
    looking = filled(Looking, config, {f"former.{name}": weight for name, weight in former.state_dict().items()})
    return Whole(config, vae, _predictor(config, joining.video), texts, tokenizer, looking, robot, policy)


def write_whole(whole: Whole, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes a stage's folder, and opens the encoders in it once.

    Args:
        whole: the models.
        folder: where; nothing is there yet.
        about: what each model notes of its origin.
    """
    save_model(folder / "vae", whole.vae, whole.vae.config, about)
    save_model(folder / "predictor", whole.predictor, whole.predictor.config, {**about, **learned_with(folder, "vae")})
    if whole.looking is not None:
        known = learned_with(folder, "vae", "predictor")
        save_model(folder / "looking", whole.looking, whole.config, {**about, **known})
    if whole.robot is not None:
        save_model(folder / "robot", whole.robot, whole.robot.config, about)
    if whole.policy is not None:
        known = learned_with(folder, "vae", "predictor", "looking", "robot")
        save_model(folder / "policy", whole.policy, whole.policy.config, {**about, **known})
    for name, tower in whole.texts.items():
        write_tower(tower, folder / name, whole.tokenizer)
    write_json(folder / VPP_FILE, config_to_json(whole.config))
    token_encoder(whole.config, folder)(["open the drawer"])
    if whole.policy is not None:
        goal_encoder(whole.config, folder)(["open the drawer"])


def layers_of(width: int, unet: SVDUNetConfig) -> tuple[int, ...]:
    """Returns the up-blocks whose maps are that wide together: 0 and 1 (CALVIN), or 1 alone (two arms).

    Raises:
        ValueError: neither are.
    """
    widths = [unet.shape(block, 1, 1)[0] for block in (0, 1)]
    for layers in ((0, 1), (1,)):
        if sum(widths[block] for block in layers) == width:
            return layers
    raise ValueError(
        f"the policy reads features of width {width}; up-blocks 0 and 1 of the video model give {sum(widths)}, and "
        f"block 1 alone {widths[1]}: the two do not belong together, give --video of the same release"
    )


def _words(folder: Path, sizes: SVDUNetConfig, tower: Tower, positions: bool) -> TextTokensConfig:
    """How that video model hears what that tower gives."""
    if sizes.text_width not in (tower.width, 2 * tower.width):
        raise ValueError(
            f"the video model in {folder} attends to words of width {sizes.text_width}; the text tower gives "
            f"{tower.width}, which neither as it is nor doubled is that: give --text of the CLIP it was trained with"
        )
    join: Literal["plain", "doubled"] = "plain" if tower.width == sizes.text_width else "doubled"
    return TextTokensConfig(width=tower.width, out=sizes.text_width, join=join, positions=positions)


def _texts(texts: Mapping[str, Tower], goal_width: int, clip: Path) -> tuple[Any, Mapping[str, Tower]]:
    """The tokenizer, and a policy's two towers: its checkpoint's, or the user's where that holds none."""
    tokenizer = clip_tokenizer(clip)
    if not texts:
        tower = read_tower(clip)
        texts = {GOAL_TEXT: tower, VIDEO_TEXT: tower}
    if set(texts) != {GOAL_TEXT, VIDEO_TEXT}:
        raise ValueError(f"the checkpoint holds the text tower {next(iter(texts))} alone: was it put together by hand?")
    for name, tower in texts.items():
        refuse_other_tokens(tower, name, tokenizer, clip)
    if texts[GOAL_TEXT].goal_width != goal_width:
        raise ValueError(
            f"the text tower {GOAL_TEXT} gives vectors of width {texts[GOAL_TEXT].goal_width}, the policy expects "
            f"{goal_width}: give --text of the CLIP that it was trained with (ViT-B/32)"
        )
    return tokenizer, texts


def _refuse_idle(calvin: bool, joining: Joining) -> None:
    if calvin and joining.scales is not None:
        raise ValueError("--scales are of a two-arm policy, and this one acts in CALVIN, unscaled: leave it out")
    if joining.preset != "published":
        raise ValueError("--preset is for a video model alone: a policy acts as published, leave it out")


def _predictor(config: VPP, folder: Path) -> LatentDiffusion:
    with torch.random.fork_rng(devices=[]):
        predictor = LatentDiffusion(config.video)
    predictor.load_diffusers(folder)
    return predictor.eval()


def _sizes(folder: Path) -> SVDUNetConfig:
    sizes, _ = unet_files(folder)
    if not (folder / "vae" / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no vae/config.json: give the whole folder of a video model as published (unet, vae)"
        )
    return sizes


def _clip(joining: Joining) -> Path:
    if joining.text is None:
        raise ValueError(
            "no file of a video model or a policy holds CLIP's tokenizer: give --text, the folder of CLIP ViT-B/32 as "
            "transformers keeps it"
        )
    return joining.text


def _without_the_unused(policy: EDMTransformer) -> EDMTransformer:
    """A CALVIN policy less what its release never uses: the state, a table of positions, a second map of the goal."""
    kept: dict[str, Tensor] = {
        name: weight for name, weight in policy.state_dict().items() if not name.startswith(("unused_", "proprio."))
    }
    return filled(EDMTransformer, replace(policy.config, published_places=0, proprio_width=0), kept)
