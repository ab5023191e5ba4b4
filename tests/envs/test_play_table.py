"""Our play table: the contract, repeatable to the bit, and every one of the 34 tasks can be done in it."""

import math
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

from gymnasium.utils.env_checker import check_env

from ideomotor.envs import metaworld_render
from ideomotor.envs.play_table import START, PlayTableConfig, PlayTableEnv
from ideomotor.envs.play_table_scene import BLOCKS, DRAWER, LEVER, SLIDER
from ideomotor.envs.play_table_scripts import script
from ideomotor.envs.play_table_starts import earlier_tasks, free_scene, scene_for
from ideomotor.envs.play_table_tasks import TASKS, PlayTableOracle
from ideomotor.envs.play_table_walk import Walk

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def blind():
    """A table that is never drawn."""
    env = PlayTableEnv(PlayTableConfig(cameras=()))
    yield env
    env.close()


@pytest.fixture(scope="module")
def table():
    """One that is."""
    env = PlayTableEnv(render_mode="rgb_array")
    yield env
    env.close()
    assert not metaworld_render._canvases  # every OpenGL context was given back


def scene(**parts: float) -> np.ndarray:
    """All at 0, blocks far from one another on the table, apart from what is said."""
    state = np.zeros(24)
    for i, (name, x) in enumerate(zip(BLOCKS, (0.0, 0.12, 0.24), strict=True)):
        state[6 + 6 * i :][:3] = x, -0.10, 0.46
        assert name in BLOCKS
    for name, value in parts.items():
        state[["slider", "drawer", "button", "lever", "lightbulb", "led"].index(name)] = value
    return state


def do(env: PlayTableEnv, task: str, seed: int) -> tuple[bool, int, set[str]]:
    """Follows the script; returns whether the task was done, after how many steps, and what else was."""
    start_scene = scene_for(task, np.random.default_rng(seed))
    observation, info = env.reset(options={"scene_obs": start_scene})
    plan, oracle = script(task, observation["robot_obs"], observation["scene_obs"]), PlayTableOracle()
    if plan.before:
        walk = Walk(plan.before)
        while not walk.done:
            _, _, _, info = env.advance(walk.action(env.state()["robot_obs"]))
    assert not oracle.completed(info, info, TASKS)
    start, walk, steps = info, Walk(plan.task), 0
    while not walk.done and not oracle.completed(start, info, [task]):
        _, _, _, info = env.advance(walk.action(env.state()["robot_obs"]))
        steps += 1
    done = oracle.completed(start, info, TASKS)
    return task in done, steps, done - {task}


def test_gymnasium_accepts_it(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        warnings.filterwarnings("ignore", message=".*Box observation space (maximum|minimum) value is (-)?infinity.*")
        check_env(table)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_can_be_done_and_nothing_else_is(blind, task):
    for seed in range(2):
        done, steps, besides = do(blind, task, seed)
        assert done and steps < 120, f"seed {seed}"
        assert not besides


def test_the_same_seed_and_actions_give_the_same_to_the_bit(table):
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 7)).astype(np.float32)

    def episode() -> list[np.ndarray]:
        seen = list(table.reset(seed=7)[0].values())
        for action in actions:
            table.advance(action)
        return seen + list(table.observe().values())

    first = episode()
    table.reset(seed=8)
    table.advance(np.ones(7))
    assert all(np.array_equal(one, other) for one, other in zip(first, episode(), strict=True))
    assert not np.array_equal(table.reset(seed=8)[0]["scene_obs"], first[3])


def test_an_episode_can_be_taken_up_where_another_was(blind):
    blind.reset(seed=3)
    for _ in range(15):
        blind.advance(np.array([0.3, 0.2, -0.1, 0, 0, 0.5, -1]))
    state = blind.state()
    again, _ = blind.reset(options=state)
    assert np.allclose(again["robot_obs"][:7], state["robot_obs"][:7], atol=2e-3)
    assert np.allclose(again["scene_obs"], state["scene_obs"], atol=2e-3)


