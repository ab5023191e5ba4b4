"""Walking a gripper from point to point with the actions of a play table: what scripted demonstrations are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ideomotor.envs.play_table_contract import ACTION, STEP_M, STEP_RAD

# Part of the remaining way asked for in one step. Actions add up in the arm's target, so that more would overshoot.
_GAIN = 0.35


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """Where the gripper is to be, and how.

    Attributes:
        place: x, y, z in metres.
        yaw: Euler angle z in radians; the fingers open along x at pi / 2. None leaves it as it is.
        grip: 1 open, -1 closed, while on the way to it and there.
        near: metres at which it counts as reached.
        hold: steps to stay, for fingers to close.
        patience: steps after which it counts as reached anyway, such as where something is pushed against.
        speed: greatest action on the way, at most 1.
    """

    place: tuple[float, float, float]
    yaw: float | None = None
    grip: int = 1
    near: float = 0.008
    hold: int = 0
    patience: int = 80
    speed: float = 1.0


class Walk:
    """Waypoints one after the other; a function of what the robot sees of itself, so noise is corrected on the way."""

    def __init__(self, waypoints: Sequence[Waypoint]) -> None:
        if not waypoints:
            raise ValueError("there is nowhere to walk to: give at least one waypoint")
        self._waypoints, self._at, self._age, self._held = tuple(waypoints), 0, 0, 0

    @property
    def done(self) -> bool:
        """Whether the last waypoint was reached."""
        return self._at >= len(self._waypoints)

    def action(self, robot_obs: Float[np.ndarray, " 15"]) -> Float[np.ndarray, " 7"]:
        """Returns the next action; after the last waypoint, one that stays there."""
        action = np.zeros(ACTION, np.float32)
        action[6] = self._waypoints[min(self._at, len(self._waypoints) - 1)].grip
        if self.done:
            return action
        point = self._waypoints[self._at]
        way = np.asarray(point.place) - robot_obs[:3]
        turn = 0.0 if point.yaw is None else wrapped(point.yaw - robot_obs[5])
        moves = way * (_GAIN / STEP_M)
        # Slower as a whole rather than axis by axis, so that ways are straight.
        action[:3] = moves * min(1.0, point.speed / max(float(np.abs(moves).max()), 1e-9))
        action[5] = np.clip(turn * (_GAIN / STEP_RAD), -1, 1)
        self._age += 1
        reached = np.linalg.norm(way) < point.near and abs(turn) < 0.08
        if reached or self._age >= point.patience:
            self._held += 1
            if self._held > point.hold:
                self._at, self._age, self._held = self._at + 1, 0, 0
        return action


def wrapped(angle: float) -> float:
    """Returns the angle brought into -pi..pi."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def grasp_yaw(block_yaw: float, now: float) -> float:
    """Returns the gripper's yaw that takes a block across its short side, the one of two that is nearer to ``now``.

    A block's long side lies along its own x; the fingers open across it where the gripper's yaw equals the block's, or
    half a turn from it.
    """
    offset = wrapped(block_yaw - now)
    if abs(offset) > math.pi / 2:
        offset -= math.copysign(math.pi, offset)
    return now + offset
