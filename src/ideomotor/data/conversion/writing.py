"""Recordings of any source written as npz episodes: whole or not at all, and a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ideomotor.files import naming, replacing
from ideomotor.types import Quarantined

# What h5py and numpy raise where a file is laid out in another way than was thought: a group where numbers were, a
# picture kept as text, a table of one dimension.
ODD = (AttributeError, IndexError, KeyError, OSError, TypeError)
_TABLES = ("action", "state")


class Recording(NamedTuple):
    """An episode to be written: its name below the folder, without suffix, and what makes its arrays."""

    name: str
    arrays: Callable[[], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did.

    Attributes:
        written: episodes written now.
        kept: episodes that were there already.
        left_out: those that could not be converted, and why.
    """

    written: int
    kept: int
    left_out: tuple[Quarantined, ...]


def write_recordings(
    recordings: Iterable[Recording],
    out: Path,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Converted:
    """Writes each recording as ``out/NAME.npz``, compressed, and says what became of them.

    A file that is there is not made again. A recording that is damaged is left out; what is wrong with the source as a
    whole, or with the disk, is raised.

    Args:
        recordings: with names that differ.
        out: the folder; it is made.
        limit: stop after so many, those counted that are there already.
        progress: called with how many are done.

    Raises:
        ValueError: two recordings have one name, or there are none.
    """
    written, kept, left_out, names = 0, 0, list[Quarantined](), set[str]()
    for number, (name, arrays) in enumerate(recordings):
        if limit is not None and number >= limit:
            break
        if name in names:
            raise ValueError(f"two recordings would be written as {name}.npz: convert their folders one by one")
        names.add(name)
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"a recording is named {name!r}, which lies outside of {out}: rename it in its source")
        path = out / f"{name}.npz"
        if path.exists():
            kept += 1
        else:
            try:
                made = arrays()
                _check(made)
            except ValueError as error:
                left_out.append(Quarantined(path=name, reason=str(error)))
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f".{path.name}.*.part"):  # of a conversion that was killed
                leftover.unlink()
            with naming(path), replacing(path) as draft, draft.open("wb") as file:
                keyed: dict[str, Any] = dict(made)
                np.savez_compressed(file, **keyed)
            written += 1
        if progress is not None:
            progress(written + kept)
    if not names:
        raise ValueError("no recording was found to convert")
    return Converted(written=written, kept=kept, left_out=tuple(left_out))


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses what the reader of npz episodes would."""
    pictures = {key: value for key, value in arrays.items() if value.ndim == 4}
    if not pictures:
        raise ValueError("holds no pictures")
    lengths = {len(value) for value in pictures.values()}
    wrong = [key for key, value in pictures.items() if value.dtype != np.uint8 or value.shape[3] != 3]
    if wrong or len(lengths) > 1 or 0 in lengths:
        shapes = ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in pictures.items())
        raise ValueError(f"has pictures {shapes}; wanted uint8 (t, h, w, 3), as many of each camera")
    (length,) = lengths
    for key in [key for key in _TABLES if key in arrays]:
        rows = arrays[key]
        if rows.ndim != 2 or len(rows) not in (length, length - (key == "action")):
            raise ValueError(f"has {key} of shape {rows.shape} for {length} frames; wanted a row of numbers each")
        if not np.isfinite(rows).all():
            raise ValueError(f"has {key} that are not finite numbers")
