"""From recorded episodes to the folder of a LeRobotDataset v3.0."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.data.formats import lerobot_layout as layout
from ideomotor.data.formats.lerobot_shards import Codec, Shard, join
from ideomotor.data.formats.lerobot_stats import column_stats, image_stats
from ideomotor.extras import require
from ideomotor.files import synced

MEBIBYTE = 1024**2
# Checksums, because a flipped bit in an action would otherwise be read as another action.
PARQUET: dict[str, Any] = {"compression": "snappy", "write_page_checksum": True}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What every episode of a dataset has in common.

    Attributes:
        fps: frames per second, a whole number as the layout wants.
        cameras: height and width by name; both even, because the video format halves the colours' resolution.
        action_names: one name a number of an action; None for actionless video.
        state_names: one name a number of the robot's own state; None where it is not recorded.
        robot_type: free text for info.json.
        codec: settings of the video encoder.
        chunk_size: files in a folder.
        data_file_mb: size at which a data file is closed.
        video_file_mb: size at which a video file is closed.
    """

    fps: int
    cameras: Mapping[str, tuple[int, int]]
    action_names: tuple[str, ...] | None
    state_names: tuple[str, ...] | None
    robot_type: str
    codec: Codec
    chunk_size: int
    data_file_mb: int
    video_file_mb: int

    def __post_init__(self) -> None:
        if self.fps != int(self.fps) or self.fps <= 0:
            raise ValueError(f"fps is {self.fps}; the layout holds whole frames per second, 1 or more")
        if not self.cameras:
            raise ValueError("cameras is empty; a dataset needs at least one, as {name: (height, width)}")
        for name, size in self.cameras.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"camera {name!r}: only letters, digits and _ - . can stand in its files' names")
            if any(side <= 0 or side % 2 for side in size):
                raise ValueError(f"camera {name!r} is {size}; height and width must be even: crop or resize the frames")
        for what, names in (("action_names", self.action_names), ("state_names", self.state_names)):
            if names is not None and not names:
                raise ValueError(f"{what} is empty; None says that there is none")
        if min(self.chunk_size, self.data_file_mb, self.video_file_mb) < 1:
            raise ValueError("chunk_size, data_file_mb and video_file_mb must each be 1 or more")


def assemble(recording: Recording, episodes: Sequence[Shard], root: Path) -> None:
    """Writes the dataset of ``episodes`` into the folder ``root``.

    Raises:
        ValueError: episodes have different columns, or were encoded differently.
    """
    _Assembly(recording, episodes, root).write()


