"""Frames on disk, decoded once: a dataset at one size, memory-mapped, so that a window costs a copy and no decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from ideomotor.data.draft import ArrayFile, Draft, description, digest, locked, open_array, read_index
from ideomotor.data.transforms import resize
from ideomotor.data.windows import read_frames
from ideomotor.files import synced
from ideomotor.types import Dataset, Episode, Quarantined

VERSION = 2
Progress = Callable[[int, int], None]
"""Called with what is done and how much there is."""

_BLOCK = 64  # frames decoded at a time: bounds memory where an episode is long
# What a reader or decoder raises for damaged data. Not OSError: a mishap of the machine (a share that is gone, too many
# open files) stops the build, which can go on later; it must not be remembered as damage.
_DAMAGE = (ValueError, IndexError)


def cached(
    dataset: Dataset,
    root: Path,
    size: int | tuple[int, int],
    cameras: Sequence[str] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    smooth: bool = True,
) -> Dataset:
    """Returns the same dataset, read from memory-mapped frames of one size instead of its own files.

    Frames are scaled to cover ``size`` (an edge of a square, or height and width), their aspect kept, and cut to the
    centre. What is not on disk yet is decoded first, once; see ``FrameCache.build``. Episodes that do not decode are
    left out and join ``quarantined``.

    Args:
        dataset: with a fingerprint.
        root: the folder of caches; one folder a camera is made in it.
        size: in pixels.
        cameras: by name; the first camera by default.
        workers: threads that decode.
        progress: called with episodes done and to be done.
        smooth: how frames are scaled; see ``transforms.resize``.

    Raises:
        OSError: the disk has no room; what was decoded so far is kept for the next try.
        ValueError: an episode lacks a camera, the dataset has no fingerprint, or nothing could be decoded.
    """
    names = tuple(cameras) if cameras is not None else first_camera(dataset)
    caches = []
    for number, camera in enumerate(names):
        report = None if progress is None else partial(_shifted, progress, number, len(names))
        caches.append(FrameCache.build(dataset, root, camera, size, workers, report, smooth))
    by_camera = [{episode.id: episode for episode in cache.dataset.episodes} for cache in caches]
    given = {episode.id: episode for episode in dataset.episodes}
    episodes = tuple(
        replace(
            episode,
            frames={name: kept[episode.id].frames[name] for name, kept in zip(names, by_camera, strict=True)},
            latents=given[episode.id].latents,
            recording=given[episode.id].recording,
        )
        for episode in caches[0].dataset.episodes
        if all(episode.id in kept for kept in by_camera)
    )
    fingerprint = hashlib.sha256("/".join(cache.key for cache in caches).encode()).hexdigest()
    lost = tuple(entry for cache in caches for entry in cache.quarantined)
    return replace(
        dataset, episodes=episodes, quarantined=dataset.quarantined + lost, fingerprint=fingerprint, format="cache"
    )


def first_camera(dataset: Dataset) -> tuple[str, ...]:
    """Returns the name of the first camera of the first episode, alone; of its latents, where it has no video."""
    if not dataset.episodes:
        raise ValueError(f"dataset {dataset.name!r} has no episodes, so it has no camera: check {dataset.path}")
    first = dataset.episodes[0]
    return tuple(first.frames or first.latents)[:1]


@dataclass(frozen=True, kw_only=True)
class CachedFrames:
    """One camera's frames of one episode in a memory-mapped array (a ``types.Frames``)."""

    array: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, colours, height and width."""
        t, c, height, width = self.array.shape
        return t, c, height, width

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t c h w"]:
        """Returns a copy of those frames, in the order asked for, resized to ``size`` (height, width).

        Raises:
            IndexError: an index is outside ``0..t-1``.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self.array)):
            raise IndexError(f"frames {wanted.min()}..{wanted.max()} of an episode with {len(self.array)} frames")
        frames = torch.from_numpy(np.take(self.array, wanted, axis=0))
        return frames if size is None else resize(frames, size)


