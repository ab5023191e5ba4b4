"""Mixes as files: a table for each data set says where it lies, which clips are drawn from it, and how often.

    [bridge]                   # any name, no two alike
    path = "bridge"            # by default the table's name; relative to a root, which is the file's folder by default
    window = "whole"           # one window an episode; or "strided"
    longest = 100              # whole: of episodes of at most so many frames (by default of all)
    weight = 0.2               # share of all clips, relative to the other tables (1)
    domain = "robot"           # human, robot, simulated (unknown)

    [calvin]
    window = "strided"
    stride = 2                 # strided: frames of the recording from one frame to the next; or seconds = 0.2
    start_step = 2             # strided: frames from the start of one window to that of the next (1)
    cameras = { camera0 = 0.75, camera1 = 0.25 }   # how often each is looked through (the first camera alone)

How many frames a window has is not the data's to say: it follows from the model.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from importlib.resources import files as packaged
from pathlib import Path
from typing import Any, NamedTuple

from ideomotor.data.sampling import Sampling, StridedWindow
from ideomotor.data.whole_clips import WholeClip
from ideomotor.types import domain_id

_NUMBER, _WHOLE, _TEXT = "a number", "a whole number", "a text in quotes"
_KEYS = {
    "path": _TEXT, "window": _TEXT, "longest": _WHOLE, "stride": _WHOLE, "seconds": _NUMBER, "start_step": _WHOLE,
    "cameras": "a table of weights, e.g. { front = 0.75, wrist = 0.25 }", "weight": _NUMBER, "domain": _TEXT,
}  # fmt: skip
_OWN = {"whole": ("longest",), "strided": ("stride", "seconds", "start_step")}  # keys of one kind of window


class Part(NamedTuple):
    """A table of a mix: its name, where the data set lies, and how clips are drawn from it."""

    name: str
    path: Path
    sampling: Sampling


def packaged_mixes() -> dict[str, Path]:
    """Returns the mixes that come with the package, by name."""
    folder = Path(str(packaged("ideomotor.data") / "mix_tables"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_mix(name: str) -> Path:
    """Returns the file of a mix: a packaged one by its name, or a path of the user's own.

    Raises:
        ValueError: there is neither.
    """
    known, path = packaged_mixes(), Path(name)
    if name in known:
        return known[name]
    if path.suffix == ".toml" and path.is_file():
        return path
    if path.exists():
        raise ValueError(f"{name} is no mix: wanted a file whose name ends in .toml")
    raise ValueError(f"there is no mix {name!r}: name one of {', '.join(known)}, or the path of a file, e.g. mine.toml")


def read_mix(file: Path, root: Path | None = None, frames: int = 16) -> list[Part]:
    """Returns the tables of a mix in their order; nothing is looked for on disk but the file.

    Args:
        file: TOML, as above.
        root: what paths in it are relative to; the file's folder by default.
        frames: of a window.

    Raises:
        ValueError: it is no TOML file, or holds no table, or what a table says is wrong; file and table are named.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML file: {error}") from error
    if not tables:
        raise ValueError(f'{file} holds no table: write one for each data set, [NAME], with window = "whole" in it')
    parts = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{file}: {name!r} stands outside any table: write it below the [NAME] of a data set")
        try:
            _refuse_unfit(table)
            place = (file.parent if root is None else root) / table.get("path", name)
            parts.append(Part(name, place, _sampling(table, frames)))
        except ValueError as error:
            raise ValueError(f"{file} [{name}]: {error}") from error
    return parts


def _refuse_unfit(table: Mapping[str, Any]) -> None:
    """Refuses keys that there are not, or not beside this kind of window, and values of another kind."""
    for key, value in table.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no key {key!r}{hint} (keys: {', '.join(_KEYS)})")
        if not _fits(value, _KEYS[key]):
            raise ValueError(f"{key} is {value!r}; wanted {_KEYS[key]}")
    window = table.get("window")
    if window not in _OWN:
        was = "is not said" if window is None else f"is {window!r}"
        raise ValueError(f'window {was}: write window = "whole", or window = "strided" with a stride or seconds')
    for other, keys in _OWN.items():
        foreign = [key for key in keys if key in table and other != window]
        if foreign:
            raise ValueError(f"{', '.join(foreign)} is of {other} windows, and window is {window!r}: leave one out")


def _fits(value: Any, wanted: str) -> bool:
    if wanted == _TEXT:
        return isinstance(value, str) and value != ""
    if wanted in (_NUMBER, _WHOLE):
        return isinstance(value, int if wanted == _WHOLE else int | float) and not isinstance(value, bool)
    return isinstance(value, dict) and value != {} and all(_fits(share, _NUMBER) for share in value.values())


def _sampling(table: Mapping[str, Any], frames: int) -> Sampling:
    window: WholeClip | StridedWindow
    seconds = table.get("seconds")
    if table["window"] == "whole":
        window = WholeClip(frames=frames, longest=table.get("longest"))
    else:
        window = StridedWindow(
            frames=frames,
            stride=table.get("stride"),
            seconds=None if seconds is None else float(seconds),
            start_step=table.get("start_step", 1),
        )
    domain = table.get("domain", "unknown")
    domain_id(domain)  # refuses an unknown name
    cameras = {camera: float(share) for camera, share in table.get("cameras", {}).items()}
    return Sampling(window=window, cameras=cameras, weight=float(table.get("weight", 1.0)), domain=domain)
