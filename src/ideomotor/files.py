"""Files that are written whole or not at all, and what is asked of those of others."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def synced(path: Path) -> None:
    """Returns when the disk holds a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an error of the system that names no file, as a write that finds the disk full, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Inside, a file is written at the path this yields; afterwards it stands at ``path``, also after a power cut.

    An error inside leaves what stood at ``path`` before.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield draft
        synced(draft)
        draft.replace(path)
        synced(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def drafted(out: Path) -> Iterator[Path]:
    """Inside, a folder is made at the path this yields, beside ``out``; whoever makes it renames it in the end.

    Afterwards the draft is gone, and so is what processes that were killed left of one for the same ``out``.
    """
    out = out.resolve()
    draft = out.with_name(f".{out.name}.new-{os.getpid()}")
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.new-*"):
        # In a container the process that was killed had the number that this one has.
        if leftover == draft or not _lives(leftover.name.rpartition("-")[2]):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (PermissionError, ValueError):  # another user's; or no name of ours
        return True
    return True


def sha256(path: Path) -> str:
    """Returns the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file that comes from elsewhere, as beside published weights.

    Raises:
        ValueError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): copy it anew") from error
    return content


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with naming(path), replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Inside, no other process that asks for the same adds to the file, or to the folder; a lock beside the one, or in
    the other, which a kill frees, says so.

    Raises:
        ValueError: another process does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    with lock.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise ValueError(
                f"process {holder} adds to {path}: wait for its end, stop it, or choose another --out"
            ) from error
        with naming(path):
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
        yield
