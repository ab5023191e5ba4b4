"""Episodes as compressed numpy files, one ``.npz`` each: two layouts that published code bases use.

**Episodes of pictures** (BAIR and its like): one or more arrays ``(t, h, w, 3)``, each a camera under its own key
(``image``, ``aux1_image``), and perhaps ``action (t, a)``: row ``i`` is taken at frame ``i``. RoboNet's have no row for
the last frame; it becomes zeros, as in the iVideoGPT release.

**Replay episodes** (Meta-World demonstrations): ``observation (t, 3 k, h, w)``, the last ``k`` RGB pictures stacked,
oldest first; the newest is the frame. ``action (t, a)``: row ``i`` is the action that *led to* frame ``i``, and row 0,
before which nothing happened, is zero. Rows are moved up by one, so that row ``i`` of ``read_actions`` is taken *at*
frame ``i``; at the last frame nothing was recorded, and the last action is repeated. Actions come out as recorded,
which in these files can be far outside -1..1.

In both, ``reward`` (``(t, 1)`` or ``(t,)``) is read as the actions are: row ``i`` of ``read_rewards`` is what the
action taken at frame ``i`` brought, so beside ``observation`` rows are moved up by one. ``state`` or ``proprio``
``(t, s)`` is the robot's state. Pictures are uint8; whole numbers of another type are taken where all lie in 0..255.
The instruction is ``text``, a lone string; without it, the name of the file's folder below the data set's,
``door-lock`` becoming "door lock", and "" for files in the data set's folder itself. ``recording``, a lone string,
says of which recording the episode is a part. Other keys are passed over. Files record no frame rate: ``read`` is told.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from ideomotor.data.formats.checks import Unfit, files_below, fingerprint, in_threads, of_one_width, unsound
from ideomotor.data.video import VIDEO_SUFFIXES
from ideomotor.types import Dataset, Episode, Quarantined

WANTED = "numpy episodes (.npz) with pictures"

FPS = 10.0
"""Frames per second where nobody says otherwise."""

_VERSION = "npz 3"
# What zipfile raises on damage; RuntimeError where members are encrypted or packed in an unknown way. TokenError is
# numpy's, where an array's head is damaged.
_BROKEN = (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, tokenize.TokenError)
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "eval")


@dataclass(frozen=True, kw_only=True)
class NpzFrames:
    """One array of pictures in an npz file (the ``Frames`` protocol); the file is read when frames are asked for.

    Attributes:
        path: the file.
        key: name of the array in it.
        shape: ``(t, 3, h, w)`` of what comes out.
        channels_first: whether the array is ``t c h w``, of whose channels the last three are taken.
    """

    path: Path
    key: str
    shape: tuple[int, int, int, int]
    channels_first: bool

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Returns those frames in the order asked for, resized to ``size`` (height, width): the mean over the area of
        each new pixel when shrinking, linear between pixels when growing.

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: the file is damaged.
        """
        wrong = [index for index in indices if not 0 <= index < self.shape[0]]
        if wrong:
            raise IndexError(f"frame {wrong[0]} of {self.path}: it has frames 0..{self.shape[0] - 1}")
        pictures = _array(self.path, self.path.stat().st_mtime_ns, self.key)[np.asarray(indices, dtype=np.int64)]
        pictures = pictures[:, -3:] if self.channels_first else pictures.transpose(0, 3, 1, 2)
        frames = torch.from_numpy(np.ascontiguousarray(pictures).astype(np.uint8, copy=False))
        if size is None or size == self.shape[2:]:
            return frames
        shrinks = size[0] <= self.shape[2] and size[1] <= self.shape[3]
        resized = functional.interpolate(frames.float(), size, mode="area" if shrinks else "bilinear")
        return resized.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class NpzRows:
    """Reads a table of an npz file when called, ``length`` rows.

    Where ``shifted`` it is moved up by one row, the last row repeated; where it is one row short, zeros follow.
    """

    path: Path
    key: str
    length: int
    shifted: bool = False

    def __call__(self) -> Float32[np.ndarray, "t width"]:
        """Returns the table, a row a frame."""
        rows = _numbers(_table(self.path, self.key))
        if self.shifted:
            return np.concatenate([rows[1:], rows[len(rows) - 1 :]])
        return np.concatenate([rows, np.zeros((self.length - len(rows), rows.shape[1]), np.float32)])


