"""What the lanes over Meta-World share: what is collected and tried, what outlives a call, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from ideomotor.evaluation.episodes import EpisodeResult, read_log
from ideomotor.evaluation.metaworld_levels import LEVELS, summarize_levels
from ideomotor.evaluation.statistics import mean_success, wilson
from ideomotor.systems.collection import CollectionConfig, collect_with_progress
from ideomotor.systems.vpdd import VPDD
from ideomotor.systems.vpp import VPP
from ideomotor.training.checkpoint import read_json, write_json

SEED = 0
PROBE = 100  # steps after which a stage's speed is known; the first twenty are slow on a GPU
LEAST = 200  # steps of a stage, however little time is left
Model = TypeVar("Model", VPDD, VPP)


@dataclass(frozen=True, kw_only=True)
class Lane(Generic[Model]):
    """What is collected, trained and tried; each stage's steps are the most that it may take."""

    model: Model
    world: Literal["metaworld", "toy"]
    tasks: tuple[str, ...]
    demonstrations: int
    expert: int
    noisy: int
    failed: int
    episodes: int
    workers: int


@dataclass
class Notes:
    """What outlives a call, in a file: when the first began, the steps decided on, what is done, and its seconds."""

    path: Path
    begun: float
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Notes:
        """Returns what is noted there; the clock begins now where nothing is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = cls(path=path, **read_json(path)) if path.is_file() else cls(path=path, begun=time.time())
        notes.write()
        return notes

    def write(self) -> None:
        """Writes all of it."""
        write_json(self.path, {name: value for name, value in asdict(self).items() if name != "path"})

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to that stage, also where it is stopped."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 1)
            self.write()

    def plan(self, name: str, most: int, to_spend: Callable[[], float], probe: Callable[[int], Path]) -> int:
        """Returns the steps of that stage, decided once: as many as the seconds ``to_spend`` allow.

        How fast the machine is shows in a short ``probe``, which trains so many steps and returns its folder.
        """
        if name not in self.steps:
            rate = float(last_row(probe(min(PROBE, most)))["steps_per_second"])
            seconds = to_spend()
            self.steps[name] = max(min(LEAST, most), min(most, int(rate * seconds)))
            self.write()
            print(f"{name}: {rate:.1f} steps/s and {seconds:.0f} s to spend: {self.steps[name]:,} steps", flush=True)
        return self.steps[name]

    def do(self, stages: Mapping[str, Callable[[], object]]) -> None:
        """Does the stages that are not done yet, one after the other, until the end or until stopped."""
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        for name, do in stages.items():
            if name not in self.done:
                with self.timing(name):
                    do()
                self.done.append(name)
                self.write()
                print(f"{name}: {self.seconds[name]:.0f} s", flush=True)


def collect(lane: Lane[Any], out: Path) -> None:
    """Records what is not on disk yet below ``out``: demonstrations, and video without actions."""
    counts = {kind: getattr(lane, kind) for kind in ("demonstrations", "expert", "noisy", "failed")}
    collect_with_progress(
        CollectionConfig(
            out=out / "data", world=lane.world, tasks=lane.tasks, size=lane.model.size, seed=SEED,
            workers=lane.workers, **counts,
        )
    )  # fmt: skip


def rows(lane: Lane[Any], out: Path, notes: Notes) -> list[dict[str, Any]]:
    """Returns the report: rows of tasks, levels (Meta-World), their mean, and the stages, as far as they have come."""
    results = read_log(out / "rollouts.jsonl")
    tried = {task: [result for result in results if result.task == task] for task in lane.tasks}
    tried = {task: mine for task, mine in tried.items() if mine}
    made = [_task_row(task, mine) for task, mine in tried.items()]
    if made and lane.world == "metaworld":
        made += _level_rows(results)
    if made:
        mean = mean_success([[[float(result.success) for result in mine] for mine in tried.values()]])
        counts = {"episodes": len(results), "successes": sum(result.success for result in results)}
        about = {"whole": len(results) == len(lane.tasks) * lane.episodes}
        made.append({"what": f"mean of {len(tried)} tasks", **counts, **_estimate(*mean), **about})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for name, seconds in notes.seconds.items():
        row = {"what": f"stage {name}", "done": name in notes.done, "seconds": seconds, "device": device}
        made.append(row | _training(out / name))
    return made


def _task_row(task: str, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    successes = sum(result.success for result in results)
    counts = {"episodes": len(results), "successes": successes}
    return {"what": f"task {task}", **counts, **_estimate(*wilson(successes, len(results)))}


def _level_rows(results: Sequence[EpisodeResult]) -> list[dict[str, Any]]:
    """A row a level that was met, with how many of its tasks."""
    levels, rows = summarize_levels(results), []
    for level, tasks in LEVELS.items():
        mine = [result for result in results if result.task in tasks]
        mean = levels[level].success
        if mean is not None:
            counts = {"episodes": len(mine), "successes": sum(result.success for result in mine)}
            met = f"{len(tasks) - len(levels[level].missing)} of {len(tasks)}"
            rows.append({"what": f"level {level}, {met} tasks", **counts, **_estimate(*mean)})
    return rows


def _estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"success": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def _training(folder: Path) -> dict[str, Any]:
    row = last_row(folder)
    losses = {name.split("/")[1]: value for name, value in row.items() if name.endswith("loss")}
    return {name: row[name] for name in ("step", "steps_per_second") if name in row} | losses


def last_row(folder: Path) -> Mapping[str, Any]:
    """Returns the last row of a run's metrics; {} where there is none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(json.loads(lines[-1])) if lines else {}
