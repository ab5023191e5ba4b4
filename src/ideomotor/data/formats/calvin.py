"""CALVIN's recordings: a numpy file for each frame, and a list of which stretches of frames do what.

A split is a folder (``training``, ``validation``, or the folder given itself) with ``episode_0358482.npz`` and on, one
frame each, recorded at 30 a second. Read of a frame are

- ``rgb_static`` (200, 200, 3) and ``rgb_gripper`` (84, 84, 3), uint8: the cameras, as far as they are there;
- ``rel_actions`` (7): what was commanded at this frame, relative to where the gripper is: x, y, z in 2 cm, Euler angles
  in 0.05 rad, all clipped to -1..1, and the gripper, -1 closed and 1 open; or in its place, where ``read`` is asked for
  it, ``actions``, the same in absolute terms;
- ``robot_obs`` (15): the state: position of the gripper 3, Euler angles 3, opening, arm joints 7, the last command to
  the gripper.

``scene_obs``, depth and touch are passed over.

**Episodes.** Where there is ``lang_annotations/auto_lang_ann.npy``, every annotation in it is an episode with its
sentence: frames ``start..end-1`` of its ``indx`` (annotations overlap, and some repeat; each is kept). That file is a
pickled dict; it is read by ``plain_pickle``, which runs nothing. A split without it has the recordings of
``ep_start_end_ids.npy``, frames ``start..end``, without text. ``scene_info.npy`` says which of the scenes A to D frames
are of; the scene becomes part of the ids (``training/B/00012-0358482``: split, scene, number of the annotation, first
frame). Validation has none. ``ep_lens.npy`` says nothing more and is passed over.

**Damage.** When the data set is opened, each frame's file is looked at: is it there, was it written to its end. What
else is wrong with it is found when its numbers or pictures are read.

Source: CALVIN (Mees et al. 2022, arXiv 2112.03227) and the description of its data set.
"""

from __future__ import annotations

import hashlib
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ideomotor.data.formats.checks import Unfit, fingerprint, in_threads
from ideomotor.data.formats.plain_pickle import BROKEN, StoredArray, load_object
from ideomotor.data.transforms import resize
from ideomotor.types import Dataset, Episode, Quarantined

WANTED = "CALVIN: training/ or validation/ with episode_*.npz and ep_start_end_ids.npy or lang_annotations/"

FPS = 30.0
"""Frames per second of CALVIN."""

CAMERAS = ("rgb_static", "rgb_gripper")
WIDTHS = {"rel_actions": 7, "actions": 7, "robot_obs": 15}

_VERSION = "calvin 1"
_SPLITS = ("", "training", "validation")
_LANGUAGE = ("lang_annotations/auto_lang_ann.npy", "auto_lang_ann.npy")
_IDS, _SCENES = "ep_start_end_ids.npy", "scene_info.npy"
_FRAME = re.compile(r"episode_(\d+)\.npz")
# What zipfile and numpy raise for damage.
_DAMAGE = (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, KeyError, ValueError, tokenize.TokenError)
_TAIL = 22  # bytes of a zip archive's last record


