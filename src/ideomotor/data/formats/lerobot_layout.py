"""The published LeRobotDataset v3.0 layout: where files stand, what columns are called, how features are typed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ideomotor.extras import require

if TYPE_CHECKING:
    import pyarrow

VERSION = "v3.0"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

IMAGES = "observation.images."
STATE, ACTION, SUCCESS = "observation.state", "action", "next.success"
OUTCOME = "outcome"  # ours: "success", "failure" or "" where unknown, which the bool of next.success cannot say

# Columns that every frame has, after the dataset's own.
COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
RESERVED = {*COUNTERS, STATE, ACTION, SUCCESS, OUTCOME, "task", "size"}


def feature(dtype: str, shape: Sequence[int] = (1,), names: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns one entry of info.json's ``features``."""
    return {"dtype": dtype, "shape": list(shape), "names": None if names is None else list(names)}


def camera_feature(height: int, width: int, fps: int) -> dict[str, Any]:
    """Returns the entry of a camera whose frames are in h264 mp4 files."""
    entry = feature("video", (height, width, 3), ("height", "width", "channels"))
    entry["info"] = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
    return entry


def place(sizes: Sequence[int], limit: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Yields ``(chunk_index, file_index)`` of each episode: a file is closed before it would reach ``limit`` bytes.

    A chunk (folder) holds ``chunk_size`` files; an episode is never split, so one over the limit has its own file.
    """
    number, filled = 0, 0
    for size in sizes:
        if filled and filled + size >= limit:
            number, filled = number + 1, 0
        filled += size
        yield divmod(number, chunk_size)


def data_schema(features: Mapping[str, Mapping[str, Any]]) -> pyarrow.Schema:
    """Returns the data files' arrow schema, with the description by which Hugging Face ``datasets`` reads them."""
    pa = require("pyarrow", "video")
    fields, described = [], {}
    for name, entry in features.items():
        if entry["dtype"] == "video":
            continue
        value = {"dtype": entry["dtype"], "_type": "Value"}
        kind = pa.type_for_alias(entry["dtype"])
        # A vector of one number is stored as that number, not as a list: so does the published writer.
        (width,) = entry["shape"]
        described[name] = value if width == 1 else {"feature": value, "length": width, "_type": "List"}
        fields.append(pa.field(name, kind if width == 1 else pa.list_(kind, width)))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def to_arrow(values: np.ndarray, kind: pyarrow.DataType) -> pyarrow.Array:
    """Returns one column of a data file from an array of ``t`` or ``t width`` numbers or strings."""
    pa = require("pyarrow", "video")
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return pa.array(values.reshape(len(values)), type=kind)


def tasks_table(texts: Sequence[str]) -> pyarrow.Table:
    """Returns meta/tasks.parquet: ``task_index`` by the task's text, which pandas finds as the table's index."""
    pa = require("pyarrow", "video")
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, kind, numpy_kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table([list(range(len(texts))), list(texts)], schema=schema)


def info(
    *,
    fps: int,
    features: Mapping[str, Mapping[str, Any]],
    robot_type: str,
    episodes: int,
    frames: int,
    tasks: int,
    chunk_size: int,
    data_file_mb: int,
    video_file_mb: int,
) -> dict[str, Any]:
    """Returns the content of meta/info.json."""
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": chunk_size,
        "data_files_size_in_mb": data_file_mb,
        "video_files_size_in_mb": video_file_mb,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": dict(features),
    }


def width_of(entry: Mapping[str, Any]) -> int:
    """Returns how many numbers a frame has of a feature."""
    return math.prod(entry["shape"])
