"""Folders of pictures and a list of them: how the iVideoGPT release keeps Something-Something V2.

A list is a text file named ``*_video_folder.txt``; each line says "folder num_frames label". A folder holds
``000001.jpg`` and on, beside the list or in ``frames/``. What the list's name begins with leads the ids: line
"7823 45 93" of ``train_video_folder.txt`` is the episode ``train/7823``. Frames come at any size, as they are.

The text of an episode is the label's sentence where a ``labels.json`` (or ``something-something-v2-labels.json``, as
the data set ships it) lies beside the list: a mapping from sentence to number. Else it is "".
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ideomotor.data.formats.checks import Unfit, fingerprint, in_threads
from ideomotor.data.pictures import decode_picture
from ideomotor.data.transforms import resize
from ideomotor.types import Dataset, Episode, Quarantined

WANTED = "lists *_video_folder.txt of folders of pictures (Something-Something)"
CAMERA = "image"
FPS = 12.0
"""Frames per second of Something-Something V2."""

KEPT_LABELS = frozenset(
    label
    for first, last in (
        *((1, 1), (5, 6), (13, 21), (27, 31), (33, 40), (42, 43), (45, 58), (85, 120)),
        *((122, 123), (139, 141), (143, 148), (156, 160), (164, 164), (173, 173)),
    )
    for label in range(first, last + 1)
)
"""The 95 of 174 labels of Something-Something V2 that iVideoGPT learns from; it leaves out moving cameras, what is only
pretended, and what pours, throws, tears or falls by itself."""

_VERSION = "frame_lists 1"
_PATTERN = "*_video_folder.txt"
_LABELS = ("labels.json", "something-something-v2-labels.json")


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """The pictures of a folder, numbered from 1 (the ``Frames`` protocol); each is read when it is asked for."""

    folder: Path
    length: int

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """``(t, 3, h, w)``; the first picture tells the size, when it is first asked for."""
        _, height, width = self._picture(0).shape
        return self.length, 3, height, width

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Returns those frames in the order asked for, resized to ``size`` (height, width).

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: a picture is missing, damaged, or of another size than the others.
        """
        wrong = [index for index in indices if not 0 <= index < self.length]
        if wrong:
            raise IndexError(f"frame {wrong[0]} of {self.folder}: it has frames 0..{self.length - 1}")
        pictures = {index: self._picture(index) for index in set(indices)}
        sizes = {tuple(picture.shape[1:]) for picture in pictures.values()}
        if len(sizes) > 1:
            raise ValueError(f"{self.folder} has pictures of different sizes: {', '.join(map(str, sorted(sizes)))}")
        frames = torch.stack([pictures[index] for index in indices])
        return frames if size is None else resize(frames, size)

    def _picture(self, index: int) -> UInt8[Tensor, "3 h w"]:
        file = self.folder / f"{index + 1:06d}.jpg"
        try:
            return torch.from_numpy(decode_picture(file.read_bytes(), file)).permute(2, 0, 1)
        except FileNotFoundError as error:
            raise ValueError(f"{file} is not there; the list announces {self.length} pictures") from error


def sniff(path: Path) -> bool:
    """Says whether ``path`` is such a list, or a folder with one in it."""
    return path.name.endswith(_PATTERN[1:]) if path.is_file() else any(path.glob(_PATTERN))


def read(path: Path, frames: Path | None = None, labels: Collection[int] | None = None, fps: float = FPS) -> Dataset:
    """Opens the folder of a list (or a single list); no picture is decoded.

    Quarantined are: a line that is no "folder num_frames label", a folder that is not there or lacks its last picture,
    and a folder listed twice.

    Args:
        path: the folder of the lists, or one of them.
        frames: the folder of the folders of pictures; by default ``frames`` beside the list, or where the list lies.
        labels: the labels to keep, e.g. ``KEPT_LABELS``; all by default.
        fps: frames per second of every episode.
    """
    lists = [path] if path.is_file() else sorted(path.glob(_PATTERN))
    root = path.parent if path.is_file() else path
    pictures = frames or (root / "frames" if (root / "frames").is_dir() else root)
    described = next((root / name for name in _LABELS if (root / name).is_file()), None)
    texts = _texts(described)
    lines = [
        (file, number, line)
        for file in lists
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    ]
    found = in_threads(partial(_opened, pictures, texts, labels, fps), lines)
    episodes: dict[str, Episode] = {}
    quarantined = []
    for (file, number, _), item in zip(lines, found, strict=True):
        if isinstance(item, Episode) and item.id in episodes:
            item = f"lists the folder {item.id.split('/', 1)[1]} a second time"
        if isinstance(item, str):
            quarantined.append(Quarantined(path=f"{file.name}, line {number}", reason=item))
        elif item is not None:
            episodes[item.id] = item
    kept = "all" if labels is None else ",".join(map(str, sorted(labels)))
    files = [*lists, described] if described else lists
    return Dataset(
        name=root.resolve().name,
        path=path,
        format="frame_lists",
        episodes=tuple(episodes.values()),
        quarantined=tuple(quarantined),
        fingerprint=fingerprint(root, files, f"{_VERSION} {pictures} {fps} {kept}"),
    )


def _opened(
    pictures: Path, texts: dict[int, str], labels: Collection[int] | None, fps: float, line: tuple[Path, int, str]
) -> Episode | str | None:
    """The episode of a line; why there is none; or None where its label is not wanted."""
    file, _, said = line
    try:
        folder, length, label = _parsed(said)
        if labels is not None and label not in labels:
            return None
        last = pictures / folder / f"{length:06d}.jpg"
        if not last.is_file():
            raise Unfit(f"names {folder} with {length} pictures; {last} is not there")
    except Unfit as error:
        return str(error)
    return Episode(
        id=f"{file.name.split('_')[0]}/{folder}",
        text=texts.get(label, ""),
        fps=fps,
        length=length,
        frames={CAMERA: PictureFolder(folder=pictures / folder, length=length)},
    )


def _parsed(line: str) -> tuple[str, int, int]:
    words = line.split()
    if len(words) != 3 or not (words[1].isdecimal() and words[2].isdecimal()) or int(words[1]) < 1:
        raise Unfit(f"says {line.strip()!r}; wanted: folder, number of pictures, label")
    if words[0].startswith("/") or ".." in words[0].split("/"):
        raise Unfit(f"names {words[0]!r}, which is not below the folder of pictures")
    return words[0], int(words[1]), int(words[2])


def _texts(file: Path | None) -> dict[int, str]:
    """Sentences by label; brackets mark the words that stand for things."""
    if file is None:
        return {}
    try:
        found = json.loads(file.read_bytes())
        return {int(number): text.replace("[", "").replace("]", "") for text, number in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is no mapping from sentence to number ({error})") from error