def test_it_starts_in_calvins_pose_and_where_it_is_told(blind):
    observation, info = blind.reset(
        options={"scene_obs": scene(slider=0.1, drawer=0.2, lever=LEVER, lightbulb=1, led=1)}
    )
    assert np.allclose(observation["robot_obs"][:7], START[:7], atol=1e-3) and observation["robot_obs"][14] == 1
    assert np.allclose(observation["scene_obs"][:6], [0.1, 0.2, 0, LEVER, 1, 1], atol=1e-3)
    assert all(info["touches"][block] == {"table"} for block in BLOCKS) and not info["touches"]["robot"]
    for wrong in ({"scene_obs": scene(slider=SLIDER + 0.1)}, {"scene_obs": np.zeros(23)}, {"goal": 2}):
        with pytest.raises(ValueError):
            blind.reset(options=wrong)


def test_actions_move_the_gripper_by_two_centimetres_and_a_twentieth_of_a_turn_in_radians(blind):
    blind.reset(options={"scene_obs": scene()})
    for _ in range(5):
        blind.advance(np.array([0.5, -0.25, 0.75, 0.9, -0.9, 1.0, -0.01]))
    for _ in range(10):
        blind.advance(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    moved = blind.state()["robot_obs"] - np.array(START)
    assert np.allclose(moved[:3], [0.05, -0.025, 0.075], atol=2e-3)
    assert np.allclose(moved[3:6], [0, 0, 0.25], atol=5e-3)  # it cannot tilt
    assert moved[6] == pytest.approx(-0.08, abs=2e-3) and blind.state()["robot_obs"][14] == -1


def test_pushing_against_the_table_is_not_stored_up(blind):
    blind.reset(options={"scene_obs": scene()})
    for _ in range(60):
        blind.advance(np.array([0, 0, -1, 0, 0, 0, -1.0]))
    low = blind.state()["robot_obs"][2]
    for _ in range(10):
        blind.advance(np.array([0, 0, 1, 0, 0, 0, -1.0]))
    assert blind.state()["robot_obs"][2] > low + 0.1


def test_a_press_toggles_the_led_once_however_long_it_is(blind):
    for led in (0, 1):
        blind.reset(
            options={"scene_obs": scene(led=led), "robot_obs": np.array([-0.12, -0.12, 0.5, math.pi, 0, 0, *[0.0] * 9])}
        )
        states = []
        for _ in range(40):
            states.append(blind.advance(np.array([0, 0, -0.5, 0, 0, 0, -1]))[3]["led"])
        assert states[0] == led and states[-1] == 1 - led and np.count_nonzero(np.diff(states)) == 1


def test_lights_and_sliders_are_seen_in_the_static_picture(table):
    dark = table.reset(options={"scene_obs": scene()})[0]["rgb_static"].astype(int)
    for parts in ({"lightbulb": 1, "lever": LEVER}, {"led": 1}, {"slider": SLIDER}, {"drawer": DRAWER}):
        seen = table.reset(options={"scene_obs": scene(**parts)})[0]["rgb_static"].astype(int)
        assert (np.abs(seen - dark).max(2) > 60).sum() > 25, parts


def test_the_blocks_are_seen_where_they_lie(table):
    for block, colour in zip(BLOCKS, ((1, 0, 0), (0, 0, 1), (1, 0, 1)), strict=True):
        columns = []
        for x in (0.0, 0.2):
            state = scene()
            state[6:].reshape(3, 6)[:, :2] = [[-0.2, -0.1], [-0.3, -0.1], [-0.38, -0.1]]
            state[6:].reshape(3, 6)[BLOCKS.index(block), :2] = x, -0.10
            picture = table.reset(options={"scene_obs": state})[0]["rgb_static"].astype(float)
            wanted, rest = picture[..., np.array(colour) > 0].min(2), picture[..., np.array(colour) == 0].max(2)
            spots = np.argwhere(wanted - rest > 60)
            spots = spots[spots[:, 1] > 80]
            columns.append(spots[:, 1].mean())
        assert columns[1] > columns[0] + 20, block


def test_only_the_cameras_asked_for_are_drawn(table):
    env = PlayTableEnv(PlayTableConfig(cameras=("gripper",)))
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"rgb_gripper", "robot_obs", "scene_obs"} and observation in env.observation_space
    assert observation["rgb_gripper"].shape == (84, 84, 3) and observation["rgb_gripper"].std() > 10
    assert env.render() is None
    env.close()
    table.reset(seed=0)
    assert table.render().shape == (200, 200, 3)
    with pytest.raises(ValueError, match="cameras"):
        PlayTableConfig(cameras=("front",))


def test_nothing_happens_before_reset():
    env = PlayTableEnv(PlayTableConfig(cameras=()))
    for early in (env.observe, env.info, env.state, lambda: env.advance(np.zeros(7))):
        with pytest.raises(RuntimeError, match="reset"):
            early()


