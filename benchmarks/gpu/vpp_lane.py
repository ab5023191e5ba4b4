"""What ``vpp.py`` trains: a VPP that half an hour of one GPU can bring up from nothing, on all tasks of Meta-World."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from _stages import SEED, Lane, Notes, collect, rows

from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.envs import metaworld_tasks
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.video_former import VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformerConfig
from ideomotor.systems.collection_worlds import WORLDS
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import Stage
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.systems.vpp_shards import pack
from ideomotor.systems.vpp_stages import run_policy, run_vae, run_video
from ideomotor.systems.vpp_trials import evaluate
from ideomotor.training.optim import OptimConfig

__all__ = ["Lane", "Notes", "full", "go_on", "model", "pack", "rows", "tiny"]

# What share of the time that is left until the end of training each stage may take.
_SHARES = {"vae": 0.1, "video": 0.45, "policy": 0.85}


def model() -> VPP:
    """Returns the preset ``cpu``, wider, in batches for a GPU: below 30 M weights, 60 MB in bf16."""
    cpu = PRESETS["cpu"]()
    optim = OptimConfig(lr=5e-4, warmup=200, weight_decay=0.01, ema=0.999, bf16=True)
    return replace(
        cpu,
        text="hashed",  # 50 known sentences need only be told apart; the encoder's 84 MB can stay at home
        cache_features=False,  # 1 MB a window: 100 GB for these data; a GPU looks anew in milliseconds
        save_every=5000,  # the clock saves the state too, and the end of a call
        video=replace(cpu.video, unet=replace(cpu.video.unet, widths=(96, 160, 160), heads=(3, 5, 5))),
        former=VideoFormerConfig(
            feature_width=256, width=256, frames=cpu.window.frames, queries=8, layers=3, heads=4, head_width=64
        ),
        policy=EDMTransformerConfig(
            action_width=4, chunk=cpu.window.chunk, feature_width=256, goal_width=384,
            trunk=EncoderDecoderConfig(width=256, encoder_layers=2, decoder_layers=3, heads=4, attention_dropout=0.1),
            sampling=Sampling(steps=8, sigma_min=0.02),
        ),
        video_stage=Stage(steps=20_000, batch=64, every=2, optim=optim),
        policy_stage=Stage(steps=20_000, batch=128, optim=replace(optim, weight_decay=0.05)),
    )  # fmt: skip


def full() -> Lane[VPP]:
    """Returns the lane for the GPU; its data are those of ``mt50.py``."""
    return Lane(
        model=model(), world="metaworld", tasks=metaworld_tasks.TASKS, demonstrations=20, expert=10, noisy=6, failed=4,
        episodes=10, workers=len(os.sched_getaffinity(0)),
    )  # fmt: skip


def tiny(world: Literal["metaworld", "toy"]) -> Lane[VPP]:
    """Returns the same in small: two tasks, the preset ``tiny``."""
    small, width = PRESETS["tiny"](), len(WORLDS[world].actions)
    return Lane(
        model=replace(small, policy=replace(small.policy, action_width=width)),
        world=world, tasks=("door-close", "handle-press") if world == "metaworld" else ("red", "green"),
        demonstrations=2, expert=1, noisy=1, failed=1, episodes=1, workers=2,
    )  # fmt: skip


def go_on(lane: Lane[VPP], out: Path, notes: Notes, budget: float) -> None:
    """Does the stages that are not done yet, until the end or until stopped; training ends ``budget`` minutes after
    the first call began.
    """
    ends = notes.begun + 60 * budget
    training = {name: partial(_train, name, lane, out, notes, ends) for name in _SHARES}
    notes.do({"collect": lambda: collect(lane, out), **training, "evaluate": lambda: _try_out(lane, out)})


def _train(name: str, lane: Lane[VPP], out: Path, notes: Notes, ends: float) -> None:
    """Trains one stage, for as many steps as the time left allows."""
    config = lane.model
    for earlier, steps in notes.steps.items():
        config = _with_steps(config, earlier, steps)

    def probe(steps: int) -> Path:
        _run(name, _with_steps(config, name, steps), out, folder := out / "speed" / name)
        return folder

    most = {"vae": config.vae_stage, "video": config.video_stage, "policy": config.policy_stage}[name].steps
    steps = notes.plan(name, most, lambda: _SHARES[name] * (ends - time.time()), probe)
    _run(name, _with_steps(config, name, steps), out, out / name)


def _run(name: str, config: VPP, out: Path, folder: Path) -> None:
    shown, cache = out / "data" / "demonstrations", out / "cache"
    # The demonstrations are video too: the first two stages see their frames, and no action.
    video = DataOptions(data=(out / "data" / "video", shown), cache=cache)
    if name == "vae":
        run_vae(video, config, folder, SEED, False)
    elif name == "video":
        run_video(video, config, out / "vae", folder, SEED, False)
    else:
        run_policy(DataOptions(data=(shown,), cache=cache, validation=0.0), config, out / "video", folder, SEED, False)


def _with_steps(config: VPP, name: str, steps: int) -> VPP:
    if name == "vae":
        return replace(config, vae_stage=replace(config.vae_stage, steps=steps))
    if name == "video":
        return replace(config, video_stage=replace(config.video_stage, steps=steps))
    return replace(config, policy_stage=replace(config.policy_stage, steps=steps))


def _try_out(lane: Lane[VPP], out: Path) -> None:
    evaluate(
        out / "policy", lane.tasks, lane.episodes, out / "rollouts.jsonl", lane.workers,
        device="cuda" if torch.cuda.is_available() else "cpu", world=lane.world, arm="vpp", seed=SEED,
    )  # fmt: skip
