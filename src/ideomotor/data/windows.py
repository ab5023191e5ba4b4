"""Windows: which frames and actions of an episode make one sample, and which episodes are held out."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ideomotor.data.acting_windows import ActingWindow
from ideomotor.data.distant_windows import DistantWindow
from ideomotor.data.segments import SegmentWindow
from ideomotor.data.transforms import center_crop, covering_size, resize_and_crop
from ideomotor.data.whole_clips import WholeClip
from ideomotor.types import Dataset, Episode


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The shape of a sample around its anchor, the last frame that is seen.

    Attributes:
        context: frames seen, the anchor among them.
        horizon: frames foretold, after the anchor; 0 for acting without foresight.
        stride: frames of the recording from one frame of the window to the next.
        chunk: actions from the anchor on, one a frame of the recording whatever the stride.
        every: distance between neighbouring anchors.
        outlook: actions behind the chunk that a sample holds too, for a loss that looks further than the policy acts.
    """

    context: int = 4
    horizon: int = 4
    stride: int = 4
    chunk: int = 8
    every: int = 1
    outlook: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("horizon", "outlook") else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"window has {field.name}={value!r}; it must be a whole number of at least {least}")

    @property
    def frames(self) -> int:
        """Frames of a window: context and horizon."""
        return self.context + self.horizon

    def anchors(self, length: int) -> int:
        """Returns how many windows an episode of ``length`` frames has."""
        return -(-length // self.every)

    def frame_indices(self, anchor: int, length: int, draw: int = 0) -> Int[np.ndarray, " t"]:
        """Returns the frames of the window at ``anchor``: context, then horizon; nothing of it is drawn.

        Before the start of an episode of ``length`` frames its first frame is repeated, past the end its last.
        """
        return np.clip(anchor + self.stride * np.arange(1 - self.context, self.horizon + 1), 0, length - 1)

    def action_indices(self, anchor: int, length: int) -> tuple[Int[np.ndarray, " chunk"], Bool[np.ndarray, " chunk"]]:
        """Returns the frames whose actions make chunk and outlook at ``anchor``, and where they were really recorded.

        Past the end of an episode of ``length`` frames the last action is repeated, and the mask is False.
        """
        wanted = anchor + np.arange(self.chunk + self.outlook)
        return np.minimum(wanted, length - 1), wanted < length

    def actions(
        self, recorded: Float[np.ndarray, "t action"], anchor: int, draw: int = 0
    ) -> tuple[Float[np.ndarray, "chunk action"], Bool[np.ndarray, " chunk"]]:
        """Returns chunk and outlook at ``anchor``, and where they were really recorded: see ``action_indices``."""
        rows, mask = self.action_indices(anchor, len(recorded))
        return recorded[rows], mask

    @property
    def key(self) -> list[Hashable]:
        """What decides which frames the windows of an episode show; the chunk of actions does not."""
        return [self.context, self.horizon, self.stride, self.every]


PacedWindow = WindowConfig | ActingWindow | DistantWindow | SegmentWindow
"""Windows whose frames are a stride apart, whose starts lie a step apart."""
Window = PacedWindow | WholeClip


class WindowIndex:
    """Every window of a dataset, numbered; a window never straddles two episodes.

    Episodes come in the dataset's order, and their anchors are 0, every, 2 * every, ..., as many as the window says.
    """

    def __init__(self, dataset: Dataset, config: Window) -> None:
        """Counts the windows; nothing is decoded.

        Raises:
            ValueError: the dataset has no episode, an episode has no frame, or none gives a window.
        """
        if not dataset.episodes:
            left_out = f" ({len(dataset.quarantined)} left out as damaged)" if dataset.quarantined else ""
            raise ValueError(
                f"dataset {dataset.name!r} has no episodes{left_out}; windows need at least one: check {dataset.path}"
            )
        empty = [episode.id for episode in dataset.episodes if episode.length < 1]
        if empty:
            raise ValueError(f"episode {empty[0]!r} of dataset {dataset.name!r} has no frames: leave it out")
        self.dataset, self.config = dataset, config
        self._ends = list(accumulate(config.anchors(episode.length) for episode in dataset.episodes))
        if not self._ends[-1]:
            lengths = [episode.length for episode in dataset.episodes]
            raise ValueError(
                f"none of the {len(dataset.episodes)} episodes of dataset {dataset.name!r} gives a window: they have "
                f"{min(lengths)} to {max(lengths)} frames, too many or too few for {config}"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, window: int) -> tuple[int, int]:
        """Returns the number of the episode that window ``window`` lies in, and its anchor frame.

        Raises:
            IndexError: there is no such window.
        """
        if not 0 <= window < len(self):
            raise IndexError(
                f"window {window} of {len(self)} of dataset {self.dataset.name!r}: ask for 0..{len(self) - 1}"
            )
        episode = bisect_right(self._ends, window)
        return episode, (window - self.windows_of(episode).start) * self.config.every

    def windows_of(self, episode: int) -> range:
        """Returns the numbers of the windows of one episode, given by its number."""
        return range(self._ends[episode - 1] if episode else 0, self._ends[episode])

    def read(
        self,
        windows: Sequence[int],
        camera: str,
        size: tuple[int, int] | None = None,
        draws: Sequence[int] | None = None,
    ) -> UInt8[Tensor, "b t c h w"]:
        """Returns the frames of these windows, scaled to cover ``size`` (height, width) and cut to its centre.

        ``draws`` holds a number a window, for windows that draw their frames at random; 0 by default.

        Raises:
            ValueError: two windows differ in height or width (pass ``size``), or a file is damaged.
        """
        batch: UInt8[Tensor, "b t c h w"] | None = None
        for row, window in enumerate(windows):
            number, anchor = self.locate(window)
            episode = self.dataset.episodes[number]
            picked = self.config.frame_indices(anchor, episode.length, draws[row] if draws is not None else 0)
            frames = read_frames(episode, camera, picked.tolist(), size)
            if batch is None:
                batch = torch.empty((len(windows), *frames.shape), dtype=torch.uint8)
            if frames.shape != batch.shape[1:]:
                raise ValueError(
                    f"episode {episode.id!r} gives frames {tuple(frames.shape)}, others {tuple(batch.shape[1:])}; "
                    "a batch needs one height and width: set size, or make a cache"
                )
            # By numpy, which copies in this thread: torch would share so small a copy among its threads, and wait.
            batch.numpy()[row] = frames.numpy()
        if batch is None:
            raise ValueError("no windows were asked for; a batch needs at least one")
        return batch


def rewards_in(
    window: Window, recorded: Float[np.ndarray, " t"], anchor: int, draw: int = 0
) -> Float[np.ndarray, " chunk"]:
    """Returns what the window's actions brought."""
    if isinstance(window, SegmentWindow):
        return window.rewards(recorded, anchor, draw)
    return window.actions(recorded[:, None], anchor, draw)[0][:, 0]  # cut as actions are


def refuse_other_context(frames: Mapping[str, UInt8[Tensor, "b t c h w"]], window: Window) -> None:
    """Refuses more or fewer frames than a policy was trained to look at: it would act on the wrong ones.

    Raises:
        ValueError: naming the camera, what came and what was wanted.
    """
    for camera, video in frames.items():
        if video.shape[1] != window.context:
            raise ValueError(
                f"camera {camera!r} shows {video.shape[1]} frames; the policy was trained on a context of "
                f"{window.context}, {window.stride} apart: give that many, the newest last (at the start of an episode "
                "its first frame again)"
            )


def refuse_still(dataset: Dataset, window: Window) -> None:
    """Refuses a stride that reaches over every episode: each window would show a frame, and then the last one again.

    Raises:
        ValueError: naming the stride and the longest episode.
    """
    alone = window.context + window.horizon == 1  # a frame by itself
    if alone or window.stride == 1 or isinstance(window, SegmentWindow) or not dataset.episodes:
        return  # segments of short episodes are taken at a smaller stride
    longest = max(dataset.episodes, key=lambda episode: episode.length)
    if longest.length <= window.stride:
        raise ValueError(
            f"frames of dataset {dataset.name!r} would be taken {window.stride} apart, and its longest episode, "
            f"{longest.id!r}, has {longest.length}: every clip would show one frame and then the last again and again. "
            f"Take them at most {max(1, longest.length - 1)} apart (--strides, or --window.stride in all stages; in a "
            "mix, stride or seconds)"
        )


def read_frames(
    episode: Episode, camera: str, indices: Sequence[int], size: tuple[int, int] | None = None, smooth: bool = True
) -> UInt8[Tensor, "t c h w"]:
    """Returns frames of one camera, scaled to cover ``size`` (height, width) and cut to its centre, if one is given.

    ``smooth`` as in ``transforms.resize``.
    """
    frames = episode.frames[camera]
    if size is None:
        return frames.read(indices)
    if not smooth:
        return resize_and_crop(frames.read(indices), size, smooth=False)
    _, _, height, width = frames.shape
    return center_crop(frames.read(indices, size=covering_size((height, width), size)), size)


def split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Returns the episodes to learn from and those held out, ``fraction`` of them, both in the dataset's order.

    Who is held out depends on ``seed`` and the episodes' ids alone, not on their order. Episodes with the same text are
    shared out in proportion, so that every task with enough recordings is on both sides; each side has at least one.
    Episodes of one recording count as one and stay together: else what is held out would have been seen.

    Raises:
        ValueError: ``fraction`` is not between 0 and 1, or there are fewer than two recordings.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"a held-out fraction of {fraction} was asked for; it must lie between 0 and 1, e.g. 0.1")
    texts: dict[str, str] = {}
    for episode in dataset.episodes:
        texts.setdefault(_recording(episode), episode.text)
    total = len(texts)
    if total < 2:
        count = len(dataset.episodes)
        raise ValueError(
            f"dataset {dataset.name!r} has {count} episodes{' of one recording' if count > total else ''}; a split "
            "needs at least 2: record more, or hold out none (--validation 0)"
        )
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, text in texts.items():
        groups[text].append((_hash(seed, name), name))
    held: set[str] = set()
    waiting: list[tuple[float, str, str]] = []
    for members in groups.values():
        members.sort()
        whole, rest = divmod(fraction * len(members), 1)
        held.update(name for _, name in members[: int(whole)])
        # The next in line of each task takes the seats that rounding down left, largest remainder first.
        waiting += [(-rest, *members[int(whole)])] if rest > 0 else []
    seats = min(max(round(fraction * total), 1), total - 1) - len(held)
    held.update(name for _, _, name in sorted(waiting)[: max(seats, 0)])
    sides = ([e for e in dataset.episodes if (_recording(e) in held) == side] for side in (False, True))
    train, validation = (replace(dataset, episodes=tuple(side)) for side in sides)
    return train, validation


def _recording(episode: Episode) -> str:
    return episode.recording or episode.id


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
