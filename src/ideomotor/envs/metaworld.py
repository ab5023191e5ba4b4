"""Meta-World v3 as a Gymnasium environment seen through cameras: 50 tasks, scripted experts, fast rendering."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ideomotor.envs.metaworld_render import CAMERAS, Eye, load
from ideomotor.envs.metaworld_tasks import instruction
from ideomotor.envs.world import check_action, check_settings, choose_goal, observation_space
from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """Settings of ``MetaWorldEnv``.

    Attributes:
        task: name without "-v3", e.g. ``"door-open"``.
        cameras: any of ``CAMERAS``; the first is the one that ``render`` shows.
        size: side of the square pictures, in pixels.
        crop: "vpdd" narrows corner2 to the middle 260 of 480 px that VPDD looks at (other cameras stay whole); None
            shows all.
        look: "fast" leaves out shadows and reflections, simplifies surfaces where no pixel tells, and averages 2 x 2
            pixels instead of multisampling; "default" is Meta-World's own look, more than ten times slower.
        horizon: steps after which an episode is truncated.
        goals: the split that ``reset`` draws from where no goal is named.
        goal_seed: seed of the task's 50 goals.
    """

    task: str
    cameras: tuple[str, ...] = ("corner2",)
    size: int = 96
    crop: Literal["vpdd"] | None = "vpdd"
    look: Literal["fast", "default"] = "fast"
    horizon: int = 200
    goals: Literal["train", "test"] = "train"
    goal_seed: int = 42

    def __post_init__(self) -> None:
        instruction(self.task)
        check_settings(self.cameras, CAMERAS, self.size, self.goals)
        if not 1 <= self.horizon <= 500:
            raise ValueError(f"horizon is {self.horizon} steps; Meta-World allows 1 to 500")
        if self.look not in ("fast", "default") or self.crop not in ("vpdd", None):
            raise ValueError(
                f"look={self.look!r}, crop={self.crop!r}; wanted look 'fast' or 'default', crop 'vpdd' or None"
            )


class MetaWorldEnv(gym.Env[dict[str, Any], np.ndarray]):
    """One Meta-World task: actions are hand displacement x, y, z and gripper effort, each in [-1, 1].

    An observation holds ``frames``, by camera (uint8, c h w), and ``proprio``: the hand's x, y, z in metres and how far
    the gripper is open in 0..1. Nothing else of the simulator's state is shown. ``info`` holds ``text`` (the
    instruction), ``task``, ``goal``, ``steps`` and ``success``. Success terminates; stepping on is allowed until the
    horizon.

    ``reset(options={"goal": i})`` picks one of the task's 50 goals (a goal fixes the objects' places too); without it
    the seed draws one of the configured split. An episode is a pure function of goal and actions.

    Pictures cost far more than physics, so ``step`` is made of two halves that can be called apart: ``advance`` moves
    the world and draws nothing, ``observe`` draws what is there now.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - Gymnasium's own spelling

    def __init__(self, config: MetaWorldConfig, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; this environment knows only 'rgb_array'")
        metaworld = load()
        name = f"{config.task}-v3"
        self.config, self.render_mode = config, render_mode
        self.text = instruction(config.task)
        self._tasks = _goals(config.task, config.goal_seed)
        self._sim = metaworld.env_dict.ALL_V3_ENVIRONMENTS[name]()
        self._expert = require("metaworld.policies", "metaworld").ENV_POLICY_MAP[name]()
        self._eye: Eye | None = None
        self._state: np.ndarray | None = None  # Meta-World's 39 numbers: for the expert, never shown
        self._steps, self._goal, self._success = 0, -1, False
        # The hand stays within 1.1 m of the origin.
        self.observation_space = observation_space(config.cameras, config.size, -2.0, 2.0, 4)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; ``options={"goal": i}`` names one of the goals 0..49."""
        super().reset(seed=seed)
        goal = choose_goal(options, self.config.goals, self.np_random)
        self._sim.set_task(self._tasks[goal])
        self._state, _ = self._sim.reset()
        self._steps, self._goal, self._success = 0, goal, False
        # Some tasks move the goal's marker after the last forward pass: the first picture would show the old place.
        mujoco = require("mujoco", "metaworld")
        mujoco.mj_kinematics(self._sim.model, self._sim.data)
        mujoco.mj_camlight(self._sim.model, self._sim.data)
        return self.observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Applies one action (clipped to [-1, 1]) and looks."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Applies one action without looking; returns reward, terminated, truncated and info."""
        if self._state is None:
            raise RuntimeError("the episode has not begun: call reset() before step()")
        action = check_action(action, 4, "x, y, z and gripper")
        if self._steps >= self.config.horizon:
            raise RuntimeError(f"the episode ended at its horizon of {self.config.horizon} steps: call reset()")
        self._state, reward, _, _, info = self._sim.step(action)
        self._steps += 1
        self._success = bool(info["success"] > 0)
        return float(reward), self._success, self._steps >= self.config.horizon, self._info()

    def observe(self) -> dict[str, Any]:
        """Returns what can be seen now."""
        if self._state is None:
            raise RuntimeError("there is nothing to see before reset()")
        eye = self._open_eye()
        return {
            "frames": {camera: eye.look(self._sim.data, camera) for camera in self.config.cameras},
            "proprio": self._state[:4].astype(np.float32),
        }

    def objects(self) -> dict[str, np.ndarray]:
        """Returns where the task's movable objects are in sight now, by camera (bool, h w; the pixels of ``frames``).

        For measuring only: no agent is shown it. See ``metaworld_render.movable`` for what counts as an object.
        """
        if self._state is None:
            raise RuntimeError("there is nothing to see before reset()")
        eye = self._open_eye()
        return {camera: eye.objects(self._sim.data, camera) for camera in self.config.cameras}

    def expert_action(self) -> np.ndarray:
        """Returns what Meta-World's scripted expert, which sees the true state, would do now (clipped to [-1, 1])."""
        if self._state is None:
            raise RuntimeError("the expert has nothing to act on before reset()")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # experts warn whenever their action needs clipping, which is most of the time
            # A copy, because some experts write into the state they are given.
            action = self._expert.get_action(self._state.copy())
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Returns the first camera's picture (h w c) where ``render_mode`` is "rgb_array"."""
        if self.render_mode is None:
            return None
        return np.ascontiguousarray(self.observe()["frames"][self.config.cameras[0]].transpose(1, 2, 0))

    def close(self) -> None:
        """Frees the OpenGL context and the simulator."""
        if self._eye is not None:
            self._eye.close()
            self._eye = None
        self._sim.close()

    def _open_eye(self) -> Eye:
        if self._eye is None:
            c = self.config
            self._eye = Eye(self._sim.model, task=c.task, size=c.size, look=c.look, crop=c.crop)
        return self._eye

    def _info(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "task": self.config.task,
            "goal": self._goal,
            "steps": self._steps,
            "success": self._success,
        }


@functools.lru_cache(maxsize=64)
def _goals(task: str, seed: int) -> tuple[Any, ...]:
    tasks = require("metaworld", "metaworld").MT1(f"{task}-v3", seed=seed).train_tasks
    return tuple(tasks)
