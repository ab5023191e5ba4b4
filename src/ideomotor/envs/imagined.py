"""A learned world as a Gymnasium vector environment, so that any agent can act in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8

from ideomotor.extras import require
from ideomotor.types import WorldModel

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")

Starts = Callable[[int, np.random.Generator], UInt8[np.ndarray, "n t c h w"]]
"""Draws the real frames that so many imaginations begin with."""


class ImaginedVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """``num_envs`` imaginations in lock step: each begins with real frames and is cut off after ``horizon`` steps.

    An observation is the newest ``stack`` frames, channels one after the other, oldest first (uint8, stack * c, h, w).
    Actions lie in [-1, 1] and are clipped to it. The world never terminates an episode, and all rows are truncated
    together; the step after that begins anew (Gymnasium's next-step mode), its action unheard, its reward 0.
    """

    def __init__(self, world: WorldModel, starts: Starts, num_envs: int, horizon: int, stack: int = 1) -> None:
        """Takes a look at the starts for the size of the frames.

        Raises:
            ValueError: a world without actions, or counts below 1.
        """
        if min(num_envs, horizon, stack) < 1:
            raise ValueError(f"num_envs {num_envs}, horizon {horizon} and stack {stack} must be at least 1")
        if world.action_width < 1:
            raise ValueError("this world hears no actions: take one that was trained with actions to act in it")
        self.world, self.starts, self.num_envs, self.horizon, self.stack = world, starts, num_envs, horizon, stack
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        *_, channels, height, width = self._drawn(np.random.default_rng(0), 1).shape
        self.single_observation_space = gym.spaces.Box(0, 255, (stack * channels, height, width), np.uint8)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (world.action_width,), np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._steps = -1  # of the episode; -1 before the first reset
        self._state: Any = None
        self._seen = np.zeros(0, np.uint8)  # the newest frames, n stack c h w

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "n c h w"], dict[str, Any]]:
        """Begins every imagination with frames drawn from the starts; a seed begins the world's draws anew too."""
        super().reset(seed=seed)
        frames = self._drawn(self.np_random, self.num_envs)
        if seed is not None:
            self.world.seed(int(self.np_random.integers(2**31)))
        self._state = self.world.reset(torch.from_numpy(frames))
        self._seen, self._steps = frames[:, -self.stack :], 0
        return self._observation(), {}

    def step(
        self, actions: Float32[np.ndarray, "n a"]
    ) -> tuple[
        UInt8[np.ndarray, "n c h w"],
        Float32[np.ndarray, " n"],
        np.ndarray,
        np.ndarray,
        dict[str, Any],
    ]:
        """Imagines one frame of every row.

        Raises:
            ValueError: actions of another shape, or not finite.
            RuntimeError: before the first reset.
        """
        if self._steps < 0:
            raise RuntimeError("the episodes have not begun: call reset() first")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"actions of shape {actions.shape} came, finite: {bool(np.isfinite(actions).all())}; wanted finite "
                f"numbers of shape {self.action_space.shape}"
            )
        nobody = np.zeros(self.num_envs, bool)
        if self._steps >= self.horizon:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs, np.float32), nobody, nobody.copy(), info
        imagined = self.world.step(self._state, torch.from_numpy(actions.clip(-1.0, 1.0)))
        self._state, self._steps = imagined.state, self._steps + 1
        newest = imagined.frames.cpu().numpy()[:, None]
        self._seen = np.concatenate([self._seen, newest], 1)[:, -self.stack :]
        reward = np.zeros(self.num_envs, np.float32) if imagined.reward is None else imagined.reward.cpu().numpy()
        over = np.full(self.num_envs, self._steps >= self.horizon)
        return self._observation(), reward.astype(np.float32), nobody, over, {}

    def _drawn(self, rng: np.random.Generator, count: int) -> UInt8[np.ndarray, "n t c h w"]:
        frames, needed = np.asarray(self.starts(count, rng)), max(self.world.context, self.stack)
        if frames.ndim != 5 or frames.dtype != np.uint8 or len(frames) != count or frames.shape[1] < needed:
            raise ValueError(
                f"the starts gave {frames.dtype} of shape {frames.shape}; wanted uint8 of shape ({count}, at least "
                f"{needed} frames, c, h, w)"
            )
        return frames

    def _observation(self) -> UInt8[np.ndarray, "n c h w"]:
        return np.ascontiguousarray(rearrange(self._seen, "n stack c h w -> n (stack c) h w"))
