"""The whole way in one command: from video without actions to a policy in a simulator, its control, and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ideomotor.data.formats import open_dataset
from ideomotor.systems import quickstarts
from ideomotor.systems.collection import collect_with_progress
from ideomotor.systems.collection_worlds import WORLDS, world_config
from ideomotor.systems.imagination import imagine_held_out
from ideomotor.systems.quickstart_report import (
    ARMS,
    FULL_BUDGET,
    STAGES,
    QuickstartConfig,
    report_of,
    stages_of,
)
from ideomotor.systems.sources import DataOptions, Sources, TrainingClips, open_sources, tokenized
from ideomotor.systems.vpdd import VPDD, Stage
from ideomotor.systems.vpdd_stages import (
    evaluate,
    finetune,
    load_models,
    open_run,
    pretrain,
    text_encoder,
    tokenizer_of,
    train_tokenizer,
)
from ideomotor.training.checkpoint import read_json
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.run import Run

console = Console(soft_wrap=True)


def quickstart(config: QuickstartConfig, model: VPDD, out: Path, workers: int = 2) -> Path:
    """Does everything that is not done yet and returns the page's path. Killed at any point, the same call goes on.

    Raises:
        ValueError: ``out`` holds a quickstart of other settings.
    """
    model = within_budget(model, config.budget_minutes)
    model = replace(model, policy=replace(model.policy, action_width=len(WORLDS[config.world].actions)))
    collection = quickstarts.collection_of(
        out, config.world, config.tasks, config.demonstrations, model.size, config.seed, workers
    )
    claim(config, model, out, look(config, model))
    with stage(out, "collect", config.seed) as run:
        if not run.finished:
            collect_with_progress(collection)
    for name in ("demonstrations", "video"):
        if not (out / "data" / name).is_dir():
            raise ValueError(f"{out / 'data' / name} is gone: remove {out / 'collect'} too, and it is collected again")
    try:
        with quickstarts.threads(1), beside(out, workers) as check:
            pretrained_arm(config, model, out, workers, check)
    except RuntimeError:
        report_of(out)  # what there is; the page says what is missing
        raise
    return report_of(out)


def look(config: QuickstartConfig, model: VPDD) -> str:
    """Looks at tasks, text encoder and videos first: what is mistyped or missing must not claim the folder of a run.

    Returns the fingerprint of the videos, "" without any.
    """
    text_encoder(model)
    for task in config.tasks:
        world_config(config.world, {"cameras": (WORLDS[config.world].camera,), "size": model.size}, task)
    if config.videos is None:
        return ""
    videos = open_dataset(config.videos)
    if len(videos.episodes) < 2:
        raise ValueError(f"{config.videos} holds one readable video; wanted 2 or more, since a tenth is held out")
    return videos.fingerprint


def pretrained_arm(config: QuickstartConfig, model: VPDD, out: Path, workers: int, check: Callable[[], None]) -> None:
    """Tokenizer, pre-training on the actionless video, fine-tuning on the demonstrations, roll-outs, imagination.

    After each stage ``check`` may put an end to it.
    """
    videos = (out / "data" / "video", *([config.videos] if config.videos else []))
    domains = ("simulated", *(["unknown"] if config.videos else []))
    video = DataOptions(data=videos, domains=domains, cache=out / "cache")
    with stage(out, "tokenizer", config.seed, model) as run:
        if not run.finished:
            sources = open_sources(video, model, model.tokenizer_stage)
            sources.note(run.dir)
            train_tokenizer(model, TrainingClips(sources.train, sources.validation), run)
    check()
    tokenizer = tokenizer_of(load_models(out / "tokenizer"), out / "tokenizer")
    with stage(out, "pretrain", config.seed, model) as run:
        if not run.finished:
            sources = open_sources(video, model, model.pretrain_stage)
            sources.note(run.dir)
            tokenizer.to(run.device)
            pretrain(
                model,
                tokenized(
                    sources.train, tokenizer, model, video.cache, with_frames=False, validation=sources.validation
                ),
                tokenizer,
                run,
            )
    check()
    predictor = load_models(out / "pretrain").predictor
    with stage(out, "finetune", config.seed, model) as run:
        if not run.finished:
            shown = demonstrations(out, model)
            shown.note(run.dir)
            tokenizer.to(run.device)
            finetune(
                model,
                tokenized(shown.train, tokenizer, model, video.cache, actions=True, validation=shown.validation),
                tokenizer,
                predictor,
                run,
            )
    check()
    with stage(out, "evaluate", config.seed) as run:
        if not run.finished:
            try_out(config, out, "pretrained", workers)
    with stage(out, "imagine", config.seed) as run:
        if not run.finished:
            held_out = open_sources(video, model, model.pretrain_stage).validation
            imagine_held_out(load_models(out / "pretrain"), held_out, run.dir)


def control_arm(out: Path, workers: int) -> None:
    """The same fine-tuning without pre-training, and its roll-outs; settings are those noted in ``out``."""
    then = read_json(out / "quickstart.json")
    config = config_from_json(QuickstartConfig, then["quickstart"])
    model = without_foresight(config_from_json(VPDD, then["model"]))
    with quickstarts.threads(1):
        with stage(out, "control", config.seed, model) as run:
            if not run.finished:
                shown = demonstrations(out, model)
                shown.note(run.dir)
                finetune(model, TrainingClips(shown.train, actions=True), None, None, run)
        with stage(out, "evaluate-control", config.seed) as run:
            if not run.finished:
                try_out(config, out, "control", workers)


def demonstrations(out: Path, model: VPDD) -> Sources:
    """Returns the collected demonstrations, all of them: the trial is the simulator, on goals that none of them has."""
    options = DataOptions(
        data=(out / "data" / "demonstrations",), domains=("simulated",), cache=out / "cache", validation=0.0
    )
    return open_sources(options, model, model.finetune_stage, actions=True)


@contextmanager
def beside(out: Path, workers: int) -> Iterator[Callable[[], None]]:
    """While the body runs, a process of its own does the control's stages; see ``quickstarts.beside``."""
    names = ("control", "evaluate-control")
    if all((out / name / "done.json").is_file() for name in names):
        for name in names:
            console.print(f"{_numbered(name)}: done already", markup=False)
        yield lambda: None
        return
    log = out / "control.log"
    console.print(f"{_numbered('control')}: runs beside the other stages; its log is {log}", markup=False)
    with quickstarts.beside("ideomotor.systems.quickstart", (str(out), str(workers)), log, "the control") as check:
        yield check
    for stage in stages_of(out):
        if stage.name in names:
            console.print(f"{_numbered(stage.name)}: {stage.seconds:.0f} s", markup=False)


