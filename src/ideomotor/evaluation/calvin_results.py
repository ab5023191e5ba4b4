"""How CALVIN's sequences went: one row each, and the table that papers print, with intervals."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideomotor.evaluation.calvin_protocol import SEQUENCE_LENGTH
from ideomotor.evaluation.calvin_tasks import TASKS
from ideomotor.evaluation.episodes import read_rows
from ideomotor.evaluation.report import TaskSuccess
from ideomotor.evaluation.statistics import Estimate, mean_of_clips, wilson
from ideomotor.files import write_text


@dataclass(frozen=True, kw_only=True)
class SequenceResult:
    """How one sequence went.

    Attributes:
        sequence: its number in the evaluation's order.
        state: number of its initial state.
        tasks: names, in order.
        solved: how many were done before the first that failed.
        steps: actions taken in each task that was tried.
        seconds: its share of the wall-clock time; shares add up to the time of the whole evaluation.
        inference_cpu_seconds: its share of the processor time that the agent took, all threads together.
    """

    arm: str
    sequence: int
    state: int
    tasks: list[str]
    solved: int
    steps: list[int]
    seconds: float
    inference_cpu_seconds: float

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, list) or not self.tasks or [name for name in self.tasks if name not in TASKS]:
            raise ValueError(f"tasks is {self.tasks!r}; wanted names of tasks, such as {TASKS[0]!r}")
        if not _is_count(self.solved) or self.solved > len(self.tasks):
            raise ValueError(f"solved is {self.solved!r}; wanted 0 to {len(self.tasks)}")
        if not isinstance(self.steps, list) or not all(map(_is_count, self.steps)):
            raise ValueError(
                f"steps is {self.steps!r}; wanted whole numbers from 0 on, one for each task that was tried"
            )

    @property
    def identity(self) -> tuple[str, int]:
        """The arm and the number."""
        return self.arm, self.sequence

    @property
    def attempts(self) -> list[tuple[str, bool]]:
        """The tasks that were tried, and whether each was done."""
        return [(task, place < self.solved) for place, task in enumerate(self.tasks[: self.solved + 1])]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


@dataclass(frozen=True, kw_only=True)
class SequenceSummary:
    """How one arm fared.

    Attributes:
        sequences: how many were run.
        rates: the share in which the first task, the first two, ... all five were done; Wilson's intervals.
        average_length: mean number of tasks done in a row; its interval draws initial states, each with all its
            sequences, as those resemble each other. It is NaN where there is one state, or where all sequences ended
            alike: drawn again they stay as they are, which is no certainty.
        tasks: of each task that was tried, how often it was, and done; in CALVIN's order.
    """

    sequences: int
    rates: tuple[Estimate, ...]
    average_length: Estimate
    tasks: Mapping[str, TaskSuccess]


def read_sequences(log: Path) -> list[SequenceResult]:
    """Returns the rows of an evaluation's log, of all its arms, as ``read_rows`` does."""
    return read_rows(log, SequenceResult)


def summarize_sequences(results: Collection[SequenceResult]) -> SequenceSummary:
    """Returns how an arm fared, from its sequences.

    Raises:
        ValueError: no sequence, sequences of several arms, or one twice.
    """
    arms, numbers = {result.arm for result in results}, {result.sequence for result in results}
    if len(arms) != 1 or len(numbers) != len(results):
        raise ValueError(
            f"{len(results)} results of {len(numbers)} sequences and the arms {sorted(arms)}; wanted at least one "
            "sequence, each once, all of one arm"
        )
    solved = [result.solved for result in results]
    attempts = [attempt for result in results for attempt in result.attempts]
    tasks = {}
    for task in TASKS:
        done = [success for name, success in attempts if name == task]
        if done:
            estimate = wilson(sum(done), len(done))
            tasks[task] = TaskSuccess(episodes=len(done), successes=sum(done), interval=(estimate.low, estimate.high))
    length = mean_of_clips(solved, [result.state for result in results])
    return SequenceSummary(
        sequences=len(results),
        rates=tuple(wilson(sum(n >= row for n in solved), len(solved)) for row in range(1, SEQUENCE_LENGTH + 1)),
        average_length=length if len(set(solved)) > 1 else Estimate(length.value, math.nan, math.nan),
        tasks=tasks,
    )


def as_published(summary: SequenceSummary) -> dict[str, Any]:
    """Returns the figures under the names of CALVIN's own ``results.json``."""
    return {
        "avg_seq_len": summary.average_length.value,
        "chain_sr": {str(row): rate.value for row, rate in enumerate(summary.rates, start=1)},
        "task_info": {task: {"success": row.successes, "total": row.episodes} for task, row in summary.tasks.items()},
    }


def write_tables(folder: Path, arms: Mapping[str, SequenceSummary]) -> None:
    """Writes ``results.json``, ``in_a_row.csv`` and ``tasks.csv`` into the folder, each whole or not at all.

    The JSON holds, by arm, CALVIN's own entries and beside them our intervals.
    """
    content = {name: as_published(arm) | _intervals(arm) for name, arm in arms.items()}
    rates = [
        (name, row, rate.value, rate.low, rate.high, arm.sequences)
        for name, arm in arms.items()
        for row, rate in enumerate(arm.rates, start=1)
    ]
    tasks = [
        (name, task, row.successes, row.episodes, row.successes / row.episodes, *row.interval)
        for name, arm in arms.items()
        for task, row in arm.tasks.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_text(folder / "in_a_row.csv", _csv(("arm", "in_a_row", "rate", "low", "high", "sequences"), rates))
    write_text(folder / "tasks.csv", _csv(("arm", "task", "successes", "attempts", "rate", "low", "high"), tasks))


def _intervals(summary: SequenceSummary) -> dict[str, Any]:
    length = summary.average_length
    known = math.isfinite(length.low)  # one state, or sequences that all ended alike, have none
    return {
        "sequences": summary.sequences,
        "avg_seq_len_interval": [length.low, length.high] if known else None,
        "chain_sr_interval": {str(row): [rate.low, rate.high] for row, rate in enumerate(summary.rates, start=1)},
        "task_interval": {task: list(row.interval) for task, row in summary.tasks.items()},
    }


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()
