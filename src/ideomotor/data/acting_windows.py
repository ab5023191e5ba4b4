"""Windows for learning to act from one frame: that frame, the state and the chunk of actions from it on."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class ActingWindow:
    """The shape of a sample that shows its anchor alone.

    Attributes:
        chunk: actions from the anchor on; past the end of an episode its last is repeated.
        stride: frames of the recording from one action of the chunk to the next.
        every: distance between neighbouring anchors.
        remain: frames of the episode that there must be from the anchor on; an episode of fewer has no window.

    Source:
        VPP (arXiv 2412.14803): its release acts on CALVIN with a chunk of 10 and 21 frames that remain
        (``min_window_size``), on its own robots with a chunk of 8, of frames that are repeated at the end.
    """

    chunk: int = 10
    stride: int = 1
    every: int = 1
    remain: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"acting window has {field.name}={getattr(self, field.name)}; it must be at least 1")

    @property
    def context(self) -> int:
        """Frames seen: one."""
        return 1

    @property
    def horizon(self) -> int:
        """Frames foretold: none."""
        return 0

    @property
    def key(self) -> list[Hashable]:
        """What decides which frames the windows of an episode show."""
        return ["acting", self.every, self.remain]

    def anchors(self, length: int) -> int:
        """Returns how many windows an episode of ``length`` frames has."""
        return -(-max(length - self.remain + 1, 0) // self.every)

    def frame_indices(self, anchor: int, length: int, draw: int = 0) -> Int[np.ndarray, " t"]:
        """Returns the anchor."""
        return np.array([anchor])

    def actions(
        self, recorded: Float[np.ndarray, "t action"], anchor: int, draw: int = 0
    ) -> tuple[Float[np.ndarray, "chunk action"], Bool[np.ndarray, " chunk"]]:
        """Returns the chunk at ``anchor``, and where it was really recorded."""
        wanted = anchor + self.stride * np.arange(self.chunk)
        return recorded[np.minimum(wanted, len(recorded) - 1)], wanted < len(recorded)
