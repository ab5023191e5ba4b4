"""Meta-World as we show it: upright, VPDD's crop, split goals, nothing carried from one episode to the next."""

import itertools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("metaworld")

from gymnasium.utils.env_checker import check_env

from ideomotor.envs import metaworld_render
from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv
from ideomotor.envs.metaworld_tasks import INSTRUCTIONS, TASKS, instruction
from ideomotor.envs.world import GOALS

pytestmark = pytest.mark.sim


@pytest.fixture
def open_world():
    opened = []

    def make(task: str = "door-open", **settings) -> MetaWorldEnv:
        opened.append(MetaWorldEnv(MetaWorldConfig(task=task, **settings)))
        return opened[-1]

    yield make
    for env in opened:
        env.close()
    assert not metaworld_render._canvases  # every OpenGL context was given back


def marker(picture: np.ndarray) -> np.ndarray:
    """Where the green marker of the goal is: mean (row, column) in 0..1."""
    red, green, blue = picture.astype(int)
    rows, columns = np.nonzero((green - np.maximum(red, blue)) > 60)
    assert 2 <= len(rows) < 60
    return (np.array([rows.mean(), columns.mean()]) + 0.5) / len(red)


def test_gymnasium_accepts_it():
    env = MetaWorldEnv(MetaWorldConfig(task="reach", size=32), render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(env)
    env.close()


def test_tasks_are_all_fifty_with_an_instruction_each():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert len(set(INSTRUCTIONS.values())) == len(TASKS) == 50
    assert instruction("button-press-topdown") == "press the button from the top"
    with pytest.raises(ValueError, match="did you mean 'door-open'"):
        instruction("door-opne-v3")


def test_expert_succeeds_and_success_terminates(open_world):
    env = open_world("button-press-topdown", size=32)
    observation, info = env.reset(options={"goal": 0})
    assert info == {
        "text": "press the button from the top",
        "task": "button-press-topdown",
        "goal": 0,
        "steps": 0,
        "success": False,
    }
    assert set(observation) == {"frames", "proprio"} and observation["proprio"].shape == (4,)
    terminated = truncated = False
    while not (terminated or truncated):
        _, terminated, truncated, info = env.advance(env.expert_action())
    assert terminated and info["success"] and 30 < info["steps"] < 120


def test_nothing_is_carried_from_one_episode_to_the_next(open_world):
    def play(env: MetaWorldEnv) -> list[np.ndarray]:
        observation, _ = env.reset(options={"goal": 5})
        seen = [observation["frames"]["corner2"], observation["proprio"]]
        for _ in range(3):
            for _ in range(10):
                env.advance(env.expert_action())
            observation = env.observe()
            seen += [observation["frames"]["corner2"], observation["proprio"]]
        return seen

    used = open_world(size=32)
    used.reset(options={"goal": 17})
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 4)):
        used.advance(action)
    for one, other in zip(play(used), play(open_world(size=32)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_goals_of_training_and_test_differ_and_are_the_benchmarks_own(open_world):
    import metaworld

    env = open_world("drawer-open", size=16)
    places = {}
    for goal in (0, 1, 29, 30, 49):
        env.reset(options={"goal": goal})
        places[goal] = tuple(env._state[-3:].round(6))
    assert len(set(places.values())) == 5
    assert not set(GOALS["train"]) & set(GOALS["test"])
    theirs = metaworld.MT1("drawer-open-v3", seed=42).train_tasks
    assert [task.data for task in env._tasks] == [task.data for task in theirs]
    tested = open_world("drawer-open", size=16, goals="test")
    assert all(tested.reset(seed=seed)[1]["goal"] in GOALS["test"] for seed in range(3))


def test_narrow_angle_equals_vpdds_crop(open_world):
    """VPDD turns a 480 px picture of corner2 by 180 degrees and keeps rows and columns 110..369."""
    narrow, whole = open_world("door-open", size=96), open_world("door-open", size=480, crop=None)
    for env in (narrow, whole):
        env.reset(options={"goal": 2})
        for _ in range(15):
            env.advance(env.expert_action())
    cut = whole.observe()["frames"]["corner2"][:, 110:370, 110:370].astype(float)
    # Each of 96 pixels is the mean of 260 / 96 of the cut's, by splitting every pixel of the cut in 24.
    fine = cut.repeat(24, axis=1).repeat(24, axis=2)  # 6240 = 65 * 96
    wanted = fine.reshape(3, 96, 65, 96, 65).mean((2, 4))
    seen = narrow.observe()["frames"]["corner2"].astype(float)
    difference = np.abs(seen - wanted).mean()
    assert difference < 2.0  # of 255; what is left is how edges are sampled
    for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):  # a single pixel off is already far worse
        assert np.abs(np.roll(seen, shift, (1, 2)) - wanted).mean() > 3 * difference


@pytest.mark.parametrize("look", ["fast", "default"])
def test_picture_is_upright_and_not_mirrored(open_world, look):
    """Projected by hand: the hand and the goal's marker must be where the camera's own geometry puts them."""
    env = open_world("push", size=96, look=look)
    env.reset(options={"goal": 3})
    picture = env.observe()["frames"]["corner2"]
    sim = env._sim
    camera = sim.model.camera("corner2").id
    axes = sim.data.cam_xmat[camera].reshape(3, 3)
    reach = np.tan(np.radians(sim.model.cam_fovy[camera]) / 2)

    def place(point: np.ndarray) -> np.ndarray:
        x, y, z = axes.T @ (point - sim.data.cam_xpos[camera])
        # The camera's y axis points down the room, so turning the picture by 180 degrees flips both signs.
        return np.array([1 + y / (-z * reach), 1 - x / (-z * reach)]) / 2

    np.testing.assert_allclose(marker(picture), place(sim._target_pos), atol=0.02)
    redness = picture[0].astype(int) - picture[1:].max(0)
    assert np.nonzero(redness > 60)[1].mean() < 0.5 * 96  # the robot stands on the left


def test_goals_marker_is_visible_and_moves_with_the_goal(open_world):
    env = open_world("push", size=96)
    places = [marker(env.reset(options={"goal": goal})[0]["frames"]["corner2"]) for goal in (0, 4, 8)]
    assert min(np.abs(one - other).max() for one, other in itertools.pairwise(places)) > 0.02


def test_simplified_surfaces_do_not_show(open_world, monkeypatch):
    simple, full = open_world("door-open"), open_world("door-open")
    seen = simple.reset(options={"goal": 1})[0]["frames"]["corner2"].astype(float)
    monkeypatch.setattr(metaworld_render, "_NEAR", ("corner2",))  # near cameras see every triangle
    wanted = full.reset(options={"goal": 1})[0]["frames"]["corner2"]
    assert 0 < np.abs(seen - wanted).mean() < 0.4  # of 255


def test_cameras_are_separate_pictures_and_share_contexts(open_world):
    env, other = open_world(size=16, cameras=("corner2", "topview", "gripperPOV")), open_world(size=16)
    frames = env.reset(options={"goal": 0})[0]["frames"]
    assert list(frames) == ["corner2", "topview", "gripperPOV"]
    assert not np.array_equal(frames["corner2"], frames["topview"])
    same = other.reset(options={"goal": 0})[0]["frames"]["corner2"]
    np.testing.assert_array_equal(same, frames["corner2"])
    assert len(metaworld_render._canvases) == 2  # one for all that is far, one for what is near the robot


@pytest.mark.parametrize("look", ["fast", "default"])
@pytest.mark.parametrize("task", ["button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide"])
def test_objects_are_few_pixels_and_move_when_moved(open_world, task, look):
    env = open_world(task, look=look)
    with pytest.raises(RuntimeError, match="reset"):
        env.objects()
    before = env.reset(options={"goal": 0})[0]["frames"]["corner2"]
    mask = env.objects()["corner2"]
    assert mask.shape == (96, 96) and mask.dtype == bool and 20 <= mask.sum() < 0.2 * mask.size
    np.testing.assert_array_equal(env.observe()["frames"]["corner2"], before)  # a mask leaves no trace in the pictures
    while not env.advance(env.expert_action())[1]:
        pass
    assert (env.objects()["corner2"] != mask).sum() >= 10


def test_objects_mask_is_where_the_object_is_drawn(open_world):
    env = open_world("push")
    frame = env.reset(options={"goal": 3})[0]["frames"]["corner2"].astype(int)
    mask = env.objects()["corner2"]
    sim = env._sim
    sim.model.geom_rgba[sim.model.geom("objGeom").id] = (0, 0, 1, 1)
    sim.model.geom_matid[sim.model.geom("objGeom").id] = -1
    changed = np.abs(env.observe()["frames"]["corner2"] - frame).max(0) > 60
    assert changed.sum() >= 5 and (changed & mask).sum() > 0.8 * (changed | mask).sum()


def test_every_task_has_an_object_that_is_not_the_robot():
    import metaworld

    for task in TASKS:
        sim = metaworld.env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        wanted = metaworld_render.movable(sim.model)
        bodies = {sim.model.body(sim.model.geom_bodyid[geom]).name for geom in np.flatnonzero(wanted)}
        assert bodies and not bodies & {"hand", "head", "rightclaw", "leftpad", "mocap", "tablelink", "RetainingWall"}
        sim.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "door-open-v3"}, "without '-v3'.*'door-open'"),
        ({"cameras": ("front",)}, "corner2"),
        ({"look": "pretty"}, "'fast' or 'default'"),
        ({"crop": "centre"}, "'vpdd' or None"),
        ({"horizon": 501}, "1 to 500"),
        ({"size": 2}, "8 px"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        MetaWorldConfig(**({"task": "door-open"} | settings))


def test_wrong_calls_are_named(open_world):
    env = open_world(size=16, horizon=2)
    for call in (lambda: env.step(np.zeros(4)), env.observe, env.expert_action):
        with pytest.raises(RuntimeError, match="reset"):
            call()
    with pytest.raises(ValueError, match="0 to 49"):
        env.reset(options={"goal": 50})
    env.reset(seed=1)
    with pytest.raises(ValueError, match="4 finite numbers"):
        env.step(np.array([0, 0, np.inf, 0]))
    env.advance(np.zeros(4))
    assert env.advance(np.zeros(4))[2]
    with pytest.raises(RuntimeError, match="horizon of 2"):
        env.advance(np.zeros(4))


def test_machine_without_gl_is_told_what_to_install():
    code = (
        "from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv\n"
        "MetaWorldEnv(MetaWorldConfig(task='reach', size=16)).reset(seed=0)"
    )
    # Without a vendor's library EGL finds no device, as on a bare machine.
    bare = os.environ | {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json", "MUJOCO_GL": "egl"}
    ended = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    last = [line for line in ended.stderr.splitlines() if line.startswith("RuntimeError")][-1]
    assert "apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri" in last