class FrameCache:
    """One camera of a dataset at one size, in a finished folder.

    Frames are in ``frames.npy``, actions, states and rewards in ``signals.safetensors``, the rest in ``index.json``.
    Several processes may have it open; nothing in it is ever changed.

    Attributes:
        dataset: the episodes that decoded, reading from here.
        quarantined: those that did not, and why.
        key: changes with the dataset's fingerprint and episodes, the camera, the size, the way of scaling and this
            module's version.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a finished cache.

        Raises:
            FileNotFoundError: there is none in ``folder``.
            ValueError: it is damaged, or of another version.
        """
        index = read_index(folder, "frames", VERSION)
        self.folder, self.key, self.camera = folder, str(index["key"]), str(index["camera"])
        self.frames = open_array(folder / "frames.npy", tuple(index["shape"]))
        # One handle for all episodes: each opening would parse the names of every episode's signals anew.
        try:
            self._signals = safe_open(folder / "signals.safetensors", framework="numpy")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{folder / 'signals.safetensors'} is damaged ({error}): delete the folder, and it is built again"
            ) from error
        self.quarantined = tuple(Quarantined(**entry) for entry in index["quarantined"])
        self.dataset = Dataset(
            name=index["name"],
            path=Path(index["path"]),
            format="cache",
            episodes=tuple(self._episode(entry) for entry in index["episodes"]),
            quarantined=self.quarantined,
            fingerprint=self.key,
        )

    def _episode(self, entry: Mapping[str, Any]) -> Episode:
        start, length, number = entry["start"], entry["length"], entry["number"]
        return Episode(
            id=entry["id"],
            text=entry["text"],
            fps=entry["fps"],
            length=length,
            frames={self.camera: CachedFrames(array=np.asarray(self.frames[start : start + length]))},
            read_actions=partial(self._signals.get_tensor, f"{number}.actions") if entry["actions"] else None,
            read_proprio=partial(self._signals.get_tensor, f"{number}.proprio") if entry["proprio"] else None,
            read_rewards=partial(self._signals.get_tensor, f"{number}.rewards") if entry["rewards"] else None,
            outcome=entry["outcome"],
        )

    @classmethod
    def build(
        cls,
        dataset: Dataset,
        root: Path,
        camera: str,
        size: int | tuple[int, int],
        workers: int = 2,
        progress: Progress | None = None,
        smooth: bool = True,
    ) -> FrameCache:
        """Returns the cache of one camera at ``size``, decoding what is not on disk yet.

        Every episode is decoded once, a few at a time. A build that was killed goes on where it stopped. An episode
        that does not decode is left out and listed in ``quarantined`` with its reason; its room in the file stays
        empty. See ``cached`` for the arguments.

        Raises:
            OSError: the disk has no room.
            ValueError: an episode lacks the camera, the dataset has no fingerprint, or nothing could be decoded.
        """
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ValueError(f"a cache of {height} x {width} pixels was asked for; sizes start at 1")
        for episode in dataset.episodes:
            if camera not in episode.frames:
                raise ValueError(
                    f"episode {episode.id!r} of dataset {dataset.name!r} has no camera {camera!r}; it has "
                    f"{', '.join(map(repr, episode.frames))}"
                )
        facts = ["frames", VERSION, camera, height, width, description(dataset)]
        key = digest(facts if smooth else [*facts, "bilinear"])
        final = Path(root) / f"frames-{key}"
        if not final.exists():
            with locked(final):
                if not final.exists():
                    _fill(dataset, final, key, camera, (height, width), workers, progress, smooth)
        return cls(final)