class _Stretch(NamedTuple):
    """Frames that make an episode, ``end`` excluded."""

    id: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class CalvinFrames:
    """One camera in successive frame files (the ``Frames`` protocol); a file is read when its frame is asked for.

    Attributes:
        folder: of the files.
        names: of the files, in order of time.
        key: name of the array in each.
        shape: ``(t, 3, h, w)``.
    """

    folder: Path
    names: Sequence[str]
    key: str
    shape: tuple[int, int, int, int]

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Returns those frames in the order asked for, resized to ``size`` (height, width), see ``transforms.resize``.

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: a file is damaged, or its picture is of another kind than the first's.
        """
        wrong = [index for index in indices if not 0 <= index < len(self.names)]
        if wrong:
            raise IndexError(
                f"frame {wrong[0]} of the episode from {self.folder / self.names[0]}: it has 0..{len(self.names) - 1}"
            )
        pictures = [self._picture(self.folder / self.names[index]) for index in indices]
        stacked = np.stack(pictures) if pictures else np.zeros((0, *self.shape[1:]), np.uint8)
        frames = torch.from_numpy(stacked)
        return frames if size is None else resize(frames, size)

    def _picture(self, file: Path) -> UInt8[np.ndarray, "3 h w"]:
        picture = _arrays(file, (self.key,))[self.key]
        _, c, h, w = self.shape
        if picture.shape != (h, w, c) or picture.dtype != np.uint8:
            raise ValueError(
                f"{file} has {self.key} {picture.shape} of type {picture.dtype}; wanted {(h, w, c)}, uint8"
            )
        return picture.transpose(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class CalvinNumbers:
    """Actions and states in successive frame files, read once and both together when either is asked for.

    Attributes:
        folder: of the files.
        names: of the files, in order of time.
        keys: names of the arrays.
    """

    folder: Path
    names: Sequence[str]
    keys: tuple[str, ...]

    def rows(self, key: str) -> Float32[np.ndarray, "t width"]:
        """Returns one of the tables, a row a frame.

        Raises:
            ValueError: a file is damaged, or its numbers are not as many as they should be.
        """
        return self._tables[key]

    @cached_property
    def _tables(self) -> dict[str, Float32[np.ndarray, "t width"]]:
        tables = {key: np.empty((len(self.names), WIDTHS[key]), np.float32) for key in self.keys}
        for row, name in enumerate(self.names):
            for key, numbers in _arrays(self.folder / name, self.keys).items():
                if numbers.shape != (WIDTHS[key],) or numbers.dtype.kind not in "fiu":
                    raise ValueError(
                        f"{self.folder / name} has {key} of shape {numbers.shape} and type {numbers.dtype}; wanted "
                        f"{WIDTHS[key]} numbers"
                    )
                with np.errstate(over="ignore"):  # becomes infinite, and is found as such
                    tables[key][row] = numbers
        return tables


def sniff(path: Path) -> bool:
    """Says whether ``path`` is such a split, or a folder of them."""
    return bool(_splits(path))


def read(path: Path, actions: Literal["rel_actions", "actions"] = "rel_actions") -> Dataset:
    """Opens CALVIN's splits in a folder (or a single split); no picture is decoded.

    Quarantined are: a split whose annotations are damaged or hold more than plain data, an annotation of no frames, and
    an episode with a frame that is not there or was cut short, or whose first frame holds no picture.

    Args:
        path: the folder of ``training`` and ``validation``, or either of them.
        actions: which of the recorded commands become actions.
    """
    episodes: list[Episode] = []
    quarantined: list[Quarantined] = []
    seen = []
    files: list[Path] = []
    for name in _splits(path):
        folder = path / name
        listing = _Listing.of(folder)
        seen.append(listing.digest)
        files += [folder / side for side in (*_LANGUAGE, _IDS, _SCENES) if (folder / side).is_file()]
        try:
            stretches = _stretches(folder, name or folder.resolve().name)
        except Unfit as error:
            quarantined.append(Quarantined(path=name or folder.name, reason=str(error)))
            continue
        broken = _cut_short(folder, listing.digest, tuple(listing.used(stretches)))
        opened = in_threads(partial(_opened, listing, broken, actions), stretches)
        episodes += [item for item in opened if isinstance(item, Episode)]
        quarantined += [item for item in opened if isinstance(item, Quarantined)]
    return Dataset(
        name=path.resolve().name,
        path=path,
        format="calvin",
        episodes=tuple(episodes),
        quarantined=tuple(quarantined),
        fingerprint=fingerprint(path, files, f"{_VERSION} {actions} {' '.join(seen)}"),
    )


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The frame files of a folder, by number; made in one go, because there are millions."""

    folder: Path
    names: dict[int, str]
    digest: str

    @staticmethod
    def of(folder: Path) -> _Listing:
        names, digest = {}, hashlib.sha256()
        with os.scandir(folder) as entries:
            for entry in sorted((e for e in entries if _FRAME.fullmatch(e.name)), key=lambda e: e.name):
                names[int(entry.name[8:-4])] = entry.name
                digest.update(f"{entry.name} {entry.stat().st_size}\0".encode())
        return _Listing(folder=folder, names=names, digest=digest.hexdigest()[:32])

    def used(self, stretches: Iterable[_Stretch]) -> list[str]:
        numbers = sorted({number for _, start, end, _ in stretches for number in range(start, end)})
        return [self.names[number] for number in numbers if number in self.names]


