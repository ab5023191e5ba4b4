"""Worlds for reinforcement learning from pixels: actions repeated, frames stacked, episodes of one length."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv
from ideomotor.envs.world import World
from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Settings of ``PixelWorld``; the defaults are iVideoGPT's.

    Attributes:
        stack: frames of an observation, one agent step apart.
        repeat: world steps that one action is held.
        duration: agent steps of an episode; success does not end it.
        success_bonus: added once to an agent step's reward where the world was solved in any of its steps.
        settle: world steps of no action before the first picture.
        mirrored: pictures left to right. Published demonstrations show the table mirrored (their picture is turned
            upright by a flip, where the camera hangs rotated), and an agent that learns from them must see it so.
    """

    stack: int = 3
    repeat: int = 2
    duration: int = 100
    success_bonus: float = 10.0
    settle: int = 1
    mirrored: bool = False

    def __post_init__(self) -> None:
        if min(self.stack, self.repeat, self.duration) < 1 or self.settle < 0:
            raise ValueError(
                f"stack {self.stack}, repeat {self.repeat}, duration {self.duration} must be 1 or more, settle "
                f"{self.settle} not below 0"
            )

    @property
    def horizon(self) -> int:
        """World steps that an episode takes."""
        return self.settle + self.repeat * self.duration


class PixelWorld(gym.Env[np.ndarray, np.ndarray]):
    """A world seen through its one camera; an observation is the last frames, uint8 (stack, c, h, w), newest last.

    A reward is the sum over the repeated action, plus the bonus. ``info`` is the world's, with ``success`` True where
    the world was solved at any step of this agent step.

    Raises:
        ValueError: the world has more cameras than one.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012 - Gymnasium's own spelling

    def __init__(self, world: World, config: PixelConfig | None = None) -> None:
        self.world, self.config, self.render_mode = world, config or PixelConfig(), "rgb_array"
        space = world.observation_space
        assert isinstance(space, gym.spaces.Dict) and isinstance(space["frames"], gym.spaces.Dict)
        cameras = list(space["frames"])
        if len(cameras) != 1:
            raise ValueError(f"the world has the cameras {cameras}; the agent looks through one: configure one")
        (self._camera,) = cameras
        shape = (self.config.stack, *(space["frames"][self._camera].shape or ()))
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = world.action_space
        self._frames: deque[np.ndarray] = deque(maxlen=self.config.stack)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; options are the world's own. The first frame fills the whole stack."""
        super().reset(seed=seed)
        _, info = self.world.reset(seed=seed, options=options)
        for _ in range(self.config.settle):
            *_, info = self.world.advance(np.zeros(self.action_space.shape or (), np.float32))
        self._steps = 0
        self._frames.extend([self._look()] * self.config.stack)
        return np.stack(self._frames), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds one action (cut to -1..1) for the repeated steps, and looks."""
        if not self._frames or self._steps >= self.config.duration:
            raise RuntimeError(f"no episode goes on (they take {self.config.duration} steps): call reset()")
        total, solved, info = 0.0, False, dict[str, Any]()
        for _ in range(self.config.repeat):
            reward, _, _, info = self.world.advance(action)
            total += reward
            solved |= bool(info["success"])
        self._steps += 1
        self._frames.append(self._look())
        over = self._steps >= self.config.duration
        return (
            np.stack(self._frames),
            total + self.config.success_bonus * solved,
            False,
            over,
            info | {"success": solved},
        )

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Returns the newest frame (h w c)."""
        return np.ascontiguousarray(self._frames[-1].transpose(1, 2, 0))

    def close(self) -> None:
        """Frees what the world holds."""
        self.world.close()

    def _look(self) -> np.ndarray:
        frame = self.world.observe()["frames"][self._camera]
        return np.ascontiguousarray(frame[..., ::-1]) if self.config.mirrored else frame


def metaworld_pixels(
    task: str, *, goals: Literal["train", "test"] = "train", config: PixelConfig | None = None
) -> PixelWorld:
    """Returns a Meta-World task as iVideoGPT's agent sees it: 64 px, camera "corner", mirrored, our fast look.

    Where it differs from the published world: Meta-World v3 instead of v2 (scripted experts reach returns within the
    demonstrations' range), no shadows, and goals of a split (``goals``: "train" or "test") instead of any.
    """
    config = config or PixelConfig(mirrored=True)
    world = MetaWorldEnv(
        MetaWorldConfig(task=task, cameras=("corner",), size=64, crop=None, horizon=config.horizon, goals=goals)
    )
    return PixelWorld(world, config)
