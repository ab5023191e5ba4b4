"""Runs a declared study: arm by seed by task, several cells at once, resumable, and its table, figure and page.

Each cell is run in a process of its own and writes its rows to its own folder, so that no two processes write one
file; OUT/rows.jsonl is put together from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.resources import files as packaged
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from ideomotor.data.draft import locked
from ideomotor.evaluation.episodes import append, read_rows
from ideomotor.evaluation.study import Study, StudyRow, check_rows, read_study
from ideomotor.evaluation.study_page import study_page
from ideomotor.evaluation.study_summary import StudySummary, study_json, summarize_study
from ideomotor.evaluation.wording import duration
from ideomotor.files import write_text
from ideomotor.systems.progress import bar
from ideomotor.systems.study_cells import Cell
from ideomotor.systems.study_recipes import cells_of, recipe_of, with_reading
from ideomotor.training.checkpoint import read_json
from ideomotor.training.config import differences

console = Console(soft_wrap=True)
WRITTEN = ("cells", "rows.jsonl", "study.json", "study.html", "declaration.json")
"""What a study writes in its folder; a fresh start removes this, and nothing else."""

_MENDABLE = (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError, RuntimeError)
_LOOK = 0.5  # seconds between looks at how many rows there are


def find_study(name: str) -> Path:
    """Returns the file of a study: a packaged one by its name, or a path of the user's own.

    Raises:
        ValueError: there is neither.
    """
    known = packaged_studies()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    raise ValueError(
        f"there is no study {name!r}: name one of {', '.join(known)}, or the path of a declaration, e.g. mine.toml"
    )


def packaged_studies() -> dict[str, Path]:
    """Returns the declarations that come with the package, by name."""
    folder = Path(str(packaged("ideomotor.systems") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def run_study(path: Path, out: Path, workers: int = 2, *, fresh: bool = False) -> StudySummary:
    """Runs what is missing of the study, writes its page, and returns its figures. Killed, the same call goes on.

    Args:
        path: of the declaration.
        out: folder of the study.
        workers: cells at once, each in a process of its own; 0 runs them one by one in this process.
        fresh: throw away what ``out`` holds of a study, whichever it was.

    Raises:
        ValueError: the declaration is wrong, ``out`` holds another study, or another process runs it.
        RuntimeError: a cell failed; what it said is told. The others' rows are kept.
    """
    study = with_reading(read_study(path))
    cells = cells_of(study)
    if workers < 0:
        raise ValueError(f"workers is {workers}; wanted 0 (this process alone) or more")
    with _held(out):
        _claim(study, out, fresh)
        missing = [cell for cell in cells if _missing(cell, out)]
        if missing:
            _run(study, cells, missing, out, workers)
        summary = report(study, out)
    if summary.missing:  # work() has looked at each cell, so this is ours to mend
        raise RuntimeError(f"{summary.missing} of {study.num_rows} episodes are missing in {out}: run it again")
    return summary


def report(study: Study, out: Path) -> StudySummary:
    """Writes rows.jsonl, study.json and study.html from what the cells hold so far; returns the figures."""
    rows = [row for cell in cells_of(study) for row in read_rows(_log(cell, out), StudyRow)]
    check_rows(study, rows, str(out))
    write_text(out / "rows.jsonl", "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    summary = summarize_study(study, rows)
    about = {"versions": {name: metadata.version(name) for name in ("ideomotor", "torch", "numpy")}}
    write_text(out / "study.json", json.dumps(study_json(summary, about), indent=2, allow_nan=False) + "\n")
    write_text(out / "study.html", study_page(summary, about["versions"]))
    return summary


def work(cell: Cell, run: Callable[[Cell, Path, Callable[[StudyRow], None]], None], out: Path) -> None:
    """Runs one cell: each row it tells of is on the disk before it goes on, and none is there twice.

    Raises:
        RuntimeError: the recipe ended, and rows are missing; or it told of an episode that is not of this cell.
    """
    log, folder = _log(cell, out), _folder(cell, out) / "work"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(_folder(cell, out)):  # waits for what a killed start may have left running
        wanted = _keys(cell)
        recorded = {_key(row) for row in read_rows(log, StudyRow)}

        def done(row: StudyRow) -> None:
            if _key(row) not in wanted or (row.study, row.arm, row.seed) != (cell.study, cell.arm, cell.seed):
                raise RuntimeError(f"the recipe told of {row.identity}, which is not of the cell {cell.name}")
            if _key(row) not in recorded:
                append(log, row)
                recorded.add(_key(row))

        run(dataclasses.replace(cell, recorded=frozenset(recorded)), folder, done)
        if recorded != wanted:
            raise RuntimeError(
                f"{len(wanted - recorded)} of {len(wanted)} episodes are missing, e.g. {min(wanted - recorded)}"
            )


class _Started(NamedTuple):
    cell: Cell
    process: BaseProcess
    said: connection.Connection


def _run(study: Study, cells: Sequence[Cell], missing: Sequence[Cell], out: Path, workers: int) -> None:
    """Runs the missing cells, with a bar of the study's episodes and a line for each cell that ends."""
    began, before = time.monotonic(), _count(cells, out)
    finished = len(cells) - len(missing)

    def look() -> None:
        rows = _count(cells, out)
        spent = time.monotonic() - began
        left = spent / (rows - before) * (study.num_rows - rows) if rows > before else 0.0
        tell(rows, study.num_rows, f"{finished} of {len(cells)} cells" + (f", {duration(left)} left" if left else ""))

    with bar(f"{finished} of {len(cells)} cells") as tell:
        for cell in _each(study, missing, out, workers, look):
            finished += 1
            console.print(
                f"{finished} of {len(cells)} cells: {cell.name} after {duration(time.monotonic() - began)}",
                markup=False,
                highlight=False,
            )


