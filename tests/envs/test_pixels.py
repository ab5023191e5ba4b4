"""Reinforcement learning's view of a world: repeated actions, stacked frames, bonus, one length."""

import warnings

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env

from ideomotor.envs.pixels import PixelConfig, PixelWorld, metaworld_pixels
from ideomotor.envs.toy import ToyConfig, ToyEnv


def toy(cameras=("main",), **settings):
    config = PixelConfig(**({"duration": 10, "settle": 0} | settings))
    return PixelWorld(ToyEnv(ToyConfig(size=16, horizon=config.horizon, cameras=cameras)), config)


def check(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(env)


def test_gymnasium_accepts_it():
    check(toy())


def test_a_step_is_the_world_s_own_steps():
    ours, world = toy(settle=1), ToyEnv(ToyConfig(size=16))
    seen, _ = ours.reset(options={"goal": 3})
    world.reset(options={"goal": 3})
    world.step(np.zeros(2))
    assert seen.shape == (3, 3, 16, 16) and seen.dtype == np.uint8
    history = [world.observe()["frames"]["main"]] * 3
    assert np.array_equal(seen, np.stack(history))
    rng = np.random.default_rng(0)
    for step in range(1, 11):
        action = rng.uniform(-1, 1, 2)
        seen, reward, terminated, truncated, info = ours.step(action)
        rewards = [world.advance(action)[0] for _ in range(2)]
        history.append(world.observe()["frames"]["main"])
        assert np.array_equal(seen, np.stack(history[-3:]))
        assert reward == pytest.approx(sum(rewards) + 10 * info["success"])
        assert not terminated and truncated == (step == 10)
    with pytest.raises(RuntimeError, match="reset"):
        ours.step(action)


def test_success_pays_once_a_step_and_ends_nothing():
    env = toy(duration=60)
    env.reset(options={"goal": 0})
    with_bonus, over = [], False
    while not over:
        _, reward, terminated, over, info = env.step(env.world.expert_action())
        assert not terminated
        if info["success"]:
            with_bonus.append(reward)
    assert len(with_bonus) > 5 and all(9 < reward <= 10 for reward in with_bonus)


def test_the_mirror():
    plain, mirrored = toy(), toy(mirrored=True)
    a, b = (env.reset(options={"goal": 1})[0] for env in (plain, mirrored))
    assert np.array_equal(a, b[..., ::-1]) and not np.array_equal(a, b)


def test_wrong_settings():
    with pytest.raises(ValueError, match="looks through one"):
        toy(cameras=("main", "close"))
    with pytest.raises(ValueError, match="repeat 0"):
        PixelConfig(repeat=0)
    with pytest.raises(RuntimeError, match="reset"):
        toy().step(np.zeros(2))


@pytest.mark.sim
def test_gymnasium_accepts_metaworld():
    env = metaworld_pixels("plate-slide", config=PixelConfig(duration=3))
    check(env)
    env.close()


@pytest.mark.sim
def test_pictures_and_returns_are_those_of_the_demonstrations(shared):
    folder = shared / "data/real/metaworld_demos/plate-slide"
    demos = [dict(np.load(file)) for file in sorted(folder.glob("*.npz"))]
    shown = demos[0]["observation"][0].reshape(3, 3, 64, 64).astype(float)
    env = metaworld_pixels("plate-slide")
    seen, _ = env.reset(options={"goal": 0})
    assert np.abs(seen - shown).mean() < 8 < np.abs(seen[..., ::-1] - shown).mean()  # shadows, and another goal
    total, over = 0.0, False
    while not over:
        _, reward, _, over, _ = env.step(env.world.expert_action())
        total += reward
    env.close()
    returns = [demo["reward"].sum() for demo in demos]
    assert 0.95 * min(returns) < total < 1.05 * max(returns)
