"""Meta-World's 50 tasks by difficulty, and success by level: easy, middle, hard, and over all tasks.

The levels easy, medium, hard and very hard (28, 11, 6 and 5 tasks) are those of Seo et al. 2022, "Masked world models
for visual control", 2206.14244. Papers that print three of them, VPP among these, count the very hard ones as hard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.evaluation.report import summarize
from ideomotor.evaluation.statistics import Estimate

_EASY = (
    "button-press button-press-topdown button-press-topdown-wall button-press-wall coffee-button dial-turn door-close "
    "door-lock door-open door-unlock drawer-close drawer-open faucet-close faucet-open handle-press handle-press-side "
    "handle-pull handle-pull-side lever-pull peg-unplug-side plate-slide plate-slide-back plate-slide-back-side "
    "plate-slide-side reach reach-wall window-close window-open"
)
_MIDDLE = (
    "basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side push-wall soccer sweep sweep-into"
)
_HARD = "assembly hand-insert pick-out-of-hole pick-place push push-back"
_VERY_HARD = "disassemble pick-place-wall shelf-place stick-pull stick-push"

LEVELS: Mapping[str, tuple[str, ...]] = {
    "easy": tuple(_EASY.split()),
    "middle": tuple(_MIDDLE.split()),
    "hard": (*_HARD.split(), *_VERY_HARD.split()),
}
"""Tasks by level, 28, 11 and 11; names without "-v3"."""


@dataclass(frozen=True, kw_only=True)
class LevelSuccess:
    """Mean success over the tasks of a level.

    Attributes:
        success: None while no task of it has been met by every seed; the interval is ``mean_success``'s.
        missing: tasks without any episode. A level that lacks some compares with no published figure.
    """

    success: Estimate | None
    missing: tuple[str, ...]


def summarize_levels(results: Collection[EpisodeResult]) -> dict[str, LevelSuccess]:
    """Returns mean success by level, and under "average" that over all 50 tasks; each task counts the same.

    Args:
        results: of one arm, on tasks of Meta-World.

    Raises:
        ValueError: episodes of several arms, or of a task that is none of Meta-World's.
    """
    groups = {**LEVELS, "average": tuple(task for tasks in LEVELS.values() for task in tasks)}
    unknown = sorted({result.task for result in results} - set(groups["average"]))
    arms = sorted({result.arm for result in results})
    if unknown or len(arms) > 1:
        raise ValueError(
            f"episodes of the arms {arms}, of tasks unknown to Meta-World {unknown}; wanted one arm and none"
        )
    levels = {}
    for level, tasks in groups.items():
        rows = [result for result in results if result.task in tasks]
        levels[level] = LevelSuccess(
            success=summarize(rows).mean if rows else None,
            missing=tuple(task for task in tasks if task not in {row.task for row in rows}),
        )
    return levels
