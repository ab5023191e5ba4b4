"""How fit a video model of VPP is to act by, in figures that come out the same on every run.

Two kinds: the denoising loss on a grid of noise levels, which tells checkpoints apart long before the eye does, and
films drawn from the model beside the truth, for what the eye would say. Both on held-out clips, each clip's noise a
function of its name and the seed alone: a clip has the same figures whichever others are scored with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.evaluation.action_sensitivity import ActionSensitivity, action_sensitivity
from ideomotor.evaluation.moving_steps import MovingErrors
from ideomotor.evaluation.statistics import Estimate, mean_of_clips
from ideomotor.evaluation.video_metrics import mse, repeat_last
from ideomotor.evaluation.video_protocols import STRICT, Comparison, compare_videos, join, video_table
from ideomotor.predictors.latent_diffusion import Noising
from ideomotor.systems.held_out import HeldOut
from ideomotor.systems.progress import bar
from ideomotor.systems.video_scoring import NO_JUDGES, Judges
from ideomotor.systems.vpp_videos import VideoModel, refuse_sampling
from ideomotor.training.learner import seed_of

OURS, BEST, STILL, PAINTED = "one future", "best future", "last frame repeated", "truth through the autoencoder"
Sentences = Sequence[str | None]
_AT_ONCE = 8  # clips


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """How the model is tried; figures of other options do not compare."""

    clips: int = 32
    """Held-out clips at most, spread evenly."""
    sigmas: tuple[float, ...] = (0.1, 0.5, 1.5, 5.0, 15.0, 50.0, 700.0)
    """Noise levels of the loss. Training draws 90 of 100 between 0.14 and 28; policies look at 700."""
    noises: int = 2
    """Draws of noise of each clip, the same at every level."""
    samples: int = 3
    """Futures of each clip."""
    steps: int = 10
    """Denoising steps of a future (Euler)."""
    guidance: float = 1.0
    """How far the sentence pushes futures: 1 is as learned; any other costs twice."""
    seed: int = 0
    """Seed of all noise."""

    def __post_init__(self) -> None:
        refuse_sampling(self.samples, self.steps, self.guidance)
        finite = all(0 < sigma < math.inf for sigma in self.sigmas)
        if min(self.clips, self.noises) < 1 or not self.sigmas or not finite:
            raise ValueError(
                f"clips {self.clips} and noises {self.noises} must be at least 1, and sigmas {self.sigmas} numbers "
                "above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What came out.

    Attributes:
        loss: by noise level, and "mean" of all levels.
        clip_losses: each clip's mean over levels and draws, to be paired with another checkpoint's.
        moving_psnr: by name, a figure a step, in dB, pooled over the clips: of one future (the mean error of all), of
            each clip's best, and of what they are to be measured by.
        gain: of one future over repeating the last frame, in dB a step; above zero is nearer.
        strict: the table of the strict protocol, by metric and reduction, the judges' rows included.
        heard: "loss" and "video" (squared error of pixels in 0..1) with the clip's own sentence, and how much more it
            is with another clip's and with none; None where all clips say the same.
    """

    loss: dict[str, Estimate]
    clip_losses: list[float]
    moving_psnr: dict[str, list[Estimate]]
    gain: list[Estimate]
    strict: dict[str, Estimate]
    heard: dict[str, ActionSensitivity] | None

    @property
    def passed(self) -> bool:
        """True where one future is nearer than the last frame repeated at every step."""
        return all(step.value > 0 for step in self.gain)

    @property
    def verdict(self) -> str:
        """The same in a sentence."""
        behind = [str(number) for number, step in enumerate(self.gain, 1) if not step.value > 0]
        sure = f"95% interval above zero at {sum(step.low > 0 for step in self.gain)} of {len(self.gain)}"
        if not behind:
            return f"PASSED: one future beats repeating the last frame at every step ({sure})"
        return f"FAILED: one future does not beat repeating the last frame at step {', '.join(behind)} ({sure})"


class Asked(NamedTuple):
    """Clips that are tried together, and for each another clip's sentence; None where all say the same."""

    frames: UInt8[Tensor, "b t c h w"]
    names: list[str]
    texts: list[str]
    others: list[str] | None

    @property
    def variants(self) -> list[Sentences]:
        """The clip's own sentence; and where they differ another clip's, and none."""
        return [self.texts] if self.others is None else [self.texts, self.others, [None] * len(self.texts)]


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """Of some clips; lists grow by an entry a part."""

    losses: list[Float[Tensor, "variants levels b"]] = field(default_factory=list)
    moving: dict[str, list[MovingErrors]] = field(default_factory=lambda: {n: [] for n in (OURS, BEST, STILL, PAINTED)})
    videos: list[Comparison] = field(default_factory=list)
    squares: list[Float[Tensor, "variants b"]] = field(default_factory=list)
    futures: list[UInt8[Tensor, "samples b horizon c h w"]] = field(default_factory=list)


