"""What every reader asks of its files: which there are, whether their numbers are sound, whether they fit together."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from ideomotor.types import Episode, Quarantined

Item = TypeVar("Item")
Found = TypeVar("Found")
_LOOKED_INTO = 4096  # files of a data set whose contents its fingerprint is taken from, at most
_PIECES, _PIECE = 16, 4096  # of a large file: how many pieces, of how many bytes


class Unfit(ValueError):
    """Why an episode is left out: the reason of its ``Quarantined``."""


def files_below(root: Path, suffixes: Sequence[str] = ()) -> tuple[list[Path], list[Quarantined]]:
    """Returns the files in ``root`` and below, sorted, and the folders that could not be listed.

    Hidden names (a leading dot) are passed over; links to folders are followed, each folder once.

    Args:
        root: a folder, or a single file.
        suffixes: lower-case endings to keep, e.g. ``(".mp4",)``; all by default.
    """
    if root.is_file():
        return [root], []
    found: list[Path] = []
    unlisted: list[Quarantined] = []
    seen: set[str] = set()

    def refused(error: OSError) -> None:
        unlisted.append(Quarantined(path=str(error.filename), reason=f"cannot be listed ({error.strerror})"))

    for folder, names, files in os.walk(root, followlinks=True, onerror=refused):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = [name for name in names if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in files
            if not name.startswith(".") and (not suffixes or Path(name).suffix.lower() in suffixes)
        ]
    return sorted(found), unlisted


def fingerprint(root: Path, files: Iterable[Path], reader: str) -> str:
    """Returns a digest of the reader, of every file's name and size, and of pieces of what the files hold.

    When a file was written plays no part: data that were copied, or mounted elsewhere, are the same data, and what
    was begun with them goes on. Of more files than 4,096 so many are looked into, spread over all of them.
    """
    named = sorted(files)
    digest = hashlib.sha256(reader.encode())
    looked_into = set(_spread(len(named), _LOOKED_INTO))

    def of(item: tuple[int, Path]) -> bytes:
        number, file = item
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
        said = f"\0{name}\0".encode(errors="surrogateescape")
        if not file.is_file():
            return said
        return said + (pieces(file) if number in looked_into else str(file.stat().st_size).encode())

    for part in in_threads(of, list(enumerate(named))):
        digest.update(part)
    return digest.hexdigest()[:32]


def pieces(file: Path) -> bytes:
    """Returns a digest of a file's size and contents; of more than 64 KiB, of 16 pieces of it, first and last among
    them. The tables of contents of videos, archives and Parquet files, sums included, lie at one of the ends.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    try:
        with file.open("rb") as stream:
            if size <= _PIECES * _PIECE:
                digest.update(stream.read())
            else:
                for start in _spread(size - _PIECE + 1, _PIECES):
                    stream.seek(start)
                    digest.update(stream.read(_PIECE))
    except OSError as error:  # the reader, which wants all of it, says what to do about it
        digest.update(str(error.errno).encode())
    return digest.digest()


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, at even distances, first and last among them."""
    if count <= most:
        return list(range(count))
    return [number * (count - 1) // (most - 1) for number in range(most)]


_TRIES = 5


def in_threads(function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """Returns ``function`` of every item, in order; the reading of many small files overlaps.

    NumPy reads an array's header by Python's parser, which before 3.12 counts its depth across threads and now and then
    ends in a SystemError though nothing is wrong (python/cpython#106905): that item is asked for again.
    """

    def found(item: Item) -> Found:
        for _ in range(_TRIES - 1):
            try:
                return function(item)
            except SystemError:
                continue
        return function(item)

    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(found, items))


def unsound(rows: Float[np.ndarray, "t width"], what: str) -> str:
    """Returns what is wrong with a table of numbers, naming the first bad row; "" where nothing is."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if not bad.size:
        return ""
    more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
    return f"row {bad[0]} of the {what} holds {rows[bad[0]][~np.isfinite(rows[bad[0]])][0]}{more}"


def of_one_width(
    episodes: Sequence[tuple[Episode, int | None]],
) -> tuple[tuple[Episode, ...], list[Quarantined]]:
    """Keeps the episodes whose actions are as wide as most episodes' are, and those without actions.

    Args:
        episodes: each with the width of its actions, None where it has none. Of two widths equally frequent the one
            met first is taken.
    """
    widths = Counter(width for _, width in episodes if width is not None)
    if not widths:
        return tuple(episode for episode, _ in episodes), []
    usual, count = widths.most_common(1)[0]
    kept = tuple(episode for episode, width in episodes if width in (None, usual))
    odd = [
        Quarantined(path=episode.id, reason=f"has actions of width {width}; {count} other episodes have width {usual}")
        for episode, width in episodes
        if width not in (None, usual)
    ]
    return kept, odd
