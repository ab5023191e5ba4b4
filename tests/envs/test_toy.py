"""The toy world keeps the contract of every world: Gymnasium's checker, two halves of a step, split goals."""

import warnings

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env

from ideomotor.envs.toy import CAMERAS, TASKS, ToyConfig, ToyEnv
from ideomotor.envs.world import GOALS, NUM_GOALS


def run_expert(env: ToyEnv, goal: int) -> tuple[int, bool]:
    env.reset(options={"goal": goal})
    for step in range(env.config.horizon):
        _, success, _, _ = env.advance(env.expert_action())
        if success:
            return step + 1, True
    return env.config.horizon, False


def test_gymnasium_accepts_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(ToyEnv(ToyConfig(cameras=CAMERAS), render_mode="rgb_array"))


@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds_on_every_goal(task):
    env = ToyEnv(ToyConfig(task=task))
    lengths, successes = zip(*(run_expert(env, goal) for goal in range(NUM_GOALS)), strict=True)
    assert all(successes)
    assert 8 < np.mean(lengths) < 40  # long enough to be a task, short enough for fast tests


def test_doing_nothing_fails():
    env = ToyEnv(ToyConfig(horizon=5))
    env.reset(seed=0)
    outcomes = [env.step(np.zeros(2)) for _ in range(5)]
    assert not any(terminated for _, _, terminated, _, _ in outcomes)
    assert [truncated for *_, truncated, _ in outcomes] == [False] * 4 + [True]
    with pytest.raises(RuntimeError, match="horizon of 5"):
        env.step(np.zeros(2))


def test_episode_is_a_function_of_goal_and_actions():
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2))

    def play(env: ToyEnv) -> list[np.ndarray]:
        observation, _ = env.reset(options={"goal": 7})
        seen = [observation["frames"]["main"]]
        for action in actions:
            seen.append(env.step(action)[0]["frames"]["main"])
        return seen

    used = ToyEnv()
    run_expert(used, 3)
    np.testing.assert_array_equal(play(used), play(ToyEnv()))


def test_step_is_advance_then_observe():
    one, two = ToyEnv(), ToyEnv()
    for env in (one, two):
        env.reset(options={"goal": 1})
    for _ in range(6):
        action = one.expert_action()
        observation, reward, terminated, truncated, info = one.step(action)
        assert (reward, terminated, truncated, info) == two.advance(action)
    np.testing.assert_array_equal(observation["frames"]["main"], two.observe()["frames"]["main"])


def test_reset_draws_from_its_own_split():
    for split, goals in GOALS.items():
        env = ToyEnv(ToyConfig(goals=split))
        drawn = {env.reset(seed=seed)[1]["goal"] for seed in range(200)}
        assert drawn == set(goals)
    assert not set(GOALS["train"]) & set(GOALS["test"])
    assert ToyEnv().reset(seed=5)[1]["goal"] == ToyEnv().reset(seed=5)[1]["goal"]


def test_picture_shows_the_goal_of_the_named_colour_and_two_cameras_differ():
    env = ToyEnv(ToyConfig(task="blue", cameras=CAMERAS, size=48))
    observation, info = env.reset(options={"goal": 0})
    assert info["text"] == "push the disc to the blue goal"
    red, green, blue = observation["frames"]["main"].astype(int)
    bluish = (blue - np.maximum(red, green)) > 80
    assert 10 < bluish.sum() < 200  # a disc of radius 0.09 of 48 px covers 59
    rows, columns = np.nonzero(bluish)
    place = np.array([columns.mean() + 0.5, 48 - (rows.mean() + 0.5)]) / 48
    np.testing.assert_allclose(place, env._target, atol=0.03)  # x to the right, y upwards: not mirrored
    assert not np.array_equal(observation["frames"]["main"], observation["frames"]["close"])


def test_info_and_observation_show_no_more_than_the_contract():
    observation, info = ToyEnv().reset(seed=0)
    assert set(observation) == {"frames", "proprio"}
    assert set(info) == {"text", "task", "goal", "steps", "success"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "purple"}, "no task 'purple'"),
        ({"cameras": ("side",)}, "main, close"),
        ({"cameras": ()}, "one or more"),
        ({"cameras": ("main", "main")}, "each once"),
        ({"size": 4}, "8 px"),
        ({"goals": "validation"}, "'train' or 'test'"),
        ({"horizon": 0}, "at least one"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        ToyConfig(**settings)


def test_wrong_calls_are_named():
    env = ToyEnv()
    for call in (lambda: env.step(np.zeros(2)), env.observe, env.expert_action):
        with pytest.raises(RuntimeError, match="reset"):
            call()
    with pytest.raises(ValueError, match="'place'"):
        env.reset(options={"place": 3})
    for goal in (-1, 50, 2.5):
        with pytest.raises(ValueError, match="0 to 49"):
            env.reset(options={"goal": goal})
    env.reset(seed=0)
    for action in (np.zeros(4), np.array([0.0, np.nan]), np.zeros((1, 2))):
        with pytest.raises(ValueError, match="2 finite numbers"):
            env.step(action)
