"""Named ways to score imagined videos: which frames count, and how several futures of one video become one figure.

Published figures differ in both, and by more than the methods do. So a table carries the name of its protocol and its
numbers of videos, futures and frames; figures that differ in any of these do not compare.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.evaluation.frechet import Divisor, frechet_estimate, moments
from ideomotor.evaluation.statistics import Estimate, mean_of_clips
from ideomotor.evaluation.video_features import VideoFeatures
from ideomotor.evaluation.video_metrics import PictureDistance, mse, perceptual, psnr, ssim

Reduction = Literal["mean", "best"]
"""Over the futures of a video: their mean, or the best one (of each metric apart, as the papers do)."""

PSNR_EPSILON = 1e-8
LOWER_IS_BETTER = {"mse": True, "psnr": False, "ssim": False, "lpips": True}
BLOCKS = 20
"""Of videos that the interval of a Frechet distance leaves out one by one."""


@dataclass(frozen=True, kw_only=True)
class VideoProtocol:
    """A way to score.

    Attributes:
        name: what the figures are reported under.
        context_counts: whether the context frames are scored too, as the tokenizer gives them back.
        reductions: of the futures of a video.
        divisor: of the covariances in the Frechet distance.
    """

    name: str
    context_counts: bool
    reductions: tuple[Reduction, ...]
    divisor: Divisor


IVIDEOGPT = VideoProtocol(name="ivideogpt", context_counts=True, reductions=("best",), divisor="population")
"""As published with iVideoGPT (there with 100 futures of 256 videos): mean over all frames, **context included**, best
future of each metric apart, mean over videos. Giving back what was shown is easier than foretelling, and the best of
many is nearer than any one: not to be set beside figures of future frames, or of one future."""

STRICT = VideoProtocol(name="strict", context_counts=False, reductions=("mean", "best"), divisor="sample")
"""Only the frames that were foretold. The mean is what a user of one future gets; the best of n shows whether the truth
is among the futures."""


@dataclass(frozen=True)
class Comparison:
    """Futures of some videos beside the truth; ``join`` those of many batches, then make the table.

    Attributes:
        values: by metric, of each future of each video, mean over the frames that count.
        real: by the name of the Frechet distance on them, vectors of the true videos; empty if none were asked for.
        fake: the same of the futures.
        protocol: what it was made under.
        frames: how many frames of a video were scored.
    """

    values: dict[str, Float[Tensor, "futures b"]]
    real: dict[str, Float[Tensor, "b k d"]]
    fake: dict[str, Float[Tensor, "futures b k d"]]
    protocol: VideoProtocol
    frames: int


@dataclass(frozen=True)
class VideoTable:
    """Figures with their intervals.

    Attributes:
        protocol: its name.
        videos: how many true ones.
        futures: how many of each.
        frames: how many frames of each were scored.
        rows: by metric and reduction; a Frechet distance is over "all" futures.
    """

    protocol: str
    videos: int
    futures: int
    frames: int
    rows: dict[tuple[str, str], Estimate]

    def markdown(self) -> str:
        """Returns the table as text, with what it needs to be compared."""
        made = f"{self.videos} videos, {self.futures} futures each, {self.frames} frames scored"
        lines = [
            f"Protocol `{self.protocol}`: {made}.",
            "",
            "| metric | futures | value | 95 % interval |",
            "|---|---|---|---|",
        ]
        for (metric, reduction), row in self.rows.items():
            lines.append(f"| {metric} | {reduction} | {row.value:.4g} | {row.low:.4g} to {row.high:.4g} |")
        return "\n".join(lines)


def evaluate_videos(
    truth: UInt8[Tensor, "b t c h w"],
    futures: UInt8[Tensor, "futures b t c h w"],
    protocol: VideoProtocol,
    *,
    context: int,
    episodes: Sequence[Hashable] | None = None,
    lpips: PictureDistance | None = None,
    features: Sequence[VideoFeatures] = (),
) -> VideoTable:
    """Returns the table of videos that fit into memory; of more, ``video_table(join([compare_videos(...), ...]))``.

    Args:
        truth: what happened, context frames first.
        futures: what was imagined for the same frames, context frames (as the tokenizer gives them back) included.
        protocol: ``IVIDEOGPT`` or ``STRICT``.
        context: how many frames were seen.
        episodes: which episode each video was cut from; see ``mean_of_clips``.
        lpips: the network with the trained weights of LPIPS, where the videos are; without it there is no such row.
        features: each for a Frechet distance, which is reported under its name; without them there is none.

    Raises:
        ValueError: shapes that do not fit, or a context that leaves no future frame.
    """
    return video_table(
        compare_videos(truth, futures, protocol, context=context, lpips=lpips, features=features), episodes
    )


def compare_videos(
    truth: UInt8[Tensor, "b t c h w"],
    futures: UInt8[Tensor, "futures b t c h w"],
    protocol: VideoProtocol,
    *,
    context: int,
    lpips: PictureDistance | None = None,
    features: Sequence[VideoFeatures] = (),
) -> Comparison:
    """Returns one batch of videos compared; see ``evaluate_videos``."""
    if futures.ndim != 6 or futures.shape[0] < 1 or futures.shape[1:] != truth.shape:
        raise ValueError(
            f"futures are {tuple(futures.shape)} for a truth of {tuple(truth.shape)}; wanted `n b t c h w`, at "
            "least one future of each video with the same frames, context frames included"
        )
    if not 1 <= context < truth.shape[1]:
        raise ValueError(f"context {context} of {truth.shape[1]} frames; wanted at least 1 seen and 1 foretold frame")
    first = 0 if protocol.context_counts else context
    truth, futures = truth[:, first:], futures[:, :, first:]
    parts = [frame_scores(truth, future, lpips) for future in futures]
    return Comparison(
        values={name: torch.stack([part[name] for part in parts]).mean(-1).cpu() for name in parts[0]},
        real={each.name: each(truth) for each in features},
        fake={each.name: torch.stack([each(future) for future in futures]) for each in features},
        protocol=protocol,
        frames=truth.shape[1],
    )


def frame_scores(
    truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"], lpips: PictureDistance | None = None
) -> dict[str, Float[Tensor, "b t"]]:
    """Returns every metric of every frame: ``mse``, ``psnr`` (dB, at most 80), ``ssim``, and ``lpips`` if given."""
    scores = {
        "mse": mse(truth, imagined),
        "psnr": psnr(truth, imagined, PSNR_EPSILON),
        "ssim": ssim(truth, imagined),
    }
    return scores | ({"lpips": perceptual(truth, imagined, lpips)} if lpips is not None else {})


def join(parts: Sequence[Comparison]) -> Comparison:
    """Returns the comparison of all the videos.

    Raises:
        ValueError: no part, or parts made differently (protocol, metrics, frames, futures).
    """
    made = [(part.protocol, part.frames, *part.real, *((n, len(v)) for n, v in part.values.items())) for part in parts]
    if len(set(made)) != 1:
        raise ValueError(f"parts made in {len(set(made))} ways cannot be joined: {set(made)}; wanted one way for all")
    return Comparison(
        values={name: torch.cat([part.values[name] for part in parts], dim=1) for name in parts[0].values},
        real={name: torch.cat([part.real[name] for part in parts]) for name in parts[0].real},
        fake={name: torch.cat([part.fake[name] for part in parts], dim=1) for name in parts[0].fake},
        protocol=parts[0].protocol,
        frames=parts[0].frames,
    )


def video_table(comparison: Comparison, episodes: Sequence[Hashable] | None = None) -> VideoTable:
    """Returns the figures over all videos; ``episodes`` as in ``evaluate_videos``, one for each video in its order."""
    rows: dict[tuple[str, str], Estimate] = {}
    for name, values in comparison.values.items():
        for reduction in comparison.protocol.reductions:
            rows[name, reduction] = mean_of_clips(reduced(values, reduction, LOWER_IS_BETTER[name]).tolist(), episodes)
    futures, videos = next(iter(comparison.values.values())).shape
    blocks = _blocks(range(videos) if episodes is None else episodes)
    for name, vectors in comparison.real.items():
        real = [moments(vectors[block].flatten(0, 1)) for block in blocks]
        fake = [moments(comparison.fake[name][:, block].flatten(0, 2)) for block in blocks]
        rows[name, "all"] = frechet_estimate(real, fake, comparison.protocol.divisor)
    return VideoTable(comparison.protocol.name, videos, futures, comparison.frames, rows)


def reduced(values: Float[Tensor, "futures b"], reduction: Reduction, lower_is_better: bool) -> Float[Tensor, " b"]:
    """Returns one value a video: the mean over its futures, or its best future."""
    if reduction == "mean":
        return values.mean(0)
    return values.amin(0) if lower_is_better else values.amax(0)


def _blocks(episodes: Sequence[Hashable]) -> list[list[int]]:
    """Returns the videos in up to ``BLOCKS`` blocks of whole episodes."""
    names = {name: number for number, name in enumerate(dict.fromkeys(episodes))}
    blocks: list[list[int]] = [[] for _ in range(min(BLOCKS, len(names)))]
    for video, name in enumerate(episodes):
        blocks[names[name] % len(blocks)].append(video)
    return blocks
