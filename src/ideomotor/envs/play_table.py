"""Our own play table in MuJoCo: CALVIN's contract and 34 tasks without CALVIN, for tests, demonstrations and trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ideomotor.envs.metaworld_render import Eye
from ideomotor.envs.play_table_contract import (
    CAMERAS,
    SIZES,
    STEP_M,
    STEP_RAD,
    action_space,
    check_cameras,
    check_states,
    check_table_action,
    observation_space,
)
from ideomotor.envs.play_table_scene import (
    BLOCKS,
    BULB_ON,
    BUTTON,
    DRAWER,
    LED_ON,
    LEVER,
    OFF,
    SLIDER,
    scene_xml,
)
from ideomotor.envs.play_table_starts import free_scene
from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")

START = (0.0259, -0.2313, 0.5713, math.pi, 0.0, math.pi / 2, 0.08, *(0.0,) * 7, 1.0)
"""``robot_obs`` an episode starts with where none is given: CALVIN's pose of the gripper."""

_SUBSTEPS = 8  # of 1/240 s, as in CALVIN
_PARTS = {"slider": SLIDER, "drawer": DRAWER, "button": BUTTON, "lever": LEVER}  # in the order of scene_obs
_SPACE = np.array([[-0.45, -0.50, 0.33], [0.45, 0.22, 0.85]])
"""Where the gripper's target may be."""
# How far the target may run ahead of the gripper. Without it, pushing against the table would have to be undone later.
_LEASH_M, _LEASH_RAD = 0.05, 0.3
_OPEN = 0.04  # of each finger


@dataclass(frozen=True, kw_only=True)
class PlayTableConfig:
    """Settings of ``PlayTableEnv``.

    Attributes:
        cameras: those that ``observe`` draws, of "static" and "gripper"; () draws none.
    """

    cameras: tuple[str, ...] = CAMERAS

    def __post_init__(self) -> None:
        check_cameras(self.cameras)


