"""A learned world as a vector environment: its spaces, its frames, its end."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from ideomotor.envs.imagined import ImaginedVectorEnv
from ideomotor.types import Imagined


class Fading:
    """A world whose next frame is the last one plus ten times the action's first number; rewards are the actions'."""

    context, action_width = 2, 2

    def reset(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, -1]

    def step(self, state: torch.Tensor, action: torch.Tensor | None = None) -> Imagined:
        assert action is not None and action.abs().max() <= 1
        frames = (state.int() + (10 * action[:, 0]).int()[:, None, None, None]).clamp(0, 255).to(torch.uint8)
        return Imagined(frames, action[:, 0], frames)

    def fork(self, state: Any, times: int) -> Any:
        return state.repeat_interleave(times, 0)

    def seed(self, seed: int) -> None:
        self.seeded = seed


def starts(count: int, rng: np.random.Generator) -> np.ndarray:
    values = rng.integers(50, 100, (count, 1, 1, 1, 1)) + np.arange(3).reshape(1, 3, 1, 1, 1)
    return np.broadcast_to(values, (count, 3, 3, 4, 4)).astype(np.uint8)


def test_an_agent_steps_it_like_any_vector_environment() -> None:
    env = ImaginedVectorEnv(Fading(), starts, num_envs=2, horizon=2, stack=2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and observation.shape == (2, 6, 4, 4)
    first = observation[:, 3].copy()
    assert (observation[:, 0] == first - 1).all(), "oldest first"
    up = np.array([[1.0, 0.0], [5.0, 0.0]], np.float32)  # the second is clipped
    observation, reward, terminated, truncated, _ = env.step(up)
    assert (observation[:, 3] == first + 10).all() and (observation[:, 0] == first).all()
    assert reward.tolist() == [1, 1] and not terminated.any() and not truncated.any()
    *_, truncated, _ = env.step(up)
    assert truncated.all()
    observation, reward, terminated, truncated, _ = env.step(up)  # begins anew, the action unheard
    assert not truncated.any() and reward.tolist() == [0, 0] and observation.max() < 110
    again, _ = env.reset(seed=0)
    assert (again[:, 3] == first).all(), "the same seed begins the same episodes"


def test_a_seed_begins_the_worlds_draws_too() -> None:
    world = Fading()
    env = ImaginedVectorEnv(world, starts, num_envs=2, horizon=2)
    seeded = []
    for seed in (0, None, 0, 1):
        world.seeded = -1
        env.reset(seed=seed)
        seeded.append(world.seeded)
    assert seeded[0] == seeded[2] != seeded[3] and seeded[1] == -1 and min(seeded[0], seeded[3]) >= 0


def test_what_does_not_fit_is_refused() -> None:
    env = ImaginedVectorEnv(Fading(), starts, num_envs=2, horizon=2)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((2, 2), np.float32))
    env.reset(seed=0)
    for wrong in (np.zeros((2, 3), np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"wanted finite numbers of shape \(2, 2\)"):
            env.step(wrong)
    with pytest.raises(ValueError, match="at least 4 frames"):
        ImaginedVectorEnv(Fading(), starts, num_envs=2, horizon=2, stack=4)
    with pytest.raises(ValueError, match="at least 1"):
        ImaginedVectorEnv(Fading(), starts, num_envs=0, horizon=2)
    world = Fading()
    world.action_width = 0
    with pytest.raises(ValueError, match="hears no actions"):
        ImaginedVectorEnv(world, starts, num_envs=2, horizon=2)
