"""Studies on the toy world: whole, killed and resumed, refused."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gymnasium", reason="the metaworld extra is not installed")

from ideomotor import cli
from ideomotor.evaluation.episodes import read_rows
from ideomotor.evaluation.study import Study, StudyRow, read_study
from ideomotor.systems.study import find_study, packaged_studies, run_study
from ideomotor.systems.study_recipes import cells_of

TEXT = """
title = "Hands"
question = "Which hand?"
recipe = "toy_experts"
control = "wild"
seeds = [0, 1]
tasks = ["red", "blue"]
episodes = 3
at = [0, 100]
[settings]
horizon = 30
[arms.wild]
noise = 3
[arms.still]
noise = 0.1
"""


def declaration(folder: Path, old: str = "", new: str = "") -> Path:
    path = folder / "hands.toml"
    path.write_text(TEXT.replace(old, new) if old else TEXT)
    return path


def rows_of(out: Path) -> list[StudyRow]:
    return read_rows(out / "rows.jsonl", StudyRow)


def told(rows: list[StudyRow]) -> list[tuple[object, ...]]:
    """All but the seconds, which differ from run to run."""
    return [(row.study, row.identity, row.success, row.steps, row.total_reward) for row in rows]


def complete(study: Study, rows: list[StudyRow]) -> bool:
    return sorted(row.identity for row in rows) == sorted(study.keys(study.arms, study.seeds, study.tasks))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran to its end undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run_study(declaration(folder), folder / "out", workers=0)
    return folder


def test_a_study_leaves_rows_figures_and_a_page(whole: Path) -> None:
    study, out = read_study(whole / "hands.toml"), whole / "out"
    rows = rows_of(out)
    assert complete(study, rows) and {row.study for row in rows} == {study.digest}
    found = json.loads((out / "study.json").read_text())
    assert found["missing"] == 0 and found["study"] == study.digest
    assert found["arms"]["still"]["curve"][-1]["value"] > found["arms"]["wild"]["curve"][-1]["value"]
    assert found["differences"]["still"]["verdict"] == "cannot tell"  # of two seeds
    assert "Hands" in (out / "study.html").read_text()


def test_the_same_command_runs_nothing_twice(whole: Path) -> None:
    before = (whole / "out/rows.jsonl").read_bytes()
    run_study(whole / "hands.toml", whole / "out", workers=0)
    assert (whole / "out/rows.jsonl").read_bytes() == before  # its seconds, too


def test_torn_and_lost_rows_are_run_again(whole: Path, tmp_path: Path) -> None:
    path, out = declaration(tmp_path), tmp_path / "out"
    run_study(path, out, workers=0)
    torn, lost = (out / "cells" / name / "rows.jsonl" for name in ("wild-seed0", "still-seed1"))
    torn.write_bytes(torn.read_bytes()[:-20])
    lost.unlink()
    run_study(path, out, workers=0)
    assert told(rows_of(out)) == told(rows_of(whole / "out"))


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_rows(whole: Path, tmp_path: Path) -> None:
    """SIGKILL to the command alone: its cells must end with it, or the next start would run them a second time."""
    path, out = declaration(tmp_path, "horizon = 30", "horizon = 30\npause = 0.15"), tmp_path / "out"
    command = [sys.executable, "-m", "ideomotor", "study", str(path), "--out", str(out), "--workers", "2"]
    cells, total = cells_of(read_study(path)), read_study(path).num_rows

    def count() -> int:
        logs = [out / "cells" / cell.name / "rows.jsonl" for cell in cells]
        return sum(log.read_bytes().count(b"\n") for log in logs if log.exists())

    for _ in range(2):
        process, before = subprocess.Popen(command, start_new_session=True), count()
        try:
            deadline = time.monotonic() + 300
            while count() < before + 3:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1.0)
            left = count()
            time.sleep(1.0)
            assert count() == left < total, "a cell outlived its command"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    run_study(path, out, workers=0)
    assert complete(read_study(path), rows_of(out))
    assert [row[1:] for row in told(rows_of(out))] == [row[1:] for row in told(rows_of(whole / "out"))]


def test_another_declaration_is_not_mixed_in(whole: Path, tmp_path: Path) -> None:
    path, out = declaration(tmp_path), tmp_path / "out"
    run_study(path, out, workers=0)
    (out / "mine.txt").write_text("kept")
    before = (out / "rows.jsonl").read_bytes()
    declaration(tmp_path, "noise = 0.1", "noise = 0.2")
    with pytest.raises(ValueError, match=r"arms.still.noise: 0.1 -> 0.2.* --out, .* --fresh"):
        run_study(path, out, workers=0)
    assert (out / "rows.jsonl").read_bytes() == before
    run_study(path, out, workers=0, fresh=True)
    assert {row.study for row in rows_of(out)} == {read_study(path).digest}
    assert (out / "mine.txt").read_text() == "kept"
    (out / "declaration.json").write_text("{")
    with pytest.raises(ValueError, match=r"declaration\.json is not JSON"):
        run_study(path, out, workers=0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"toy_experts"', '"toy"', r"there is no recipe 'toy' \(recipes: toy_experts"),
        ('["red", "blue"]', '["read"]', r"no task read \(tasks: red"),
        ("episodes = 3", "episodes = 30", "has 20 different starts"),
        ("noise = 3", "niose = 3", "arms.wild: there is no key 'niose'; did you mean 'noise'"),
        ("noise = 3", 'noise = "much"', "arms.wild.noise is 'much'; wanted float"),
        ("noise = 3", "noise = -3", "noise, luck and pause of 0 or more"),
    ],
)
def test_what_a_recipe_cannot_run_is_told_before_it_runs(old: str, new: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        run_study(declaration(tmp_path, old, new), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_a_failing_cell_is_told_and_stops_the_study(tmp_path: Path) -> None:
    path, out = declaration(tmp_path), tmp_path / "out"
    log = out / "cells/wild-seed0/rows.jsonl"
    log.parent.mkdir(parents=True)
    (out / "cells/wild-seed0/work").write_text("a file where a folder is needed")
    with pytest.raises(RuntimeError, match=r"cell wild-seed0: .*work.*the same command tries it again"):
        run_study(path, out, workers=1)


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process runs a study"):
            run_study(declaration(tmp_path), out, workers=0)


def test_the_packaged_declarations_can_be_run() -> None:
    assert "toy" in packaged_studies()
    for path in packaged_studies().values():
        assert cells_of(read_study(path))


def test_the_command(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["study", str(whole / "hands.toml"), "--out", str(whole / "out")])
    shown = " ".join(capsys.readouterr().out.split())
    assert "48 of 48 episodes, none twice" in shown
    assert "fewer than 3 cannot tell" in shown and "study.html" in shown
    cli.main(["study", "list"])
    assert "toy: Does a hand" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"name one of .*toy"):
        find_study("tyo")