class PlayTableEnv(gym.Env[dict[str, Any], np.ndarray]):
    """The contract of ``play_table_contract`` in a world of our own, at 30 steps a second; see ``play_table_scene``.

    Two differences for who comes from CALVIN. The gripper points straight down: the angles x and y of an action are
    not obeyed, and ``robot_obs`` says pi and 0. There is no arm: in place of seven joints, ``robot_obs`` holds the
    gripper's x, y, z, yaw, its two fingers and a 0, and ``reset`` takes the pose from the first seven numbers.

    Without ``scene_obs`` everything is placed at random by the seed. An episode is a pure function of seed, options and
    actions. It never ends by itself, and the reward is always 0: which task was done is for ``PlayTableOracle`` to say.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - Gymnasium's own spelling

    def __init__(self, config: PlayTableConfig | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; this environment knows only 'rgb_array'")
        self.config, self.render_mode = config or PlayTableConfig(), render_mode
        self._mujoco = require("mujoco", "metaworld")
        self._model = self._mujoco.MjModel.from_xml_string(scene_xml())
        self._data = self._mujoco.MjData(self._model)
        self._names = [self._model.body(i).name for i in range(self._model.nbody)]
        self._places = {name: int(self._model.joint(name).qposadr[0]) for name in (*_PARTS, *BLOCKS)}
        self._speeds = {name: int(self._model.joint(name).dofadr[0]) for name in BLOCKS}
        self._eyes: dict[str, Eye] = {}
        self._target = np.zeros(4)
        self._lights = {"lightbulb": 0, "led": 0}
        self._was = {"button": False, "lever": False}
        self._command, self._begun = 1.0, False
        self.observation_space = observation_space(self.config.cameras)
        self.action_space = action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode; options are ``robot_obs`` (15,) and ``scene_obs`` (24,), each or both."""
        super().reset(seed=seed)
        robot_obs, scene_obs = check_states(options)
        scene = free_scene(self.np_random) if scene_obs is None else scene_obs
        _check_scene(scene)
        robot = np.array(START) if robot_obs is None else robot_obs
        self._mujoco.mj_resetData(self._model, self._data)
        position = self._data.qpos
        for name, value in zip(_PARTS, scene[:4], strict=True):
            position[self._places[name]] = value
        for name, pose in zip(BLOCKS, scene[6:].reshape(3, 6), strict=True):
            first = self._places[name]
            position[first : first + 3] = pose[:3]
            position[first + 3 : first + 7] = _quaternion(pose[3:])
        self._target = np.array([*np.clip(robot[:3], *_SPACE), robot[5]])
        hand, finger = self._model.joint("hand_x").qposadr[0], self._model.joint("finger_left").qposadr[0]
        position[hand : hand + 4] = self._target
        position[finger : finger + 2] = np.clip(robot[6] / 2, 0, _OPEN)
        self._command = 1.0 if robot[14] > 0 else -1.0
        self._lights = {"lightbulb": int(scene[4] > 0.5), "led": int(scene[5] > 0.5)}
        self._was = self._pressed()
        self._glow()
        self._move(_SUBSTEPS)  # until things rest on one another
        self._begun = True
        return self.observe(), self.info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Applies one action and looks."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Applies one action without looking; returns reward, terminated, truncated and ``info()``."""
        self._check_begun()
        action = check_table_action(action)
        hand = self._data.qpos[self._model.joint("hand_x").qposadr[0] :][:4]
        wanted = self._target + np.array([*action[:3] * STEP_M, action[5] * STEP_RAD])
        leash = np.array([_LEASH_M] * 3 + [_LEASH_RAD])
        self._target = np.clip(wanted, hand - leash, hand + leash)
        self._target[:3] = np.clip(self._target[:3], *_SPACE)
        self._command = float(action[6])
        self._move(_SUBSTEPS)
        self._switch()
        return 0.0, False, False, self.info()

    def observe(self) -> dict[str, np.ndarray]:
        """Returns the state and what the configured cameras see now."""
        self._check_begun()
        return {f"rgb_{name}": self._draw(name) for name in self.config.cameras} | self.state()

    def state(self) -> dict[str, np.ndarray]:
        """Returns ``robot_obs`` and ``scene_obs`` as they are now, without looking."""
        self._check_begun()
        return {"robot_obs": self._robot_obs(), "scene_obs": self._scene_obs()}

    def info(self) -> dict[str, Any]:
        """Returns what ``PlayTableOracle`` judges by: parts, lights, each block's pose and speed, and who touches whom.

        ``touches`` holds, for each block and for "robot", names of blocks, of the parts "slider", "drawer", "button"
        and "lever", "table" (its top and walls), "plank" (the floor of the compartments), "world" (the ground).
        """
        self._check_begun()
        blocks = {}
        for name in BLOCKS:
            first, speed = self._places[name], self._speeds[name]
            blocks[name] = {
                "place": self._data.qpos[first : first + 3].copy(),
                "quaternion": self._data.qpos[first + 3 : first + 7].copy(),
                "speed": float(np.abs(self._data.qvel[speed : speed + 6]).max()),
            }
        parts = {name: float(self._data.qpos[self._places[name]]) for name in _PARTS}
        return {**parts, **self._lights, "blocks": blocks, "touches": self._touches()}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Returns the static camera's picture (h w c) where ``render_mode`` is "rgb_array"."""
        self._check_begun()
        return None if self.render_mode is None else self._draw("static")

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for eye in self._eyes.values():
            eye.close()
        self._eyes = {}

    def _check_begun(self) -> None:
        if not self._begun:
            raise RuntimeError("the episode has not begun: call reset() first")

    def _move(self, steps: int) -> None:
        self._data.ctrl[:4] = self._target
        self._data.ctrl[4:] = _OPEN if self._command > 0 else 0.0
        self._mujoco.mj_step(self._model, self._data, steps)
        # Contacts and bodies are those before the last step's move: brought up to date for who looks now.
        self._mujoco.mj_fwdPosition(self._model, self._data)

    def _pressed(self) -> dict[str, bool]:
        return {name: bool(self._data.qpos[self._places[name]] > _PARTS[name] / 2) for name in ("button", "lever")}

    def _switch(self) -> None:
        now = self._pressed()
        if now["button"] and not self._was["button"]:
            self._lights["led"] = 1 - self._lights["led"]
        if now["lever"] != self._was["lever"]:
            self._lights["lightbulb"] = int(now["lever"])
        self._was = now
        self._glow()

    def _glow(self) -> None:
        self._model.geom("bulb").rgba[:] = BULB_ON if self._lights["lightbulb"] else OFF
        self._model.geom("led").rgba[:] = LED_ON if self._lights["led"] else OFF

    def _touches(self) -> dict[str, frozenset[str]]:
        met: dict[str, set[str]] = {name: set() for name in (*BLOCKS, "robot")}
        bodies = self._model.geom_bodyid[self._data.contact.geom]
        for pair in bodies.reshape(-1, 2).tolist():
            one, other = (
                "robot" if name.startswith(("hand", "finger")) else name for name in map(self._names.__getitem__, pair)
            )
            if one != other:
                for here, there in ((one, other), (other, one)):
                    if here in met:
                        met[here].add(there)
        return {name: frozenset(others) for name, others in met.items()}

    def _robot_obs(self) -> np.ndarray:
        x, y, z, yaw = self._data.qpos[self._model.joint("hand_x").qposadr[0] :][:4]
        left, right = self._data.qpos[self._model.joint("finger_left").qposadr[0] :][:2]
        angle = (yaw + math.pi) % (2 * math.pi) - math.pi
        return np.array([x, y, z, math.pi, 0.0, angle, left + right, x, y, z, yaw, left, right, 0.0, self._command])

    def _scene_obs(self) -> np.ndarray:
        parts = [float(self._data.qpos[self._places[name]]) for name in _PARTS]
        state = [*parts, self._lights["lightbulb"], self._lights["led"]]
        for name in BLOCKS:
            first = self._places[name]
            state += [*self._data.qpos[first : first + 3], *_angles(self._data.qpos[first + 3 : first + 7])]
        return np.array(state, np.float64)

    def _draw(self, name: str) -> np.ndarray:
        if name not in self._eyes:
            self._eyes[name] = Eye(self._model, task="play table", size=SIZES[name], look="fast", crop=None)
        return np.ascontiguousarray(self._eyes[name].look(self._data, name).transpose(1, 2, 0))


def _check_scene(scene: np.ndarray) -> None:
    """Raises ``ValueError`` where a part would stand outside its range, by more than rounding."""
    for (name, far), value in zip(_PARTS.items(), scene[:4], strict=True):
        if not -0.005 <= value <= far + 0.005:
            raise ValueError(f"scene_obs puts the {name} at {value:.3f} m; it goes from 0 to {far}")


def _quaternion(angles: np.ndarray) -> np.ndarray:
    """Euler angles x, y, z (about fixed axes, as in CALVIN) to w, x, y, z."""
    half = np.asarray(angles) / 2
    (cx, cy, cz), (sx, sy, sz) = np.cos(half), np.sin(half)
    return np.array(
        [
            cx * cy * cz + sx * sy * sz,
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ]
    )


def _angles(quaternion: np.ndarray) -> list[float]:
    w, x, y, z = quaternion
    return [
        math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
        math.asin(float(np.clip(2 * (w * y - z * x), -1, 1))),
        math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
    ]
