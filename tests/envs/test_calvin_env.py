"""CALVIN through the user's own calvin_env: what is missing is named; stand-ins for it are driven by the contract.

The tests at the end need the real one: IDEOMOTOR_CALVIN_ENV names the root of the user's copy.
"""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ideomotor.envs import calvin, calvin_home
from ideomotor.envs.calvin import CalvinConfig, CalvinEnv, CalvinOracle
from ideomotor.envs.play_table_walk import Walk, Waypoint

PARTS = (
    "calvin_env/__init__.py",
    "calvin_env/envs/play_table_env.py",
    "conf/robot/panda.yaml",
    "conf/robot/panda_longer_finger.yaml",
    "conf/tasks/new_playtable_tasks.yaml",
    "conf/cameras/cameras/static.yaml",
    "conf/cameras/cameras/gripper.yaml",
    "conf/scene/calvin_scene_D.yaml",
    "data/franka_panda/panda_longer_finger.urdf",
    "data/plane/plane.urdf",
    "data/blocks/block_red_middle.urdf",
    "data/calvin_table_D/urdf/calvin_table_D.urdf",
    "data/calvin_table_D/meshes/base_link.obj",
)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with the files that are looked for, all empty."""
    monkeypatch.delitem(sys.modules, "calvin_env", raising=False)
    for part in (*PARTS, ".git/HEAD"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).touch()
    return tmp_path


def test_what_no_play_table_has_is_refused():
    for wrong in ({"scene": "E"}, {"renderer": "gpu"}, {"cameras": ("front",)}, {"cameras": ("static", "static")}):
        with pytest.raises(ValueError, match="wanted"):
            CalvinConfig(**wrong)


def test_without_calvin_env_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr(calvin_home.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"git clone https://github\.com/mees/calvin_env") as caught:
        CalvinEnv()
    assert caught.value.name == "calvin_env"


@pytest.mark.parametrize("missing", [part for part in PARTS if part.startswith(("conf", "data"))])
def test_what_a_copy_lacks_is_named(home, missing):
    (home / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        CalvinEnv(CalvinConfig(path=home))


def test_a_copy_outside_git_is_refused_as_calvin_env_would_later(home):
    (home / ".git/HEAD").unlink()
    (home / ".git").rmdir()
    with pytest.raises(FileNotFoundError, match="not under git"):
        calvin_home.find_home(home)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        calvin_home.find_home(home / "nowhere")


def test_two_copies_in_one_process_are_refused(home, tmp_path_factory, monkeypatch):
    other = ModuleType("calvin_env")
    other.__file__ = str(tmp_path_factory.mktemp("other") / "calvin_env" / "__init__.py")
    monkeypatch.setitem(sys.modules, "calvin_env", other)
    with pytest.raises(RuntimeError, match="another process for the other copy"):
        calvin_home.find_home(home)


def test_a_package_that_calvin_env_lacks_is_named(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "pybullet", ModuleType("pybullet"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (home / "stand_in_of_a_part.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'a_package_nobody_has'.*pip install"):
        calvin_home.import_part(home, "stand_in_of_a_part")


class Camera:
    def __init__(self, name, size):
        self.name, self.size, self.drawn = name, size, 0

    def render(self):
        self.drawn += 1
        return np.full((self.size, self.size, 3), 7, np.int64), None


class Simulator:
    """What the adapter uses of calvin_env's environment."""

    def __init__(self):
        self.cameras = [Camera("static", 200), Camera("gripper", 84)]
        self.robot = SimpleNamespace(gripper_action=-1)
        self.scene = SimpleNamespace(np_random=None, movable_objects=[SimpleNamespace(np_random=None)])
        self.np_random, self.ownsPhysicsClient, self.closed = None, True, 0
        self.actions, self.resets = [], []

    def reset(self, robot_obs, scene_obs):
        self.resets.append((robot_obs, scene_obs))

    def step(self, action):
        self.actions.append(action)
        return {}, 0, False, {"steps": len(self.actions)}

    def get_state_obs(self):
        return {"robot_obs": np.zeros(15), "scene_obs": [0.0] * 24}

    def get_info(self):
        return {"steps": len(self.actions)}

    def close(self):
        self.closed += 1


@pytest.fixture
def stand_in(home, monkeypatch):
    simulator = Simulator()
    cameras = list(simulator.cameras)
    monkeypatch.setattr(calvin, "_open", lambda home, config: simulator)
    return CalvinEnv(CalvinConfig(path=home, cameras=("gripper",))), simulator, cameras


def test_pictures_are_drawn_only_where_somebody_looks(stand_in):
    env, _, (static, gripper) = stand_in
    observation, _ = env.reset()
    assert observation in env.observation_space and observation["rgb_gripper"].dtype == np.uint8
    for _ in range(5):
        _, terminated, truncated, info = env.advance(np.zeros(7))
    assert info == {"steps": 5} and not terminated and not truncated
    assert (static.drawn, gripper.drawn) == (0, 1)
    env.step(np.zeros(7))
    assert (static.drawn, gripper.drawn) == (0, 2)


