"""A cache folder: what it is named after, and how it is filled piece by piece, resumed after a kill, and made whole.

While it grows it is ``NAME.partial`` beside its place, with a journal of the pieces that have reached the disk. A lock
lets one process fill it; others that want the same cache wait and then find it finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.files import synced, write_text
from ideomotor.types import Dataset, Episode

ELSEWHERE = "cache at a smaller size, or choose another folder"


def description(dataset: Dataset) -> list[Any]:
    """Returns what a cache of this dataset depends on, as JSON.

    The episodes are listed because a split keeps the fingerprint of the whole.

    Raises:
        ValueError: the dataset has no fingerprint, or two episodes share an id.
    """
    if not dataset.fingerprint:
        raise ValueError(
            f"dataset {dataset.name!r} has no fingerprint, so a cache could not tell when it changes: open it with a "
            "reader of data.formats, or set one"
        )
    facts = [
        (e.id, e.length, e.text, e.fps, e.outcome, *(read is not None for read in _signals(e)))
        for e in dataset.episodes
    ]
    ids = [episode.id for episode in dataset.episodes]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"two episodes of dataset {dataset.name!r} are called {twice!r}: rename one")
    return [dataset.fingerprint, facts]


def _signals(episode: Episode) -> tuple[object, ...]:
    return episode.read_actions, episode.read_proprio, episode.read_rewards


def digest(value: Any) -> str:
    """Returns a name of 24 hexadecimal digits for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Holds the right to fill the cache ``final``; waits while another process does. A kill frees it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with final.with_name(f".{final.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_space(folder: Path, needed: int, what: str, way_out: str = ELSEWHERE) -> None:
    """Refuses to begin what the disk cannot hold; ``way_out`` ends the message.

    Raises:
        OSError: fewer than ``needed`` bytes are free in ``folder``.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs {needed / 1e6:,.1f} MB and {folder} has {free / 1e6:,.1f} MB free: free some space, "
            f"{way_out}",
        )


class Draft:
    """The folder in the making and its journal."""

    def __init__(self, final: Path) -> None:
        self.final, self.folder = final, final.with_name(f"{final.name}.partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = self.folder / "journal.jsonl"
        if self._journal.exists():  # a line that a kill left unfinished would swallow the next one
            whole = self._journal.read_bytes().rfind(b"\n") + 1
            os.truncate(self._journal, whole)

    def done(self) -> list[dict[str, Any]]:
        """Returns what was recorded."""
        if not self._journal.exists():
            return []
        return [json.loads(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]

    def record(self, entry: dict[str, Any]) -> None:
        """Notes a piece as done. Its data must be on the disk already."""
        with self._journal.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def restart(self) -> None:
        """Forgets everything recorded."""
        self._journal.unlink(missing_ok=True)

    def finish(self, index: dict[str, Any]) -> None:
        """Writes the index and gives the folder its name; the journal lives until then, so that a full disk or a kill
        in between costs nothing that was made.
        """
        write_text(self.folder / "index.json", json.dumps(index))
        os.replace(self.folder, self.final)  # noqa: PTH105 - named as the rule of this project names it
        (self.final / self._journal.name).unlink(missing_ok=True)
        synced(self.final.parent)  # the rename itself


class ArrayFile:
    """A ``.npy`` file of known shape, filled in any order by several threads.

    Its whole length is reserved at once and it is written with plain writes: a memory map of a file that finds the disk
    full kills the process instead of raising.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], what: str, way_out: str = ELSEWHERE
    ) -> None:
        """Opens the file, or makes it, which ``fresh`` then tells.

        Raises:
            OSError: the disk has no room for it; ``what`` names it in the message, and ``way_out`` ends it.
        """
        self.shape, self.dtype = shape, dtype
        self._row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        draft = path.with_name(f"{path.name}.head")
        with draft.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self._start = file.tell()
        size = self._start + shape[0] * self._row
        self.fresh = not path.exists() or path.stat().st_size != size or not _begins_alike(path, draft)
        if self.fresh:
            path.unlink(missing_ok=True)
            require_space(path.parent, size, what, way_out)
            draft.replace(path)
        draft.unlink(missing_ok=True)
        self._file = os.open(path, os.O_RDWR)
        if self.fresh:
            os.posix_fallocate(self._file, 0, size)

    def write(self, start: int, rows: np.ndarray[Any, Any]) -> None:
        """Writes rows from ``start`` on."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:] or start + len(rows) > self.shape[0]:
            raise ValueError(f"rows {start}.. of {rows.dtype} {rows.shape} do not fit {self.dtype} {self.shape}")
        left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        place = self._start + start * self._row
        while left:
            written = os.pwrite(self._file, left, place)
            left, place = left[written:], place + written

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._file)


def fill_rows(
    draft: Draft,
    file: str,
    total: int,
    batch_size: int,
    make: Callable[[range], np.ndarray[Any, Any]],
    what: str,
    progress: Callable[[int, int], None] | None = None,
    way_out: str = ELSEWHERE,
) -> tuple[int, ...]:
    """Fills an array file of a draft batch by batch, from where a kill left off; returns the array's shape.

    Args:
        draft: nothing else is recorded in its journal.
        file: its name.
        total: rows.
        batch_size: rows made at a time.
        make: returns those rows, always of one shape and type. It is called for the first ones even where they are on
            the disk: only then is known how wide a row is.
        what: names the array where the disk has no room for it.
        progress: called with rows done and to be done.
        way_out: of a full disk.

    Raises:
        OSError: the disk has no room; what was made so far is kept for the next try.
    """
    rows = make(range(min(batch_size, total)))
    shape = (total, *rows.shape[1:])
    what = f"{what} ({total:,} windows of {rows[0].nbytes:,} bytes)"
    array = ArrayFile(draft.folder / file, shape, rows.dtype, what, way_out)
    try:
        if array.fresh:
            draft.restart()
        done = max((int(entry["stop"]) for entry in draft.done()), default=0)
        while done < total:
            if done > 0:
                rows = make(range(done, min(done + batch_size, total)))
            array.write(done, rows)
            array.sync()
            done += len(rows)
            draft.record({"stop": done})
            if progress is not None:
                progress(done, total)
    finally:
        array.close()
    return shape


def _begins_alike(path: Path, draft: Path) -> bool:
    head = draft.read_bytes()
    with path.open("rb") as file:
        return file.read(len(head)) == head


def read_index(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """Returns the index of a finished cache.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another kind or version.
    """
    path = folder / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished cache of {kind}: build it first")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder, and it is built again") from error
    if index.get("kind") != kind or index.get("version") != version:
        raise ValueError(
            f"{folder} holds a cache of {index.get('kind')!r}, version {index.get('version')!r}; wanted {kind!r}, "
            f"version {version}: delete the folder, and it is built again"
        )
    return index


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Returns a memory map of a finished array, read only and shared between processes.

    Raises:
        ValueError: the file is missing, cut short, or of another shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder, and it is built again") from error
    if array.shape != shape:
        raise ValueError(
            f"{path} holds {array.shape}, its index says {shape}: delete the folder, and it is built again"
        )
    return array
