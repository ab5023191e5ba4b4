"""Replay: episodes of an agent on disk, demonstrations beside them, and batches drawn from both.

A file is an npz of the replay layout (see ``data.formats.npz``): ``observation``, ``action``, ``reward``, ``discount``,
row ``i`` of the last three being what led to row ``i`` of the first. Ours hold single frames, which are stacked when
drawn; files with stacks (the published demonstrations) are read too, when their stacks are what stacking would give.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from ideomotor import files
from ideomotor.types import Quarantined, Transitions

_ARRAYS = ("observation", "action", "reward", "discount")
_BROKEN = (OSError, ValueError, EOFError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode, in memory. Row 0 is the reset: action and reward are zero there.

    Attributes:
        frames: single ones.
        actions: row ``i`` led to frame ``i``.
        rewards: row ``i`` came with frame ``i``.
        discounts: 1 while the episode goes on.
    """

    frames: UInt8[np.ndarray, "t c h w"]
    actions: Float32[np.ndarray, "t action"]
    rewards: Float32[np.ndarray, " t"]
    discounts: Float32[np.ndarray, " t"]

    def __post_init__(self) -> None:
        rows = len(self.frames)
        lengths = (len(self.actions), len(self.rewards), len(self.discounts))
        if rows < 2 or set(lengths) != {rows} or self.frames.ndim != 4 or self.actions.ndim != 2:
            raise ValueError(
                f"frames have shape {self.frames.shape}, actions {self.actions.shape}, rewards {self.rewards.shape}, "
                f"discounts {self.discounts.shape}; wanted (t, c, h, w), (t, a), (t,), (t,) with at least 2 rows each"
            )
        for name, rows_of in (("actions", self.actions), ("rewards", self.rewards), ("discounts", self.discounts)):
            if not np.isfinite(rows_of).all():
                raise ValueError(f"{name} hold numbers that are not finite")

    def __len__(self) -> int:
        """Number of actions: one less than frames."""
        return len(self.frames) - 1

    def stacked(
        self, row: int, stack: int, out: UInt8[np.ndarray, "stack c h w"] | None = None
    ) -> UInt8[np.ndarray, "stack c h w"]:
        """Returns the last ``stack`` frames at a row, the first frame standing in for those before it."""
        return np.take(self.frames, np.arange(row - stack + 1, row + 1), axis=0, out=out, mode="clip")

    def coarse(self, held: int, start: int = 0) -> Trajectory:
        """Returns every ``held``-th frame from ``start`` on, with what was done between two as one action, their mean,
        and what it brought as one reward, their sum: how an agent that holds its actions so long would have it.

        Raises:
            ValueError: not even two frames are left.
        """
        steps = (len(self) - start) // held if held > 0 and start >= 0 else 0
        if steps < 1:
            raise ValueError(f"an episode of {len(self)} steps has no {held} of them from step {start} on")
        between = slice(start + 1, start + 1 + steps * held)
        first = slice(start, start + 1)

        def joined(rows: np.ndarray, how: Callable[..., np.ndarray]) -> np.ndarray:
            return how(rows[between].reshape(steps, held, *rows.shape[1:]), 1)

        return Trajectory(
            frames=self.frames[start::held][: steps + 1],
            actions=np.concatenate([0 * self.actions[first], joined(self.actions, np.mean)]),
            rewards=np.concatenate([0 * self.rewards[first], joined(self.rewards, np.sum)]),
            discounts=np.concatenate([0 * self.discounts[first] + 1, joined(self.discounts, np.prod)]),
        )


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A batch of windows for a world model.

    Attributes:
        frames: single ones.
        actions: row ``k`` is taken at frame ``k`` and leads to frame ``k + 1``.
        rewards: row ``k`` is what action ``k`` brought, so it belongs to frame ``k + 1``. (The published world model
            is taught row ``k`` as the reward of frame ``k``, one step late.)
    """

    frames: UInt8[Tensor, "b t c h w"]
    actions: Float[Tensor, "b t action"]
    rewards: Float[Tensor, "b t"]


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How experience is drawn.

    Attributes:
        stack: frames of an observation.
        steps: rewards that are summed before the next observation's value counts.
        discount: of each step.
        capacity: the agent's own steps that are drawn from, the newest; demonstrations always stay.
    """

    stack: int = 3
    steps: int = 3
    discount: float = 0.99
    capacity: int = 1_000_000

    def __post_init__(self) -> None:
        if min(self.stack, self.steps, self.capacity) < 1 or not 0 <= self.discount <= 1:
            raise ValueError(
                f"stack {self.stack}, steps {self.steps}, capacity {self.capacity} must be 1 or more, and discount "
                f"{self.discount} in 0..1"
            )


