"""Windows of the VPDD release: what is seen now, and what is seen a while later, with nothing of the way between."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class DistantWindow:
    """The shape of a sample around its anchor, the last frame that is seen.

    Attributes:
        frames: successive frames seen, and as many foretold.
        ahead: from the anchor to the last frame foretold; at the end of an episode that is its last frame.
        chunk: actions from the anchor on, one a frame of the recording whatever the stride.
        stride: frames of the recording from one frame of the window to the next; ``ahead`` counts these.
        every: distance between neighbouring anchors.
    """

    frames: int = 4
    ahead: int = 20
    chunk: int = 4
    stride: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.ahead, self.chunk, self.stride, self.every) < 1:
            raise ValueError(
                f"frames={self.frames}, ahead={self.ahead}, chunk={self.chunk}, stride={self.stride} and "
                f"every={self.every} must be at least 1"
            )

    @property
    def context(self) -> int:
        """Frames seen, the anchor among them."""
        return self.frames

    @property
    def horizon(self) -> int:
        """Frames foretold."""
        return self.frames

    @property
    def key(self) -> list[Hashable]:
        """What decides which frames the windows of an episode show."""
        return ["distant", self.frames, self.ahead, self.stride, self.every]

    def anchors(self, length: int) -> int:
        """Returns how many windows an episode of ``length`` frames has."""
        return -(-length // self.every)

    def frame_indices(self, anchor: int, length: int, draw: int = 0) -> Int[np.ndarray, " t"]:
        """Returns the frames of the window: seen, then foretold; before the start the first frame is repeated."""
        back = self.stride * np.arange(1 - self.frames, 1)
        return np.concatenate([anchor + back, min(anchor + self.stride * self.ahead, length - 1) + back]).clip(0)

    def actions(
        self, recorded: Float[np.ndarray, "t action"], anchor: int, draw: int = 0
    ) -> tuple[Float[np.ndarray, "chunk action"], Bool[np.ndarray, " chunk"]]:
        """Returns the chunk with zeros past the episode's end, and where it was really recorded.

        The release trains on these zeros; the mask lets a loss leave them out.
        """
        wanted = anchor + np.arange(self.chunk)
        mask = wanted < len(recorded)
        chunk = recorded[np.minimum(wanted, len(recorded) - 1)]
        return np.where(mask[:, None], chunk, np.zeros_like(chunk)), mask


def one_of_each_task(episode: int, tasks: int = 50, demonstrations: int = 20) -> list[int]:
    """Returns the episodes that the release trains on together: the same demonstration of every task.

    Episodes are numbered task by task, each with as many demonstrations; ``episode`` comes first.
    """
    return [(episode + task * demonstrations) % (tasks * demonstrations) for task in range(tasks)]
