"""The filling of a latent cache: episodes to shards, by one process or several, shard by shard.

A shard is written whole or not at all, and then noted in the draft's journal with its digest. What depends on the
number of processes is only who writes which shard.
"""

from __future__ import annotations

import contextlib
import errno
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ideomotor.data.cache import Progress
from ideomotor.data.draft import Draft, digest, require_space
from ideomotor.data.windows import read_frames
from ideomotor.files import replacing, sha256
from ideomotor.types import Dataset, Episode

VERSION = 1
Encode = Callable[[UInt8[Tensor, "t c h w"]], tuple[Float[Tensor, "t z h w"], Float[Tensor, "t z h w"]]]
"""Frames to mean and deviation of their latents, not scaled."""
OpenEncoder = Callable[[], Encode]
"""Loads the VAE; called once in every process that encodes."""
Fit = Literal["crop", "squeeze"]
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_DAMAGE = (ValueError, IndexError)  # of a file; a mishap of the machine (OSError) stops the build instead


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """What is encoded, by whom, and how it is stored.

    Attributes:
        camera: the dataset's name of it.
        size: height and width of the frames that are encoded.
        fit: "crop" scales frames to cover that size and cuts them to its centre; "squeeze" scales height and width
            apart, as VPP's published latents were made.
        vae: a fingerprint that changes with the VAE's weights.
        scale: what its latents are multiplied by to have about unit variance; noted, not applied.
        dtype: of what is stored. float16 keeps 11 bits and reaches to 65,504; bfloat16 keeps 8 bits of any float32.
        batch: frames encoded at a time.
    """

    camera: str
    size: tuple[int, int]
    vae: str
    scale: float
    fit: Fit = "crop"
    dtype: Literal["float16", "bfloat16"] = "float16"
    batch: int = 16

    def __post_init__(self) -> None:
        if not self.vae:
            raise ValueError("the VAE has no fingerprint, so a cache could not tell when it changes: pass one")
        if self.fit not in ("crop", "squeeze"):
            raise ValueError(f"fit is {self.fit!r}; wanted 'crop' or 'squeeze'")
        if self.dtype not in _DTYPES or min(*self.size, self.batch) < 1 or not self.scale > 0:
            raise ValueError(
                f"size={self.size}, scale={self.scale}, dtype={self.dtype!r}, batch={self.batch}: wanted sizes and "
                f"batch of at least 1, a scale above 0, and one of {', '.join(_DTYPES)}"
            )

    @property
    def key(self) -> str:
        """Of the cache's folder: the VAE, and how its latents are stored."""
        return digest([VERSION, self.vae, self.dtype])


@dataclass(frozen=True)
class _Task:
    """One shard: its number, the number of its first episode, and the episodes, with what encoding needs of them."""

    shard: int
    first: int
    episodes: tuple[Episode, ...]


class _Stopped(Exception):
    """The build ended; the shard is left."""


Told = Callable[[int], None]


def fill(
    dataset: Dataset,
    final: Path,
    spec: LatentSpec,
    open_encoder: OpenEncoder,
    workers: int,
    progress: Progress | None,
    shard_frames: int,
) -> None:
    """Makes the finished folder ``final``; see ``latents.LatentCache.build``."""
    draft, plan = Draft(final), _plan([episode.length for episode in dataset.episodes], shard_frames)
    for unfinished in draft.folder.glob(".*.part"):  # what a kill left
        unfinished.unlink(missing_ok=True)
    records = {int(entry["shard"]): entry for entry in draft.done() if _sound(draft.folder, entry, plan)}
    tasks = [_task(dataset, spec, shard, plan[shard]) for shard in range(len(plan)) if shard not in records]
    total = sum(episode.length for episode in dataset.episodes)
    left = sum(episode.length for task in tasks for episode in task.episodes)

    def told(frames: int) -> None:
        if progress is not None:
            progress(total - left + frames, total)

    told(0)
    _require_room(draft.folder, dataset, records, plan)
    if workers == 1 or len(tasks) < 2:
        run = _here(spec, draft.folder, open_encoder, tasks, told)
    else:
        run = _apart(spec, draft.folder, open_encoder, tasks, told, workers)
    with contextlib.closing(run):
        for record in run:
            draft.record(record)
            records[record["shard"]] = record
            if len(records) == 1:
                _require_room(draft.folder, dataset, records, plan)
    draft.finish(_index(dataset, spec, [records[shard] for shard in range(len(plan))], plan))