def _numbered(name: str) -> str:
    return f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name}"


@contextmanager
def stage(out: Path, name: str, seed: int, config: VPDD | None = None) -> Iterator[Run]:
    """Opens a stage's run, says on screen that it begins, goes on, or is done already, and what it took."""
    run = Run(out / name, seed=seed) if config is None else open_run(out / name, config, seed)
    skipped = run.finished
    console.print(_numbered(name) + (": done already" if skipped else ""), markup=False)
    with run:
        yield run
    if not skipped:
        console.print(f"{_numbered(name)}: {run.seconds:.0f} s", markup=False)


def within_budget(model: VPDD, minutes: float) -> VPDD:
    """Returns the model with its stages' steps scaled to the budget.

    Steps, not time, are what a budget fixes: a killed run then ends at the very weights of one that was not.
    """

    def scaled(part: Stage) -> Stage:
        share = minutes / FULL_BUDGET
        optim = replace(part.optim, warmup=round(part.optim.warmup * min(1.0, share)))
        return replace(part, steps=max(10, round(part.steps * share)), optim=optim)

    return replace(
        model,
        tokenizer_stage=scaled(model.tokenizer_stage),
        pretrain_stage=scaled(model.pretrain_stage),
        finetune_stage=scaled(model.finetune_stage),
    )


def without_foresight(model: VPDD) -> VPDD:
    """Returns the control's model: the same policy and fine-tuning, with pixels and text only."""
    return replace(model, policy=replace(model.policy, features=(0, 0)))


def claim(config: QuickstartConfig, model: VPDD, out: Path, videos: str) -> None:
    """Notes the settings and the fingerprint of the videos in ``out``, or checks that they are those noted.

    Raises:
        ValueError: ``out`` was begun with other settings or videos.
    """
    noted = {"quickstart": config_to_json(config), "model": config_to_json(model), "videos": {"fingerprint": videos}}
    quickstarts.claim(out, noted)


def try_out(config: QuickstartConfig, out: Path, arm: str, workers: int) -> None:
    """Evaluates one arm; two episodes a task are filmed."""
    films = out / "films" / arm
    evaluate(
        out / ARMS[arm],
        config.tasks,
        config.episodes,
        out / f"rollouts-{arm}.jsonl",
        workers,
        world=config.world,
        arm=arm,
        seed=config.seed,
        films=films,
    )


if __name__ == "__main__":  # the process of ``beside``
    quickstarts.main(lambda out, workers: control_arm(Path(out), int(workers)))
