"""Windows that show a whole recording, however long it took: a few frames spread evenly over all of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class WholeClip:
    """One window an episode: its first frame is seen, and frames spread evenly up to its last are to be foretold.

    In an episode shorter than the window, frames are repeated.

    Attributes:
        frames: of the window.
        longest: an episode of more frames than this has no window; None takes all.

    Source:
        VPP (arXiv 2412.14803): its release samples Something-Something, BridgeData and RT-1 so, with 16 frames of
        episodes of at most 100.
    """

    frames: int = 16
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 2 or (self.longest is not None and self.longest < 1):
            raise ValueError(
                f"whole clips have frames={self.frames}, longest={self.longest}: wanted 2 or more frames, and a "
                "longest episode of 1 or more (or None)"
            )

    @property
    def context(self) -> int:
        """Frames seen: the first."""
        return 1

    @property
    def horizon(self) -> int:
        """Frames foretold."""
        return self.frames - 1

    @property
    def chunk(self) -> int:
        """Actions: one a frame of the window."""
        return self.frames

    @property
    def stride(self) -> int:
        """1: what lies between two frames depends on the episode, so no stride is multiplied."""
        return 1

    @property
    def every(self) -> int:
        """1: an episode has one window."""
        return 1

    @property
    def key(self) -> list[Hashable]:
        """What decides which frames the windows of an episode show."""
        return ["whole", self.frames, self.longest]

    def anchors(self, length: int) -> int:
        """Returns how many windows an episode of ``length`` frames has: one, or none where it is too long."""
        return int(self.longest is None or length <= self.longest)

    def frame_indices(self, anchor: int, length: int, draw: int = 0) -> Int[np.ndarray, " t"]:
        """Returns the integer part of ``frames`` evenly spaced places from 0 to ``length - 1``."""
        return np.arange(self.frames) * (length - 1) // (self.frames - 1)

    def actions(
        self, recorded: Float[np.ndarray, "t action"], anchor: int, draw: int = 0
    ) -> tuple[Float[np.ndarray, "chunk action"], Bool[np.ndarray, " chunk"]]:
        """Returns the action taken at each of the frames; all were recorded."""
        return recorded[self.frame_indices(anchor, len(recorded))], np.ones(self.frames, dtype=bool)
