"""A control loop's rate: held by absolute deadlines, and measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

_KEPT = 200_000  # ticks that the percentiles are of: nearly three hours at 20 Hz


class Tick(NamedTuple):
    """The beginning of a step: its number on the grid of deadlines, and how many seconds behind its deadline it is."""

    number: int
    late_s: float


@dataclass(frozen=True)
class RateReport:
    """What a loop held.

    Attributes:
        wanted_hz: the rate that was asked for.
        held_hz: steps a second from the first to the last one.
        ticks: steps that were begun.
        missed: deadlines that passed while an earlier step still went on; they are left out, not made up for.
        late_ms: how long after its deadline a step began: percentiles 50, 95, 99 and the most.
        jitter_ms: how far the time from one step to the next was off the period: the same percentiles.
    """

    wanted_hz: float
    held_hz: float
    ticks: int
    missed: int
    late_ms: dict[str, float]
    jitter_ms: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """Returns it for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        late, jitter = (", ".join(f"{k} {v:.2f}" for k, v in of.items()) for of in (self.late_ms, self.jitter_ms))
        return (
            f"{self.held_hz:.3f} of {self.wanted_hz:g} Hz over {self.ticks} steps, {self.missed} missed; late by ms: "
            f"{late}; jitter ms: {jitter}"
        )


class Pacer:
    """Lets a loop run at a rate: ``wait`` returns when the next step is due.

    Deadlines lie on a grid from the first call on, so that lateness of one step does not move the others.
    """

    def __init__(
        self,
        hz: float,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Takes a rate in steps a second, and for tests a clock in seconds and what sleeps by it.

        Raises:
            ValueError: the rate is not above 0.
        """
        if not 0 < hz < float("inf"):
            raise ValueError(f"the rate is {hz} Hz; wanted one above 0, e.g. 20")
        self.hz, self.missed, self.ticks = hz, 0, 0
        self._clock, self._sleep = clock, sleep
        self._start: float | None = None
        self._next, self._first, self._last = 0, 0.0, 0.0
        self._late: deque[float] = deque(maxlen=_KEPT)
        self._between: deque[float] = deque(maxlen=_KEPT)

    def wait(self) -> Tick:
        """Sleeps until the next step is due, or returns at once where it is overdue; steps missed are left out."""
        if self._start is None:
            self._start = self._clock()
        now = self._clock()
        behind = int((now - self._start) * self.hz + 1e-9) - self._next
        if behind > 0:
            self.missed += behind
            self._next += behind
        deadline = self._start + self._next / self.hz
        while now < deadline:
            self._sleep(deadline - now)
            now = self._clock()
        tick = Tick(self._next, now - deadline)
        self._note(now, tick)
        return tick

    def _note(self, now: float, tick: Tick) -> None:
        if self.ticks:
            self._between.append(now - self._last)
        else:
            self._first = now
        self._late.append(tick.late_s)
        self._last, self._next, self.ticks = now, self._next + 1, self.ticks + 1

    def report(self) -> RateReport:
        """Returns what was held so far; percentiles are of the newest 200,000 steps.

        Raises:
            ValueError: there were fewer than two steps.
        """
        if self.ticks < 2:
            raise ValueError(f"{self.ticks} steps were begun; a rate needs two")
        jitter = np.abs(np.array(self._between) - 1 / self.hz)
        held = (self.ticks - 1) / (self._last - self._first)
        return RateReport(self.hz, held, self.ticks, self.missed, percentiles(self._late), percentiles(jitter))


def percentiles(seconds: object) -> dict[str, float]:
    """Returns p50, p95, p99 and max of seconds, in milliseconds."""
    values = 1000 * np.asarray(seconds, dtype=np.float64)
    found = {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
    return {**found, "max": float(values.max())}
