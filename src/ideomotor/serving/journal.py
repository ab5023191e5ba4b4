"""What the server writes down: one JSON object a line, and never more lines than a disk can take."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

LOGGER = logging.getLogger("ideomotor.serving")
LINES_A_SECOND = 50
"""A client that errs on purpose must not fill the disk; what is left out is counted in the next line."""


def note(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Writes a line about what happened; ``facts`` are its further fields."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"facts": facts})


class JsonLines(logging.Formatter):
    """A record as one line: ``time`` (UTC), ``level``, ``event``, its facts, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {"time": when.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line |= {"event": record.getMessage(), **vars(record).get("facts", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Throttle(logging.Filter):
    """Lets so many lines of a level a second through and counts the rest; who connects often cannot hide an error."""

    def __init__(self, lines_a_second: int = LINES_A_SECOND) -> None:
        super().__init__()
        self.lines_a_second = lines_a_second
        self._second, self._left_out = 0, 0
        self._lines: Counter[int] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the record is written."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, Counter()
        self._lines[record.levelno] += 1
        if self._lines[record.levelno] > self.lines_a_second:
            self._left_out += 1
            return False
        if self._left_out:
            record.facts = {**vars(record).get("facts", {}), "lines_left_out": self._left_out}
            self._left_out = 0
        return True


@contextlib.contextmanager
def writing_journal(stream: TextIO | None = None) -> Iterator[None]:
    """Has everything that is noted in the block written to ``stream`` (stderr by default), and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    handler.addFilter(Throttle())
    before = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]
