"""The recipe "vpp": the same action head on other eyes, each trained on the same demonstrations and tried out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ideomotor.predictors.svd_unet import Tap
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.study_cells import Cell, Done
from ideomotor.systems.vpp import VPP, Eyes
from ideomotor.systems.vpp_presets import PRESETS, looking_with
from ideomotor.systems.vpp_stages import run_policy
from ideomotor.systems.vpp_trials import evaluate


@dataclass(frozen=True, kw_only=True)
class VPPEyes:
    """Settings of "vpp". A study's ``at`` is one number here: the training steps of stage 2.

    Attributes:
        data: folders of demonstrations.
        video_from: folder of a finished stage 1; eyes that are pixels or an encoder leave it alone.
        cache: where frames and features are kept; arms that look with the same network share them.
        world: that the policies are tried in.
        preset: of stage 1, which the settings below change.
        eyes: what the policy looks with.
        encoder: transformers folder of the image encoder that eyes of that name look with; others leave it alone.
        layers: whose maps are joined: up-blocks, or [block, layer] for a layer within one; as the preset has them where
            none are named.
        passes: denoising pass that is read.
        former: how features become tokens; "linear" is no Video Former.
    """

    data: tuple[str, ...]
    video_from: str
    cache: str = "runs/cache"
    world: Literal["metaworld", "toy"] = "metaworld"
    preset: str = "cpu"
    eyes: Eyes = "foresight"
    encoder: str = ""
    layers: tuple[Tap, ...] = ()
    passes: int = 1
    former: Literal["3d", "2d", "linear"] = "3d"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS or not self.data:
            raise ValueError(
                f"preset is {self.preset!r}, data {self.data}; wanted one of {', '.join(PRESETS)}, and at least one "
                "folder of demonstrations"
            )
        if self.eyes == "encoder" and not self.encoder:
            raise ValueError('eyes are "encoder", and no encoder is named: set encoder to a transformers folder')


def run_vpp(cell: Cell, folder: Path, done: Done) -> None:
    """Trains one policy and tells of its trials.

    Raises:
        ValueError: ``at`` is not one number, or stage 1 does not fit the settings.
    """
    from ideomotor.envs.world import GOALS

    settings: VPPEyes = cell.settings
    if len(cell.at) != 1:
        raise ValueError(f"at is {list(cell.at)}; the recipe vpp wants one number, the training steps, e.g. [2000]")
    config = form_of(settings, cell.at[0])
    data = DataOptions(data=tuple(Path(each) for each in settings.data), validation=0.0, cache=Path(settings.cache))
    run_policy(
        data,
        config,
        Path(settings.video_from) if settings.eyes in ("foresight", "latents") else None,
        folder / "policy",
        cell.seed,
        fresh=False,
        encoder_from=Path(settings.encoder) if settings.eyes == "encoder" else None,
    )
    for result in evaluate(
        folder / "policy", cell.tasks, cell.episodes, folder / "rollouts.jsonl", workers=0, world=settings.world
    ):
        done(
            cell.row(
                result.task, cell.at[0], result.goal - GOALS["test"].start, success=result.success,
                steps=result.steps, total_reward=result.total_reward, seconds=result.seconds,
            )
        )  # fmt: skip


def form_of(settings: VPPEyes, steps: int) -> VPP:
    """Returns the preset with those eyes and that former.

    Raises:
        ValueError: they do not fit together.
    """
    preset = PRESETS[settings.preset]()
    foresight = replace(
        preset.foresight,
        layers=settings.layers or preset.foresight.layers,
        steps=settings.passes,
    )
    side, taps = preset.size // preset.vae.factor, foresight.layers
    width = sum(preset.video.unet.shape(tap, side, side)[0] for tap in taps)
    former = replace(preset.former, kind=settings.former, feature_width=width)
    return replace(
        looking_with(replace(preset, foresight=foresight, former=former), settings.eyes),
        policy_stage=replace(preset.policy_stage, steps=steps),
    )