class Replay:
    """The episodes of one agent in a folder of its own, and demonstrations that are only ever read.

    A batch is a pure function of the seed, the number of the draw and the episodes that are there. No file is ever
    deleted but by ``rewind``, which takes back the agent's own newest episodes when a run goes on from before them.

    Attributes:
        demonstrations: their names and episodes, in the order of the names.
        episodes: what is drawn from: the demonstrations, then the agent's newest episodes that fit the capacity.
        quarantined: files that were left out, and why.

    Raises:
        ValueError: there are no readable demonstrations in the folder that was named, or it is the agent's own.
    """

    def __init__(self, folder: Path, config: ReplayConfig, demonstrations: Path | None = None) -> None:
        if demonstrations is not None and demonstrations.resolve() == folder.resolve():
            raise ValueError(
                f"{folder} is the agent's own replay, whose episodes are taken away when a run begins anew: give "
                "demonstrations that lie elsewhere (copy them)"
            )
        self.folder, self.config = folder, config
        self.quarantined: list[Quarantined] = []
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        self.demonstrations = dict(self._read(sorted(demonstrations.glob("*.npz")))) if demonstrations else {}
        if demonstrations and not self.demonstrations:
            raise ValueError(_no_demonstrations(demonstrations, self.quarantined))
        self._own = {int(name): episode for name, episode in self._read(sorted(folder.glob("[0-9]" * 6 + ".npz")))}
        self._arrange()

    def add(self, number: int, episode: Trajectory) -> None:
        """Writes the agent's episode of that number, whole or not at all, and draws from it from now on."""
        write_trajectory(self.folder / f"{number:06d}.npz", episode)
        self._own[number] = episode
        self._arrange()

    def rewind(self, count: int) -> None:
        """Takes back the agent's own episodes of number ``count`` and above, on disk too.

        Raises:
            ValueError: one of those before is not there.
        """
        missing = [number for number in range(count) if number not in self._own]
        if missing:
            raise ValueError(
                f"{self.folder} has no readable episode {missing[0]:06d}.npz of the {count} that were collected: "
                "bring the file back, or begin the run anew (--fresh)"
            )
        for number in [number for number in self._own if number >= count]:
            (self.folder / f"{number:06d}.npz").unlink(missing_ok=True)
            del self._own[number]
        self._arrange()

    def own(self, number: int) -> Trajectory:
        """Returns the agent's episode of that number."""
        return self._own[number]

    def transitions(self, count: int, seed: int, draw: int) -> Transitions:
        """Returns a batch of transitions over ``config.steps`` steps, each start as likely as another.

        Raises:
            ValueError: no episode is long enough.
        """
        return draw_transitions(self.episodes, self.config, count, seed, draw)

    def segments(self, count: int, length: int, seed: int, draw: int) -> Segments:
        """Returns a batch of ``length`` frames, each with the action taken there and what it brought.

        Raises:
            ValueError: no episode is long enough.
        """
        return draw_segments(self.episodes, count, length, seed, draw)

    def _read(self, paths: list[Path]) -> Iterator[tuple[str, Trajectory]]:
        for path in paths:
            try:
                yield path.stem, read_trajectory(path)
            except ValueError as error:
                self.quarantined.append(Quarantined(path=str(path), reason=str(error)))

    def _arrange(self) -> None:
        newest = sorted(self._own, reverse=True)
        steps = accumulate(len(self._own[number]) for number in newest)
        fitting = [number for number, total in zip(newest, steps, strict=True) if total <= self.config.capacity]
        kept = sorted(fitting or newest[:1])
        self.episodes = [*self.demonstrations.values(), *(self._own[number] for number in kept)]
        shapes = {(e.frames.shape[1:], e.actions.shape[1:]) for e in self.episodes}
        if len(shapes) > 1:
            raise ValueError(
                f"episodes in {self.folder} and the demonstrations have frames and actions of shapes {sorted(shapes)}; "
                "wanted one: give demonstrations of the same task, camera and picture size"
            )


