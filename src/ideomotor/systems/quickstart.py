"""The whole way in one command: from video without actions to a policy in a simulator, its control, and a page."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from ideomotor.evaluation import report
from ideomotor.evaluation.episodes import EpisodeResult, read_log
from ideomotor.systems.collection import CollectionConfig, collect_with_progress
from ideomotor.systems.collection_worlds import WORLDS
from ideomotor.systems.imagination import imagine_held_out
from ideomotor.systems.sources import DataOptions, TrainingClips, open_sources, tokenized
from ideomotor.systems.vpdd import VPDD, Stage
from ideomotor.systems.vpdd_stages import (
    evaluate,
    finetune,
    load_models,
    open_run,
    pretrain,
    tokenizer_of,
    train_tokenizer,
)
from ideomotor.training.checkpoint import write_json
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.run import Run

FULL_BUDGET = 25.0  # minutes that the preset's steps are meant for, on two idle cores
METAWORLD = {
    "simulator": "Meta-World v3",
    "camera": "corner2, the middle 260 of 480 px",
    "observations": "images and the instruction; no state",
    "episode": "at most 200 steps; success at any step",
}
DEFAULT_TASKS = {
    "metaworld": ("button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide"),
    "toy": ("red", "green", "blue"),
}
ARMS = {"pretrained": "finetune", "control": "control"}
STAGES = ("collect", "tokenizer", "pretrain", "finetune", "evaluate", "control", "evaluate-control", "imagine")

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """What is to be tried; see ``ideomotor quickstart --help``."""

    world: Literal["metaworld", "toy"] = "metaworld"
    tasks: tuple[str, ...] = DEFAULT_TASKS["metaworld"]
    budget_minutes: float = FULL_BUDGET
    videos: Path | None = None
    demonstrations: int = 20
    episodes: int = 20
    seed: int = 0
    preset: str = "fast"

    def __post_init__(self) -> None:
        if self.budget_minutes <= 0:
            raise ValueError(f"budget_minutes is {self.budget_minutes}; wanted a number above 0")
        if not 1 <= self.episodes <= 20:
            raise ValueError(f"episodes is {self.episodes}; a task has 20 held-out goals: take 1 to 20")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks are {self.tasks}; wanted one or more, each once")


def quickstart(config: QuickstartConfig, model: VPDD, out: Path, workers: int = 2) -> Path:
    """Does everything that is not done yet and returns the page's path. Killed at any point, the same call goes on.

    Raises:
        ValueError: ``out`` holds a quickstart of other settings.
    """
    model = within_budget(model, config.budget_minutes)
    model = replace(model, policy=replace(model.policy, action_width=len(WORLDS[config.world].actions)))
    claim(config, model, out)
    cache = out / "cache"
    with stage(out, "collect", config.seed) as run:
        if not run.finished:
            # As many expert as other videos, and twice as much video without actions as with.
            n = config.demonstrations
            collect_with_progress(
                CollectionConfig(
                    out=out / "data",
                    world=config.world,
                    tasks=config.tasks,
                    demonstrations=n,
                    expert=n,
                    noisy=(3 * n) // 5,
                    failed=n - (3 * n) // 5,
                    size=model.size,
                    seed=config.seed,
                    workers=workers,
                )
            )
    video = DataOptions(data=(out / "data" / "video", *([config.videos] if config.videos else [])), cache=cache)
    demonstrations = DataOptions(data=(out / "data" / "demonstrations",), cache=cache, validation=0.0)
    with stage(out, "tokenizer", config.seed, model) as run:
        if not run.finished:
            train_tokenizer(model, TrainingClips(open_sources(video, model, model.tokenizer_stage).train), run)
    tokenizer = tokenizer_of(load_models(out / "tokenizer"), out / "tokenizer")
    with stage(out, "pretrain", config.seed, model) as run:
        if not run.finished:
            seen = open_sources(video, model, model.pretrain_stage).train
            pretrain(model, tokenized(seen, tokenizer, model, cache, with_frames=False), tokenizer, run)
    predictor = load_models(out / "pretrain").predictor
    with stage(out, "finetune", config.seed, model) as run:
        if not run.finished:
            shown = open_sources(demonstrations, model, model.finetune_stage, actions=True).train
            finetune(model, tokenized(shown, tokenizer, model, cache, actions=True), tokenizer, predictor, run)
    with stage(out, "evaluate", config.seed) as run:
        if not run.finished:
            try_out(config, out, "pretrained", workers)
    plain = without_foresight(model)
    with stage(out, "control", config.seed, plain) as run:
        if not run.finished:
            shown = open_sources(demonstrations, plain, plain.finetune_stage, actions=True).train
            finetune(plain, TrainingClips(shown, actions=True), None, None, run)
    with stage(out, "evaluate-control", config.seed) as run:
        if not run.finished:
            try_out(config, out, "control", workers)
    with stage(out, "imagine", config.seed) as run:
        if not run.finished:
            held_out = open_sources(video, model, model.pretrain_stage).validation
            imagine_held_out(load_models(out / "pretrain"), held_out, run.dir)
    return report_of(out)


@contextmanager
def stage(out: Path, name: str, seed: int, config: VPDD | None = None) -> Iterator[Run]:
    """Opens a stage's run, says on screen that it begins, goes on, or is done already, and what it took."""
    run = Run(out / name, seed=seed) if config is None else open_run(out / name, config, seed)
    number = f"[{STAGES.index(name) + 1}/{len(STAGES)}]"
    skipped = run.finished
    console.print(f"{number} {name}" + (": done already" if skipped else ""), markup=False)
    with run:
        yield run
    if not skipped:
        console.print(f"{number} {name}: {run.seconds:.0f} s", markup=False)


