"""What an episode of a roll-out is, how it went, and the log that makes roll-outs resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

from ideomotor.files import naming


class LogRow(Protocol):
    """A frozen dataclass of plain values that one line of a log holds."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """What no other row of the log has."""


Row = TypeVar("Row", bound=LogRow)


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """One episode to be run.

    Attributes:
        task: name; a world of that task runs it.
        seed: of the training run that is tried; the worlds are reset with it too.
        goal: which of the task's goals.
    """

    task: str
    seed: int
    goal: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from the other episodes of an arm, and pairs it with another arm's."""
        return self.task, self.seed, self.goal


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How one episode went.

    Attributes:
        steps: actions taken in the environment.
        total_reward: sum of the environment's rewards, not discounted.
        seconds: the episode's share of the wall-clock time; shares add up to the time of the whole roll-out.
        inference_cpu_seconds: its share of the processor time that the agent took, all threads together.
    """

    arm: str
    task: str
    seed: int
    goal: int
    success: bool
    steps: int
    total_reward: float
    seconds: float
    inference_cpu_seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        """The key of the episode's spec."""
        return self.task, self.seed, self.goal

    @property
    def identity(self) -> tuple[str, str, int, int]:
        """The key together with the arm."""
        return self.arm, *self.key


def read_log(path: Path) -> list[EpisodeResult]:
    """Returns the rows of a roll-out's log, of all its arms, as ``read_rows`` does."""
    return read_rows(path, EpisodeResult)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Returns the rows of a log; none where there is no file. A torn last line is left out.

    Raises:
        ValueError: a line before the last that is damaged, or holds a value of another type; or a row that is there
            twice.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty, or torn
    rows: dict[Hashable, Row] = {}
    hints = get_type_hints(kind)
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            row = kind(**{f.name: values[f.name] for f in fields(kind)})
            _check_types(row, hints)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is no row of a roll-out ({error}): mend or delete the line, and its episode "
                "is run again"
            ) from error
        if row.identity in rows:
            raise ValueError(
                f"line {number} of {path} repeats {' '.join(map(str, row.identity))}: did two runs write it at once? "
                "Delete one of the two lines"
            )
        rows[row.identity] = row
    return list(rows.values())


def _check_types(row: LogRow, hints: Mapping[str, Any]) -> None:
    for field in fields(row):
        value, wanted = getattr(row, field.name), hints[field.name]
        if wanted in (bool, int, float, str) and not (
            type(value) is wanted or (wanted is float and type(value) is int)
        ):
            raise ValueError(f"{field.name} is {value!r}; wanted {wanted.__name__}")


def append(path: Path, row: LogRow) -> None:
    """Adds a row and sees it on the disk; first cuts off what an earlier kill left of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(asdict(row)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