def _each(study: Study, cells: Sequence[Cell], out: Path, workers: int, look: Callable[[], None]) -> Iterator[Cell]:
    """Yields each cell when it has ended. What still runs ends when one fails, or when the caller stops."""
    run = recipe_of(study).run
    if not workers:
        for cell in cells:
            work(cell, run, out)
            look()
            yield cell
        return
    waiting, started = list(cells), list[_Started]()
    try:
        while waiting or started:
            while waiting and len(started) < workers:
                started.append(_start(waiting.pop(0), study, out))
            connection.wait([item.process.sentinel for item in started], timeout=_LOOK)
            look()
            for item in [item for item in started if not item.process.is_alive()]:
                started.remove(item)
                if item.process.exitcode:
                    said = item.said.recv() if item.said.poll() else f"its process ended with {item.process.exitcode}"
                    raise RuntimeError(
                        f"cell {item.cell.name}: {said}. The other rows are kept, and the same command tries it again"
                    )
                yield item.cell
    finally:
        for item in started:
            item.process.terminate()
            item.process.join()


def _start(cell: Cell, study: Study, out: Path) -> _Started:
    context = multiprocessing.get_context("spawn")  # neither OpenGL contexts nor torch's threads survive a fork
    near, far = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(cell, study, out, far))
    process.start()
    far.close()
    return _Started(cell, process, near)


def _in_process(cell: Cell, study: Study, out: Path, pipe: connection.Connection) -> None:
    """What a cell's process does: on one thread, since cells are run side by side."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        work(cell, recipe_of(study).run, out)
    except _MENDABLE as error:
        pipe.send(str(error) or type(error).__name__)
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    """A killed command must not leave cells running: the next start would run them a second time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Holds the folder of a study. A kill frees it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process runs a study in {out}: wait for its end, stop it, or choose another --out"
            ) from error
        yield


def _claim(study: Study, out: Path, fresh: bool) -> None:
    """Notes in the folder which study is in it.

    Raises:
        ValueError: another one is; the message says what differs.
    """
    path = out / "declaration.json"
    if fresh:
        for name in WRITTEN:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    if not path.exists():
        write_text(path, json.dumps(study.as_json(), indent=2) + "\n")
        return
    changes = differences(read_json(path), study.as_json())
    if changes:
        raise ValueError(
            f"{out} holds rows of another declaration: {'; '.join(changes)}. Rows of two declarations are not mixed: "
            "name another folder with --out, or throw the rows away with --fresh"
        )


def _folder(cell: Cell, out: Path) -> Path:
    return out / "cells" / cell.name


def _log(cell: Cell, out: Path) -> Path:
    return _folder(cell, out) / "rows.jsonl"


def _key(row: StudyRow) -> tuple[str, int, int]:
    return row.task, row.at, row.episode


def _keys(cell: Cell) -> set[tuple[str, int, int]]:
    return {(task, at, number) for task in cell.tasks for at in cell.at for number in range(cell.episodes)}


def _missing(cell: Cell, out: Path) -> set[tuple[str, int, int]]:
    return _keys(cell) - {_key(row) for row in read_rows(_log(cell, out), StudyRow)}


def _count(cells: Sequence[Cell], out: Path) -> int:
    """Returns how many rows the cells have; a torn one does not count."""
    return sum(_log(cell, out).read_bytes().count(b"\n") for cell in cells if _log(cell, out).exists())
