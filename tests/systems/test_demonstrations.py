"""Demonstrations that no policy learns from are left out by name, and no sound one is."""

from dataclasses import replace

import numpy as np
import pytest

from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.systems.demonstrations import learnable
from ideomotor.types import Dataset, Episode


def episode(actions: np.ndarray, name: str) -> Episode:
    return Episode(id=name, text="", fps=10, length=len(actions), frames={}, read_actions=lambda: actions)


def dataset(**actions: np.ndarray) -> Dataset:
    episodes = tuple(episode(rows.astype(np.float32), name) for name, rows in actions.items())
    return replace(synthetic_dataset(episodes=1, length=2, size=8), episodes=episodes)


def test_sound_demonstrations_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    rest = np.zeros((200, 3))
    rest[:, 1] = 500  # never moves
    rest[90:110, 2] = -4000.0  # moves for a while, and far
    for rows in (rng.normal(size=(40, 7)), rng.standard_cauchy((40, 2)), rest, 1e-9 * rng.normal(size=(30, 2))):
        given = dataset(a=rows, b=rows[::-1])
        assert learnable(given, 8) == given


def test_a_glitch_and_too_short_a_recording_are_left_out_by_name() -> None:
    rng = np.random.default_rng(0)
    glitch = rng.normal(size=(12, 2))
    glitch[4, 1] = -1e6
    given = dataset(a=rng.normal(size=(12, 2)), glitch=glitch, short=np.ones((7, 2)), b=rng.normal(size=(8, 2)))
    kept = learnable(given, 8)
    assert [one.id for one in kept.episodes] == ["a", "b"]
    found = {entry.path: entry.reason for entry in kept.quarantined}
    assert found.keys() == {"glitch", "short"}
    assert found["glitch"].startswith("row 4 of the actions holds -1e+06, and 95 of 100 values lie within ")
    assert found["short"].startswith("has 7 frames, a chunk is 8 actions: record longer ones, or set a smaller")
    with pytest.raises(ValueError, match=r"none of the 4 demonstrations of .* can be learned from: a has 12 frames"):
        learnable(given, 13)
