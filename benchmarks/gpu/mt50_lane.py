"""What ``mt50.py`` does between its first minute and its last: settings, stages, and the rows of its report."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from _stages import SEED, Lane, Notes, collect, rows

from ideomotor.envs import metaworld_tasks
from ideomotor.layers.conv import PixelStemConfig
from ideomotor.layers.transformer import TransformerConfig
from ideomotor.systems import vpdd
from ideomotor.systems.collection_worlds import WORLDS
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import VPDD, Stage
from ideomotor.systems.vpdd_shards import pack
from ideomotor.systems.vpdd_stages import evaluate, run_finetune, run_pretrain, run_tokenizer
from ideomotor.training.optim import OptimConfig

__all__ = ["Lane", "Notes", "full", "go_on", "mt50", "pack", "rows", "tiny"]

# What share of the time that is left until the end of training each stage may take. Steps mattered more than anything
# else for the policy (docs/log.md), so it gets most; its rest is for starting again at the next call.
_SHARES = {"tokenizer": 0.15, "pretrain": 0.3, "finetune": 0.85}


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


def full() -> Lane[VPDD]:
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


def tiny(world: Literal["metaworld", "toy"]) -> Lane[VPDD]:
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


def go_on(lane: Lane[VPDD], out: Path, notes: Notes, budget: float) -> None:
    """Does the stages that are not done yet, until the end or until stopped; training ends ``budget`` minutes after
    the first call began.
    """
    ends = notes.begun + 60 * budget
    training = {name: partial(_train, name, lane, out, notes, ends) for name in _SHARES}
    notes.do({"collect": lambda: collect(lane, out), **training, "evaluate": lambda: _try_out(lane, out)})


def _train(name: str, lane: Lane[VPDD], out: Path, notes: Notes, ends: float) -> None:
    """Trains one stage, for as many steps as the time left allows."""
    model = lane.model
    for earlier, steps in notes.steps.items():
        model = _with_steps(model, earlier, steps)

    def probe(steps: int) -> Path:
        _run(name, _with_steps(model, name, steps), out, folder := out / "speed" / name)
        return folder

    steps = notes.plan(name, _stage(model, name).steps, lambda: _SHARES[name] * (ends - time.time()), probe)
    _run(name, _with_steps(model, name, steps), out, out / name)


def _run(name: str, model: VPDD, out: Path, folder: Path) -> None:
    shown, cache = out / "data" / "demonstrations", out / "cache"
    # The demonstrations are video too: the first two stages see their frames, and no action.
    video = DataOptions(data=(out / "data" / "video", shown), domains=("simulated", "simulated"), cache=cache)
    if name == "tokenizer":
        run_tokenizer(video, model, folder, SEED, False)
    elif name == "pretrain":
        run_pretrain(video, model, out / "tokenizer", folder, SEED, False)
    else:
        demonstrations = DataOptions(data=(shown,), domains=("simulated",), cache=cache, validation=0.0)
        run_finetune(demonstrations, model, out / "pretrain", folder, SEED, False)


def _stage(model: VPDD, name: str) -> Stage:
    return {"tokenizer": model.tokenizer_stage, "pretrain": model.pretrain_stage, "finetune": model.finetune_stage}[
        name
    ]


def _with_steps(model: VPDD, name: str, steps: int) -> VPDD:
    return replace(model, **{f"{name}_stage": replace(_stage(model, name), steps=steps)})


def _try_out(lane: Lane[VPDD], out: Path) -> None:
    evaluate(
        out / "finetune", lane.tasks, lane.episodes, out / "rollouts.jsonl", lane.workers,
        device="cuda" if torch.cuda.is_available() else "cpu", world=lane.world, arm="mt50", seed=SEED,
    )  # fmt: skip