def _require_room(folder: Path, dataset: Dataset, records: dict[int, dict[str, Any]], plan: Sequence[range]) -> None:
    """Refuses to go on where the shards that are missing will not fit, as far as those that are there can tell."""
    frames = [sum(dataset.episodes[number].length for number in numbers) for numbers in plan]
    filled = [shard for shard, record in records.items() if record["bytes"]]
    left = sum(count for shard, count in enumerate(frames) if shard not in records)
    if filled:
        a_frame = sum(records[shard]["bytes"] for shard in filled) / sum(frames[shard] for shard in filled)
        require_space(folder, math.ceil(left * a_frame), f"the rest of the latents of {dataset.name!r} ({left} frames)")


def _plan(lengths: Sequence[int], shard_frames: int) -> list[range]:
    """Which episodes each shard holds."""
    plan, first, held = [], 0, 0
    for number, length in enumerate(lengths):
        held += length
        if held >= shard_frames or number + 1 == len(lengths):
            plan.append(range(first, number + 1))
            first, held = number + 1, 0
    return plan


def _sound(folder: Path, entry: dict[str, Any], plan: Sequence[range]) -> bool:
    """Whether a shard of the journal is that of the plan, and lies there in its full size."""
    shard = int(entry["shard"])
    if shard >= len(plan) or entry["episodes"] != [plan[shard].start, plan[shard].stop]:
        return False
    path = folder / str(entry["file"])
    return not entry["bytes"] or (path.is_file() and path.stat().st_size == entry["bytes"])


def _task(dataset: Dataset, spec: LatentSpec, shard: int, numbers: range) -> _Task:
    """The episodes without what another process needs not and may be unable to receive."""
    bare = (
        Episode(id=e.id, text="", fps=e.fps, length=e.length, frames={spec.camera: e.frames[spec.camera]})
        for e in (dataset.episodes[number] for number in numbers)
    )
    return _Task(shard, numbers.start, tuple(bare))


def _here(
    spec: LatentSpec, folder: Path, open_encoder: OpenEncoder, tasks: Sequence[_Task], told: Told
) -> Generator[dict[str, Any], None, None]:
    """Yields the shards' records, made in this process."""
    encode = open_encoder() if tasks else None
    done = 0

    def step(frames: int) -> None:
        nonlocal done
        done += frames
        told(done)

    for task in tasks:
        assert encode is not None
        yield _shard(spec, folder, encode, task, step)


