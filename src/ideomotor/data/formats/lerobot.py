"""Reader of LeRobotDataset v3.0: parquet tables, and mp4 files that several episodes share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.data.formats import lerobot_layout as layout
from ideomotor.data.formats.checks import fingerprint
from ideomotor.data.formats.lerobot_tables import CHECKED, Damaged, Table, damage, said
from ideomotor.data.formats.lerobot_writer import LeRobotWriter
from ideomotor.data.video import VideoError, VideoFrames, VideoInfo, probe
from ideomotor.extras import require
from ideomotor.types import Dataset, Episode, Frames, Quarantined

__all__ = ["LeRobotWriter", "read", "sniff"]

READER = "lerobot 1"  # raise it when what is read from the same files changes


def sniff(path: Path | str) -> bool:
    """Returns whether ``path`` looks like a LeRobotDataset, of whatever version."""
    return (Path(path) / layout.INFO_PATH).is_file()


def read(path: Path | str, *, tolerance_s: float = 1e-4) -> Dataset:
    """Returns the episodes of a LeRobotDataset v3.0; tables are checked now, videos are decoded when asked for.

    Cameras are named as their features, without ``observation.images.``; the text is the episode's (first) task. The
    outcome is the column ``outcome``, else whether ``next.success`` is ever true, else "".

    Args:
        path: the folder that holds ``meta``, ``data`` and ``videos``.
        tolerance_s: seconds by which times may be off the grid of the frame rate before an episode is left out.

    Raises:
        ValueError: the folder's version is another one, or its description cannot be read.
    """
    root = Path(path)
    about = _info(root)
    reader = _Reader(root, about, tolerance_s)
    rows = list(reader.rows())
    episodes = [episode for row in rows if (episode := reader.episode(row)) is not None]
    announced = about.get("total_episodes", len(rows))
    if announced != len(rows):
        reader.leave_out(layout.INFO_PATH, f"announces {announced} episodes, meta/episodes describes {len(rows)}")
    return Dataset(
        name=root.resolve().name,
        path=root,
        format="lerobot",
        episodes=tuple(episodes),
        quarantined=tuple(reader.quarantined),
        fingerprint=fingerprint(
            root, [file for part in ("meta", "data", "videos") for file in (root / part).rglob("*")], READER
        ),
    )


def _info(root: Path) -> dict[str, Any]:
    """Returns meta/info.json, checked for what reading needs."""
    path = root / layout.INFO_PATH
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); without it the dataset's layout is unknown") from error
    version = about.get("codebase_version") if isinstance(about, dict) else None
    if version != layout.VERSION:
        older = isinstance(version, str) and version.lower().startswith(("v1", "v2"))
        way_out = "convert it with lerobot's convert_dataset_v21_to_v30 (first to v2.1 if it is older)"
        way_out = way_out if older else f"write it again as {layout.VERSION}, or update ideomotor"
        raise ValueError(f"{root} is a LeRobotDataset of version {version}; {layout.VERSION} is read here: {way_out}")
    wanted: dict[str, Any] = {"fps": (int, float), "features": dict, "data_path": str, "video_path": (str, type(None))}
    wrong = [key for key, kind in wanted.items() if not isinstance(about.get(key), kind)]
    wrong = wrong or [f"features/{key}" for key, entry in about["features"].items() if not _is_feature(entry)]
    if wrong or about["fps"] <= 0:
        raise ValueError(f"{path}: {', '.join(wrong) or 'fps'} is missing or not of its kind; the file is damaged")
    return about


def _is_feature(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape = entry.get("shape")
    return isinstance(shape, list) and all(isinstance(side, int) and side > 0 for side in shape)


class _Reader:
    """One pass over a dataset's tables; gathers what has to be left out."""

    def __init__(self, root: Path, about: Mapping[str, Any], tolerance_s: float) -> None:
        self.root, self.about, self.tolerance_s = root, about, tolerance_s
        self.features, self.fps = about["features"], about["fps"]
        self.quarantined: list[Quarantined] = []
        self.cameras = dict(self._cameras())
        self._tables: dict[Path, Table | str] = {}  # a text is what is wrong with the file
        if not self.cameras:
            raise ValueError(f"{root} has no camera stored as video; features: {', '.join(self.features)}")
        try:
            require("pyarrow.parquet", "video").read_schema(root / layout.TASKS_PATH)
        except damage() as error:
            self.leave_out(layout.TASKS_PATH, f"{said(error)}; texts are taken from meta/episodes")

    def leave_out(self, what: str, reason: str) -> None:
        """Notes something that is not read."""
        self.quarantined.append(Quarantined(path=f"{self.root}/{what}", reason=reason))

    def _cameras(self) -> Iterator[tuple[str, str]]:
        for key, entry in self.features.items():
            if entry["dtype"] == "image":
                self.leave_out(key, "pictures inside parquet are not read; store the camera as video")
            if entry["dtype"] != "video":
                continue
            details = entry.get("info") or entry.get("video_info") or {}
            if details.get("video.is_depth_map") or details.get("is_depth_map"):
                self.leave_out(key, "a depth map, not a picture")
                continue
            yield key.removeprefix(layout.IMAGES).removeprefix("observation."), key

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields what meta/episodes says of each episode, statistics aside."""
        parquet = require("pyarrow.parquet", "video")
        for path in sorted((self.root / "meta/episodes").glob("*/*.parquet")):
            try:
                names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
                rows = parquet.read_table(path, columns=names, **CHECKED).to_pylist()
            except damage() as error:
                self.leave_out(str(path.relative_to(self.root)), f"its episodes are unknown: {said(error)}")
                continue
            yield from rows

    def episode(self, row: Mapping[str, Any]) -> Episode | None:
        """Returns an episode that is whole as far as its tables tell, or None and notes why not."""
        number = row.get("episode_index")
        try:
            return self._episode(row)
        except Damaged as error:
            self.leave_out(f"episode {number}", str(error))
            return None

    def _episode(self, row: Mapping[str, Any]) -> Episode:
        number, length = _whole(row, "episode_index"), _whole(row, "length")
        path = self.root / self._name("data_path", row, "data")
        table = self._table(path)
        first = table.rows_of(number, length)
        self._check_times(table.column("timestamp", first, length, 1))
        vectors = {}
        for key in (layout.ACTION, layout.STATE):
            if key in self.features:
                width = layout.width_of(self.features[key])
                values = table.column(key, first, length, width)
                finite = np.isfinite(values).all(1)
                if not finite.all():
                    raise Damaged(f"{key} at frame {int(finite.argmin())} is not a finite number")
                vectors[key] = table.reader(key, first, length, width)
        tasks = row.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise Damaged(f"its tasks are {tasks!r}; a list of texts was wanted")
        return Episode(
            id=f"{number:06d}",
            text=tasks[0] if tasks else "",
            fps=float(self.fps),
            length=length,
            frames={name: self._frames(key, row, length) for name, key in self.cameras.items()},
            read_actions=vectors.get(layout.ACTION),
            read_proprio=vectors.get(layout.STATE),
            outcome=self._outcome(row, table, first, length),
        )

    def _name(self, template: str, row: Mapping[str, Any], prefix: str, **names: str) -> str:
        """Returns the path of the file in which the episode's rows or frames lie."""
        chunk, file = _whole(row, f"{prefix}/chunk_index"), _whole(row, f"{prefix}/file_index")
        try:
            return str(self.about[template]).format(chunk_index=chunk, file_index=file, **names)
        except (KeyError, IndexError, ValueError) as error:
            raise Damaged(f"{template} of info.json, {self.about.get(template)!r}, does not name its file") from error

    def _table(self, path: Path) -> Table:
        """Returns a data file, opened once however many episodes lie in it."""
        if path not in self._tables:
            wanted = {"episode_index", "timestamp", layout.ACTION, layout.STATE, layout.SUCCESS, layout.OUTCOME}
            try:
                self._tables[path] = Table(path, wanted)
            except damage() as error:
                self._tables[path] = f"{path.relative_to(self.root)} {said(error)}"
        found = self._tables[path]
        if isinstance(found, str):
            raise Damaged(found)
        return found

    def _check_times(self, times: np.ndarray) -> None:
        """Refuses frames that do not follow each other at the dataset's rate; float32 rounds late seconds more."""
        wanted = np.arange(len(times)) / self.fps
        off = np.abs(times[:, 0] - wanted) - wanted * 1e-6
        if not off.max() <= self.tolerance_s:
            raise Damaged(
                f"the timestamp of frame {int(off.argmax())} is {off.max():.4g} s off {self.fps} frames per second; "
                f"read with a tolerance_s above it (now {self.tolerance_s:g}) to take it all the same"
            )

    def _frames(self, key: str, row: Mapping[str, Any], length: int) -> Frames:
        name = self._name("video_path", row, f"videos/{key}", video_key=key)
        since = row.get(f"videos/{key}/from_timestamp")
        if not isinstance(since, (int, float)) or not 0 <= since < float("inf"):
            raise Damaged(f"its videos/{key}/from_timestamp is {since!r}; seconds were wanted")
        start = round(since * self.fps)
        if abs(start / self.fps - since) > self.tolerance_s:
            raise Damaged(f"it begins in {name} at {since} s, between two frames of {self.fps} per second")
        try:
            video = probe(self.root / name)
        except FileNotFoundError as error:
            raise Damaged(f"{name} is missing") from error
        except VideoError as error:
            raise Damaged(f"{name}: {error.reason}") from error
        self._check_video(name, video, start + length)
        return VideoFrames(self.root / name, start=start, count=length)

    def _check_video(self, name: str, video: VideoInfo, needed: int) -> None:
        if video.frames < needed:
            raise Damaged(f"{name} holds {video.frames} frames; the episode ends at frame {needed}")
        if video.frames > 1 and abs(video.fps / self.fps - 1) > 0.01:
            raise Damaged(f"{name} runs at {video.fps:g} frames per second, the dataset at {self.fps}")

    def _outcome(self, row: Mapping[str, Any], table: Table, first: int, length: int) -> str:
        said = table.value(layout.OUTCOME, first) if table.has(layout.OUTCOME) else row.get(layout.OUTCOME)
        if said in ("success", "failure", ""):
            return said
        if table.has(layout.SUCCESS):
            succeeded = bool(table.column(layout.SUCCESS, first, length, 1).any())
        elif isinstance(row.get(layout.SUCCESS), bool):
            succeeded = row[layout.SUCCESS]
        else:
            return ""
        return "success" if succeeded else "failure"


def _whole(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or value < 0:
        raise Damaged(f"its {key} in meta/episodes is {value!r}; a whole number was wanted")
    return value
