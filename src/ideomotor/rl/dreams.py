"""Rollouts inside a learned world: how they are made, and how a run keeps and draws from the newest of them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor import files
from ideomotor.data.replay import ReplayConfig, Trajectory, draw_transitions
from ideomotor.training.learner import LearnerState
from ideomotor.types import Transitions, WorldModel


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """A batch of them.

    Attributes:
        frames: those seen, a stack, and then those imagined.
        actions: the one that led to each imagined frame, in -1..1.
        rewards: of each imagined frame.
    """

    frames: UInt8[Tensor, "b t c h w"]
    actions: Float[Tensor, "b horizon action"]
    rewards: Float[Tensor, "b horizon"]


def imagine(
    world: WorldModel,
    seen: UInt8[Tensor, "b stack c h w"],
    horizon: int,
    act: Callable[[UInt8[Tensor, "b stack c h w"], int], Float[Tensor, "b action"]],
) -> Rollouts:
    """Returns what follows the frames seen, step by step: ``act`` sees the newest stack and the number of the step.

    Raises:
        ValueError: the world foretells no rewards, or wants more frames than a stack.
    """
    stack = seen.shape[1]
    if world.context > stack:
        raise ValueError(
            f"the world begins with {world.context} frames and an observation holds {stack}: stack more of them, or "
            "take a world of a shorter context"
        )
    state, frames = world.reset(seen), seen.cpu()
    actions, rewards = [], []
    for step in range(horizon):
        actions.append(act(frames[:, -stack:], step))
        imagined = world.step(state, actions[-1])
        state = imagined.state
        if imagined.reward is None:
            raise ValueError("this world foretells no reward, and an agent learns from rewards: give it a reward head")
        frames = torch.cat([frames, imagined.frames.cpu()[:, None]], 1)
        rewards.append(imagined.reward.cpu())
    return Rollouts(frames=frames, actions=torch.stack(actions, 1).cpu(), rewards=torch.stack(rewards, 1).float())


class Dreams:
    """The newest batches of rollouts of one run, in a folder of its own: a file a batch, written whole or not at all.

    A world that goes on learning cannot imagine them again, so they are on the disk before a state that knows of them
    is saved. What no saved state can ask for any more is removed. (A ``Kept`` of a run.)

    Attributes:
        keep: batches that are drawn from.
        made: batches so far.
    """

    def __init__(self, folder: Path, config: ReplayConfig, keep: int) -> None:
        self.folder, self.config, self.keep, self.made = folder, config, keep, 0
        self._batches: dict[int, list[Trajectory]] = {}
        self._needed = 0  # first batch that the newest saved state needs
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.part"):
            leftover.unlink()

    def __len__(self) -> int:
        """Number of imagined steps that are drawn from."""
        return sum(len(rollout) - self.config.stack + 1 for batch in self._batches.values() for rollout in batch)

    def begin(self) -> None:
        """Starts with nothing."""
        self._take_back(0)

    def add(self, rollouts: Rollouts) -> None:
        """Writes a batch, and draws from it from now on."""
        with files.replacing(self._path(self.made)) as draft, draft.open("wb") as file:
            np.savez_compressed(
                file,
                frames=rollouts.frames.numpy(),
                actions=rollouts.actions.numpy(),
                rewards=rollouts.rewards.numpy(),
            )
        self._batches[self.made] = self._trajectories(rollouts)
        self.made += 1
        self._batches.pop(self.made - 1 - self.keep, None)

    def transitions(self, count: int, seed: int, draw: int) -> Transitions:
        """Returns a batch of transitions, each start as likely as another; a pure function of what is kept."""
        rollouts = [rollout for number in sorted(self._batches) for rollout in self._batches[number]]
        return draw_transitions(rollouts, self.config, count, seed, draw, first=self.config.stack - 1)

    def state(self) -> LearnerState:
        """Returns how many batches there are; removes what the state saved before this one was the last to need."""
        for number in self._there():
            if number < self._needed:
                self._path(number).unlink(missing_ok=True)
        self._needed = max(0, self.made - self.keep)
        return LearnerState({}, {"step": self.made})

    def identity(self) -> dict[str, Any]:
        """Returns nothing: the run's config says all."""
        return {}

    def load_state(self, state: LearnerState) -> None:
        """Takes back batches that came after the state.

        Raises:
            ValueError: one that it needs cannot be read.
        """
        self._take_back(int(state.values["step"]))
        self._needed = max(0, self.made - self.keep)
        for number in range(self._needed, self.made):
            self._batches[number] = self._trajectories(_read(self._path(number)))

    def _take_back(self, made: int) -> None:
        for number in self._there():
            if number >= made:
                self._path(number).unlink(missing_ok=True)
        self.made, self._batches = made, {}

    def _trajectories(self, rollouts: Rollouts) -> list[Trajectory]:
        """As episodes; how the frames seen came about is of no interest, so nothing is drawn from there."""
        before, ones = self.config.stack, np.ones(rollouts.frames.shape[1], np.float32)
        frames = rollouts.frames.numpy()
        actions = np.pad(rollouts.actions.numpy(), ((0, 0), (before, 0), (0, 0)))
        rewards = np.pad(rollouts.rewards.numpy(), ((0, 0), (before, 0)))
        return [
            Trajectory(frames=frames[row], actions=actions[row], rewards=rewards[row], discounts=ones)
            for row in range(len(frames))
        ]

    def _there(self) -> Sequence[int]:
        return [int(path.stem) for path in self.folder.glob("[0-9]" * 6 + ".npz")]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def _read(path: Path) -> Rollouts:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Rollouts(**{name: torch.from_numpy(arrays[name]) for name in ("frames", "actions", "rewards")})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}, which was imagined before the saved state, cannot be read ({error}): bring the file back, or "
            "begin the run anew (--fresh)"
        ) from error
