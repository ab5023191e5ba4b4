"""How clips of video are drawn from one data set: said in a config, never guessed from a name or a path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ideomotor.data.mixture import Source
from ideomotor.data.whole_clips import WholeClip
from ideomotor.data.windows import Window, WindowConfig
from ideomotor.types import Dataset


@dataclass(frozen=True, kw_only=True)
class StridedWindow:
    """Windows at one pace; past the end of an episode its last frame is repeated.

    Exactly one of ``stride`` and ``seconds`` is given. Seconds give data sets of different rates the same pace.

    Attributes:
        frames: of a window; the first is seen.
        stride: frames of the recording from one frame of the window to the next.
        seconds: the same as time; rounded to whole frames, 1 at least.
        start_step: frames of the recording from the start of one window to that of the next.

    Source:
        VPP (arXiv 2412.14803): its release takes 16 frames, a stride of 2 and a start step of 2 for CALVIN and its own
        robots.
    """

    frames: int = 16
    stride: int | None = None
    seconds: float | None = None
    start_step: int = 1

    def __post_init__(self) -> None:
        if (self.stride is None) == (self.seconds is None):
            raise ValueError(f"stride={self.stride} and seconds={self.seconds}: give one of them")
        if self.frames < 1 or self.start_step < 1 or (self.stride is not None and self.stride < 1):
            raise ValueError(
                f"frames={self.frames}, stride={self.stride}, start_step={self.start_step}: each must be at least 1"
            )
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds={self.seconds} between frames; it must be above 0")

    def window(self, fps: float) -> WindowConfig:
        """Returns the window for a recording of ``fps`` frames per second."""
        stride = self.stride if self.stride is not None else max(1, round((self.seconds or 0) * fps))
        return WindowConfig(context=1, horizon=self.frames - 1, stride=stride, every=self.start_step, chunk=self.frames)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One data set's part in a mixture of single views.

    Attributes:
        window: which frames make a clip.
        cameras: how often each camera is looked through, relative to the others; the first camera alone by default.
        weight: the data set's share of all clips, relative to the other data sets.
        domain: what its video is of; one of ``types.DOMAINS``.
    """

    window: WholeClip | StridedWindow = field(default_factory=WholeClip)
    cameras: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    domain: str = "unknown"

    def __post_init__(self) -> None:
        for name, share in (*self.cameras.items(), ("the data set", self.weight)):
            if not 0 < share < math.inf:
                raise ValueError(f"{name} has weight {share}; weights are positive: leave out what is not wanted")


def sampled_sources(dataset: Dataset, sampling: Sampling, size: tuple[int, int] | None = None) -> list[Source]:
    """Returns a source for each camera of a data set: every view is a clip of its own, called "main".

    Raises:
        ValueError: an episode lacks a camera, or a pace in seconds meets episodes of different rates.
    """
    window: Window
    if isinstance(sampling.window, StridedWindow):
        window = sampling.window.window(_fps(dataset) if sampling.window.seconds is not None else 1.0)
    else:
        window = sampling.window
    if not sampling.cameras:
        return [Source(dataset, sampling.weight, window, size=size, domain=sampling.domain)]
    total = sum(sampling.cameras.values())
    return [
        Source(dataset, sampling.weight * share / total, window, {"main": camera}, size, sampling.domain)
        for camera, share in sampling.cameras.items()
    ]


def _fps(dataset: Dataset) -> float:
    rates = sorted({episode.fps for episode in dataset.episodes})
    if not rates or rates[-1] - rates[0] > 0.01 * rates[0]:
        raise ValueError(
            f"the episodes of dataset {dataset.name!r} have {', '.join(f'{rate:g}' for rate in rates) or 'no'} frames "
            "per second; a pace in seconds needs one rate: split the data set, or give a stride"
        )
    return rates[0]
