"""The layout ``annotation/<split>/<id>.json`` beside ``videos/``, in which robot and human data sets are passed on.

Each annotation is an episode. Its ``videos[].video_path`` (relative to the data set's folder) become the cameras
``camera0``, ``camera1``, ... in the order listed; a depth view drawn as video is a camera like any other, and a view
that is not listed is not read. ``latent_videos[].latent_video_path`` become the latents of the same cameras, where the
files are there (``latent_files``); with them an episode may do without videos. The first of ``texts`` is the
instruction. ``continuous_gripper_state`` (it repeats a column of the state) and side files are not read.

Rows and frames. ``states`` or ``state`` has a row a frame: the state at that frame. ``actions`` or ``action`` has

- a row a frame (xhand): the command given at that frame; or
- one row less (bridge, rt1): row ``i`` leads from frame ``i`` to ``i + 1``. Nothing was recorded at the last frame, and
  ``read_actions`` repeats the last row there, so that it has ``length`` rows.

Numbers come out as recorded; in xhand the quaternion in columns 3..6 has one sign in states and may have the other in
actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from ideomotor.data.formats.checks import Unfit, files_below, fingerprint, in_threads, of_one_width, unsound
from ideomotor.data.formats.latent_files import FOLDERS, listed_latents
from ideomotor.data.video import VideoError, VideoFrames
from ideomotor.types import Dataset, Episode, Quarantined

WANTED = "annotation/<split>/<id>.json beside the videos it names"

_VERSION = "annotated_json 1"
_ACTIONS, _STATES = ("actions", "action"), ("states", "state")
_LATENT_FPS = 10.0  # of episodes without video: the rate of VPP's own robots, whose data are passed on so
_Opened = tuple[Episode, int | None, list[Quarantined]]  # an episode, its actions' width, its latents left out


@dataclass(frozen=True)
class AnnotatedRows:
    """Reads a table of an annotation when called: a row a frame, the last repeated where one is missing."""

    path: Path
    key: str
    length: int

    def __call__(self) -> Float32[np.ndarray, "t width"]:
        """Returns the table, ``length`` rows."""
        rows = _table(_annotation(self.path, self.path.stat().st_mtime_ns), self.key)
        return np.concatenate([rows, rows[len(rows) - 1 :]])[: self.length]


def sniff(path: Path) -> bool:
    """Says whether ``path`` is a folder with ``annotation/<split>/*.json``."""
    return any(path.glob("annotation/*/*.json"))


def read(path: Path) -> Dataset:
    """Opens a folder of this layout without decoding its videos; all splits, the split's name leading each id.

    Quarantined are: an annotation that is no JSON or names no video, a video that is missing or damaged, views of
    different lengths, rows that do not fit the frames, NaN or infinite numbers, an id met twice, and actions of
    another width than most episodes have. Damaged latents are quarantined too; an episode with video does without.
    """
    annotations = sorted(path.glob("annotation/*/*.json"))
    opened = in_threads(partial(_opened, path), annotations)
    quarantined = [item for item in opened if isinstance(item, Quarantined)]
    found: dict[str, tuple[Episode, int | None]] = {}
    for annotation, item in zip(annotations, opened, strict=True):
        if isinstance(item, Quarantined):
            continue
        if item[0].id in found:
            reason = f"has the id {item[0].id!r} of another annotation"
            quarantined.append(Quarantined(path=_name(path, annotation), reason=reason))
        else:
            found[item[0].id] = item[:2]
            quarantined += item[2]
    episodes, odd = of_one_width(list(found.values()))
    folders = [path / name for name in ("videos", *FOLDERS)]
    media = [file for folder in folders for file in files_below(folder)[0]]
    return Dataset(
        name=path.resolve().name,
        path=path,
        format="annotated_json",
        episodes=episodes,
        quarantined=(*quarantined, *odd),
        fingerprint=fingerprint(path, [*annotations, *media], _VERSION),
    )