def _fill(
    dataset: Dataset,
    final: Path,
    key: str,
    camera: str,
    size: tuple[int, int],
    workers: int,
    progress: Progress | None,
    smooth: bool,
) -> None:
    episodes = dataset.episodes
    starts = np.cumsum([0, *(episode.length for episode in episodes)]).tolist()
    shape = (starts[-1], 3, *size)
    draft = Draft(final)
    what = f"the frame cache of {dataset.name!r} ({starts[-1]} frames of {size[0]} x {size[1]})"
    array = ArrayFile(draft.folder / "frames.npy", shape, np.dtype(np.uint8), what)
    try:
        if array.fresh:
            draft.restart()
        done = {int(entry["episode"]) for entry in draft.done()}
        waiting = [number for number in range(len(episodes)) if number not in done]
        lost: dict[int, str] = {}
        decode = partial(
            _decode, array=array, starts=starts, episodes=episodes, camera=camera, size=size, smooth=smooth
        )
        for number, reason in _unordered(decode, waiting, workers):
            if reason:
                lost[number] = reason
            else:
                array.sync()
                draft.record({"episode": number})
                done.add(number)
            if progress is not None:
                progress(len(done) + len(lost), len(episodes))
    finally:
        array.close()
    signals = _signals(episodes, sorted(done), lost)
    kept = sorted(done - lost.keys())
    if not kept:
        reasons = "; ".join(f"{episodes[number].id}: {reason}" for number, reason in list(lost.items())[:3])
        raise ValueError(
            f"none of the {len(episodes)} episodes of dataset {dataset.name!r} could be decoded: {reasons}"
        )
    signals_file = draft.folder / "signals.safetensors"
    save_file(signals, signals_file)
    signals_file.chmod(signals_file.parent.stat().st_mode & 0o666)  # it would be the owner's alone
    synced(signals_file)
    draft.finish(
        {
            "kind": "frames",
            "version": VERSION,
            "key": key,
            "name": dataset.name,
            "path": str(dataset.path),
            "camera": camera,
            "shape": shape,
            "episodes": [_entry(episodes[number], number, starts[number], signals) for number in kept],
            "quarantined": [{"path": episodes[n].id, "reason": lost[n]} for n in sorted(lost)],
        }
    )


def _entry(episode: Episode, number: int, start: int, signals: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": episode.id,
        "text": episode.text,
        "fps": episode.fps,
        "length": episode.length,
        "outcome": episode.outcome,
        "number": number,
        "start": start,
        "actions": f"{number}.actions" in signals,
        "proprio": f"{number}.proprio" in signals,
        "rewards": f"{number}.rewards" in signals,
    }


def _decode(
    number: int,
    array: ArrayFile,
    starts: Sequence[int],
    episodes: Sequence[Episode],
    camera: str,
    size: tuple[int, int],
    smooth: bool,
) -> str:
    """Writes one episode's frames; returns why it could not be decoded, or ""."""
    episode = episodes[number]
    for first in range(0, episode.length, _BLOCK):
        block = range(first, min(first + _BLOCK, episode.length))
        try:
            frames = read_frames(episode, camera, block, size, smooth)
        except _DAMAGE as error:
            return f"{type(error).__name__}: {error}"
        array.write(starts[number] + first, frames.numpy())
    return ""


def _signals(
    episodes: Sequence[Episode], numbers: Sequence[int], lost: dict[int, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the signals of those episodes by name; an episode that does not give them joins ``lost``."""
    signals: dict[str, np.ndarray[Any, Any]] = {}
    for number in numbers:
        try:
            episode = episodes[number]
            for name, read in (
                ("actions", episode.read_actions),
                ("proprio", episode.read_proprio),
                ("rewards", episode.read_rewards),
            ):
                if read is not None:
                    signals[f"{number}.{name}"] = np.ascontiguousarray(read(), dtype=np.float32)
        except _DAMAGE as error:
            lost[number] = f"{type(error).__name__}: {error}"
    return signals


def _unordered(function: Callable[[int], str], numbers: Sequence[int], workers: int) -> Iterator[tuple[int, str]]:
    """Yields each number and what the function returned, as threads get done; few wait in line, so a stop is quick."""
    waiting = iter(numbers)
    with ThreadPoolExecutor(max_workers=max(workers, 1), thread_name_prefix="decode") as pool:
        running: dict[Future[str], int] = {}
        while True:
            for number in waiting:
                running[pool.submit(function, number)] = number
                if len(running) >= 2 * max(workers, 1):
                    break
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()


def _shifted(progress: Progress, camera: int, cameras: int, done: int, total: int) -> None:
    progress(camera * total + done, cameras * total)