def test_actions_are_clipped_and_the_gripper_is_one_or_the_other(stand_in):
    env, simulator, _ = stand_in
    env.reset()
    for gripper, sent in ((0.3, 1), (1e-6, 1), (0, -1), (-0.2, -1)):
        env.advance(np.array([2, -3, 0.5, 0, 0, 0, gripper]))
        assert simulator.actions[-1].tolist() == [1, -1, 0.5, 0, 0, 0, sent]
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.advance(np.zeros(6))
    with pytest.raises(ValueError, match="finite"):
        env.advance(np.full(7, np.nan))


def test_reset_gives_states_on_and_leaves_nothing_of_the_last_episode(stand_in):
    env, simulator, _ = stand_in
    with pytest.raises(RuntimeError, match="reset"):
        env.advance(np.zeros(7))
    robot, scene = np.arange(15.0), np.arange(24.0)
    env.reset(options={"robot_obs": robot, "scene_obs": scene})
    assert np.array_equal(simulator.resets[-1][0], robot) and np.array_equal(simulator.resets[-1][1], scene)
    assert simulator.robot.gripper_action == 1
    env.reset(options={"robot_obs": np.array([*robot[:14], -1])})
    assert simulator.robot.gripper_action == -1 and simulator.resets[-1][1] is None
    for wrong in ({"robot_obs": np.zeros(16)}, {"scene_obs": np.full(24, np.nan)}, {"goal": 1}):
        with pytest.raises(ValueError, match="wanted"):
            env.reset(options=wrong)


def test_the_seed_reaches_everything_that_draws(stand_in):
    env, simulator, _ = stand_in
    env.reset(seed=3)
    sources = [simulator.np_random, simulator.scene.np_random, simulator.scene.movable_objects[0].np_random]
    assert all(source is sources[0] for source in sources)
    first = sources[0].random()
    env.reset(seed=3)
    assert simulator.scene.np_random.random() == first


def test_closing_twice_closes_once(stand_in):
    env, simulator, _ = stand_in
    env.reset()
    env.close()
    env.close()
    assert simulator.closed == 1 and not simulator.ownsPhysicsClient
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


# The real one.


@pytest.fixture(scope="module")
def real() -> Path:
    named = os.environ.get("IDEOMOTOR_CALVIN_ENV")
    if not named:
        pytest.skip("IDEOMOTOR_CALVIN_ENV does not name the root of your own calvin_env (it is on no registry)")
    pytest.importorskip("pybullet")
    return Path(named)


@pytest.mark.sim
@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_the_button_turns_the_led_on_in_every_scene(real, scene):
    env, oracle = CalvinEnv(CalvinConfig(scene=scene, path=real)), CalvinOracle(real)
    try:
        assert len(oracle.tasks) == 34
        observation, start = env.reset(seed=1)
        assert observation in env.observation_space
        assert observation["rgb_static"].std() > 10 and observation["rgb_gripper"].std() > 10
        assert not oracle.completed(start, start, oracle.tasks)
        x = {"A": -0.28, "B": 0.28, "C": -0.12, "D": -0.12}[scene]
        walk = Walk([Waypoint(place=(x, -0.12, 0.54), grip=-1), Waypoint(place=(x, -0.12, 0.44), grip=-1)])
        done: set[str] = set()
        while not walk.done and not done:
            _, _, _, info = env.advance(walk.action(env.state()["robot_obs"]))
            done = oracle.completed(start, info, ("turn_on_led", "turn_off_led"))
        assert done == {"turn_on_led"}
    finally:
        env.close()


@pytest.mark.sim
def test_states_are_restored_and_seeds_repeat(real):
    env = CalvinEnv(CalvinConfig(cameras=(), path=real))
    try:
        first = env.reset(seed=5)[0]
        for _ in range(10):
            env.advance(np.array([1, 0.5, -0.5, 0, 0, 0.5, -1]))
        again = env.reset(seed=5)[0]
        assert np.allclose(first["scene_obs"], again["scene_obs"], atol=0.02)  # PyBullet remembers contacts
        states = {name: again[name] for name in ("robot_obs", "scene_obs")}
        states["scene_obs"][:2] = 0.1, 0.15
        back = env.reset(options=states)[0]
        assert np.allclose(back["robot_obs"], states["robot_obs"], atol=1e-2)
        assert np.allclose(back["scene_obs"][:6], states["scene_obs"][:6], atol=1e-3)
        with pytest.raises(RuntimeError, match="another PyBullet"):
            CalvinEnv(CalvinConfig(path=real))
        with pytest.raises(ValueError, match="unknown"):
            CalvinOracle(real).completed({}, {}, ["fly"])
    finally:
        env.close()