def measure(
    model: VideoModel, clips: HeldOut, options: GateOptions, judges: Judges = NO_JUDGES
) -> tuple[Gate, UInt8[Tensor, "samples b horizon c h w"]]:
    """Returns the figures, and the futures they were read from; ``judges`` lie on the model's device."""
    others, found = other_sentences(clips.texts, options.seed), _Figures()
    begins = range(0, len(clips.frames), _AT_ONCE)
    with bar("try held-out clips") as tell:
        for done, begin in enumerate(begins):
            part = slice(begin, begin + _AT_ONCE)
            asked = Asked(
                clips.frames[part], clips.names[part], clips.texts[part], None if others is None else others[part]
            )
            found.losses.append(denoising(model, asked, options))
            _watch(model, asked, options, judges, found)
            tell(done + 1, len(begins))
    losses, squares = torch.cat(found.losses, 2), torch.cat(found.squares, 1)
    levels, moving = losses[0], {name: MovingErrors.join(rows) for name, rows in found.moving.items()}
    heard = None
    if others is not None:
        heard = {
            name: action_sensitivity(own, another, none, clips.episodes)
            for name, (own, another, none) in (("loss", losses.mean(1)), ("video", squares))
        }
    by_level = zip(options.sigmas, levels.tolist(), strict=True)
    result = Gate(
        loss={f"{sigma:g}": mean_of_clips(row, clips.episodes) for sigma, row in by_level}
        | {"mean": mean_of_clips(levels.mean(0).tolist(), clips.episodes)},
        clip_losses=levels.mean(0).tolist(),
        moving_psnr={name: errors.psnr(clips.episodes) for name, errors in moving.items()},
        gain=moving[OURS].gain_over(moving[STILL], clips.episodes),
        strict={
            f"{metric} ({reduction})": row
            for (metric, reduction), row in video_table(join(found.videos), clips.episodes).rows.items()
        },
        heard=heard,
    )
    return result, torch.cat(found.futures, 1)


def other_sentences(texts: Sequence[str], seed: int) -> list[str] | None:
    """Returns for each clip what another says, always something else; None where all say the same."""
    said = sorted(set(texts))
    if len(said) < 2:
        return None
    others = [[one for one in said if one != text] for text in texts]
    return [some[seed_of(seed, "sentence", number) % len(some)] for number, some in enumerate(others)]


@torch.no_grad()
def denoising(model: VideoModel, asked: Asked, options: GateOptions) -> Float[Tensor, "variants levels b"]:
    """Returns each clip's loss at each noise level, mean over the draws, which all levels and sentences share.

    The latents are the autoencoder's means. Sentence and first frame are never withheld and get no noise.
    """
    latents = model.vae.moments(asked.frames.to(model.device))[0]
    b = len(latents)
    draws = [
        torch.stack([model.noise(options.seed, "loss", k, name) for name in asked.names]).to(model.device)
        for k in range(options.noises)
    ]
    rows = []
    for sentences in asked.variants:
        text, told = model.heard(sentences)
        for sigma in options.sigmas:
            levels = torch.full((b,), sigma, device=model.device)
            noisings = [Noising(levels, noise, told, torch.ones_like(told)) for noise in draws]
            losses = [model.predictor.film_losses(latents, latents[:, 0], text, noising) for noising in noisings]
            rows.append(torch.stack(losses).mean(0).cpu())
    return torch.stack(rows).unflatten(0, (len(asked.variants), len(options.sigmas)))


def _watch(model: VideoModel, asked: Asked, options: GateOptions, judges: Judges, into: _Figures) -> None:
    """Draws futures, and compares them with the truth."""

    def futures_of(sentences: Sentences, number: int) -> UInt8[Tensor, "b horizon c h w"]:
        noise = torch.stack([model.noise(options.seed, "future", number, name) for name in asked.names])
        return model.foretell(asked.frames[:, 0], sentences, noise, options.steps, options.guidance)

    seen, truth = asked.frames[:, :1], asked.frames[:, 1:]
    futures = torch.stack([futures_of(asked.texts, number) for number in range(options.samples)])
    drawn = [MovingErrors.of(truth, future, seen) for future in futures]
    painted = model.vae.decode(model.vae.moments(asked.frames.to(model.device))[0])[:, 1:].cpu()
    into.moving[OURS].append(MovingErrors.mean(drawn))
    into.moving[BEST].append(MovingErrors.best(drawn))
    into.moving[STILL].append(MovingErrors.of(truth, repeat_last(seen, truth.shape[1]), seen))
    into.moving[PAINTED].append(MovingErrors.of(truth, painted, seen))
    real = asked.frames.to(model.device)
    whole = torch.cat([seen.expand(options.samples, *seen.shape), futures], 2).to(model.device)
    into.videos.append(compare_videos(real, whole, STRICT, context=1, lpips=judges.lpips, features=judges.features))
    told = [futures[0], *(futures_of(sentences, 0) for sentences in asked.variants[1:])]
    into.squares.append(torch.stack([mse(truth, future).mean(1) for future in told]))
    into.futures.append(futures)
