"""Walking from point to point: straight, in order, no faster than allowed, never for ever."""

import math

import numpy as np
import pytest

from ideomotor.envs.play_table_walk import Walk, Waypoint, grasp_yaw, wrapped


def go(
    walk: Walk, place=(0.0, 0.0, 0.0), yaw: float = 0.0, *, stuck: bool = False, limit: int = 400
) -> list[np.ndarray]:
    """Follows the actions as an arm would that is where it is told to be; returns each state with its action."""
    state, path = np.array([*place, math.pi, 0, yaw, 0.08, *[0.0] * 8]), []
    while not walk.done and len(path) < limit:
        action = walk.action(state)
        path.append(np.concatenate([state[:6], action]))
        if not stuck:
            state[:3] += 0.02 * action[:3]
            state[5] = wrapped(state[5] + 0.05 * action[5])
    return path


def test_it_arrives_at_each_point_in_order_and_straight():
    walk = Walk([Waypoint(place=(0.1, 0.05, 0.0)), Waypoint(place=(0.1, 0.05, -0.1), yaw=1.0, grip=-1)])
    path = np.array(go(walk))
    assert walk.done and np.abs(path[:, 6:]).max() <= 1
    first = path[path[:, 12] > 0]
    assert np.allclose(first[1:, 1], first[1:, 0] / 2, atol=1e-6) and np.all(first[:, 2] == 0)
    assert np.allclose(path[-1, :3], (0.1, 0.05, -0.1), atol=0.008) and abs(path[-1, 5] - 1) < 0.08
    assert walk.action(np.zeros(15)).tolist() == [0, 0, 0, 0, 0, 0, -1]  # and there it stays


def test_speed_hold_and_patience():
    slow = np.array(go(Walk([Waypoint(place=(0.3, 0, 0), speed=0.25)])))
    assert np.abs(slow[:, 6:9]).max() == pytest.approx(0.25)
    assert len(go(Walk([Waypoint(place=(0, 0, 0), hold=7)]))) == 8
    assert len(go(Walk([Waypoint(place=(1, 0, 0), patience=12)]), stuck=True)) == 12
    with pytest.raises(ValueError, match="waypoint"):
        Walk([])


def test_turning_takes_the_shorter_way_across_pi():
    path = np.array(go(Walk([Waypoint(place=(0, 0, 0), yaw=-3.0)]), yaw=3.0))
    assert len(path) < 20 and np.all(path[:, 11] >= 0)


@pytest.mark.parametrize("block", np.linspace(-3.1, 3.1, 13))
@pytest.mark.parametrize("now", [-1.0, 0.2, 1.5])
def test_a_block_is_grasped_across_with_the_smaller_turn(block, now):
    yaw = grasp_yaw(block, now)
    assert abs(yaw - now) <= math.pi / 2 + 1e-9
    assert abs(math.sin(yaw - block)) < 1e-9