def _splits(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    marks = (_IDS, *_LANGUAGE)
    found = [name for name in _SPLITS if any((path / name / mark).is_file() for mark in marks)]
    return [name for name in found if any(_FRAME.fullmatch(e.name) for e in os.scandir(path / name))]


def _stretches(folder: Path, split: str) -> list[_Stretch]:
    """The episodes of a split, as the files beside its frames say.

    Raises:
        Unfit: one of these files cannot be read.
    """
    scenes = _scenes(folder)
    language = next((folder / name for name in _LANGUAGE if (folder / name).is_file()), None)
    if language is not None:
        pairs, texts = _annotations(language)
    else:
        pairs = [(start, last + 1) for start, last in _recordings(folder / _IDS)]
        texts = [""] * len(pairs)
    return [
        _Stretch(f"{split}/{_scene(scenes, start)}{number:05d}-{start:07d}", start, end, text)
        for number, ((start, end), text) in enumerate(zip(pairs, texts, strict=True))
    ]


def _annotations(file: Path) -> tuple[list[tuple[int, int]], list[str]]:
    try:
        found = load_object(file)
        pairs, texts = _pairs(found["info"]["indx"]), list(found["language"]["ann"])
    except BROKEN as error:
        raise Unfit(f"{file.name}: wanted language.ann and info.indx ({error})") from error
    odd = [text for text in texts if type(text) is not str]
    if odd or len(texts) != len(pairs):
        what = (
            f"a sentence that is {odd[0]!r}" if odd else f"{len(texts)} sentences for {len(pairs)} stretches of frames"
        )
        raise Unfit(f"{file.name} has {what}")
    return pairs, texts


def _recordings(file: Path) -> list[tuple[int, int]]:
    try:
        return _pairs(np.load(file, allow_pickle=False))
    except (OSError, *BROKEN) as error:
        raise Unfit(f"{file.name} is no table of first and last frames ({error})") from error


def _scenes(folder: Path) -> dict[str, tuple[int, int]]:
    """First and last frame of each scene; empty where nothing says."""
    file = folder / _SCENES
    if not file.is_file():
        return {}
    try:
        return {str(name).removeprefix("calvin_scene_"): _pairs([ends])[0] for name, ends in load_object(file).items()}
    except BROKEN as error:
        raise Unfit(f"{file.name}: wanted first and last frame by scene ({error})") from error


def _scene(scenes: dict[str, tuple[int, int]], frame: int) -> str:
    return next((f"{name}/" for name, (first, last) in scenes.items() if first <= frame <= last), "")


def _pairs(rows: Any) -> list[tuple[int, int]]:
    table = rows.values if isinstance(rows, StoredArray) else rows
    pairs = [tuple(row.values.tolist() if isinstance(row, StoredArray) else row) for row in table]
    if any(len(pair) != 2 or not all(isinstance(n, int | np.integer) for n in pair) for pair in pairs):
        raise ValueError("not all are pairs of whole numbers")
    return [(int(first), int(second)) for first, second in pairs]


def _opened(listing: _Listing, broken: frozenset[str], actions: str, stretch: _Stretch) -> Episode | Quarantined:
    try:
        return _episode(listing, broken, actions, stretch)
    except (OSError, ValueError) as error:
        return Quarantined(path=stretch.id, reason=str(error))


def _episode(listing: _Listing, broken: frozenset[str], actions: str, stretch: _Stretch) -> Episode:
    names = [listing.names.get(number, "") for number in range(stretch.start, stretch.end)]
    if not names:
        raise Unfit(f"is of no frames: {stretch.start} to {stretch.end}, which is not part of it")
    missing = [stretch.start + place for place, name in enumerate(names) if not name]
    if missing:
        raise Unfit(f"lacks {len(missing)} of its {len(names)} frames, first episode_{missing[0]:07d}.npz")
    damaged = [name for name in names if name in broken]
    if damaged:
        raise Unfit(f"has {len(damaged)} of {len(names)} frames that are no whole npz file, first {damaged[0]}")
    headers = _shapes(listing.folder / names[0])
    cameras = {
        key: CalvinFrames(folder=listing.folder, names=names, key=key, shape=(len(names), 3, shape[0], shape[1]))
        for key in CAMERAS
        if len(shape := headers.get(key, ())) == 3 and shape[2] == 3
    }
    if not cameras:
        raise Unfit(f"holds no pictures: wanted {' or '.join(CAMERAS)} (h, w, 3) in {names[0]}; found {headers}")
    keys = tuple(key for key in (actions, "robot_obs") if key in headers)
    numbers = CalvinNumbers(folder=listing.folder, names=names, keys=keys)
    return Episode(
        id=stretch.id,
        text=stretch.text,
        fps=FPS,
        length=len(names),
        frames=cameras,
        read_actions=partial(numbers.rows, actions) if actions in keys else None,
        read_proprio=partial(numbers.rows, "robot_obs") if "robot_obs" in keys else None,
    )


@lru_cache(maxsize=8)
def _cut_short(folder: Path, digest: str, names: tuple[str, ...]) -> frozenset[str]:
    """The files that do not end as a zip archive does; ``digest`` is of the listing, so that a change is looked at."""
    blocks = [names[at : at + 1000] for at in range(0, len(names), 1000)]
    return frozenset().union(*in_threads(partial(_broken_in, folder), blocks))


def _broken_in(folder: Path, names: Sequence[str]) -> set[str]:
    found = set()
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(max(length - _TAIL, 0))
                tail = file.read()
        except OSError:
            found.add(name)
            continue
        place = int.from_bytes(tail[12:16], "little") + int.from_bytes(tail[16:20], "little")  # of this very record
        if tail[:4] != b"PK\x05\x06" or place != length - _TAIL:
            found.add(name)
    return found


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a file, none of which is unpacked."""
    shapes = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    np.lib.format.read_magic(member)
                    shapes[name.removesuffix(".npy")] = np.lib.format.read_array_header_1_0(member)[0]
    except _DAMAGE as error:
        raise Unfit(f"begins with {file.name}, which is damaged ({error})") from error
    return shapes


def _arrays(file: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in keys}
    except FileNotFoundError as error:
        raise ValueError(f"{file} is not there any more") from error
    except _DAMAGE as error:
        raise ValueError(f"{file} is damaged ({error})") from error