def within_budget(model: VPDD, minutes: float) -> VPDD:
    """Returns the model with its stages' steps scaled to the budget.

    Steps, not time, are what a budget fixes: a killed run then ends at the very weights of one that was not.
    """

    def scaled(part: Stage) -> Stage:
        return replace(part, steps=max(10, round(part.steps * minutes / FULL_BUDGET)))

    return replace(
        model,
        tokenizer_stage=scaled(model.tokenizer_stage),
        pretrain_stage=scaled(model.pretrain_stage),
        finetune_stage=scaled(model.finetune_stage),
    )


def without_foresight(model: VPDD) -> VPDD:
    """Returns the control's model: the same policy and fine-tuning, with pixels and text only."""
    return replace(model, policy=replace(model.policy, features=(0, 0)))


def claim(config: QuickstartConfig, model: VPDD, out: Path) -> None:
    """Notes the settings in ``out``, or checks that they are those noted.

    Raises:
        ValueError: ``out`` was begun with other settings.
    """
    path, now = out / "quickstart.json", {"quickstart": config_to_json(config), "model": config_to_json(model)}
    if path.is_file():
        then = json.loads(path.read_text())
        changed = [name for name in ("quickstart", "model") for name in _changed(then.get(name, {}), now[name], name)]
        if changed:
            raise ValueError(
                f"{out} holds a quickstart of other settings ({'; '.join(changed[:5])}): give the same ones, or "
                "another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    return [
        f"{where}.{key}: {then.get(key)} -> {now.get(key)}" for key in {**then, **now} if then.get(key) != now.get(key)
    ]


def try_out(config: QuickstartConfig, out: Path, arm: str, workers: int) -> None:
    """Evaluates one arm; two episodes a task are filmed."""
    films = out / "films" / arm
    evaluate(
        out / ARMS[arm],
        config.tasks,
        config.episodes,
        out / "rollouts.jsonl",
        workers,
        world=config.world,
        arm=arm,
        seed=config.seed,
        films=films,
    )


def report_of(out: Path) -> Path:
    """Writes report.html and report.json from what the run holds so far and returns the page's path.

    Raises:
        ValueError: ``out`` is no quickstart.
    """
    path = out / "quickstart.json"
    if not path.is_file():
        raise ValueError(
            f"{out} holds no quickstart (quickstart.json): give the --out folder of `ideomotor quickstart`"
        )
    then = json.loads(path.read_text())
    config = config_from_json(QuickstartConfig, then["quickstart"])
    rows = read_log(out / "rollouts.jsonl")
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in ARMS}
    filled = {arm: results for arm, results in by_arm.items() if results}
    data = report.ReportData(
        title="ideomotor quickstart",
        subtitle="From video without actions to a policy acting in a simulator",
        command=_command(config, out),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        protocol=_protocol(config, rows),
        arms={arm: report.summarize(results, config.tasks) for arm, results in filled.items()},
        comparison=report.compare(by_arm["pretrained"], by_arm["control"]),
        imagination=_imagination(out / "imagine"),
        rollouts=_films(out / "films", filled),
        curves=_curves(out),
        stages=_stages(out),
        settings=then["model"],
        environment=_environment(),
    )
    return report.write_report(out, data)


