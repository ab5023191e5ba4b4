"""Writer of LeRobotDataset v3.0: episodes are safe on disk one by one, and the dataset appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.formats import lerobot_layout as layout
from ideomotor.data.formats import lerobot_shards as shards
from ideomotor.data.formats.lerobot_assembly import NAME, Recording, assemble
from ideomotor.data.formats.lerobot_stats import histogram
from ideomotor.files import synced, write_text

OUTCOMES = ("success", "failure", "")
EXTRA_DTYPES = ("bool", "int32", "int64", "float32", "float64")


class LeRobotWriter:
    """Records episodes and, at the end, turns them into a LeRobotDataset v3.0 folder.

    Until ``finalize`` everything lies in ``.NAME.partial`` beside the dataset's place; each episode for which
    ``add_episode`` returned survives a kill, and the same writer opened with ``resume=True`` goes on after it. The same
    episodes give the same bytes, in whatever order and over however many interruptions they were added.

    One process writes at a time.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: int,
        cameras: Mapping[str, tuple[int, int]],
        action_names: Sequence[str] | None = None,
        state_names: Sequence[str] | None = None,
        robot_type: str = "unknown",
        resume: bool = False,
        codec: shards.Codec | None = None,
        chunk_size: int = 1000,
        data_file_mb: int = 100,
        video_file_mb: int = 200,
    ) -> None:
        """Opens the folder of unfinished episodes; the settings are those of ``Recording``.

        Args:
            path: where the finished dataset will be; nothing may be there.
            fps: whole frames per second.
            cameras: height and width by name, both even.
            action_names: one name a number of an action; None for actionless video.
            state_names: one name a number of the robot's own state; None where it is not recorded.
            robot_type: free text.
            resume: keep the episodes of an interrupted writer with the same settings; ``stored`` says which.
            codec: settings of the video encoder.
            chunk_size: files in a folder.
            data_file_mb: size at which a data file is closed.
            video_file_mb: size at which a video file is closed.

        Raises:
            FileExistsError: the dataset is there already, or unfinished episodes are and ``resume`` is False.
            ValueError: a setting the layout cannot hold, or other settings than those of the interrupted writer.
        """
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.recording = Recording(
            fps=fps,
            cameras={name: (height, width) for name, (height, width) in cameras.items()},
            action_names=None if action_names is None else tuple(action_names),
            state_names=None if state_names is None else tuple(state_names),
            robot_type=robot_type,
            codec=codec or shards.Codec(),
            chunk_size=chunk_size,
            data_file_mb=data_file_mb,
            video_file_mb=video_file_mb,
        )
        self._episodes = self.partial / "episodes"
        self._open(resume)

    def _open(self, resume: bool) -> None:
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already: remove it or write to another place")
        if self.partial.exists() and not resume:
            raise FileExistsError(
                f"{self.partial} holds {len(self.stored)} episodes of an unfinished dataset: go on with resume=True, "
                "or remove the folder"
            )
        settings = json.loads(json.dumps(asdict(self.recording)))
        record = self.partial / "recording.json"
        if record.exists():
            _check_same(json.loads(record.read_text()), settings, self.partial)
        self._episodes.mkdir(parents=True, exist_ok=True)
        for draft in self._episodes.glob("*.tmp"):
            shutil.rmtree(draft)
        if not record.exists():
            write_text(record, json.dumps(settings, indent=2))

    @property
    def stored(self) -> tuple[int, ...]:
        """Indices of the episodes that are safely on disk."""
        if not self._episodes.is_dir():
            return ()
        return tuple(sorted(int(folder.name) for folder in self._episodes.iterdir() if folder.name.isdecimal()))

    def add_episode(
        self,
        frames: Mapping[str, UInt8[Tensor, "t c h w"] | UInt8[np.ndarray, "t c h w"]],
        actions: Float[np.ndarray, "t action"] | None = None,
        states: Float[np.ndarray, "t state"] | None = None,
        *,
        text: str = "",
        outcome: str = "",
        extra: Mapping[str, Any] | None = None,
        index: int | None = None,
    ) -> int:
        """Stores one episode and returns its index; when this returns, a kill cannot lose it.

        Args:
            frames: by camera, exactly those of the writer.
            actions: in the units of the environment; the action taken at each frame. None for actionless video.
            states: the robot's own state at each frame.
            text: the instruction; it becomes the task.
            outcome: "success", "failure", or "" where unknown.
            extra: more columns, the same for every episode: a number, bool or string for the whole episode (a seed, a
                kind), or an array with one a frame.
            index: where workers finish out of order, the episode's place; otherwise the one after the last.

        Raises:
            ValueError: something does not fit the settings, or a number is not finite; nothing is stored.
        """
        arrays = self._checked_frames(frames)
        length = len(next(iter(arrays.values())))
        columns = self._checked_vectors(length, actions, states) | _checked_extra(extra or {}, length)
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome is {outcome!r}; it can be one of {', '.join(map(repr, OUTCOMES))}")
        if index is None:
            index = max(self.stored, default=-1) + 1
        folder = self._episodes / f"{index:06d}"
        if index < 0 or folder.exists():
            raise ValueError(
                f"episode {index} is on disk already or no index; `stored` lists those that can be skipped"
            )
        counts = {name: histogram(array).tolist() for name, array in arrays.items()}
        videos = {
            name: shards.encode(array, self.recording.fps, self.recording.codec) for name, array in arrays.items()
        }
        shards.store(folder, {"length": length, "text": text, "outcome": outcome, "counts": counts}, columns, videos)
        return index

    def finalize(self) -> Path:
        """Writes the dataset and moves it into place at once; returns its path.

        Episodes are numbered in the order of their indices, without gaps.

        Raises:
            ValueError: there is no episode, or episodes have different columns.
        """
        if not self.stored:
            raise ValueError(f"{self.partial} holds no episode; add one before finalize")
        draft = self.partial / "dataset"
        shutil.rmtree(draft, ignore_errors=True)
        assemble(self.recording, [shards.load(self._episodes / f"{index:06d}") for index in self.stored], draft)
        for folder in [*(item for item in draft.rglob("*") if item.is_dir()), draft]:
            synced(folder)
        draft.rename(self.path)
        synced(self.path.parent)
        shutil.rmtree(self.partial)
        return self.path

    def _checked_frames(self, frames: Mapping[str, Any]) -> dict[str, np.ndarray]:
        cameras = self.recording.cameras
        if set(frames) != set(cameras):
            raise ValueError(f"frames are of cameras {sorted(frames)}; the dataset has {sorted(cameras)}")
        arrays = {name: np.asarray(frames[name]) for name in cameras}
        lengths = {len(array) for array in arrays.values()}
        for name, array in arrays.items():
            height, width = cameras[name]
            if (
                array.dtype != np.uint8
                or array.shape != (len(array), 3, height, width)
                or len(lengths) > 1
                or not len(array)
            ):
                raise ValueError(
                    f"camera {name!r}: frames are {array.dtype} {array.shape}, lengths over cameras {sorted(lengths)}; "
                    f"wanted uint8 (t, 3, {height}, {width}) with one t of 1 or more"
                )
        return arrays

    def _checked_vectors(self, length: int, actions: Any, states: Any) -> dict[str, np.ndarray]:
        recording, columns = self.recording, {}
        for name, values, names in (
            (layout.ACTION, actions, recording.action_names),
            (layout.STATE, states, recording.state_names),
        ):
            if (values is None) != (names is None):
                have, opened = ("given", "without") if names is None else ("None", "with")
                raise ValueError(f"{name} is {have}, but the dataset was opened {opened} names for it")
            if values is None or names is None:
                continue
            array = np.asarray(values, dtype=np.float32)
            if array.shape != (length, len(names)):
                raise ValueError(f"{name} is {array.shape}; {length} frames of {len(names)} numbers were wanted")
            finite = np.isfinite(array).all(1)
            if not finite.all():
                raise ValueError(
                    f"{name} at frame {int(finite.argmin())} is not a finite number; leave the episode out"
                )
            columns[name] = array
        return columns


def _checked_extra(extra: Mapping[str, Any], length: int) -> dict[str, np.ndarray]:
    columns = {}
    for name, value in extra.items():
        if name in layout.RESERVED or name.startswith("observation.") or not NAME.fullmatch(name):
            raise ValueError(
                f"extra column {name!r}: the layout uses that name, or it holds other than letters, digits, _ - ."
            )
        array = np.asarray(value)
        wanted = array.dtype.kind == "U" or (array.dtype.name in EXTRA_DTYPES and bool(np.isfinite(array).all()))
        if array.shape not in ((), (length,)) or not wanted:
            raise ValueError(
                f"extra column {name!r} is {array.dtype} {array.shape}; wanted one value, or one for each of {length} "
                f"frames, of text or finite {', '.join(EXTRA_DTYPES)}"
            )
        columns[name] = np.broadcast_to(array, (length,))
    return columns


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    other = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if other:
        shown = ", ".join(f"{key} {found.get(key)} (now {wanted.get(key)})" for key in other)
        raise ValueError(f"{folder} was begun with other settings: {shown}; give the same ones, or remove the folder")
