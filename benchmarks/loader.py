"""Clips per second from the frame cache against decoding mp4 files clip by clip: same windows, same run."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from _table import parse, publish
from ideomotor.data.cache import cached
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.video import VideoFrames, write_video
from ideomotor.data.windows import WindowConfig
from ideomotor.types import Dataset

_SIZE = 96
_LENGTH = 75  # frames of an average Meta-World demonstration
_BATCH = 32
_WINDOW = WindowConfig(context=4, horizon=4, stride=4)  # 8 frames


def main() -> None:
    """Runs the benchmark."""
    args = parse(__doc__ or "")
    episodes, rounds, steps = (8, 3, 2) if args.tiny else (100, 5, 12)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), episodes, rounds, steps)
    publish("loader", rows, args)


def measure(folder: Path, episodes: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Returns a row a way of loading: batches are made in this thread, one after another, nothing ahead of time."""
    dataset = write_videos(folder, episodes)
    began = time.perf_counter()
    copy = cached(dataset, folder / "cache", _SIZE)
    filling = time.perf_counter() - began
    loaders = {
        way: ClipLoader([Source(data, window=_WINDOW)], _BATCH, seed=0)
        for way, data in (("mp4 per clip", dataset), ("cache", copy))
    }
    seconds, processor = dict.fromkeys(loaders, 0.0), dict.fromkeys(loaders, 0.0)
    for loader in loaders.values():
        loader.batch(rounds * steps)  # opens the files, and is not counted
    repeats = {"mp4 per clip": 1, "cache": 10}  # milliseconds cannot be timed once
    for turn in range(rounds):  # rounds take turns, so that whatever else the machine does falls on both ways
        for way, loader in loaders.items():
            began, used = time.perf_counter(), time.process_time()
            for _ in range(repeats[way]):
                for step in range(turn * steps, (turn + 1) * steps):
                    loader.batch(step)
            seconds[way] += (time.perf_counter() - began) / repeats[way]
            processor[way] += (time.process_time() - used) / repeats[way]
    clips = rounds * steps * _BATCH
    slow = seconds["mp4 per clip"]
    return [
        {
            "way": way,
            "frames": _WINDOW.frames,
            "size": _SIZE,
            "clips": clips,
            "clips_per_s": round(clips / seconds[way], 1),
            "cpu_ms_per_clip": round(1000 * processor[way] / clips, 4),
            "times_mp4": round(slow / seconds[way], 1),
            "fill_s": round(filling, 2) if way == "cache" else 0.0,
        }
        for way in loaders
    ]


def write_videos(folder: Path, episodes: int) -> Dataset:
    """Writes synthetic episodes as mp4 files and returns the dataset that reads them."""
    drawn = synthetic_dataset(episodes, _LENGTH, _SIZE)
    read = []
    for episode in drawn.episodes:
        path = folder / f"{episode.id}.mp4"
        write_video(path, episode.frames["video"].read(range(_LENGTH)), episode.fps)
        read.append(replace(episode, frames={"video": VideoFrames(path)}))
    return replace(drawn, episodes=tuple(read))


if __name__ == "__main__":
    main()
