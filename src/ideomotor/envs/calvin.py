"""CALVIN's play table, driven through the user's own calvin_env: four scenes, two cameras, the oracle of 34 tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ideomotor.envs.calvin_home import ROBOT, SCENES, check_scene, find_home, import_part
from ideomotor.envs.play_table_contract import (
    CAMERAS,
    action_space,
    check_cameras,
    check_known,
    check_states,
    check_table_action,
    observation_space,
)
from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "calvin")


@dataclass(frozen=True, kw_only=True)
class CalvinConfig:
    """Settings of ``CalvinEnv``.

    Attributes:
        scene: "A", "B", "C" or "D".
        cameras: those that ``observe`` draws, of "static" and "gripper"; () draws none.
        path: root of the user's calvin_env repository; None takes the one that can be imported.
        renderer: "cpu" draws anywhere; "egl" is PyBullet's plugin, quicker where there is a GPU and slower without.
    """

    scene: Literal["A", "B", "C", "D"] = "D"
    cameras: tuple[str, ...] = CAMERAS
    path: Path | None = None
    renderer: Literal["cpu", "egl"] = "cpu"

    def __post_init__(self) -> None:
        if self.scene not in SCENES or self.renderer not in ("cpu", "egl"):
            raise ValueError(
                f"scene={self.scene!r}, renderer={self.renderer!r}; wanted scene A, B, C or D, renderer 'cpu' or 'egl'"
            )
        check_cameras(self.cameras)


class CalvinEnv(gym.Env[dict[str, Any], np.ndarray]):
    """The contract of ``play_table_contract`` over calvin_env's own simulator, at 30 steps a second.

    ``scene_obs`` lists the blocks in the order of the scene's file, which is another in each scene: A pink blue red,
    B red blue pink, C blue red pink, D red blue pink. The robot's starting pose is taken from the seven joints of
    ``robot_obs``. Without options, ``reset`` places the blocks at random by the seed. The same seed and actions repeat
    an episode to about a millimetre and half a degree, not to the bit: PyBullet remembers contacts.

    An episode never ends by itself, and the reward is always 0: which task was done is the oracle's to say.

    Only one such environment may be open in a process: calvin_env puts parts of its robot into PyBullet's first
    simulation, whichever is its own.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - Gymnasium's own spelling

    def __init__(self, config: CalvinConfig | None = None, render_mode: str | None = None) -> None:
        """Starts the simulator.

        Raises:
            ModuleNotFoundError: calvin_env or a package that it needs is missing.
            FileNotFoundError: the copy of calvin_env is not whole.
            RuntimeError: another one is open in this process.
        """
        self.config, self.render_mode = config or CalvinConfig(), render_mode
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; this environment knows only 'rgb_array'")
        self._sim: Any = None
        self._begun = False
        home = find_home(self.config.path)
        check_scene(home, self.config.scene)
        self._sim = _open(home, self.config)
        # Its step and reset would draw every camera: they are taken away from it, and drawn when somebody looks.
        self._cameras = {camera.name: camera for camera in self._sim.cameras}
        self._sim.cameras = []
        self.observation_space = observation_space(self.config.cameras)
        self.action_space = action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode; options are ``robot_obs`` (15,) and ``scene_obs`` (24,), each or both."""
        super().reset(seed=seed)
        sim = self._open_sim()
        robot_obs, scene_obs = check_states(options)
        for thing in (sim, sim.scene, *sim.scene.movable_objects):
            thing.np_random = self.np_random  # each keeps the source of randomness it was made with
        # calvin_env would carry the gripper's last command over into the new episode's first robot_obs.
        sim.robot.gripper_action = 1 if robot_obs is None or robot_obs[-1] > 0 else -1
        sim.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        self._begun = True
        return self.observe(), self.info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Applies one action and looks."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Applies one action without looking; returns reward, terminated, truncated and ``info()``."""
        sim = self._open_sim(begun=True)
        # It adds the action to its target in place, so it gets float64 of its own.
        _, _, _, info = sim.step(check_table_action(action).astype(np.float64))
        return 0.0, False, False, info

    def observe(self) -> dict[str, np.ndarray]:
        """Returns the state and what the configured cameras see now."""
        return {f"rgb_{name}": self._draw(name) for name in self.config.cameras} | self.state()

    def state(self) -> dict[str, np.ndarray]:
        """Returns ``robot_obs`` and ``scene_obs`` as they are now, without looking."""
        state = self._open_sim(begun=True).get_state_obs()
        return {key: np.asarray(state[key], np.float64) for key in ("robot_obs", "scene_obs")}

    def info(self) -> dict[str, Any]:
        """Returns calvin_env's description of robot and scene, for ``CalvinOracle``."""
        return self._open_sim(begun=True).get_info()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Returns the static camera's picture (h w c) where ``render_mode`` is "rgb_array"."""
        self._open_sim(begun=True)
        return None if self.render_mode is None else self._draw("static")

    def close(self) -> None:
        """Ends the simulator; calling it again does nothing."""
        sim, self._sim = self._sim, None
        if sim is not None:
            sim.close()
            sim.ownsPhysicsClient = False  # it closes itself again when it is collected, which PyBullet complains about

    def _draw(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._cameras[name].render()[0], np.uint8)

    def _open_sim(self, begun: bool = False) -> Any:
        if self._sim is None:
            raise RuntimeError("this environment was closed: make a new CalvinEnv")
        if begun and not self._begun:
            raise RuntimeError("the episode has not begun: call reset() first")
        return self._sim