def write_trajectory(path: Path, episode: Trajectory) -> None:
    """Writes an episode in the replay layout, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as draft, draft.open("wb") as file:
        np.savez_compressed(
            file,
            observation=episode.frames,
            action=episode.actions,
            reward=episode.rewards[:, None],
            discount=episode.discounts[:, None],
        )


def read_trajectory(path: Path) -> Trajectory:
    """Returns the episode in a file of the replay layout; its actions cut to -1..1, as the worlds do.

    Raises:
        ValueError: the file cannot be read, or arrays are missing or do not fit, hold pickled objects, or the stacked
            frames are not one another's; the message names the file.
    """
    try:
        return _trajectory(path)
    except _BROKEN as error:
        raise ValueError(f"{path} is no episode of the replay layout: {error}") from error


def _trajectory(path: Path) -> Trajectory:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is cut short, damaged or no npz file" if path.is_file() else "there is no such file")
    with np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}, only {', '.join(arrays) or 'nothing'}")
        observation, action, reward, discount = (arrays[name] for name in _ARRAYS)
    if observation.dtype != np.uint8 or observation.ndim != 4 or observation.shape[1] % 3:
        raise ValueError(f"observation is {observation.dtype} {observation.shape}; wanted uint8 (t, 3 k, h, w)")
    frames = np.ascontiguousarray(observation[:, -3:])
    episode = Trajectory(
        frames=frames,
        actions=np.clip(action.astype(np.float32), -1.0, 1.0),
        rewards=reward.astype(np.float32).reshape(-1),
        discounts=discount.astype(np.float32).reshape(-1),
    )
    stack = observation.shape[1] // 3
    for age in range(1, stack):
        older = observation[:, 3 * (stack - 1 - age) : 3 * (stack - age)]
        if not np.array_equal(older, frames[np.maximum(np.arange(len(frames)) - age, 0)]):
            raise ValueError(f"its stacks of {stack} frames are not the frames of the rows before")
    return episode


def draw_transitions(
    episodes: Sequence[Trajectory], config: ReplayConfig, count: int, seed: int, draw: int, first: int = 0
) -> Transitions:
    """Returns transitions that start at row ``first`` of an episode or later, each as likely as another.

    Raises:
        ValueError: no episode is long enough.
    """
    starts = _starts(episodes, count, config.steps, seed, draw, first)
    frames, following = (_stacks([(e, row + ahead) for e, row in starts], config) for ahead in (0, config.steps))
    rewards, discounts = np.array([_returns(e, row, config) for e, row in starts], np.float32).T
    return Transitions(
        frames=torch.from_numpy(frames),
        actions=torch.from_numpy(np.stack([e.actions[row + 1] for e, row in starts])),
        rewards=torch.from_numpy(rewards.copy()),
        discounts=torch.from_numpy(discounts.copy()),
        next_frames=torch.from_numpy(following),
    )


def draw_segments(episodes: Sequence[Trajectory], count: int, length: int, seed: int, draw: int) -> Segments:
    """Returns segments of ``length`` frames, each start as likely as another.

    Raises:
        ValueError: no episode is long enough.
    """
    starts = _starts(episodes, count, length, seed, draw)
    return Segments(
        frames=torch.from_numpy(np.stack([e.frames[row : row + length] for e, row in starts])),
        actions=torch.from_numpy(np.stack([e.actions[row + 1 : row + 1 + length] for e, row in starts])),
        rewards=torch.from_numpy(np.stack([e.rewards[row + 1 : row + 1 + length] for e, row in starts])),
    )


def _stacks(places: list[tuple[Trajectory, int]], config: ReplayConfig) -> UInt8[np.ndarray, "b stack c h w"]:
    stacks = np.empty((len(places), config.stack, *places[0][0].frames.shape[1:]), np.uint8)
    for (episode, row), out in zip(places, stacks, strict=True):
        episode.stacked(row, config.stack, out)
    return stacks


def _starts(
    episodes: Sequence[Trajectory], count: int, steps: int, seed: int, draw: int, first: int = 0
) -> list[tuple[Trajectory, int]]:
    """Rows from ``first`` on after each of which ``steps`` actions follow, drawn evenly over all there are."""
    ends = np.cumsum([max(len(episode) - steps - first + 1, 0) for episode in episodes])
    if not len(ends) or not ends[-1]:
        longest = max((len(episode) - first for episode in episodes), default=0)
        raise ValueError(
            f"replay has {len(episodes)} episodes, the longest of {longest} steps; wanted one of {steps} or more: "
            "collect an episode first, or draw shorter pieces"
        )
    rng = np.random.Generator(np.random.Philox(key=[seed, draw]))
    places = rng.integers(ends[-1], size=count)
    of = np.searchsorted(ends, places, side="right")
    return [(episodes[i], first + int(place - (ends[i - 1] if i else 0))) for i, place in zip(of, places, strict=True)]


def _returns(episode: Trajectory, row: int, config: ReplayConfig) -> tuple[np.float32, np.float32]:
    """The discounted sum of the rewards after ``row``, and what the value after them counts."""
    total, discount = np.float32(0), np.float32(1)
    for step in range(row + 1, row + 1 + config.steps):
        total += discount * episode.rewards[step]
        discount *= episode.discounts[step] * np.float32(config.discount)
    return total, discount


def _no_demonstrations(folder: Path, quarantined: list[Quarantined]) -> str:
    why = f"; left out: {quarantined[0].reason}" if quarantined else ""
    return (
        f"{folder} holds no demonstration that can be read{why}. Wanted .npz files with observation, action, reward "
        "and discount: give the folder of one task, or train without demonstrations"
    )