def _opened(root: Path, file: Path) -> _Opened | Quarantined:
    try:
        return _episode(root, file)
    except (Unfit, VideoError) as error:
        return Quarantined(path=_name(root, file), reason=str(error))
    except OSError as error:
        return Quarantined(path=_name(root, file), reason=f"cannot be opened ({error.strerror})")


def _name(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _episode(root: Path, file: Path) -> _Opened:
    try:
        annotation = json.loads(file.read_bytes())
    except ValueError as error:
        raise Unfit(f"is no JSON ({error})") from error
    if not isinstance(annotation, dict):
        raise Unfit(f"is a JSON {type(annotation).__name__}; a mapping was wanted")
    cameras = _cameras(root, annotation)
    first = cameras.get("camera0")
    latents, lost = listed_latents(root, annotation, first.count if first else None)
    if not cameras and not latents:
        raise Unfit(lost[0].reason if lost else "names neither videos nor latents that are there")
    length = first.count if first else next(iter(latents.values())).shape[0]
    announced = annotation.get("video_length", length)
    if announced != length:
        raise Unfit(f"announces {announced} frames; the {'video has' if first else 'latents have'} {length}")
    actions, states = _key(annotation, _ACTIONS), _key(annotation, _STATES)
    width = _width(annotation, actions, "actions", (length, length - 1))
    _width(annotation, states, "states", (length,))
    texts = annotation.get("texts") or [""]
    number = annotation.get("episode_id", file.stem)
    episode = Episode(
        id=f"{file.parent.name}/{number}",
        text=str(texts[0]) if isinstance(texts, list) else str(texts),
        fps=first.info.fps if first else _LATENT_FPS,
        length=length,
        frames=cameras,
        latents=latents,
        read_actions=AnnotatedRows(file, actions, length) if actions else None,
        read_proprio=AnnotatedRows(file, states, length) if states else None,
    )
    return episode, width, lost


def _cameras(root: Path, annotation: dict[str, Any]) -> dict[str, VideoFrames]:
    videos = annotation.get("videos")
    listed = videos if isinstance(videos, list) else []
    paths = [str(video["video_path"]) for video in listed if isinstance(video, dict) and video.get("video_path")]
    if annotation.get("latent_videos") and not any((root / name).is_file() for name in paths):
        return {}  # published with latents alone
    if not paths or len(paths) < len(listed):
        raise Unfit("names no video; wanted videos: [{video_path: ...}, ...]")
    cameras = {}
    for number, name in enumerate(paths):
        try:
            cameras[f"camera{number}"] = VideoFrames(root / name)
        except FileNotFoundError as error:
            raise Unfit(f"names {name}, which is not there") from error
        except VideoError as error:
            raise Unfit(f"names {name}, which {error.reason}") from error
    lengths = {name: frames.count for name, frames in cameras.items()}
    if len(set(lengths.values())) > 1:
        raise Unfit(f"has views of different lengths: {', '.join(f'{n} {c} frames' for n, c in lengths.items())}")
    return cameras


def _key(annotation: dict[str, Any], names: Iterable[str]) -> str:
    return next((name for name in names if annotation.get(name) is not None), "")


def _width(annotation: dict[str, Any], key: str, what: str, wanted: tuple[int, ...]) -> int | None:
    """Checks a table and returns its width; None where there is none."""
    if not key:
        return None
    rows = _table(annotation, key)
    if len(rows) not in wanted or not len(rows):
        raise Unfit(f"has {len(rows)} rows of {what} for {wanted[0]} frames; wanted {' or '.join(map(str, wanted))}")
    wrong = unsound(rows, what)
    if wrong:
        raise Unfit(wrong)
    return rows.shape[1]


def _table(annotation: dict[str, Any], key: str) -> Float32[np.ndarray, "t width"]:
    try:
        with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, and is found as such
            rows = np.asarray(annotation[key], dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise Unfit(f"has {key!r} that is no table of numbers ({error})") from error
    if rows.ndim != 2:
        raise Unfit(f"has {key!r} of shape {rows.shape}; a row a frame was wanted")
    return rows


@lru_cache(maxsize=64)
def _annotation(path: Path, mtime_ns: int) -> dict[str, Any]:
    return json.loads(path.read_bytes())