class _Assembly:
    """The tables and videos of one dataset."""

    def __init__(self, recording: Recording, episodes: Sequence[Shard], root: Path) -> None:
        self.recording, self.episodes, self.root = recording, episodes, root
        self.starts = np.cumsum([0] + [episode.length for episode in episodes]).tolist()
        self.tasks = {text: number for number, text in enumerate(dict.fromkeys(episode.text for episode in episodes))}
        # Without a single known outcome the column would only say False.
        self.judged = any(episode.outcome for episode in episodes)
        self.features = self._features()
        self.rows: list[dict[str, Any]] = [
            {"episode_index": number, "tasks": [episode.text], "length": episode.length}
            for number, episode in enumerate(episodes)
        ]

    def write(self) -> None:
        """Writes data and videos, then what describes them."""
        self._write_data()
        for camera in self.recording.cameras:
            self._write_videos(camera)
        self._write_episodes()
        self._write_json(layout.STATS_PATH, _plain_nested(self._stats(range(len(self.episodes)))))
        self._write_table(layout.TASKS_PATH, layout.tasks_table(list(self.tasks)))
        recording = self.recording
        about = layout.info(
            fps=int(recording.fps),
            features=self.features,
            robot_type=recording.robot_type,
            episodes=len(self.episodes),
            frames=self.starts[-1],
            tasks=len(self.tasks),
            chunk_size=recording.chunk_size,
            data_file_mb=recording.data_file_mb,
            video_file_mb=recording.video_file_mb,
        )
        self._write_json(layout.INFO_PATH, about)

    def _features(self) -> dict[str, dict[str, Any]]:
        recording, first = self.recording, self.episodes[0].columns
        features = {
            f"{layout.IMAGES}{name}": layout.camera_feature(height, width, int(recording.fps))
            for name, (height, width) in recording.cameras.items()
        }
        for name, names in ((layout.STATE, recording.state_names), (layout.ACTION, recording.action_names)):
            if names is not None:
                features[name] = layout.feature("float32", (len(names),), names)
        if self.judged:
            features[layout.SUCCESS], features[layout.OUTCOME] = layout.feature("bool"), layout.feature("string")
        kinds = _kinds(self.episodes[0])
        for number, episode in enumerate(self.episodes):
            if _kinds(episode) != kinds:
                raise ValueError(
                    f"episode {number} has columns {_kinds(episode)}, episode 0 {kinds}; all need the same"
                )
        for name in sorted(first.keys() - {layout.STATE, layout.ACTION}):
            features[name] = layout.feature(kinds[name])
        return features | {name: layout.feature(dtype) for name, dtype in layout.COUNTERS.items()}

    def _columns(self, number: int) -> dict[str, np.ndarray]:
        """Returns every column of one episode but the videos, in the order of the features."""
        episode = self.episodes[number]
        frame = np.arange(episode.length)
        columns = dict(episode.columns)
        if self.judged:
            columns[layout.SUCCESS] = (frame == episode.length - 1) & (episode.outcome == "success")
            columns[layout.OUTCOME] = np.full(episode.length, episode.outcome)
        columns["timestamp"] = (frame / self.recording.fps).astype(np.float32)
        columns["frame_index"] = frame
        columns["episode_index"] = np.full(episode.length, number)
        columns["index"] = frame + self.starts[number]
        columns["task_index"] = np.full(episode.length, self.tasks[episode.text])
        return {name: columns[name] for name, entry in self.features.items() if entry["dtype"] != "video"}

    def _write_data(self) -> None:
        pa, parquet = require("pyarrow", "video"), require("pyarrow.parquet", "video")
        schema = layout.data_schema(self.features)
        sizes = [
            sum(column.nbytes for column in self._columns(number).values()) for number in range(len(self.episodes))
        ]
        for place, numbers in self._files(sizes, self.recording.data_file_mb):
            path = self._path(layout.DATA_PATH, place)
            # One row group an episode: a reader fetches the actions of one without touching the others.
            with parquet.ParquetWriter(path, schema, **PARQUET) as writer:
                for number in numbers:
                    columns = self._columns(number)
                    arrays = [layout.to_arrow(columns[field.name], field.type) for field in schema]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                    self.rows[number] |= {"data/chunk_index": place[0], "data/file_index": place[1]}
                    self.rows[number]["dataset_from_index"] = self.starts[number]
                    self.rows[number]["dataset_to_index"] = self.starts[number + 1]
            synced(path)

    def _write_videos(self, camera: str) -> None:
        key = f"{layout.IMAGES}{camera}"
        sizes = [episode.videos[camera].stat().st_size for episode in self.episodes]
        for place, numbers in self._files(sizes, self.recording.video_file_mb):
            chosen = [self.episodes[number] for number in numbers]
            path = self._path(layout.VIDEO_PATH, place, video_key=key)
            join(
                [shard.videos[camera] for shard in chosen], [shard.length for shard in chosen], path, self.recording.fps
            )
            first = self.starts[numbers[0]]
            for number in numbers:
                self.rows[number] |= {f"videos/{key}/chunk_index": place[0], f"videos/{key}/file_index": place[1]}
                for name, frame in (("from", self.starts[number]), ("to", self.starts[number + 1])):
                    self.rows[number][f"videos/{key}/{name}_timestamp"] = (frame - first) / self.recording.fps

    def _write_episodes(self) -> None:
        pa = require("pyarrow", "video")
        for number, row in enumerate(self.rows):
            for key, stats in self._stats([number]).items():
                row |= {f"stats/{key}/{name}": value.tolist() for name, value in stats.items()}
        sizes = [len(json.dumps(row)) for row in self.rows]
        for place, numbers in self._files(sizes, self.recording.data_file_mb):
            rows = [
                self.rows[n] | {"meta/episodes/chunk_index": place[0], "meta/episodes/file_index": place[1]}
                for n in numbers
            ]
            self._write_table(
                layout.EPISODES_PATH.format(chunk_index=place[0], file_index=place[1]), pa.Table.from_pylist(rows)
            )

    def _stats(self, numbers: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
        """Returns the statistics of some episodes taken together, by feature."""
        stats = {}
        for camera in self.recording.cameras:
            counts = np.sum([self.episodes[number].counts[camera] for number in numbers], axis=0)
            frames = sum(self.episodes[number].length for number in numbers)
            stats[f"{layout.IMAGES}{camera}"] = image_stats(counts, frames)
        parts = [self._columns(number) for number in numbers]
        for name in parts[0]:
            if self.features[name]["dtype"] != "string":
                stats[name] = column_stats(np.concatenate([part[name] for part in parts]))
        return stats

    def _files(self, sizes: Sequence[int], limit_mb: int) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Yields each file's ``(chunk_index, file_index)`` with the episodes that lie in it."""
        places = list(layout.place(sizes, limit_mb * MEBIBYTE, self.recording.chunk_size))
        for place, numbers in groupby(range(len(sizes)), key=places.__getitem__):
            yield place, list(numbers)

    def _path(self, template: str, place: tuple[int, int], **names: str) -> Path:
        path = self.root / template.format(chunk_index=place[0], file_index=place[1], **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_table(self, name: str, table: Any) -> None:
        parquet = require("pyarrow.parquet", "video")
        self._save(name, lambda path: parquet.write_table(table, path, **PARQUET))

    def _write_json(self, name: str, content: Any) -> None:
        text = json.dumps(content, indent=4, ensure_ascii=False)
        self._save(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _save(self, name: str, write: Callable[[Path], Any]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        synced(path)


def _kinds(episode: Shard) -> dict[str, str]:
    return {
        name: "string" if column.dtype.kind == "U" else column.dtype.name
        for name, column in sorted(episode.columns.items())
    }


def _plain_nested(stats: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    return {key: {name: value.tolist() for name, value in entry.items()} for key, entry in stats.items()}
