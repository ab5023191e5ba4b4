"""Readers of what people have, one file a format, and ``open_dataset``, which finds the right one."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ideomotor.data.formats import annotated_json, calvin, folder, frame_lists, lerobot, npz
from ideomotor.types import Dataset, Quarantined


class Format(NamedTuple):
    """A reader: does a path look like its layout, and what is in there."""

    sniff: Callable[[Path], bool]
    read: Callable[[Path], Dataset]
    wanted: str


# In the order in which they are tried: a LeRobot data set is also a folder with videos in it, CALVIN one of npz files.
FORMATS: dict[str, Format] = {
    "lerobot": Format(lerobot.sniff, lerobot.read, "a LeRobotDataset v3.0 (meta/info.json)"),
    "annotated_json": Format(annotated_json.sniff, annotated_json.read, annotated_json.WANTED),
    "frame_lists": Format(frame_lists.sniff, frame_lists.read, frame_lists.WANTED),
    "calvin": Format(calvin.sniff, calvin.read, calvin.WANTED),
    "npz": Format(npz.sniff, npz.read, npz.WANTED),
    "folder": Format(folder.sniff, folder.read, folder.WANTED),
}


def open_dataset(path: Path | str, format: str | None = None, allow_empty: bool = False) -> Dataset:
    """Returns the data set in a folder, lazily: headers are read, no picture is.

    Args:
        path: a folder in one of the layouts of ``FORMATS``, or a single video or npz file.
        format: the name of the layout, where it should not be guessed.
        allow_empty: return what was quarantined also where no recording can be read.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: an unknown format, or nothing in there can be read; the message says what was looked for and found.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at {path}: give the folder of a data set")
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no format {format!r}{hint} (formats: {', '.join(FORMATS)})")
    names = [format] if format is not None else [name for name, reader in FORMATS.items() if reader.sniff(path)]
    if not names:
        wanted = "; ".join(f"{name}: {reader.wanted}" for name, reader in FORMATS.items())
        raise ValueError(f"no data set was found in {path}, which holds {_contents(path)}. Wanted one of: {wanted}")
    dataset = FORMATS[names[0]].read(path)
    if format is None and names[0] in ("npz", "folder"):
        dataset = replace(dataset, quarantined=(*dataset.quarantined, *_inner(path)))
    if not dataset.episodes and not allow_empty:
        if path.is_file():
            raise ValueError(f"{path} cannot be read: {dataset.quarantined[0].reason}")
        reasons = "; ".join(f"{entry.path}: {entry.reason}" for entry in dataset.quarantined[:3])
        raise ValueError(
            f"{path} looks like {names[0]!r}, but none of its {len(dataset.quarantined)} recordings can be read "
            f"({reasons})"
        )
    return dataset


def _inner(path: Path) -> list[Quarantined]:
    """The data sets that lie in a folder read as loose recordings: their actions and texts are lost on the way."""
    found = []
    for child in sorted(child for child in path.glob("*/") if child.is_dir()):
        name = next((name for name in ("lerobot", "annotated_json", "calvin") if FORMATS[name].sniff(child)), None)
        if name is not None:
            reason = f"is a data set of its own ({name}), read here as loose files: open it by itself for all it holds"
            found.append(Quarantined(path=child.name, reason=reason))
    return found


def _contents(path: Path) -> str:
    if path.is_file():
        return f"one file of type {path.suffix or 'unknown'}"
    kinds = Counter(file.suffix or "(no suffix)" for file in path.rglob("*") if file.is_file())
    if not kinds:
        return "no file"
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
