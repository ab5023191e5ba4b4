"""What is tried is named by task or by level, and the table of successes stands by level where there are several."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ideomotor.envs import metaworld_tasks, toy
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.evaluation.metaworld_levels import LEVELS
from ideomotor.systems.collection_worlds import named_tasks
from ideomotor.systems.trials import View, roll_out, success_table


def episodes(task: str, won: int, tried: int = 4) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            arm="policy", task=task, seed=0, goal=30 + goal, success=goal < won, steps=50, total_reward=0.0,
            seconds=1.0, inference_cpu_seconds=0.1,
        )
        for goal in range(tried)
    ]  # fmt: skip


def printed(rows: list[EpisodeResult]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(success_table(rows))
    return console.file.getvalue()


def line(text: str, begin: str) -> list[str]:
    (found,) = [row for row in text.splitlines() if row.strip("│ ").startswith(begin)]
    return [cell.strip() for cell in found.strip("│").split("│")]


def test_levels_and_all_stand_for_their_tasks():
    assert named_tasks("metaworld", ("easy", "hard")) == LEVELS["easy"] + LEVELS["hard"]
    assert named_tasks("metaworld", ("all",)) == metaworld_tasks.TASKS and named_tasks("toy", ("all",)) == toy.TASKS
    assert named_tasks("metaworld", ("reach", "easy", "push")) == (
        "reach", *(task for task in LEVELS["easy"] if task != "reach"), "push"
    )  # fmt: skip
    assert named_tasks("metaworld", ("push", "push")) == ("push", "push")  # that is a slip, which roll_out tells of
    assert named_tasks("toy", ("easy",)) == ("easy",)  # the world refuses it
    with pytest.raises(ValueError, match="no task 'midle'; did you mean 'middle', which stands for several"):
        named_tasks("metaworld", ("reach", "midle"))


def test_the_table_stands_by_level_and_says_what_it_lacks():
    rows = episodes("push", 0) + episodes("reach", 4) + episodes("button-press", 1) + episodes("push-back", 0)
    text = printed(rows)
    order = [text.index(name) for name in ("reach", "button-press", "push ", "push-back", "easy,", "hard,", "average,")]
    assert order == sorted(order)
    assert line(text, "reach")[1:4] == ["4", "4", "0.51 to 1.00"]
    easy, hard = line(text, "easy,"), line(text, "hard,")
    assert easy[:3] == ["easy, 2 of 28 tasks", "8", "5, mean 0.62"] and " to " in easy[3]
    low, high = map(float, easy[3].split(" to "))
    assert low < 0.62 < high
    assert hard[:4] == [
        "hard, 2 of 11 tasks",
        "8",
        "0, mean 0.00",
        "see the tasks",
    ]  # no luck was seen, so none is told
    assert line(text, "average,")[:3] == ["average, 4 of 50 tasks", "16", "5, mean 0.31"]
    assert "middle" not in text and "compares with no published figure" in text


def test_a_level_counts_its_tasks_the_same():
    text = printed(episodes("reach", 4, tried=4) + episodes("door-open", 0, tried=12) + episodes("push", 1))
    assert line(text, "easy,")[2] == "4, mean 0.50"


@pytest.mark.parametrize("tasks", [("red", "green"), ("reach", "door-open"), ("reach", "red")])
def test_tasks_of_one_level_or_of_none_stand_as_they_came(tasks):
    text = printed([row for task in tasks for row in episodes(task, 2)])
    assert "mean" not in text and text.index(tasks[0]) < text.index(tasks[1])


def test_a_whole_level_has_its_row():
    text = printed([row for task in LEVELS["middle"] for row in episodes(task, 2)])
    assert line(text, "middle,")[:3] == ["middle, 11 of 11 tasks", "44", "22, mean 0.50"]
    assert line(text, "average,")[0] == "average, 11 of 50 tasks"


def test_a_policy_of_another_robot_is_told_so_before_its_cameras_are_counted(tmp_path):
    view = View(cameras=("main", "view1"), size=32, context=1, stride=1, execute=1, action_width=7)
    for given, why in (
        (view, "actions of width 7, the robot of toy takes 2"),
        (replace(view, action_width=2), "2 cameras, and none was named, which stands for main: name that many"),
    ):
        with pytest.raises(ValueError, match=why):
            roll_out(None, given, ("red",), 1, tmp_path / "log.jsonl", world="toy")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
