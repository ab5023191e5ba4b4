"""Chunks of actions, and many worlds in lock step over processes that may fail or die."""

import functools
import os
import signal
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env

from ideomotor.envs.chunked import Chunked
from ideomotor.envs.toy import ToyConfig, ToyEnv
from ideomotor.envs.vector import ChunkedVector


def make(task: str = "red", horizon: int = 100) -> Chunked:
    return Chunked(ToyEnv(ToyConfig(task=task, size=16, horizon=horizon)), context=3, stride=2, chunk=4)


class Fragile(ToyEnv):
    """Breaks at its fifth step, or does worse."""

    def __init__(self, how: str) -> None:
        super().__init__(ToyConfig(task="green", size=16))
        self.how = how

    def advance(self, action):
        if self._steps == 4:
            if self.how == "raise":
                raise ZeroDivisionError("the disc fell off")
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().advance(action)


def make_fragile(how: str) -> Chunked:
    return Chunked(Fragile(how), context=3, stride=2, chunk=4)


def make_nothing() -> Chunked:
    raise OSError("no such simulator")


class Counting(ToyEnv):
    """Counts the pictures it draws."""

    drawn = 0

    def observe(self):
        self.drawn += 1
        return super().observe()


def chunk_of(env: Chunked, k: int = 4) -> np.ndarray:
    """The expert's next actions, found on a copy of the world."""
    inner, ahead = env.unwrapped, ToyEnv(env.unwrapped.config)
    ahead.reset(options={"goal": inner._goal})
    ahead._hand, ahead._disc = inner._hand, inner._disc
    actions = []
    for _ in range(k):
        actions.append(ahead.expert_action())
        ahead.advance(actions[-1])
    return np.stack(actions)


# Chunked


def test_gymnasium_accepts_chunks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(not having a spec|different from the unwrapped).*")
        check_env(make())


@pytest.mark.parametrize(("context", "stride", "k"), [(3, 2, 4), (4, 4, 8), (4, 4, 4), (1, 4, 8), (3, 4, 6), (4, 1, 3)])
def test_frames_are_those_of_single_steps_at_the_stride(context, stride, k):
    actions = np.random.default_rng(1).uniform(-0.3, 0.3, (24, 2)).astype(np.float32)
    single = ToyEnv(ToyConfig(size=16))
    film = [single.reset(options={"goal": 2})[0]["frames"]["main"]]
    film += [single.step(action)[0]["frames"]["main"] for action in actions]
    env = Chunked(ToyEnv(ToyConfig(size=16)), context=context, stride=stride, chunk=k)
    observation, info = env.reset(options={"goal": 2})
    np.testing.assert_array_equal(observation["frames"]["main"], np.stack([film[0]] * context))
    for now in range(k, 25, k):
        observation, _, terminated, truncated, info = env.step(actions[now - k : now])
        wanted = [film[max(0, now - back * stride)] for back in reversed(range(context))]
        np.testing.assert_array_equal(observation["frames"]["main"], np.stack(wanted))
        assert info["executed"] == k and info["steps"] == now and not terminated and not truncated


def test_draws_only_frames_that_are_shown():
    world = Counting(ToyConfig(size=16))
    env = Chunked(world, context=4, stride=4, chunk=8)
    env.reset(options={"goal": 2})
    assert world.drawn == 1
    env.step(np.zeros((8, 2)))
    assert world.drawn == 3
    Chunked(world, context=1, stride=4, chunk=8).reset()
    before = world.drawn
    alone = Chunked(world, context=1, stride=4, chunk=8)
    alone.reset()
    alone.step(np.zeros((8, 2)))
    assert world.drawn == before + 2


def test_stops_at_success_and_at_the_horizon():
    env = make()
    observation, info = env.reset(options={"goal": 4})
    executed, terminated = 0, False
    while not terminated:
        observation, _, terminated, truncated, info = env.step(chunk_of(env))
        executed += info["executed"]
        assert info["success"] == terminated and not truncated
    assert info["steps"] == executed < 100
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation["frames"]["main"][-1], env.unwrapped.observe()["frames"]["main"])
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((4, 2)))

    short = make(horizon=6)
    short.reset(options={"goal": 4})
    short.step(np.zeros((4, 2)))
    _, _, terminated, truncated, info = short.step(np.zeros((4, 2)))
    assert (terminated, truncated, info["executed"], info["steps"]) == (False, True, 2, 6)


def test_chunks_of_changing_length_are_refused_where_a_frame_would_be_missing():
    env = Chunked(ToyEnv(ToyConfig(size=16)), context=4, stride=4, chunk=8)
    env.reset(options={"goal": 2})
    env.step(np.zeros((8, 2)))
    env.step(np.zeros((4, 2)))  # still on the grid of the stride
    with pytest.raises(ValueError, match="one length"):
        env.step(np.zeros((6, 2)))


def test_wrong_chunks_are_named():
    with pytest.raises(ValueError, match="context=0"):
        Chunked(ToyEnv(), context=0)
    env = make()
    env.reset()
    for wrong in (np.zeros(2), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"wanted \(k, a\)"):
            env.step(wrong)


