"""What a quickstart run holds, as a page and as figures; its settings stand here, since both sides read them."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ideomotor.evaluation import report
from ideomotor.evaluation.dial import MEANINGS, DialPoint, dial_point
from ideomotor.evaluation.episodes import EpisodeResult, read_log
from ideomotor.systems.quickstarts import command_line
from ideomotor.systems.sources import read_facts
from ideomotor.training.checkpoint import read_json
from ideomotor.training.config import config_from_json

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
STAGES = ("collect", "tokenizer", "pretrain", "finetune", "evaluate", "imagine", "control", "evaluate-control")


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
        if not 0 < self.budget_minutes < math.inf:
            raise ValueError(f"budget_minutes is {self.budget_minutes}; wanted a number above 0")
        if not 1 <= self.episodes <= 20:
            raise ValueError(f"episodes is {self.episodes}; a task has 20 held-out goals: take 1 to 20")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks are {self.tasks}; wanted one or more, each once")


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
    with readable(path):
        then = read_json(path)
        config, settings = config_from_json(QuickstartConfig, then["quickstart"]), dict(then["model"])
    by_arm = {arm: read_log(out / f"rollouts-{arm}.jsonl") for arm in ARMS}
    rows = [row for arm in by_arm.values() for row in arm]
    filled = {arm: results for arm, results in by_arm.items() if results}
    data = report.ReportData(
        title="ideomotor quickstart",
        subtitle="From video without actions to a policy acting in a simulator",
        command=command_line("quickstart", out, config, QuickstartConfig(tasks=DEFAULT_TASKS[config.world])),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        protocol=_protocol(config, rows, out),
        arms={arm: report.summarize(results, config.tasks) for arm, results in filled.items()},
        comparison=report.compare(by_arm["pretrained"], by_arm["control"]),
        imagination=imagination_of(out / "imagine"),
        dial=_dial(out, config.tasks),
        rollouts=films_of(out / "films", filled),
        curves=curves_of(out, ("tokenizer", "pretrain", "finetune", "control")),
        stages=stages_of(out),
        settings=settings,
        environment=environment(),
    )
    return report.write_report(out, data)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside, a file of a run is read; damage of any kind becomes an error that names the file and the way out."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it was damaged or edited. Put it back, or "
            "remove it and run the quickstart again"
        ) from error


def _protocol(config: QuickstartConfig, rows: Sequence[EpisodeResult], out: Path) -> dict[str, Any]:
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
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        cpu = 1000 * sum(row.inference_cpu_seconds for row in mine) / max(1, sum(row.steps for row in mine))
        protocol[f"CPU-ms of the policy per environment step, {arm}"] = round(cpu, 2)
    lost = [entry for facts in read_facts(out / "tokenizer") for entry in facts.left_out]
    left_out = [f"{entry['path']}: {entry['reason']}" for entry in lost]
    if left_out:
        more = f"; and {len(left_out) - 20} more" if len(left_out) > 20 else ""
        protocol[f"left out ({len(left_out)} recordings)"] = "; ".join(left_out[:20]) + more
    return protocol


def stages_of(out: Path, names: Sequence[str] = STAGES) -> list[report.Stage]:
    """Returns what each finished stage cost."""
    rows = []
    for name in names:
        done = out / name / "done.json"
        if done.is_file():
            with readable(done):
                facts = read_json(done)
                steps = f"{facts['steps']} steps" if facts["steps"] else ""
                rows.append(
                    report.Stage(
                        name=name,
                        seconds=float(facts["seconds"]),
                        peak_rss_bytes=int(facts["peak_rss_bytes"]),
                        note=steps,
                        beside="control" in name,
                    )
                )
    return rows


def curves_of(out: Path, names: Sequence[str]) -> list[report.Curve]:
    """Returns what the stages of these names logged while they trained."""
    curves = []
    for name in names:
        log = out / name / "metrics.jsonl"
        if not log.is_file():
            continue
        with readable(log):
            rows = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
            for key in sorted({key for row in rows for key in row if key.endswith("loss")}):
                points = [(row["step"], row[key]) for row in rows if key in row]
                steps, values = zip(*points, strict=True)
                label = key.split("/")[-1].replace("_", " ")
                curves.append(report.Curve(stage=name, name=label, steps=steps, values=values))
    return curves


def films_of(folder: Path, arms: Mapping[str, Sequence[EpisodeResult]]) -> list[report.RolloutVideo]:
    """Returns the filmed episodes of each arm."""
    shown = []
    for arm, results in arms.items():
        for result in results:
            film = folder / arm / f"{result.task}-{result.goal}.mp4"
            if film.is_file():
                shown.append(report.RolloutVideo(result=result, video=film.read_bytes()))
    return shown


def _dial(out: Path, tasks: Sequence[str]) -> list[DialPoint]:
    """Returns a point for each setting that was tried into ``rollouts-dial-*.jsonl``, the cheapest first.

    What a file's last row was tried with counts: its arm is a policy's fingerprint and the dial, and a policy of
    earlier may stand before it. The quickstart's own roll-outs are the setting "features", unless that was tried anew.
    """
    tried: dict[str, list[EpisodeResult]] = {}
    for path in sorted(out.glob("rollouts-dial-*.jsonl")):
        if rows := read_log(path):
            arm = rows[-1].arm
            tried[arm.partition("-")[2] or "features"] = [row for row in rows if row.arm == arm and row.task in tasks]
    if tried and "features" not in tried:
        tried["features"] = read_log(out / "rollouts-pretrained.jsonl")
    return [dial_point(name, tried[name]) for name in MEANINGS if tried.get(name)]


def imagination_of(folder: Path) -> report.Imagination | None:
    """Returns what ``imagination.write_imagination`` left; None where it has not come so far."""
    summary = folder / "imagination.json"
    if not summary.is_file():
        return None
    with readable(summary):
        facts = read_json(summary)
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


def environment() -> dict[str, str]:
    """Returns the versions and the machine."""
    versions = {
        name: metadata.version(name) for name in ("ideomotor", "torch", "metaworld", "mujoco") if _installed(name)
    }
    return {
        **versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": "one a process, two processes",
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
