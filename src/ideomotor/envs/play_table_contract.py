"""What every play table keeps to, CALVIN's and ours: actions, observations, what ``reset`` takes, the oracle's verb.

**Actions**, seven numbers in [-1, 1], thirty a second: change of the gripper's target x, y, z (1 is 2 cm) and of its
Euler angles x, y, z (1 is 0.05 rad), then the gripper: above 0 opens, otherwise closes.

**Observations**: ``rgb_static`` (200 x 200) and ``rgb_gripper`` (84 x 84), uint8 h w c, those that the config names;
``robot_obs``, 15 numbers: the gripper's x, y, z in metres and Euler angles in radians, its opening in metres, seven
joints, the last gripper command; ``scene_obs``, 24 numbers: slider, drawer, button, switch, light bulb, LED, and x, y,
z and Euler angles of three blocks.

Pictures cost far more than physics. ``step`` is ``advance``, which draws nothing, followed by ``observe``, which does;
whoever needs no picture calls ``advance`` alone, and ``state`` for the two vectors.

``info()`` is what an oracle judges by: ``completed(start_info, end_info, tasks)`` names the tasks done in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ideomotor.envs.world import check_action
from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "calvin")

CAMERAS = ("static", "gripper")
SIZES = {"static": 200, "gripper": 84}
ROBOT_OBS, SCENE_OBS, ACTION = 15, 24, 7
STEP_M, STEP_RAD = 0.02, 0.05
"""What an action of 1 moves the target by."""


def check_cameras(cameras: Sequence[str]) -> None:
    """Raises ``ValueError`` where a camera is unknown or named twice."""
    if len(set(cameras)) < len(cameras) or not set(cameras) <= set(CAMERAS):
        raise ValueError(f"cameras are {tuple(cameras)}; wanted some, each once, of {', '.join(CAMERAS)}")


def check_states(options: Mapping[str, Any] | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns ``robot_obs`` and ``scene_obs`` of reset's options as float64, None where one is not given.

    Raises:
        ValueError: an unknown option, a wrong shape, or a number that is not finite.
    """
    sizes = {"robot_obs": ROBOT_OBS, "scene_obs": SCENE_OBS}
    unknown = set(options or {}) - set(sizes)
    if unknown:
        raise ValueError(f"reset options {sorted(unknown)} are unknown; wanted robot_obs and scene_obs")
    found: list[np.ndarray | None] = []
    for name, size in sizes.items():
        given = (options or {}).get(name)
        state = None if given is None else np.array(given, np.float64)
        if state is not None and (state.shape != (size,) or not np.isfinite(state).all()):
            raise ValueError(f"{name} has shape {state.shape}; wanted {size} finite numbers")
        found.append(state)
    return found[0], found[1]


def check_table_action(action: Any) -> np.ndarray:
    """Returns the action as float32, clipped to [-1, 1], its gripper made -1 or 1.

    Raises:
        ValueError: its shape is not ``(7,)`` or a number is not finite.
    """
    action = check_action(action, ACTION, "x, y, z, three angles and gripper")
    action[-1] = 1.0 if action[-1] > 0 else -1.0
    return action


def check_known(tasks: Iterable[str], known: Sequence[str]) -> None:
    """Raises ``ValueError`` where a task is not among those an oracle knows."""
    unknown = sorted(set(tasks) - set(known))
    if unknown:
        raise ValueError(f"tasks {', '.join(unknown)} are unknown; wanted any of {', '.join(known)}")


def action_space() -> gym.spaces.Box:
    """Returns the space of actions."""
    return gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)


def observation_space(cameras: Sequence[str]) -> gym.spaces.Dict:
    """Returns the space of observations with those cameras."""
    spaces: dict[str, gym.Space[Any]] = {}
    for name in cameras:
        spaces[f"rgb_{name}"] = gym.spaces.Box(0, 255, (SIZES[name], SIZES[name], 3), np.uint8)
    for name, size in (("robot_obs", ROBOT_OBS), ("scene_obs", SCENE_OBS)):
        spaces[name] = gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)
    return gym.spaces.Dict(spaces)