class CalvinOracle:
    """calvin_env's own test of the 34 tasks, over two of ``CalvinEnv.info()``.

    Args:
        path: root of the user's calvin_env repository; None takes the one that can be imported.
    """

    def __init__(self, path: Path | None = None) -> None:
        home = find_home(path)
        rules = import_part(home, "omegaconf").OmegaConf.load(home / "conf/tasks/new_playtable_tasks.yaml").tasks
        self._judge = import_part(home, "calvin_env.envs.tasks").Tasks(rules)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(self._judge.tasks)

    def completed(self, start: Mapping[str, Any], end: Mapping[str, Any], tasks: Sequence[str]) -> set[str]:
        """Returns which of the tasks were done between two infos.

        Raises:
            ValueError: a task that calvin_env does not know.
        """
        check_known(tasks, self.tasks)
        return set(self._judge.get_task_info_for_set(start, end, set(tasks)))


def _open(home: Path, config: CalvinConfig) -> Any:
    simulator = import_part(home, "calvin_env.envs.play_table_env").PlayTableSimEnv
    conf = import_part(home, "omegaconf").OmegaConf
    # The settings of CALVIN's own data, put together by hand: composing them with hydra needs a logging plug-in too.
    robot = conf.merge(*(conf.load(home / f"conf/robot/{name}.yaml") for name in ("panda", ROBOT)))
    robot.pop("defaults")
    cameras = {name: conf.load(home / f"conf/cameras/cameras/{name}.yaml") for name in CAMERAS}
    scene = conf.load(home / f"conf/scene/calvin_scene_{config.scene}.yaml")
    whole = conf.create({"robot": robot, "scene": scene, "cameras": cameras, "data_path": str(home / "data")})
    conf.resolve(whole)
    sim = simulator(
        robot_cfg=whole.robot,
        scene_cfg=whole.scene,
        cameras=whole.cameras,
        seed=0,
        use_vr=False,
        show_gui=False,
        bullet_time_step=240.0,
        control_freq=30,
        use_scene_info=True,
        use_egl=config.renderer == "egl",
    )
    if sim.cid != 0:
        sim.close()
        sim.ownsPhysicsClient = False
        raise RuntimeError(
            "another PyBullet simulation is open in this process, and calvin_env needs the first one: close it, or put "
            "each CalvinEnv into a process of its own"
        )
    return sim
