"""What all quickstarts share: a folder that is theirs, fixed threads, and a process that does some stages beside."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from ideomotor.systems.collection import CollectionConfig
from ideomotor.training.checkpoint import read_json, write_json
from ideomotor.training.config import differences
from ideomotor.training.run import Run

console = Console(soft_wrap=True)


def command_line(verb: str, out: Path, config: Any, plain: Any) -> str:
    """Returns the command that ``config`` came from: the verb, OUT, and every option that differs from ``plain``."""
    return shlex.join(["ideomotor", *verb.split(), "--out", str(out), *_options(config, plain)])


def _options(config: Any, plain: Any, group: str = "--") -> list[str]:
    words = []
    for option in fields(config):
        value, usual = getattr(config, option.name), getattr(plain, option.name)
        name = f"{group}{option.name.replace('_', '-')}"
        if is_dataclass(value):
            words += _options(value, usual, f"{name}.")
        elif value != usual:
            words += [name, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def claim(out: Path, settings: dict[str, Any], what: str = "quickstart") -> None:
    """Notes the settings in ``out``/WHAT.json, or checks that they are those noted.

    Raises:
        ValueError: ``out`` was begun with other settings.
    """
    path = out / f"{what}.json"
    if path.is_file():
        changed = differences(read_json(path), settings)
        if changed:
            raise ValueError(
                f"{out} holds a {what} of other settings ({'; '.join(changed[:5])}): give the same ones, or "
                "another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def collection_of(
    out: Path,
    world: Literal["metaworld", "toy"],
    tasks: tuple[str, ...],
    demonstrations: int,
    size: int,
    seed: int,
    workers: int,
) -> CollectionConfig:
    """Returns what is collected: as many expert as other videos, and twice as much video without actions as with.

    Raises:
        ValueError: no demonstration is asked for.
    """
    if demonstrations < 1:
        raise ValueError(f"demonstrations is {demonstrations}; a policy needs at least 1 a task")
    noisy = (3 * demonstrations) // 5
    return CollectionConfig(
        out=out / "data",
        world=world,
        tasks=tasks,
        demonstrations=demonstrations,
        expert=demonstrations,
        noisy=noisy,
        failed=demonstrations - noisy,
        size=size,
        seed=seed,
        workers=workers,
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads inside: fixed, and not taken from the machine, so that the same seed gives the same weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def beside(module: str, arguments: Sequence[str], log: Path, what: str) -> Iterator[Callable[[], None]]:
    """While the body runs, ``python -m module arguments`` does too, its output added to ``log``; then waits for it.

    Yields what tells whether it has failed, to be called now and then.

    Raises:
        RuntimeError: it failed; the message holds the end of its log.
    """
    with log.open("ab") as file:
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file)

    def check() -> None:
        if process.poll():
            end = log.read_text(errors="replace").splitlines()[-1:]
            raise RuntimeError(
                f"{what} ended with status {process.returncode} ({' '.join(end)}); its log is {log}. Run the same "
                "command again: what is finished stays"
            )

    try:
        yield check
        process.wait()
        check()
    finally:
        process.kill()
        process.wait()


def numbered(name: str, stages: Sequence[str]) -> str:
    """Returns the stage's name as it is said."""
    return f"[{stages.index(name) + 1}/{len(stages)}] {name}"


@contextmanager
def said(out: Path, name: str, stages: Sequence[str], seed: int) -> Iterator[Run]:
    """Opens a stage that keeps no state, and says that it begins and what it took."""
    run = Run(out / name, seed=seed)
    skipped = run.finished
    console.print(numbered(name, stages) + (": done already" if skipped else ""), markup=False)
    with run:
        yield run
    if not skipped:
        console.print(f"{numbered(name, stages)}: {run.seconds:.0f} s", markup=False)


def main(work: Callable[..., None]) -> None:
    """What such a process does: its arguments go to ``work``; errors that a user can mend are the last line said."""
    _end_with_parent()
    try:
        work(*sys.argv[1:])
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error


def _end_with_parent() -> None:
    """Ends this process when the one that began it does: then the pipe to its standard input breaks."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
