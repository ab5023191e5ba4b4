"""Windows of the iVideoGPT release: segments of fixed length, in order of time or drawn at random."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ideomotor.data.permutation import mixed

Mode = Literal["in_order", "first", "goal", "random_selection", "random_shuffle"]


@dataclass(frozen=True, kw_only=True)
class SegmentWindow:
    """The shape of a segment; its anchor is the first frame of the stretch that its frames come from.

    - ``in_order``: ``frames`` frames, ``stride`` apart (training a world model).
    - ``first``: the same from frame 0 alone, one segment an episode (evaluation).
    - ``goal``: ``frames - 1`` such frames, and the last of them once more in front.
    - ``random_selection``: the context ``stride`` apart, then any of the recorded frames of the next
      ``(span - context) * stride``, drawn without replacement and put in order (training a tokenizer).
    - ``random_shuffle``: any of ``span`` frames that are ``stride`` apart, in any order (a tokenizer for goals).

    Where an episode is shorter than the stretch, the stride shrinks to what fits, to 1 at least, and then the last
    frame is repeated. What is drawn is a pure function of ``draw``, which ``ClipLoader`` makes of seed and sample.

    Attributes:
        frames: of the segment, context and what is to be foretold.
        context: of these, those that are seen.
        stride: frames of the recording from one frame to the next.
        mode: which frames; see above.
        span: of the two random modes, the length of the stretch in strides; ``frames`` by default.
        every: distance between neighbouring anchors.
        pooled: what is done between two frames counts as well: a frame's action is the mean of those until the next
            frame, its reward their sum. Without, as published, it is its own alone.

    Source:
        iVideoGPT (arXiv 2405.15223), section 4.1 and the data loader of its release. There an episode is drawn at
        random, then a start in it; here every start of every episode comes once before any comes again.
    """

    frames: int = 16
    context: int = 2
    stride: int = 1
    mode: Mode = "in_order"
    span: int | None = None
    every: int = 1
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.context < 1 or self.frames < self.context or min(self.stride, self.every) < 1:
            raise ValueError(
                f"segment has frames={self.frames}, context={self.context}, stride={self.stride}, every={self.every}: "
                "each is at least 1, and the context is part of the frames"
            )
        if self.span is not None and not (self._random and self.span >= self.frames):
            raise ValueError(
                f"segment of {self.frames} frames has mode={self.mode!r}, span={self.span}: only the random modes draw "
                "from a stretch, and it is at least as long as the segment"
            )
        if self.pooled and self.mode not in ("in_order", "first"):
            raise ValueError(
                f"segment has mode={self.mode!r} and pooled=True: only frames a stride apart (in_order, first) have "
                "actions between them to pool"
            )
        if self.mode == "goal" and self.frames < 3:
            raise ValueError(f"a segment with a goal has {self.frames} frames; it needs 3: goal, context, future")

    @property
    def horizon(self) -> int:
        """Frames foretold."""
        return self.frames - self.context

    @property
    def chunk(self) -> int:
        """Actions: one a frame of the segment, from its first frame on."""
        return self.frames

    @property
    def held(self) -> int:
        """Recorded steps that an action stands for; who acts in a world of such segments holds his so long."""
        return self.stride if self.pooled else 1

    @property
    def stretch(self) -> int:
        """Frames, a stride apart, of the stretch that the segment is taken from."""
        return self.frames - 1 if self.mode == "goal" else self.span or self.frames

    @property
    def key(self) -> list[Hashable]:
        """What decides which frames the windows of an episode show.

        Raises:
            ValueError: the frames are drawn anew each time.
        """
        if self._random:
            raise ValueError(f"segments of mode {self.mode!r} are drawn anew each time, so no cache can hold them")
        return ["segment", self.mode, self.frames, self.context, self.stride, self.every]

    def anchors(self, length: int) -> int:
        """Returns how many windows an episode of ``length`` frames has: one a start, all of them inside."""
        if self.mode == "first":
            return 1
        starts = max(length - self.stride_in(length) * self.stretch + 1, 1)
        return -(-starts // self.every)

    def frame_indices(self, anchor: int, length: int, draw: int = 0) -> Int[np.ndarray, " t"]:
        """Returns the frames of the segment that begins at ``anchor``; the last of the episode is repeated past it."""
        return np.minimum(self._wanted(anchor, length, draw), length - 1)

    def actions(
        self, recorded: Float[np.ndarray, "t action"], anchor: int, draw: int = 0
    ) -> tuple[Float[np.ndarray, "chunk action"], Bool[np.ndarray, " chunk"]]:
        """Returns the action taken at each frame of the segment, and where the frame is no repetition.

        They are the rows of those very frames: where frames are skipped, so are their actions, unless ``pooled``.

        Raises:
            ValueError: the frames are not in order of time, so no action leads from one to the next.
        """
        if self.mode in ("goal", "random_shuffle"):
            raise ValueError(f"segments of mode {self.mode!r} are not in order of time: load with actions=False")
        wanted = self._wanted(anchor, len(recorded), draw)
        taken = recorded[self._between(wanted, len(recorded))].mean(1, dtype=recorded.dtype)
        return taken, wanted < len(recorded)

    def rewards(self, recorded: Float[np.ndarray, " t"], anchor: int, draw: int = 0) -> Float[np.ndarray, " chunk"]:
        """Returns what those actions brought. Past the episode's end nothing more is brought where ``pooled``; else,
        as with actions, the last row comes again.
        """
        wanted = self._wanted(anchor, len(recorded), draw)
        if not self.pooled:
            return recorded[np.minimum(wanted, len(recorded) - 1)]
        sums = np.concatenate([[0.0], np.cumsum(recorded, dtype=np.float64)])
        until = np.minimum(wanted + self.stride_in(len(recorded)), len(recorded))
        return (sums[until] - sums[np.minimum(wanted, len(recorded))]).astype(recorded.dtype)

    def _between(self, wanted: Int[np.ndarray, " t"], length: int) -> Int[np.ndarray, "t between"]:
        """The recorded rows that count for each frame."""
        return np.minimum(wanted[:, None] + np.arange(self.stride_in(length) if self.pooled else 1), length - 1)

    @property
    def _random(self) -> bool:
        return self.mode in ("random_selection", "random_shuffle")

    def stride_in(self, length: int) -> int:
        """Returns how far apart the frames are in an episode of that length: the stride, or what fits."""
        return self.stride if self.stride * self.stretch <= length else max(length // self.stretch, 1)

    def _wanted(self, anchor: int, length: int, draw: int) -> Int[np.ndarray, " t"]:
        """The frames as if the episode went on; what is repeated lies at ``length`` or beyond."""
        stride = self.stride_in(length)
        grid = anchor + stride * np.arange(self.stretch)
        if self.mode == "goal":
            return np.concatenate([np.minimum(grid[-1:], length - 1), grid])
        if self.mode == "random_shuffle":
            return grid[_drawn(self.stretch, self.frames, draw)]
        if self.mode == "random_selection":
            first = anchor + stride * self.context
            beyond = min(anchor + stride * self.stretch, max(length, first + 1))
            picked = np.sort(first + _drawn(beyond - first, self.horizon, draw))
            missing = np.full(self.horizon - len(picked), length)
            return np.concatenate([grid[: self.context], picked, missing])
        return grid


def _drawn(total: int, count: int, draw: int) -> Int[np.ndarray, " drawn"]:
    """Some of ``0..total-1``, all different, in random order; all of them where there are no more."""
    start = mixed(np.array([draw % (1 << 64)], dtype=np.uint64))
    return np.argsort(mixed(start + np.arange(total, dtype=np.uint64)), kind="stable")[:count]
