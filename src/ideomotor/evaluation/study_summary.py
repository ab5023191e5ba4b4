"""The figures of a study, finished or not, from its rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ideomotor.evaluation.statistics import (
    FEWEST_SEEDS,
    Estimate,
    Scores,
    difference_over_seeds,
    mean_success,
    paired_difference,
    probability_of_improvement,
    wilson,
)
from ideomotor.evaluation.study import Study, StudyRow

_RESAMPLES = 4000  # of each interval; a curve of a large study has many


@dataclass(frozen=True, kw_only=True)
class Point:
    """The mean of an arm at one evaluation, over the seeds that are complete there; None where none is."""

    at: int
    seeds: int
    mean: Estimate | None


@dataclass(frozen=True, kw_only=True)
class ArmFigures:
    """How an arm fared: its learning curve, each task at the last evaluation (over complete seeds), and its time."""

    name: str
    curve: Sequence[Point]
    tasks: Mapping[str, Estimate]
    missing: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm against the control at the last evaluation, over the seeds that both have complete.

    Attributes:
        over_seeds: Student's interval over seeds; it decides what is claimed, about these tasks.
        bootstrap: of seeds, tasks and episodes: what may be expected of tasks drawn like these.
        improvement: probability that a run of the arm beats one of the control on a task drawn at random.
    """

    arm: str
    seeds: int
    over_seeds: Estimate
    bootstrap: Estimate
    improvement: Estimate

    @property
    def verdict(self) -> str:
        """Returns "better", "worse" or "cannot tell"."""
        if self.over_seeds.low > 0:
            return "better"
        return "worse" if self.over_seeds.high < 0 else "cannot tell"


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """All figures of a study."""

    study: Study
    rows: int
    arms: Sequence[ArmFigures]
    differences: Sequence[Difference]

    @property
    def missing(self) -> int:
        """Episodes that have not been run yet."""
        return self.study.num_rows - self.rows

    def notes(self) -> list[str]:
        """Returns what a reader of the figures has to know, in sentences."""
        study, notes = self.study, []
        if self.missing:
            notes.append(
                f"{self.missing:,} of {study.num_rows:,} episodes are missing; only seeds that are complete count."
            )
        if len(study.seeds) < FEWEST_SEEDS:
            notes.append(
                f"{len(study.seeds)} seed{'s'[: len(study.seeds) - 1]}: fewer than {FEWEST_SEEDS} cannot tell a "
                "difference from the luck of training, so nothing is claimed."
            )
        elif len(study.seeds) < 5:
            notes.append(f"{len(study.seeds)} seeds find large differences only; a headline wants 5.")
        if len(self.study.arms) > 2:
            notes.append(
                f"{len(study.arms) - 1} comparisons: were there no difference at all, one of them would be claimed in "
                f"up to {5 * (len(study.arms) - 1)} % of such studies."
            )
        notes.append("What is claimed is about these tasks; for others like them see the bootstrap's interval.")
        return notes


def summarize_study(study: Study, rows: Sequence[StudyRow]) -> StudySummary:
    """Returns the figures of the rows, each of which is of this study and there once."""
    table = {row.identity: row for row in rows}
    counted = Counter(row.arm for row in rows)
    whole = study.num_rows // len(study.arms)
    complete = {(arm, at): _complete(study, table, arm, at) for arm in study.arms for at in study.at}
    last = study.at[-1]
    arms = []
    for arm in study.arms:
        curve = []
        for at in study.at:
            seeds = complete[arm, at]
            mean = _mean(study, _scores(study, table, arm, at, seeds)) if seeds else None
            curve.append(Point(at=at, seeds=len(seeds), mean=mean))
        seeds = complete[arm, last]
        scores = _scores(study, table, arm, last, seeds)
        tasks = {
            task: _mean(study, [[cells[place]] for cells in scores]) for place, task in enumerate(study.tasks) if seeds
        }
        spent = sum(row.seconds for row in rows if row.arm == arm)
        missing = whole - counted[arm]
        arms.append(ArmFigures(name=arm, curve=curve, tasks=tasks, missing=missing, seconds=spent))
    differences = []
    for arm in study.arms:
        seeds = [seed for seed in complete[arm, last] if seed in complete[study.control, last]]
        if arm != study.control and seeds:
            ours, control = (_scores(study, table, name, last, seeds) for name in (arm, study.control))
            differences.append(_difference(arm, ours, control))
    return StudySummary(study=study, rows=len(rows), arms=arms, differences=differences)


def _mean(study: Study, scores: Scores) -> Estimate:
    """The mean with its interval; where all episodes failed or all succeeded Wilson's, as resampling shows no width."""
    ends = [score for tasks in scores for episodes in tasks for score in episodes]
    if study.metric == "success" and min(ends) == max(ends):
        return wilson(int(sum(ends)), len(ends))
    return mean_success(scores, resamples=_RESAMPLES)


def study_json(summary: StudySummary, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of ``study.json``; ``about`` is added. What is not finite becomes null."""
    study = summary.study
    return {
        "study": study.digest,
        "declaration": study.as_json(),
        "rows": summary.rows,
        "missing": summary.missing,
        "notes": summary.notes(),
        "arms": {
            arm.name: {
                "missing": arm.missing,
                "seconds": arm.seconds,
                "curve": [{"at": point.at, "seeds": point.seeds, **_plain(point.mean)} for point in arm.curve],
                "tasks": {task: _plain(mean) for task, mean in arm.tasks.items()},
            }
            for arm in summary.arms
        },
        "differences": {
            item.arm: {
                "control": study.control,
                "seeds": item.seeds,
                "verdict": item.verdict,
                "over_seeds": _plain(item.over_seeds),
                "bootstrap": _plain(item.bootstrap),
                "probability_of_improvement": _plain(item.improvement),
            }
            for item in summary.differences
        },
        **about,
    }


def _difference(arm: str, ours: Scores, control: Scores) -> Difference:
    return Difference(
        arm=arm,
        seeds=len(ours),
        over_seeds=difference_over_seeds(ours, control),
        bootstrap=paired_difference(ours, control, resamples=_RESAMPLES),
        improvement=probability_of_improvement(ours, control, resamples=_RESAMPLES),
    )


def _complete(study: Study, table: Mapping[Any, StudyRow], arm: str, at: int) -> list[int]:
    """Returns the seeds of which no episode is missing at that evaluation."""
    return [
        seed
        for seed in study.seeds
        if all((arm, seed, task, at, number) in table for task in study.tasks for number in range(study.episodes))
    ]


def _scores(study: Study, table: Mapping[Any, StudyRow], arm: str, at: int, seeds: Sequence[int]) -> Scores:
    """Returns the metric as ``[seed][task][episode]``."""

    def score(row: StudyRow) -> float:
        return float(row.success) if study.metric == "success" else row.total_reward

    return [
        [[score(table[arm, seed, task, at, number]) for number in range(study.episodes)] for task in study.tasks]
        for seed in seeds
    ]


def _plain(estimate: Estimate | None) -> dict[str, float | None]:
    values = dict.fromkeys(Estimate._fields) if estimate is None else estimate._asdict()
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