def _apart(
    spec: LatentSpec, folder: Path, open_encoder: OpenEncoder, tasks: Sequence[_Task], told: Told, workers: int
) -> Generator[dict[str, Any], None, None]:
    """Yields the shards' records as several processes get done."""
    # Not fork: neither CUDA nor torch's threads survive it.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _enter, (spec, folder, open_encoder, workers, counter, stop))
    try:
        running: set[Future[dict[str, Any]]] = {pool.submit(_work, task) for task in tasks}
        while running:
            finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            told(counter.value)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that encodes has died, often for want of memory; its message may stand above (a script that "
            "starts workers needs `if __name__ == '__main__':`). What was encoded is kept: take fewer workers and run "
            "the same again"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Worker:
    """What a process that encodes holds."""

    spec: LatentSpec
    folder: Path
    encode: Encode
    counter: Any
    stop: Any

    def step(self, frames: int) -> None:
        with self.counter.get_lock():
            self.counter.value += frames
        if self.stop.is_set():
            raise _Stopped


_WORKER: list[_Worker] = []  # of this process: one, where it was begun to encode


def _enter(spec: LatentSpec, folder: Path, open_encoder: OpenEncoder, workers: int, counter: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who then stops this process
    threading.Thread(target=_end_with_caller, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _WORKER.append(_Worker(spec, folder, open_encoder(), counter, stop))


def _end_with_caller() -> None:
    """A killed caller cannot stop its pool, whose processes would wait for work for ever."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _work(task: _Task) -> dict[str, Any]:
    worker = _WORKER[0]
    return _shard(worker.spec, worker.folder, worker.encode, task, worker.step)


def _shard(spec: LatentSpec, folder: Path, encode: Encode, task: _Task, step: Told) -> dict[str, Any]:
    """Writes a shard and returns its record."""
    tensors: dict[str, Tensor] = {}
    lost: dict[str, str] = {}
    for number, episode in enumerate(task.episodes, start=task.first):
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, episode.length, spec.batch):
            block = range(start, min(start + spec.batch, episode.length))
            try:
                frames = _frames(episode, block, spec)
            except _DAMAGE as error:
                lost[str(number)] = f"{type(error).__name__}: {error}"
                step(episode.length - start)
                break
            parts.append(_encoded(encode, frames, spec, episode))
            step(len(block))
        if str(number) not in lost:
            for name, values in zip(("mean", "std"), zip(*parts, strict=True), strict=True):
                tensors[f"{number}.{name}"] = torch.cat(values).contiguous()
    numbers = [task.first, task.first + len(task.episodes)]
    about = {"shard": task.shard, "episodes": numbers, "lost": lost, "file": f"latents-{task.shard:05d}.safetensors"}
    if not tensors:
        return {**about, "bytes": 0, "sha256": "", "shape": None}
    path = folder / str(about["file"])
    with replacing(path) as draft:
        _save(tensors, draft)
        draft.chmod(folder.stat().st_mode & 0o666)  # it would be the owner's alone
        content = sha256(draft)
    shape = list(next(iter(tensors.values())).shape[1:])
    return {**about, "bytes": path.stat().st_size, "sha256": content, "shape": shape}


def _frames(episode: Episode, block: range, spec: LatentSpec) -> UInt8[Tensor, "t c h w"]:
    if spec.fit == "squeeze":
        return episode.frames[spec.camera].read(block, spec.size)
    return read_frames(episode, spec.camera, block, spec.size)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # so it says that the disk is full
        raise OSError(
            errno.EIO, f"cannot write {path}: {error}. What was encoded is kept: free some space and run the same again"
        ) from error


@torch.inference_mode()
def _encoded(
    encode: Encode, frames: UInt8[Tensor, "t c h w"], spec: LatentSpec, episode: Episode
) -> tuple[Tensor, Tensor]:
    """Mean and deviation as they are stored."""
    mean, std = encode(frames)
    if mean.ndim != 4 or len(mean) != len(frames) or std.shape != mean.shape:
        raise TypeError(
            f"encode made {tuple(mean.shape)} and {tuple(std.shape)} of frames {tuple(frames.shape)}; wanted mean and "
            f"deviation ({len(frames)}, channels, height, width)"
        )
    stored = mean.to(_DTYPES[spec.dtype]).cpu(), std.to(_DTYPES[spec.dtype]).cpu()
    if not all(values.isfinite().all() for values in stored):
        largest = max(float(mean.abs().max()), float(std.abs().max()))
        raise ValueError(
            f"latents of episode {episode.id!r} reach {largest:g}, which {spec.dtype} does not hold: store bfloat16, "
            "or mend the VAE where they are no numbers"
        )
    return stored


def _index(
    dataset: Dataset, spec: LatentSpec, records: Sequence[dict[str, Any]], plan: Sequence[range]
) -> dict[str, Any]:
    """What a finished cache says of itself.

    Raises:
        ValueError: nothing could be decoded, or frames of one size became latents of several.
    """
    episodes, lost = dataset.episodes, {int(n): why for record in records for n, why in record["lost"].items()}
    shapes = [record["shape"] for record in records if record["shape"] is not None]
    if not shapes:
        reasons = "; ".join(f"{episodes[number].id}: {reason}" for number, reason in list(lost.items())[:3])
        raise ValueError(
            f"none of the {len(episodes)} episodes of dataset {dataset.name!r} could be decoded: {reasons}"
        )
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"the encoder made latents of {shapes[0]} and others: it must make one shape of one size")
    filled = [record for record in records if record["shape"] is not None]
    places = {number: place for place, record in enumerate(filled) for number in plan[record["shard"]]}
    return {
        "kind": "latents",
        "version": VERSION,
        "name": dataset.name,
        "path": str(dataset.path),
        "camera": spec.camera,
        "size": list(spec.size),
        "fit": spec.fit,
        "vae": spec.vae,
        "scale": spec.scale,
        "dtype": spec.dtype,
        "shape": shapes[0],
        "shards": [{name: record[name] for name in ("file", "bytes", "sha256")} for record in filled],
        "episodes": [
            {"id": episode.id, "number": number, "shard": places[number], "length": episode.length}
            for number, episode in enumerate(episodes)
            if number not in lost
        ],
        "quarantined": [{"path": episodes[number].id, "reason": lost[number]} for number in sorted(lost)],
    }
