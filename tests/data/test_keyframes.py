"""Keyframes, and the release's windows."""

import numpy as np
import pytest

from ideomotor.data.distant_windows import DistantWindow, one_of_each_task
from ideomotor.data.keyframes import keyframes, next_keyframes


def episode(length, changes=(), still=()):
    gripper = np.ones(length)
    for step in changes:
        gripper[step:] = 1 - gripper[step:]
    speed = np.ones((length, 7))
    speed[list(still)] = 0.05
    return gripper, speed


def test_changes_standstills_and_the_end():
    assert keyframes(*episode(20)) == [19]
    assert keyframes(*episode(20, changes=[6, 12])) == [6, 12, 19]
    assert keyframes(*episode(20, still=[8])) == [8, 19]
    assert keyframes(*episode(20, still=range(5, 13))) == [5, 10, 19]  # one in five steps
    assert keyframes(*episode(20, changes=[8], still=[7, 8, 9])) == [8, 19]  # the change is near: no standstill


def test_near_the_end():
    assert keyframes(*episode(20, still=[18])) == [19]
    assert keyframes(*episode(20, changes=[18])) == [19]
    assert keyframes(*episode(1)) == []
    with pytest.raises(ValueError, match="2 gripper states and 3 joint velocities"):
        keyframes(np.ones(2), np.ones((3, 7)))


def test_the_next_keyframes():
    rows, mask = next_keyframes([4, 9, 12], 4, 3)
    assert rows.tolist() == [9, 12, 12] and mask.tolist() == [True, True, False]
    rows, mask = next_keyframes([4, 9, 12], 12, 2)
    assert rows.tolist() == [12, 12] and mask.tolist() == [True, False]
    with pytest.raises(ValueError, match="no keyframes"):
        next_keyframes([], 0, 2)


def test_distant_windows():
    window = DistantWindow(frames=3, ahead=10, chunk=2)
    assert window.frame_indices(4, 40).tolist() == [2, 3, 4, 12, 13, 14]
    assert window.frame_indices(1, 9).tolist() == [0, 0, 1, 6, 7, 8]
    chunk, mask = window.actions(np.arange(5.0)[:, None] + 1, 4)
    assert chunk.tolist() == [[5.0], [0.0]] and mask.tolist() == [True, False]
    assert one_of_each_task(5, tasks=3, demonstrations=2) == [5, 1, 3]
    with pytest.raises(ValueError, match="at least 1"):
        DistantWindow(ahead=0)