@dataclass(frozen=True, kw_only=True)
class NpzRewards:
    """Reads the rewards of an npz file when called; ``rows`` says how."""

    rows: NpzRows

    def __call__(self) -> Float32[np.ndarray, " t"]:
        """Returns a number a frame."""
        return self.rows()[:, 0]


def sniff(path: Path) -> bool:
    """Says whether ``path`` is an npz file, or a folder with one in it or below and no video."""
    suffixes = {file.suffix.lower() for file in files_below(path)[0]}
    return ".npz" in suffixes and not suffixes.intersection(VIDEO_SUFFIXES)


def read(path: Path, fps: float = FPS) -> Dataset:
    """Opens a folder of npz episodes (or a single file); uint8 pictures are not read before they are asked for.

    Quarantined are: a file that is no npz, holds no pictures or pickled objects, pictures that do not fit 0..255, rows
    that do not fit the frames, NaN or infinite numbers, and actions of another width than most episodes have.

    Args:
        path: the folder.
        fps: frames per second of every episode.
    """
    files, unlisted = files_below(path, (".npz",))
    root = path if path.is_dir() else path.parent
    opened = in_threads(partial(_opened, root, fps), files)
    episodes, odd = of_one_width([item for item in opened if not isinstance(item, Quarantined)])
    return Dataset(
        name=path.resolve().name,
        path=path,
        format="npz",
        episodes=episodes,
        quarantined=(*unlisted, *(item for item in opened if isinstance(item, Quarantined)), *odd),
        fingerprint=fingerprint(root, files, f"{_VERSION} {fps}"),
    )


def _opened(root: Path, fps: float, file: Path) -> tuple[Episode, int | None] | Quarantined:
    try:
        return _episode(root, fps, file)
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
    except ValueError as error:
        reason = str(error)
    return Quarantined(path=file.relative_to(root).as_posix(), reason=reason)


def _episode(root: Path, fps: float, file: Path) -> tuple[Episode, int | None]:
    headers = _headers(file)
    pickled = [key for key, (_, dtype) in headers.items() if dtype.hasobject]
    if pickled:
        raise Unfit(f"holds pickled objects ({', '.join(pickled)}), which are not opened: they can run code")
    cameras = {key: frames for key, head in headers.items() if (frames := _frames(file, key, *head))}
    if not cameras:
        there = ", ".join(f"{key} {shape}" for key, (shape, _) in headers.items()) or "nothing"
        raise Unfit(f"holds no pictures: wanted an array (t, h, w, 3) or (t, 3 k, h, w); found {there}")
    lengths = {key: frames.shape[0] for key, frames in cameras.items()}
    length = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1 or not length:
        raise Unfit(f"has {', '.join(f'{count} frames of {key}' for key, count in lengths.items())}")
    for key in cameras:
        _check_range(file, key, headers[key][1])
    action = next((key for key in ("action", "actions") if key in headers), "")
    state = next((key for key in ("state", "proprio") if key in headers), "")
    replay = "observation" in cameras
    width = _width(file, action, "actions", (length,) if replay else (length, length - 1), zero_first=replay)
    _width(file, state, "states", (length,))
    rewards = None
    if "reward" in headers:
        rewarded = _width(file, "reward", "rewards", (length,) if replay else (length, length - 1))
        if rewarded != 1:
            raise Unfit(f"has rewards of width {rewarded}; wanted one number a frame")
        rewards = NpzRewards(rows=NpzRows(path=file, key="reward", length=length, shifted=replay))
    episode = Episode(
        id=file.relative_to(root).with_suffix("").as_posix(),
        text=_text(root, file, headers),
        fps=fps,
        length=length,
        frames=cameras,
        read_actions=NpzRows(path=file, key=action, length=length, shifted=replay) if action else None,
        read_proprio=NpzRows(path=file, key=state, length=length) if state else None,
        read_rewards=rewards,
        recording=_string(file, "recording", headers) or "",
    )
    return episode, width