# ChunkedVector


def roll(vector: ChunkedVector, steps: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    observation, infos = vector.reset([5, 6, 7], [{"goal": 31}, {"goal": 2}, None])
    seen = [observation["frames"]["main"], observation["proprio"]]
    for _ in range(steps):
        observation, rewards, terminated, truncated, infos = vector.step(rng.uniform(-1, 1, (3, 4, 2)))
        seen += [observation["frames"]["main"], observation["proprio"], rewards, terminated, truncated]
        seen.append(np.array([[info["executed"], info["goal"], info["steps"]] for info in infos]))
    return seen


def test_processes_change_nothing():
    makers = [functools.partial(make, task, horizon) for task, horizon in (("red", 30), ("green", 40), ("blue", 48))]
    with ChunkedVector(makers, workers=0) as here, ChunkedVector(makers, workers=2) as there:
        for one, other in zip(roll(here), roll(there), strict=True):
            np.testing.assert_array_equal(one, other)
        assert there.observation_space == here.observation_space and there.num_envs == 3
        _, infos = there.reset(where=[True, False, False], options=[{"goal": 9}, None, None])
        assert infos[0]["goal"] == 9 and infos[0]["steps"] == 0 and infos[1]["steps"] == 40
        pids = [link.pid for link in there._workers.links]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_inactive_worlds_stand_still():
    with ChunkedVector([make] * 3, workers=0) as vector:
        first, _ = vector.reset([1, 2, 3])
        observation, rewards, _, _, infos = vector.step(np.full((3, 4, 2), 0.3), active=[True, False, True])
        assert [info["executed"] for info in infos] == [4, 0, 4]
        assert rewards[1] == 0
        np.testing.assert_array_equal(observation["frames"]["main"][1], first["frames"]["main"][1])
        assert not np.array_equal(observation["frames"]["main"][0], first["frames"]["main"][0])


def test_finished_worlds_wait_until_reset():
    with ChunkedVector([functools.partial(make, "red", 4), make], workers=0) as vector:
        vector.reset([1, 2])
        _, _, _, truncated, _ = vector.step(np.zeros((2, 4, 2)))
        assert truncated.tolist() == [True, False]
        _, _, _, truncated, infos = vector.step(np.zeros((2, 4, 2)))
        assert truncated.tolist() == [True, False] and [info["executed"] for info in infos] == [0, 4]
        with pytest.raises(ValueError, match=r"worlds \[0\].*reset"):
            vector.step(np.zeros((2, 4, 2)), active=[True, True])
        vector.reset(where=[True, False])
        _, _, _, _, infos = vector.step(np.zeros((2, 4, 2)))
        assert [info["steps"] for info in infos] == [4, 12]


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_a_world_arrives_with_task_and_seed(workers):
    with ChunkedVector([functools.partial(make_fragile, "raise")], workers=workers) as vector:
        vector.reset([11], [{"goal": 3}])
        vector.step(np.zeros((1, 4, 2)))
        with pytest.raises(RuntimeError, match=r"task green, seed 11, options \{'goal': 3\}.*the disc fell off"):
            vector.step(np.zeros((1, 4, 2)))
        with pytest.raises(RuntimeError, match="closed"):
            vector.reset()


def test_killed_worker_is_an_error_and_not_a_hang():
    began = time.monotonic()
    with ChunkedVector([make, functools.partial(make_fragile, "die")], workers=1) as vector:
        vector.reset([1, 2])
        vector.step(np.zeros((2, 4, 2)))
        with pytest.raises(RuntimeError, match=r"process of worlds 0, 1 ended by signal 9.*memory"):
            vector.step(np.zeros((2, 4, 2)))
    assert time.monotonic() - began < 120


def test_silent_worker_is_given_up_after_the_timeout():
    with ChunkedVector([functools.partial(make_fragile, "sleep")], workers=1) as vector:
        vector.reset([1])
        vector.step(np.zeros((1, 4, 2)))
        vector._workers.links[0]._timeout = 0.5
        with pytest.raises(TimeoutError, match=r"0\.5 s"):
            vector.step(np.zeros((1, 4, 2)))


def test_world_that_cannot_be_made_is_named():
    with pytest.raises(RuntimeError, match=r"world 1 failed.*OSError: no such simulator"):
        ChunkedVector([make, make_nothing], workers=0)


def test_wrong_batches_are_named():
    with pytest.raises(ValueError, match="at least one world"):
        ChunkedVector([])
    with ChunkedVector([make], workers=0) as vector:
        with pytest.raises(ValueError, match="have not begun"):
            vector.step(np.zeros((1, 4, 2)), active=[True])
        vector.reset()
        with pytest.raises(ValueError, match=r"wanted \(1, k, a\)"):
            vector.step(np.zeros((4, 2)))
        with pytest.raises(ValueError, match="each of 1 worlds"):
            vector.step(np.zeros((1, 4, 2)), active=[True, True])
    with pytest.raises(RuntimeError, match="closed"):
        vector.reset()
