"""Meta-World's levels: every task in one of them, and means that count tasks."""

import pytest
from made_up import made_up_results

from ideomotor.envs.metaworld_tasks import TASKS
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.evaluation.metaworld_levels import LEVELS, summarize_levels


def episode(task, goal, success, arm="x"):
    return EpisodeResult(
        arm=arm,
        task=task,
        seed=0,
        goal=goal,
        success=success,
        steps=1,
        total_reward=0.0,
        seconds=1.0,
        inference_cpu_seconds=1.0,
    )


def test_every_task_has_one_level():
    assert {level: len(tasks) for level, tasks in LEVELS.items()} == {"easy": 28, "middle": 11, "hard": 11}
    assert sorted(task for tasks in LEVELS.values() for task in tasks) == sorted(TASKS)


def test_each_task_counts_the_same():
    # Shares of 1, 1/2 and 0 by level; easy tasks are tried more often, which must not count.
    share = {"easy": (4, 4), "middle": (2, 1), "hard": (3, 0)}
    rows = [
        episode(task, goal, goal < won)
        for level, tasks in LEVELS.items()
        for task in tasks
        for tried, won in [share[level]]
        for goal in range(tried)
    ]
    levels = summarize_levels(rows)
    assert {name: level.success.value for name, level in levels.items()} == pytest.approx(
        {"easy": 1.0, "middle": 0.5, "hard": 0.0, "average": (28 + 11 / 2) / 50}
    )
    assert all(level.missing == () for level in levels.values())


def test_published_rows_average_over_tasks():
    # VPP's row: .818, .493, .526 and, over 50 tasks, .682 - so the levels weigh 28, 11 and 11.
    levels = {"easy": 0.818, "middle": 0.493, "hard": 0.526}
    assert sum(len(LEVELS[name]) * rate for name, rate in levels.items()) / 50 == pytest.approx(0.682, abs=5e-4)


def test_what_is_missing_is_named():
    levels = summarize_levels(made_up_results("pretrained"))
    assert levels["hard"].success is None and len(levels["hard"].missing) == 11
    assert "drawer-open" not in levels["easy"].missing and "reach" in levels["easy"].missing
    assert levels["average"].success.value == pytest.approx(levels["easy"].success.value)


@pytest.mark.parametrize(
    "rows", [[episode("reach", 0, True), episode("reach", 0, True, "y")], [episode("reach-v3", 0, True)]]
)
def test_other_rows_are_refused(rows):
    with pytest.raises(ValueError, match="wanted one arm"):
        summarize_levels(rows)
