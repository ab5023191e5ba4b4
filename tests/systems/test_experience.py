"""Experience is recorded by several processes into one folder."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ideomotor.data.replay import Trajectory, read_trajectory
from ideomotor.envs import pixels
from ideomotor.envs.pixels import PixelConfig, PixelWorld
from ideomotor.envs.toy import ToyConfig, ToyEnv
from ideomotor.systems import experience


class Closed:
    def close(self) -> None:
        """There is nothing to close."""


def test_one_process_leaves_what_another_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = np.zeros((3, 3, 8, 8), np.uint8)
    ones = np.ones(3, np.float32)
    episode = Trajectory(frames=still, actions=np.zeros((3, 2), np.float32), rewards=ones, discounts=ones)
    monkeypatch.setattr(pixels, "metaworld_pixels", lambda task: Closed())
    monkeypatch.setattr(experience, "shaken", lambda *_: episode)
    (tmp_path / "push").mkdir()
    draft = tmp_path / "push/.000001.npz.0123.part"
    draft.write_bytes(b"half an episode")
    experience._record((tmp_path, "push", 0, 0))
    assert draft.exists() and len(read_trajectory(tmp_path / "push/000000.npz")) == 2


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    (tmp_path / "push").mkdir()
    (tmp_path / "push/000000.npz").write_bytes(b"no episode")
    with pytest.raises(ValueError, match=r"push/000000\.npz is no episode of the replay layout: it is cut short"):
        experience._record((tmp_path, "push", 0, 0))


def test_a_wandering_hand_goes_straight_for_a_few_steps_and_is_repeated_by_its_seed() -> None:
    def episode(seed: int) -> np.ndarray:
        config = PixelConfig(stack=2, duration=60)
        world = PixelWorld(ToyEnv(ToyConfig(size=16, horizon=config.horizon)), config)
        return experience.wandering(world, np.random.default_rng(seed)).actions[1:]

    actions = episode(0)
    turns = (np.abs(np.diff(actions, axis=0)) > 0).any(1).mean()
    assert 0.03 < turns < 0.35 and actions.std(0).min() > 0.2
    assert np.array_equal(actions, episode(0)) and not np.array_equal(actions[:5], episode(1)[:5])
