"""The folder of a run: held by one process at a time, and cleared of what a run wrote and of nothing else."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any


def lock(folder: Path) -> Any:
    """Locks the folder for this process. The kernel gives the lock back however the process ends."""
    file = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ValueError(
            f"process {holder} trains in {folder}: wait for its end, stop it, or choose another --out"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def sweep(folder: Path) -> None:
    """Removes what a killed process had begun to write (``files.replacing``, ``checkpoint.check_writable``); the folder
    must be locked.
    """
    for name in (f".*.{'[0-9a-f]' * 32}.part", ".probe-*"):
        for leftover in folder.glob(name):
            leftover.unlink(missing_ok=True)  # a process that is about to find the folder locked takes its own back


def clear(folder: Path) -> None:
    """Removes what a run wrote, and nothing else."""
    for name in ("run.json", "done.json", "metrics.jsonl", "data.json"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        is_model = (path / "config.json").is_file() and (path / "model.safetensors").is_file()
        if path.name in ("state", "tensorboard") or is_model:
            shutil.rmtree(path)
