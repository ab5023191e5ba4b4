"""What ``mt50.py`` does between its first minute and its last: settings, stages, and the rows of its report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ideomotor.envs import metaworld_tasks
from ideomotor.evaluation.episodes import EpisodeResult, read_log
from ideomotor.evaluation.statistics import mean_success, wilson
from ideomotor.layers.conv import PixelStemConfig
from ideomotor.layers.transformer import TransformerConfig
from ideomotor.systems import vpdd
from ideomotor.systems.collection import CollectionConfig, collect_with_progress
from ideomotor.systems.collection_worlds import WORLDS
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import VPDD, Stage
from ideomotor.systems.vpdd_shards import pack
from ideomotor.systems.vpdd_stages import evaluate, run_finetune, run_pretrain, run_tokenizer
from ideomotor.training.checkpoint import read_json, write_json
from ideomotor.training.optim import OptimConfig

__all__ = ["Lane", "Notes", "full", "go_on", "mt50", "pack", "rows", "tiny"]

_SEED = 0
# What share of the time that is left until the end of training each stage may take. Steps mattered more than anything
# else for the policy (docs/log.md), so it gets most; its rest is for starting again at the next call.
_SHARES = {"tokenizer": 0.15, "pretrain": 0.3, "finetune": 0.85}
_PROBE = 100  # steps after which a stage's speed is known; the first twenty are slow on a GPU
_LEAST = 200  # steps of a stage, however little time is left


@dataclass(frozen=True, kw_only=True)
class Lane:
    """What is collected, trained and tried; each stage's steps are the most that it may take."""

    model: VPDD
    world: Literal["metaworld", "toy"]
    tasks: tuple[str, ...]
    demonstrations: int
    expert: int
    noisy: int
    failed: int
    episodes: int
    workers: int


def mt50() -> VPDD:
    """Returns the preset ``fast``, wider and deeper, in batches for a GPU: 27 M weights, 53 MB in bf16."""
    fast, trunk = vpdd.fast(), TransformerConfig(width=320, layers=6, heads=5)
    optim = OptimConfig(lr=6e-4, weight_decay=0.05, betas=(0.9, 0.98), warmup=100, bf16=True)
    return replace(
        fast,
        # 50 known sentences need only be told apart, which hashed words do; the encoder's 84 MB can stay at home.
        text="hashed",
        save_every=5000,  # a state is 200 MB; the clock saves it every two minutes, and at the end of a call
        tokenizer=replace(fast.tokenizer, widths=(192, 320)),
        predictor=replace(fast.predictor, trunk=trunk),
        policy=replace(
            fast.policy,
            features=(fast.policy.features[0], trunk.width),
            stem=PixelStemConfig(widths=(96, 192, 256)),
            noisings=4,
            trunk=replace(trunk, dropout=0.1),
        ),
        tokenizer_stage=Stage(steps=6000, batch=64, optim=replace(optim, lr=1e-3, weight_decay=0.01)),
        pretrain_stage=Stage(steps=10_000, batch=256, every=2, optim=optim),
        finetune_stage=Stage(steps=20_000, batch=256, optim=replace(optim, betas=(0.9, 0.99), ema=0.999)),
    )


def full() -> Lane:
    """Returns the lane for the GPU.

    Its 2,000 episodes take about two and a half minutes on 16 cores: 300 took 166 s on two busy ones
    (benchmarks/results/2026-11-21-quickstart.json).
    """
    return Lane(
        model=mt50(),
        world="metaworld",
        tasks=metaworld_tasks.TASKS,
        demonstrations=20,
        expert=10,
        noisy=6,
        failed=4,
        episodes=10,
        workers=len(os.sched_getaffinity(0)),
    )


def tiny(world: Literal["metaworld", "toy"]) -> Lane:
    """Returns the same in small: two tasks, the preset ``tiny``, a minute on two cores."""
    model = vpdd.tiny()
    return Lane(
        model=replace(model, policy=replace(model.policy, action_width=len(WORLDS[world].actions))),
        world=world,
        tasks=("door-close", "handle-press") if world == "metaworld" else ("red", "green"),
        demonstrations=2,
        expert=1,
        noisy=1,
        failed=1,
        episodes=2,
        workers=2,
    )


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


