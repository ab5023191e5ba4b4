"""What the lanes share: a long job in calls of some minutes, each of which ends by itself."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

_BEGAN = time.monotonic()  # a lane imports this first, before the imports that take seconds

AGAIN = 75  # exit code: there is more to do


def missing(needed: Mapping[str, str]) -> list[str]:
    """Returns a line for each package that is not found; ``needed`` has the extra that brings it, or ""."""
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return [f'{name}: pip install "ideomotor{needed[name]}"' for name in absent]


@contextmanager
def ended_in_time(minutes: float) -> Iterator[None]:
    """Stops what runs inside by SIGTERM, a little before the time is over; if that does not help, ends the process.

    Training then saves its state first; collection, caches and trials keep what they have finished. Either way it is
    ``Stopped`` that comes out, as it is where somebody else sends SIGTERM.
    """
    from ideomotor.training.run import Stopped

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    left, grace = 60 * minutes - (time.monotonic() - _BEGAN), min(20.0, 6 * minutes)
    before = signal.signal(signal.SIGTERM, stop)
    timers = [
        threading.Timer(max(0.0, left - grace), os.kill, (os.getpid(), signal.SIGTERM)),
        threading.Timer(max(0.0, left - grace / 10), os._exit, (AGAIN,)),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGTERM, before)