def test_it_is_fast_enough(blind):
    blind.reset(seed=0)
    began = time.process_time()
    for action in np.random.default_rng(0).uniform(-1, 1, (300, 7)):
        blind.advance(action)
    assert 300 / (time.process_time() - began) > 300  # about 4000 on an idle core


def test_starts_leave_blocks_apart_and_resting():
    rng = np.random.default_rng(0)
    for _ in range(200):
        poses = free_scene(rng)[6:].reshape(3, 6)
        apart = np.linalg.norm(poses[:, None, :2] - poses[None, :, :2], axis=-1)[np.triu_indices(3, 1)]
        assert np.isfinite(poses).all() and apart.min() > 0.1
    with pytest.raises(ValueError, match="no task"):
        scene_for("fly", rng)
    with pytest.raises(ValueError, match="none of the 34"):
        script("fly", np.array(START), free_scene(rng))


def test_the_sentence_has_to_tell_which_block_is_meant():
    """Where the task's own block is the only one on the table, a policy need not listen for its colour."""
    rng = np.random.default_rng(0)
    for task in ("lift_red_block_table", "push_pink_block_left", "rotate_blue_block_right"):
        heights = np.stack([scene_for(task, rng)[6:].reshape(3, 6)[:, 2] for _ in range(100)])
        beside = (np.abs(heights - 0.46) < 1e-6).sum(1)
        assert set(beside.tolist()) == {1, 2} and 30 < (beside == 2).sum() < 70


def test_what_is_done_earlier_can_be_done_and_leaves_the_task_to_do(blind):
    rng = np.random.default_rng(0)
    for task in TASKS:
        start_scene = scene_for(task, rng)
        for other in earlier_tasks(task, start_scene):
            _, info = blind.reset(options={"scene_obs": start_scene})
            state, oracle = blind.state(), PlayTableOracle()
            walk, start = Walk(script(other, state["robot_obs"], state["scene_obs"]).task), info
            while not walk.done and not oracle.completed(start, info, [other]):
                _, _, _, info = blind.advance(walk.action(blind.state()["robot_obs"]))
            assert oracle.completed(start, info, TASKS) == {other}, (task, other)
    drawer, closed = scene(drawer=DRAWER), scene()
    assert earlier_tasks("place_in_drawer", drawer) == ("move_slider_left", "turn_on_lightbulb", "turn_on_led")
    assert "close_drawer" in earlier_tasks("place_in_slider", drawer)
    assert earlier_tasks("move_slider_left", closed) == ("open_drawer", "turn_on_lightbulb", "turn_on_led")


def test_a_script_does_not_stand_waiting(blind):
    """A policy that learns from it could not tell from what it sees when to go on."""
    for task in TASKS:
        start_scene = scene_for(task, np.random.default_rng(3))
        _, info = blind.reset(options={"scene_obs": start_scene})
        state, oracle = blind.state(), PlayTableOracle()
        plan = script(task, state["robot_obs"], state["scene_obs"])
        walk, start, still, longest = Walk(plan.before + plan.task), info, 0, 0
        while not walk.done and not (not plan.before and oracle.completed(start, info, [task])):
            before = blind.state()["robot_obs"][:7]
            _, _, _, info = blind.advance(walk.action(before))
            still = still + 1 if np.abs(blind.state()["robot_obs"][:7] - before).max() < 5e-4 else 0
            longest = max(longest, still)
        assert longest < 12, (task, longest)  # to close the fingers takes up to 8 of them


def test_a_task_can_begin_where_another_ended(blind):
    """A chain as CALVIN's evaluation runs it: what is held is placed, and hands are freed first."""
    state = scene(drawer=DRAWER)
    _, info = blind.reset(options={"scene_obs": state})
    oracle = PlayTableOracle()
    for task in (
        "rotate_red_block_left",
        "lift_pink_block_table",
        "place_in_drawer",
        "move_slider_left",
        "close_drawer",
    ):
        start, now = info, blind.state()
        plan = script(task, now["robot_obs"], now["scene_obs"])
        walk = Walk((*plan.before, *plan.task))
        while not walk.done and not oracle.completed(start, info, [task]):
            _, _, _, info = blind.advance(walk.action(blind.state()["robot_obs"]))
        assert oracle.completed(start, info, [task]) == {task}