def _string(file: Path, key: str, headers: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str | None:
    shape, dtype = headers.get(key, ((1,), np.dtype(float)))
    return str(_array(file, file.stat().st_mtime_ns, key)) if shape == () and dtype.kind == "U" else None


def _text(root: Path, file: Path, headers: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    text = _string(file, "text", headers)
    if text is not None:
        return text
    folder = file.parent.name if file.parent != root else ""
    return "" if folder.lower() in _SPLITS else folder.replace("-", " ").replace("_", " ")


def _frames(file: Path, key: str, shape: tuple[int, ...], dtype: np.dtype) -> NpzFrames | None:
    """How to read an array as pictures; None where it is no picture."""
    if len(shape) != 4 or 0 in shape[1:]:
        return None
    if shape[3] == 3:
        return NpzFrames(path=file, key=key, shape=(shape[0], 3, shape[1], shape[2]), channels_first=False)
    if shape[1] % 3 == 0:
        return NpzFrames(path=file, key=key, shape=(shape[0], 3, shape[2], shape[3]), channels_first=True)
    return None


def _check_range(file: Path, key: str, dtype: np.dtype) -> None:
    if dtype == np.uint8:
        return
    if dtype.kind not in "iu":
        raise Unfit(f"has pictures {key!r} of type {dtype}; wanted uint8, or whole numbers in 0..255")
    pictures = _array(file, file.stat().st_mtime_ns, key)
    low, high = int(pictures.min()), int(pictures.max())
    if low < 0 or high > 255:
        raise Unfit(f"has pictures {key!r} with values {low}..{high}; wanted 0..255")


def _width(file: Path, key: str, what: str, wanted: tuple[int, ...], zero_first: bool = False) -> int | None:
    """Checks a table and returns its width; None where there is none."""
    if not key:
        return None
    rows = _table(file, key)
    if rows.ndim != 2 or len(rows) not in wanted or rows.dtype.kind not in "bfiu":
        raise Unfit(
            f"has {what} of shape {rows.shape} and type {rows.dtype}; wanted {' or '.join(map(str, wanted))} rows of "
            "numbers, for as many frames"
        )
    wrong = unsound(_numbers(rows), what)
    if wrong:
        raise Unfit(wrong)
    if zero_first and rows[0].any():
        raise Unfit(
            f"has {rows[0].tolist()} as row 0 of the {what}; beside 'observation' a row is the action that led to its "
            "frame, and before frame 0 there was none: wanted zeros"
        )
    return rows.shape[1]


def _table(file: Path, key: str) -> np.ndarray:
    """One array of a file; of lone numbers each becomes a row, as rewards are stored by some."""
    rows = _array(file, file.stat().st_mtime_ns, key)
    return rows[:, None] if key == "reward" and rows.ndim == 1 else rows


def _numbers(rows: np.ndarray) -> Float32[np.ndarray, "t width"]:
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, and is found as such
        return rows.astype(np.float32)


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of every array in a file, without unpacking any."""
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    reader = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = reader(member)
                    found[name.removesuffix(".npy")] = (shape, dtype)
    except _BROKEN as error:
        raise Unfit(f"is cut short, damaged or no npz file ({error})") from error
    return found


@lru_cache(maxsize=16)
def _array(file: Path, mtime_ns: int, key: str) -> np.ndarray:
    """One array of a file; the last few are kept, because an episode is read window by window."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[key]
    except _BROKEN as error:
        raise ValueError(f"{file}: array {key!r} is damaged ({error})") from error