def go_on(lane: Lane, out: Path, notes: Notes, budget: float) -> None:
    """Does the stages that are not done yet, until the end or until stopped; training ends ``budget`` minutes after
    the first call began.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    ends = notes.begun + 60 * budget
    stages: dict[str, Callable[[], object]] = {
        "collect": lambda: collect_with_progress(_collection(lane, out)),
        **{name: lambda name=name: _train(name, lane, out, notes, ends) for name in _SHARES},
        "evaluate": lambda: _try_out(lane, out),
    }
    for name, do in stages.items():
        if name not in notes.done:
            with notes.timing(name):
                do()
            notes.done.append(name)
            notes.write()
            print(f"{name}: {notes.seconds[name]:.0f} s", flush=True)


def _collection(lane: Lane, out: Path) -> CollectionConfig:
    counts = {kind: getattr(lane, kind) for kind in ("demonstrations", "expert", "noisy", "failed")}
    return CollectionConfig(
        out=out / "data", world=lane.world, tasks=lane.tasks, size=lane.model.size, seed=_SEED,
        workers=lane.workers, **counts,
    )  # fmt: skip


def _train(name: str, lane: Lane, out: Path, notes: Notes, ends: float) -> None:
    """Trains one stage, for as many steps as the time left allows: how fast the machine is shows in a short probe."""
    model = lane.model
    for earlier, steps in notes.steps.items():
        model = _with_steps(model, earlier, steps)
    if name not in notes.steps:
        most = _stage(model, name).steps
        probe = out / "speed" / name
        _run(name, _with_steps(model, name, min(_PROBE, most)), out, probe)
        rate, seconds = float(_last_row(probe)["steps_per_second"]), _SHARES[name] * (ends - time.time())
        notes.steps[name] = max(min(_LEAST, most), min(most, int(rate * seconds)))
        notes.write()
        print(f"{name}: {rate:.1f} steps/s and {seconds:.0f} s to spend: {notes.steps[name]:,} steps", flush=True)
    _run(name, _with_steps(model, name, notes.steps[name]), out, out / name)


def _run(name: str, model: VPDD, out: Path, folder: Path) -> None:
    shown, cache = out / "data" / "demonstrations", out / "cache"
    # The demonstrations are video too: the first two stages see their frames, and no action.
    video = DataOptions(data=(out / "data" / "video", shown), domains=("simulated", "simulated"), cache=cache)
    if name == "tokenizer":
        run_tokenizer(video, model, folder, _SEED, False)
    elif name == "pretrain":
        run_pretrain(video, model, out / "tokenizer", folder, _SEED, False)
    else:
        demonstrations = DataOptions(data=(shown,), domains=("simulated",), cache=cache, validation=0.0)
        run_finetune(demonstrations, model, out / "pretrain", folder, _SEED, False)


def _stage(model: VPDD, name: str) -> Stage:
    return {"tokenizer": model.tokenizer_stage, "pretrain": model.pretrain_stage, "finetune": model.finetune_stage}[
        name
    ]


def _with_steps(model: VPDD, name: str, steps: int) -> VPDD:
    return replace(model, **{f"{name}_stage": replace(_stage(model, name), steps=steps)})


def _try_out(lane: Lane, out: Path) -> None:
    evaluate(
        out / "finetune", lane.tasks, lane.episodes, out / "rollouts.jsonl", lane.workers,
        device="cuda" if torch.cuda.is_available() else "cpu", world=lane.world, arm="mt50", seed=_SEED,
    )  # fmt: skip


def rows(lane: Lane, out: Path, notes: Notes) -> list[dict[str, Any]]:
    """Returns the report: a row a task, their mean, and a row a stage, as far as they have come."""
    results = read_log(out / "rollouts.jsonl")
    tried = {task: [result for result in results if result.task == task] for task in lane.tasks}
    tried = {task: mine for task, mine in tried.items() if mine}
    made = [_task_row(task, mine) for task, mine in tried.items()]
    if made:
        mean = mean_success([[[float(result.success) for result in mine] for mine in tried.values()]])
        counts = {"episodes": len(results), "successes": sum(result.success for result in results)}
        about = {"whole": len(results) == len(lane.tasks) * lane.episodes}
        made.append({"what": f"mean of {len(tried)} tasks", **counts, **_estimate(*mean), **about})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for name, seconds in notes.seconds.items():
        row = {"what": f"stage {name}", "done": name in notes.done, "seconds": seconds, "device": device}
        made.append(row | (_training(out / name) if name in _SHARES else {}))
    return made


def _task_row(task: str, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    successes = sum(result.success for result in results)
    counts = {"episodes": len(results), "successes": successes}
    return {"what": f"task {task}", **counts, **_estimate(*wilson(successes, len(results)))}


def _estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"success": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def _training(folder: Path) -> dict[str, Any]:
    row = _last_row(folder)
    losses = {name.split("/")[1]: value for name, value in row.items() if name.endswith("loss")}
    return {name: row[name] for name in ("step", "steps_per_second") if name in row} | losses


def _last_row(folder: Path) -> Mapping[str, Any]:
    """Returns the last row of a run's metrics; {} where there is none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(json.loads(lines[-1])) if lines else {}
