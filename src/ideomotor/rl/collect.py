"""Experience gathered step by step, so that a killed run goes on in the middle of an episode."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from ideomotor.data.replay import Replay, Trajectory
from ideomotor.training.learner import LearnerState, seed_of


class PixelEnv(Protocol):
    """A Gymnasium environment whose observations are stacked frames, such as ``envs.pixels.PixelWorld``.

    An episode must be a pure function of the seed or goal it was reset with and of its actions.
    """

    @property
    def action_space(self) -> Any:
        """A box of -1..1."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "stack c h w"], dict[str, Any]]:
        """Starts an episode."""

    def step(self, action: np.ndarray) -> tuple[UInt8[np.ndarray, "stack c h w"], float, bool, bool, dict[str, Any]]:
        """Takes an agent step."""


class Collector:
    """The world of one run, and where its current episode stands; whole episodes go to the replay.

    What is saved are the numbers of episodes and the actions of the current one: they are taken again after a kill.

    Attributes:
        observation: what the agent sees now.
        episodes: finished ones.
    """

    def __init__(self, world: PixelEnv, replay: Replay, seed: int) -> None:
        self.world, self.replay, self.seed = world, replay, seed
        self.episodes = 0
        self.observation = np.empty(0, np.uint8)

    def begin(self) -> None:
        """Starts with an empty replay, demonstrations apart."""
        self.replay.rewind(0)
        self.episodes = 0
        self._reset()

    def step(self, action: Float32[np.ndarray, " action"]) -> None:
        """Takes an agent step; where it ends the episode, the replay has it afterwards and the next one has begun."""
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self.observation, reward, terminated, truncated, _ = self.world.step(action)
        self._frames.append(self.observation[-1])
        self._actions.append(action)
        self._rewards.append(float(reward))
        if terminated or truncated:
            self.replay.add(self.episodes, self._trajectory(terminated))
            self.episodes += 1
            self._reset()

    def state(self) -> LearnerState:
        """Returns the current episode's actions."""
        width = self.world.action_space.shape[0]
        actions = np.stack(self._actions[1:]) if len(self._actions) > 1 else np.empty((0, width), np.float32)
        return LearnerState({"actions": torch.from_numpy(actions)}, {"step": self.episodes})

    def identity(self) -> dict[str, Any]:
        """Returns nothing: the run's config says which world it is."""
        return {}

    def load_state(self, state: LearnerState) -> None:
        """Takes back episodes that came after the state, and walks through the current one again."""
        self.episodes = int(state.values["step"])
        self.replay.rewind(self.episodes)
        self._reset()
        for action in state.tensors["actions"].numpy():
            self.step(action)

    def _reset(self) -> None:
        self.observation, _ = self.world.reset(seed=seed_of(self.seed, "episode", self.episodes) % 2**31)
        self._frames = [self.observation[-1]]
        self._actions = [np.zeros(self.world.action_space.shape, np.float32)]
        self._rewards = [0.0]

    def _trajectory(self, terminated: bool) -> Trajectory:
        discounts = np.ones(len(self._frames), np.float32)
        discounts[-1] = 0.0 if terminated else 1.0
        return Trajectory(
            frames=np.stack(self._frames),
            actions=np.stack(self._actions),
            rewards=np.asarray(self._rewards, np.float32),
            discounts=discounts,
        )
