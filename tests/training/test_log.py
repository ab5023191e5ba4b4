import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ideomotor.training.log import Log


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def quiet() -> Console:
    return Console(file=StringIO(), force_terminal=False)


def test_a_row_is_the_average_of_its_interval(tmp_path: Path) -> None:
    with Log(tmp_path, steps=5, every=2, console=quiet()) as log:
        for step in range(1, 6):
            log(step, {"a/loss": float(step)} | ({"a/rare": 10.0} if step == 2 else {}))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [2, 4, 5]
    assert [row["a/loss"] for row in found] == [1.5, 3.5, 5.0]
    assert found[0]["a/rare"] == 10.0 and "a/rare" not in found[1]
    assert all(row["steps_per_second"] > 0 and row["seconds"] >= 0 for row in found)


def test_resume_drops_the_rows_beyond_and_a_torn_line(tmp_path: Path) -> None:
    with Log(tmp_path, steps=9, every=1, console=quiet()) as log:
        for step in range(1, 6):
            log(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with Log(tmp_path, steps=9, start=3, seconds=100.0, every=1, console=quiet()) as log:
        log(4, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert rows(tmp_path)[-1]["seconds"] >= 100


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(tmp_path, steps=2, every=1, console=quiet()) as log:
        log(1, {"a/loss": 3.0})
        log(2, {"a/loss": 1.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a/loss")] == [(1, 3.0), (2, 1.0)]


def test_without_tensorboard_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    console = Console(record=True, file=StringIO(), width=300)
    with Log(tmp_path, steps=1, console=console) as log:
        log(1, {"loss": 1.0})
    lines = [line for line in console.export_text().splitlines() if "TensorBoard" in line]
    assert len(lines) == 1 and 'pip install "ideomotor[train]"' in lines[0]
    assert rows(tmp_path)[0]["loss"] == 1.0 and not (tmp_path / "tensorboard").exists()


def test_a_pipe_gets_plain_lines_and_a_terminal_a_bar(tmp_path: Path) -> None:
    def shown(terminal: bool) -> str:
        console = Console(record=True, file=StringIO(), force_terminal=terminal, width=120)
        with Log(tmp_path, steps=4, every=1, console=console, plain_seconds=1000) as log:
            for step in range(1, 5):
                log(step, {"a/loss": 0.25, "a/mse": 9.0})
        return console.export_text()

    plain = shown(terminal=False)
    assert plain.count("\n") == 1 and "step 4/4" in plain and "loss 0.2500" in plain and "steps/s" in plain
    bar = shown(terminal=True)
    assert "4/4" in bar and "loss 0.2500" in bar and "steps/s" in bar


def test_other_processes_only_take_part_in_the_average(tmp_path: Path) -> None:
    seen = []
    with Log(
        tmp_path, steps=2, every=2, main=False, mean=lambda metrics: seen.append(dict(metrics)) or dict(metrics)
    ) as log:
        log(1, {"loss": 1.0})
        log(2, {"loss": 3.0})
    assert seen == [{"loss": 2.0}] and list(tmp_path.iterdir()) == []
