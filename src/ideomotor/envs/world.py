"""What our worlds share: their protocol, the goals split for training and testing, checks of what callers give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")

NUM_GOALS = 50
# Goals an episode may be reset to, by split: what is trained on and what is tested on never meet.
GOALS: dict[str, range] = {"train": range(30), "test": range(30, NUM_GOALS)}

Observation = dict[str, Any]
Info = dict[str, Any]


class World(Protocol):
    """A Gymnasium environment whose ``step`` is made of two halves, because looking costs more than moving."""

    @property
    def observation_space(self) -> gym.Space[Any]:
        """``{"frames": {camera: uint8 (c, h, w)}, "proprio": float32 (p,)}``."""

    @property
    def action_space(self) -> gym.Space[Any]:
        """A box of -1..1."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts an episode; ``options={"goal": i}`` names its goal."""

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, Info]:
        """Applies one action without looking; returns reward, terminated, truncated and info."""

    def observe(self) -> Observation:
        """Returns what can be seen now."""

    def expert_action(self) -> np.ndarray:
        """Returns what a scripted expert would do now."""

    def close(self) -> None:
        """Frees what the world holds."""


def choose_goal(options: Mapping[str, Any] | None, split: str, rng: np.random.Generator) -> int:
    """Returns the goal that ``reset``'s options name, or one of the split drawn at random.

    Raises:
        ValueError: an unknown option, or a goal that does not exist.
    """
    unknown = set(options or {}) - {"goal"}
    if unknown:
        raise ValueError(f"reset options {sorted(unknown)} are unknown; the only one is 'goal'")
    goals = GOALS[split]
    goal = options["goal"] if options else rng.integers(goals.start, goals.stop)
    if int(goal) != goal or not 0 <= goal < NUM_GOALS:
        raise ValueError(f"goal is {goal}; each task has goals 0 to {NUM_GOALS - 1}")
    return int(goal)


def check_settings(cameras: Sequence[str], known: Sequence[str], size: int, goals: str) -> None:
    """Raises ``ValueError`` where cameras are unknown or repeated, pictures too small, or the split does not exist."""
    if not cameras or len(set(cameras)) < len(cameras) or not set(cameras) <= set(known):
        raise ValueError(f"cameras are {tuple(cameras)}; wanted one or more, each once, of {', '.join(known)}")
    if size < 8:
        raise ValueError(f"size is {size} px; the smallest picture is 8 px a side")
    if goals not in GOALS:
        raise ValueError(f"goals is {goals!r}; wanted 'train' or 'test'")


def check_action(action: Any, width: int, meaning: str) -> np.ndarray:
    """Returns the action as float32, clipped to [-1, 1].

    Raises:
        ValueError: its shape is not ``(width,)`` or a number is not finite.
    """
    action = np.asarray(action, dtype=np.float32)
    if action.shape != (width,) or not np.isfinite(action).all():
        raise ValueError(f"action is {action.tolist()}; wanted {width} finite numbers ({meaning}) in [-1, 1]")
    return np.clip(action, -1.0, 1.0)


def observation_space(cameras: Sequence[str], size: int, low: float, high: float, width: int) -> gym.spaces.Dict:
    """Returns the space of observations with square pictures and ``width`` numbers of proprioception."""
    pictures: dict[str, gym.Space[Any]] = {}
    for camera in cameras:
        pictures[camera] = gym.spaces.Box(0, 255, (3, size, size), np.uint8)
    state = gym.spaces.Box(low, high, (width,), np.float32)
    return gym.spaces.Dict({"frames": gym.spaces.Dict(pictures), "proprio": state})
