"""A folder of videos, in sub-folders or not, with captions where somebody wrote them: actionless video.

Each video file is an episode with one camera, ``video``; its id is the path below the folder. Captions are looked for
in files named captions.jsonl, captions.csv or metadata.jsonl, in any folder: each line names a file (``file``,
``file_name``, ``video`` or ``path``, relative to the folder the captions lie in, suffix optional) and what it shows
(``text`` or ``caption``). Other files are passed over.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from ideomotor.data.formats.checks import Unfit, files_below, fingerprint, in_threads
from ideomotor.data.video import VIDEO_SUFFIXES, VideoError, VideoFrames
from ideomotor.types import Dataset, Episode, Quarantined

WANTED = f"video files ({' '.join(VIDEO_SUFFIXES)})"

_VERSION = "folder 1"
_CAPTIONS = ("captions.jsonl", "captions.csv", "metadata.jsonl")
_FILE_KEYS = ("file", "file_name", "video", "path")
_TEXT_KEYS = ("text", "caption")


def sniff(path: Path) -> bool:
    """Says whether ``path`` is a video file, or a folder with one in it or below."""
    return any(file.suffix.lower() in VIDEO_SUFFIXES for file in files_below(path)[0])


def read(path: Path) -> Dataset:
    """Opens a folder of videos (or a single file) without decoding it.

    A video that cannot be read is quarantined, and so is a caption of a file that is not there.
    """
    files, quarantined = files_below(path)
    root = path if path.is_dir() else path.parent
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    listings = [file for file in files if file.name.lower() in _CAPTIONS]
    texts, wrong = _captions(root, listings, videos)
    opened = in_threads(partial(_episode, root, texts), videos)
    return Dataset(
        name=path.resolve().name,
        path=path,
        format="folder",
        episodes=tuple(item for item in opened if isinstance(item, Episode)),
        quarantined=(*quarantined, *wrong, *(item for item in opened if isinstance(item, Quarantined))),
        fingerprint=fingerprint(root, [*videos, *listings], _VERSION),
    )


def _episode(root: Path, texts: dict[Path, str], file: Path) -> Episode | Quarantined:
    name = file.relative_to(root).as_posix()
    try:
        frames = VideoFrames(file)
    except VideoError as error:
        return Quarantined(path=name, reason=error.reason)
    except OSError as error:
        return Quarantined(path=name, reason=f"cannot be opened ({error.strerror})")
    text = texts.get(file, "")
    return Episode(id=name, text=text, fps=frames.info.fps, length=frames.count, frames={"video": frames})


def _captions(root: Path, listings: list[Path], videos: list[Path]) -> tuple[dict[Path, str], list[Quarantined]]:
    """What each video is said to show, and the lines that say it of nothing."""
    known = {video: video for video in videos} | {video.with_suffix(""): video for video in videos}
    texts: dict[Path, str] = {}
    wrong: list[Quarantined] = []
    for listing in listings:
        name = listing.relative_to(root).as_posix()
        for number, entry in _entries(listing):
            file = _value(entry, _FILE_KEYS)
            text = _value(entry, _TEXT_KEYS)
            video = known.get(listing.parent / file) if file else None
            if video is not None and text is not None:
                texts[video] = text
                continue
            if isinstance(entry, Unfit):
                reason = str(entry)
            elif not file or text is None:
                reason = f"wanted one of {', '.join(_FILE_KEYS)} and one of {', '.join(_TEXT_KEYS)}, as text"
            else:
                reason = f"names {file!r}, and no such video is there"
            wrong.append(Quarantined(path=f"{name}, line {number}", reason=reason))
    return texts, wrong


def _value(entry: Any, keys: tuple[str, ...]) -> str | None:
    found = [entry[key] for key in keys if isinstance(entry.get(key), str)] if isinstance(entry, dict) else []
    return found[0] if found else None


def _entries(listing: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers with what stands there: a mapping, or an ``Unfit`` that says why there is none."""
    try:
        content = listing.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        yield 1, Unfit(f"cannot be read as UTF-8 text ({error})")
        return
    if listing.suffix.lower() == ".csv":
        reader = csv.DictReader(StringIO(content))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            yield reader.line_num, Unfit(f"is no CSV from here on ({error})")
        return
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines() would also cut at U+2028 in a caption
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, Unfit(f"is no JSON ({error})")
