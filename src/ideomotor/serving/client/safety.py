"""The last look at an action before a robot gets it: bounds, jumps, NaN, and what rests on old sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from .errors import ServingError

Bound = Union[float, Sequence[float], np.ndarray, None]


class SafetyStop(ServingError):
    """The robot has to stop: nothing sound came for too long. It stays stopped until ``release``."""


@dataclass(frozen=True)
class Limits:
    """What a robot may be told; a number for all dimensions of an action, or one each; None for no limit.

    Attributes:
        low, high: the least and the most; beyond it an action is cut off.
        jump: the most by which a dimension may change from one step to the next; beyond it it goes as far as it may.
        age_s: the most seconds that what the robot saw may be old.
        hold_steps: for how many steps in a row the robot is held before it stops; 0 stops at once, None never.
    """

    low: Bound = None
    high: Bound = None
    jump: Bound = None
    age_s: float | None = None
    hold_steps: int | None = None

    def __post_init__(self) -> None:
        for name, bound in (("low", self.low), ("high", self.high), ("jump", self.jump)):
            if bound is not None and not np.isfinite(bound).all():
                raise ValueError(f"{name} is {bound}; wanted finite numbers, or None for no limit")
        if self.low is not None and self.high is not None and not (np.asarray(self.low) <= np.asarray(self.high)).all():
            raise ValueError(f"low is {self.low}, high {self.high}; wanted low below high in every dimension")
        if self.jump is not None and not (np.asarray(self.jump) > 0).all():
            raise ValueError(f"jump is {self.jump}; wanted numbers above 0, or None for no limit")
        if (self.age_s is not None and not self.age_s > 0) or (self.hold_steps is not None and self.hold_steps < 0):
            raise ValueError(f"age_s is {self.age_s}, hold_steps {self.hold_steps}; wanted above 0, and 0 or more")


@dataclass(frozen=True)
class Checked:
    """What the robot may be told.

    Attributes:
        action: ``(width,)``; None where it is held and there is nothing yet to hold it by: send nothing.
        clipped: some dimension was beyond its bounds.
        slowed: some dimension jumped too far.
        fault: why the robot is held instead of doing what was planned; "" where it is not.
    """

    action: np.ndarray | None
    clipped: bool
    slowed: bool
    fault: str


class SafetyFilter:
    """Keeps one robot's actions within its limits, step by step.

    A robot that stands outside its bounds (``start``) is led back into them, where there is a jump limit by steps of at
    most that; until it is there what is sent lies outside, on the way, and is ``slowed``. Where it is held meanwhile it
    stays where it is. A jump is counted number by number, also of a rotation: give angles that begin anew after a turn,
    and quaternions, a jump that is wider than they are.
    """

    def __init__(
        self, limits: Limits, width: int, *, still: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> None:
        """Takes the limits.

        Args:
            limits: see there.
            width: numbers of an action.
            still: the action by which the robot stays where it is, such as zeros where actions are relative; by default
                the last one is sent again, which holds a robot whose actions are places.
            start: where the robot stands, in the units of an action, so that its first one cannot jump either.

        Raises:
            ValueError: a limit is not one number, or one for each of ``width``; or ``still`` is out of bounds.
        """
        for name, bound in (("low", limits.low), ("high", limits.high), ("jump", limits.jump)):
            if bound is not None and np.shape(bound) not in ((), (width,)):
                raise ValueError(f"{name} has shape {np.shape(bound)}; wanted one number, or {width}, one a dimension")
        self.limits, self.width = limits, width
        self.still = None if still is None else self._whole(still, "still")
        if self.still is not None and (self._bounded(self.still) != self.still).any():
            raise ValueError(
                f"still is {self.still}, out of bounds {limits.low} to {limits.high}: it is what a held robot is sent"
            )
        self.last = None if start is None else self._whole(start, "start")
        self.held = 0
        self.stopped = ""

    def check(self, action: np.ndarray | None, age_s: float = 0.0) -> Checked:
        """Returns what the robot may be told at this step.

        Args:
            action: what is planned; None where nothing is.
            age_s: seconds since the robot saw what the action rests on.

        Raises:
            SafetyStop: it was held for too long, or was stopped before.
        """
        if self.stopped:
            raise SafetyStop(f"the robot was stopped ({self.stopped}); release() lets it go on")
        fault = self._fault(action, age_s)
        if fault:
            return self._hold(fault)
        assert action is not None
        wanted = np.asarray(action, dtype=np.float64)
        bounded = self._bounded(wanted)
        slow = bounded
        if self.limits.jump is not None and self.last is not None:
            slow = np.clip(bounded, self.last - self.limits.jump, self.last + np.asarray(self.limits.jump))
        self.last, self.held = slow, 0
        clipped, slowed = bool((bounded != wanted).any()), bool((slow != bounded).any())
        return Checked(slow.astype(np.float32), clipped, slowed, "")

    def release(self, start: np.ndarray | None = None) -> None:
        """Lets a stopped robot go on, from ``start`` where it was moved."""
        self.stopped, self.held = "", 0
        self.last = self.last if start is None else self._whole(start, "start")

    def _fault(self, action: np.ndarray | None, age_s: float) -> str:
        if self.limits.age_s is not None and not age_s <= self.limits.age_s:  # also where it is not a number
            return f"what it saw is {age_s:.3g} s old, {self.limits.age_s:g} s are allowed"
        if action is None:
            return "no action is planned"
        if np.shape(action) != (self.width,):
            return f"an action of shape {np.shape(action)} came, ({self.width},) was wanted"
        if not np.isfinite(action).all():
            return (
                f"dimension {int(np.isfinite(action).argmin())} of the action is {action[np.isfinite(action).argmin()]}"
            )
        return ""

    def _hold(self, fault: str) -> Checked:
        self.held += 1
        if self.limits.hold_steps is not None and self.held > self.limits.hold_steps:
            self.stopped = fault
            raise SafetyStop(f"the robot has to stop: {fault}, after {self.held - 1} held steps")
        self.last = self.last if self.still is None else self.still
        return Checked(None if self.last is None else self.last.astype(np.float32), False, False, fault)

    def _bounded(self, action: np.ndarray) -> np.ndarray:
        low, high = self.limits.low, self.limits.high
        return action if low is None and high is None else np.clip(action, low, high)

    def _whole(self, action: np.ndarray, name: str) -> np.ndarray:
        array = np.asarray(action, dtype=np.float64)
        if array.shape != (self.width,) or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array}; wanted {self.width} finite numbers")
        return array
