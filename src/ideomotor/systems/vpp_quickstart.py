"""VPP from nothing in one command: video, a model that foretells it, its gate, a policy, its control, and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ideomotor.data.segments import SegmentWindow
from ideomotor.systems import quickstarts
from ideomotor.systems.collection import collect_with_progress
from ideomotor.systems.collection_worlds import WORLDS, world_config
from ideomotor.systems.held_out import held_out_clips
from ideomotor.systems.imagination import write_imagination
from ideomotor.systems.quickstart_report import stages_of
from ideomotor.systems.quickstarts import console, numbered, said
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import Stage
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_gate import gate
from ideomotor.systems.vpp_gate_scores import GateOptions
from ideomotor.systems.vpp_presets import looking_with
from ideomotor.systems.vpp_quickstart_report import ARMS, FULL_BUDGET, STAGES, VPPQuickstart, report_of, settings_of
from ideomotor.systems.vpp_stages import run_policy, run_vae, run_video
from ideomotor.systems.vpp_text import goal_encoder
from ideomotor.systems.vpp_trials import evaluate
from ideomotor.systems.vpp_videos import VideoModel
from ideomotor.training.config import config_to_json

BESIDE = ("control", "evaluate-control")


def quickstart(config: VPPQuickstart, out: Path, workers: int = 2) -> Path:
    """Does everything that is not done yet and returns the page's path. Killed at any point, the same call goes on.

    Raises:
        ValueError: ``out`` holds a quickstart of other settings, or no worker is to work.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; wanted at least 1")
    model = model_of(config)
    goal_encoder(model)
    for task in config.tasks:  # a mistyped one must not claim the folder
        world_config(config.world, {"cameras": (WORLDS[config.world].camera,), "size": model.size}, task)
    quickstarts.claim(out, {"quickstart": config_to_json(config), "model": config_to_json(model)})
    with said(out, "collect", STAGES, config.seed) as run:
        if not run.finished:
            n, size = config.demonstrations, model.size
            collect_with_progress(
                quickstarts.collection_of(out, config.world, config.tasks, n, size, config.seed, workers)
            )
    try:
        with quickstarts.threads(1), _beside(out, workers) as check:
            foreseeing_arm(config, model, out, workers, check)
    except RuntimeError:
        report_of(out)  # what there is; the page says what is missing
        raise
    return report_of(out)


def foreseeing_arm(config: VPPQuickstart, model: VPP, out: Path, workers: int, check: Callable[[], None]) -> None:
    """Autoencoder and video model on the video without actions, the gate, the policy on demonstrations, roll-outs.

    After each stage ``check`` may put an end to it.
    """
    films, shown = video(out), demonstrations(out)
    for name, work in (
        ("vae", lambda folder: run_vae(films, model, folder, config.seed, False)),
        ("video", lambda folder: run_video(films, model, out / "vae", folder, config.seed, False)),
    ):
        _say(out, name)
        work(out / name)
        check()
    with said(out, "gate", STAGES, config.seed) as run:
        if not run.finished:
            look_at_video(config, model, out / "video", run.dir)
    check()
    _say(out, "policy")
    run_policy(shown, model, out / "video", out / "policy", config.seed, False)
    check()
    with said(out, "evaluate", STAGES, config.seed) as run:
        if not run.finished:
            _try_out(config, out, "pretrained", workers)


def control_arm(out: Path, workers: int) -> None:
    """The same head on a CNN of the newest frame, and its roll-outs; settings are those noted in ``out``."""
    config, model = settings_of(out)
    with quickstarts.threads(1):
        _say(out, "control")
        run_policy(demonstrations(out), looking_with(model, "pixels"), None, out / "control", config.seed, False)
        with said(out, "evaluate-control", STAGES, config.seed) as run:
            if not run.finished:
                _try_out(config, out, "control", workers)


def look_at_video(config: VPPQuickstart, model: VPP, stage: Path, out: Path) -> None:
    """Puts stage 1 through its gate, and sets one sampled future beside the truth of the same held-out clips."""
    options = GateOptions(
        clips=config.clips, noises=1, samples=config.samples, steps=config.sampling_steps, seed=config.seed
    )
    gate(stage, (), out, options)
    foretelling = VideoModel.load(stage)
    window = SegmentWindow(frames=model.window.frames, context=1, stride=model.window.stride)
    clips = held_out_clips(stage, (), window, model.size, config.clips)
    noise = torch.stack([foretelling.noise(config.seed, "future", 0, name) for name in clips.names])
    parts = zip(clips.frames[:, 0].split(8), noise.split(8), range(0, len(noise), 8), strict=True)
    futures = [foretelling.foretell(seen, clips.texts[at : at + 8], drawn, options.steps) for seen, drawn, at in parts]
    write_imagination(out, clips.frames, torch.cat(futures), clips.texts, clips.names, 6, {"steps": options.steps})


def model_of(config: VPPQuickstart) -> VPP:
    """Returns the preset for this robot, its stages scaled to the budget (in steps, so that kills change nothing)."""
    model = config.form()

    def scaled(part: Stage) -> Stage:
        share = config.budget_minutes / FULL_BUDGET
        optim = replace(part.optim, warmup=round(part.optim.warmup * min(1.0, share)))
        return replace(part, steps=max(4, round(part.steps * share)), optim=optim)

    return replace(
        model,
        policy=replace(model.policy, action_width=len(WORLDS[config.world].actions)),
        video_stage=scaled(model.video_stage),
        policy_stage=scaled(model.policy_stage),
    )


def video(out: Path) -> DataOptions:
    """Returns the collected video without actions; a tenth of the episodes is held out."""
    return DataOptions(data=(out / "data" / "video",), domains=("simulated",), cache=out / "cache", validation=0.1)


def demonstrations(out: Path) -> DataOptions:
    """Returns the collected demonstrations, all of them: the trial is the simulator, on goals that none of them has."""
    return DataOptions(
        data=(out / "data" / "demonstrations",), domains=("simulated",), cache=out / "cache", validation=0.0
    )


def _try_out(config: VPPQuickstart, out: Path, arm: str, workers: int) -> None:
    """Evaluates one arm; two episodes a task are filmed."""
    evaluate(
        out / ARMS[arm],
        config.tasks,
        config.episodes,
        out / f"rollouts-{arm}.jsonl",
        workers,
        world=config.world,
        arm=arm,
        seed=config.seed,
        films=out / "films" / arm,
    )


def _say(out: Path, name: str) -> None:
    done = (out / name / "done.json").is_file()
    console.print(numbered(name, STAGES) + (": done already" if done else ""), markup=False)


@contextmanager
def _beside(out: Path, workers: int) -> Iterator[Callable[[], None]]:
    """While the body runs, a process of its own does the control's stages; see ``quickstarts.beside``."""
    if all((out / name / "done.json").is_file() for name in BESIDE):
        for name in BESIDE:
            _say(out, name)
        yield lambda: None
        return
    log = out / "control.log"
    console.print(f"{numbered('control', STAGES)}: runs beside the other stages; its log is {log}", markup=False)
    arguments = (str(out), str(workers))
    with quickstarts.beside("ideomotor.systems.vpp_quickstart", arguments, log, "the control") as check:
        yield check
    for stage in stages_of(out, BESIDE):
        console.print(f"{numbered(stage.name, STAGES)}: {stage.seconds:.0f} s", markup=False)


if __name__ == "__main__":  # the process of ``beside``
    quickstarts.main(lambda out, workers: control_arm(Path(out), int(workers)))
