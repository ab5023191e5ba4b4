"""Columns of a LeRobotDataset's data files: checked when the dataset is opened, read again when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ideomotor.extras import require

if TYPE_CHECKING:
    import pyarrow


# One thread: loader workers bring the parallelism. Checksums are compared where the file has them; ours have.
CHECKED: dict[str, Any] = {"use_threads": False, "page_checksum_verification": True}


class Damaged(ValueError):
    """Why one episode is left out."""


class Table:
    """The columns of one data file that reading checks."""

    def __init__(self, path: Path, wanted: set[str]) -> None:
        self.path, self._mtime_ns = path, path.stat().st_mtime_ns
        parquet = require("pyarrow.parquet", "video")
        names = [name for name in parquet.read_schema(path).names if name in wanted]
        self._table = parquet.read_table(path, columns=names, **CHECKED)
        self._episode_of_row = _numbers(self._table.column("episode_index"), 1)[:, 0]

    def has(self, name: str) -> bool:
        """Returns whether the file has that column."""
        return name in self._table.column_names

    def value(self, name: str, row: int) -> Any:
        """Returns one cell."""
        return self._table.column(name)[row].as_py()

    def rows_of(self, episode: int, length: int) -> int:
        """Returns the first of the ``length`` rows, one behind the other, of an episode."""
        rows = np.flatnonzero(self._episode_of_row == episode)
        if len(rows) != length or (length and rows[-1] - rows[0] != length - 1) or not length:
            raise Damaged(f"its data has {len(rows)} rows, or not in one piece; its length is {length}")
        return int(rows[0])

    def reader(self, name: str, first: int, length: int, width: int) -> ColumnReader:
        """Returns what reads that column of an episode later, when this table is gone."""
        return ColumnReader(self.path, self._mtime_ns, name, first, length, width)

    def column(self, name: str, first: int, length: int, width: int) -> np.ndarray:
        """Returns rows of a column as ``t width``.

        Raises:
            Damaged: the file has no such column, or a row another number of numbers.
        """
        if not self.has(name):
            raise Damaged(f"its data has no column {name}, which info.json describes")
        try:
            return _numbers(self._table.column(name).slice(first, length), width)
        except damage() as error:
            raise Damaged(f"{name}: {said(error)}") from error


@dataclass(frozen=True)
class ColumnReader:
    """Reads one column of one episode when called; small enough to be sent to a worker."""

    path: Path
    mtime_ns: int
    name: str
    first: int
    length: int
    width: int

    def __call__(self) -> Float[np.ndarray, "t d"]:
        """Returns the column's rows as float32."""
        return _read_rows(self).copy()


@lru_cache(maxsize=4096)
def _read_rows(rows: ColumnReader) -> np.ndarray:
    metadata, starts = _row_groups(rows.path, rows.mtime_ns)
    last = rows.first + rows.length
    groups = range(int(np.searchsorted(starts, rows.first, "right")) - 1, int(np.searchsorted(starts, last, "left")))
    parquet = require("pyarrow.parquet", "video")
    with parquet.ParquetFile(rows.path, metadata=metadata, page_checksum_verification=True) as file:
        column = file.read_row_groups(list(groups), columns=[rows.name], use_threads=False).column(rows.name)
    return _numbers(column.slice(rows.first - int(starts[groups[0]]), rows.length), rows.width).astype(np.float32)


@lru_cache(maxsize=16)
def _row_groups(path: Path, mtime_ns: int) -> tuple[Any, np.ndarray]:
    """Returns a file's table of contents, which grows with its row groups, and the first row of each."""
    metadata = require("pyarrow.parquet", "video").read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return metadata, np.cumsum([0, *sizes])


def _numbers(column: pyarrow.ChunkedArray, width: int) -> np.ndarray:
    """Returns a column as ``t width``, float32 or whole numbers as stored; a missing number is NaN.

    Raises:
        ValueError: a row holds another number of numbers.
    """
    pa, compute = require("pyarrow", "video"), require("pyarrow.compute", "video")
    if pa.types.is_nested(column.type):
        widths = compute.list_value_length(column).to_numpy()
        if not (widths == width).all():
            row = int(np.argmax(widths != width))
            raise ValueError(f"frame {row} has {widths[row]:g} numbers; info.json says {width}")
        column = compute.list_flatten(column)
    elif width != 1:
        raise ValueError(f"a frame has one number; info.json says {width}")
    values = column.to_numpy()
    kept = values if values.dtype.kind in "iu" else values.astype(np.float32)
    return kept.reshape(-1, width)


def damage() -> tuple[type[Exception], ...]:
    """What pyarrow raises for a file that is missing, cut or garbled."""
    return (OSError, ValueError, KeyError, require("pyarrow", "video").ArrowException)


def said(error: Exception) -> str:
    """Returns what is wrong with a file, from what reading it raised."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({(str(error) or type(error).__name__).splitlines()[0][:200]})"