def _command(config: QuickstartConfig, out: Path) -> str:
    plain = QuickstartConfig()
    words = ["ideomotor quickstart", f"--out {out}"]
    if config.tasks != DEFAULT_TASKS[config.world]:
        words.append("--tasks " + " ".join(config.tasks))
    for name in ("world", "budget_minutes", "videos", "demonstrations", "episodes", "seed", "preset"):
        if getattr(config, name) != getattr(plain, name):
            words.append(f"--{name.replace('_', '-')} {getattr(config, name)}")
    return " ".join(words)


def _protocol(config: QuickstartConfig, rows: Sequence[EpisodeResult]) -> dict[str, Any]:
    n = config.demonstrations
    pretraining = f"{2 * n} episodes a task without actions: expert, noisy and failed" + (
        f", and the videos of {config.videos}" if config.videos else ""
    )
    protocol: dict[str, Any] = {
        **(METAWORLD if config.world == "metaworld" else {"simulator": config.world}),
        "goals": "randomized; training goals 0-29, evaluation goals 30-49, disjoint",
        "pre-training": pretraining,
        "fine-tuning": f"{n} expert demonstrations a task",
        "control": "the same fine-tuning without pre-training: the same policy, pixels and text only",
        "evaluation": f"{config.episodes} episodes a task, both arms on the same goals",
        "training seeds": [config.seed],
    }
    if rows:
        steps = sum(row.steps for row in rows)
        protocol["CPU-ms of the policy per environment step"] = round(
            1000 * sum(row.inference_cpu_seconds for row in rows) / steps, 2
        )
    return protocol


def _stages(out: Path) -> list[report.Stage]:
    rows = []
    for name in STAGES:
        done = out / name / "done.json"
        if done.is_file():
            facts = json.loads(done.read_text())
            steps = f"{facts['steps']} steps" if facts["steps"] else ""
            rows.append(
                report.Stage(name=name, seconds=facts["seconds"], peak_rss_bytes=facts["peak_rss_bytes"], note=steps)
            )
    return rows


def _curves(out: Path) -> list[report.Curve]:
    curves = []
    for name in ("tokenizer", "pretrain", "finetune", "control"):
        log = out / name / "metrics.jsonl"
        rows = (
            [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.is_file() else []
        )
        for key in sorted({key for row in rows for key in row if key.endswith("/loss")}):
            points = [(row["step"], row[key]) for row in rows if key in row]
            steps, values = zip(*points, strict=True)
            curves.append(report.Curve(stage=name, name=key.split("/")[-1], steps=steps, values=values))
    return curves


def _films(folder: Path, arms: Mapping[str, Sequence[EpisodeResult]]) -> list[report.RolloutVideo]:
    shown = []
    for arm, results in arms.items():
        for result in results:
            film = folder / arm / f"{result.task}-{result.goal}.mp4"
            if film.is_file():
                shown.append(report.RolloutVideo(result=result, video=film.read_bytes()))
    return shown


def _imagination(folder: Path) -> report.Imagination | None:
    summary = folder / "imagination.json"
    if not summary.is_file():
        return None
    facts = json.loads(summary.read_text())
    clips = [
        report.ImaginedClip(
            text=clip["text"],
            source=clip["source"],
            moving_psnr=clip["moving_psnr"],
            repeat_last_moving_psnr=clip["repeat_last_moving_psnr"],
            **{
                part: (folder / f"{clip['file']}-{part}.mp4").read_bytes()
                for part in ("context", "truth", "imagination")
            },
        )
        for clip in facts["clips"]
    ]
    return report.Imagination(
        moving_psnr=facts["moving_psnr"],
        repeat_last_moving_psnr=facts["repeat_last_moving_psnr"],
        num_clips=facts["num_clips"],
        clips=clips,
    )


def _environment() -> dict[str, str]:
    versions = {
        name: metadata.version(name) for name in ("ideomotor", "torch", "metaworld", "mujoco") if _installed(name)
    }
    return {
        **versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
