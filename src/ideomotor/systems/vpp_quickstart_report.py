"""The settings of VPP's quickstart, and what its folder holds, as a page and as figures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ideomotor.evaluation import report
from ideomotor.evaluation.episodes import EpisodeResult, read_log
from ideomotor.systems.quickstart_report import (
    METAWORLD,
    curves_of,
    environment,
    films_of,
    imagination_of,
    readable,
    stages_of,
)
from ideomotor.systems.quickstarts import command_line
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_gate_scores import OURS, PAINTED, STILL
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.training.checkpoint import read_json
from ideomotor.training.config import config_from_json

FULL_BUDGET = 40.0  # minutes that the preset's steps are meant for, on two idle cores
TASKS = {
    "metaworld": ("button-press-topdown", "drawer-open", "door-open"),
    "toy": ("red", "green", "blue"),
}
ARMS = {"pretrained": "policy", "control": "control"}
"""What the page calls the arms, and the folder of each one's policy."""
STAGES = ("collect", "vae", "video", "gate", "policy", "evaluate", "control", "evaluate-control")


@dataclass(frozen=True, kw_only=True)
class VPPQuickstart:
    """What is to be tried; see ``ideomotor vpp quickstart --help``."""

    world: Literal["metaworld", "toy"] = "metaworld"
    tasks: tuple[str, ...] = TASKS["metaworld"]
    budget_minutes: float = FULL_BUDGET
    demonstrations: int = 20
    episodes: int = 20
    clips: int = 64
    samples: int = 1
    sampling_steps: int = 10
    seed: int = 0
    preset: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.budget_minutes < float("inf"):
            raise ValueError(f"budget_minutes is {self.budget_minutes}; wanted a number above 0")
        if not 1 <= self.episodes <= 20:
            raise ValueError(f"episodes is {self.episodes}; a task has 20 held-out goals: take 1 to 20")
        if min(self.demonstrations, self.clips, self.samples, self.sampling_steps) < 1:
            raise ValueError(
                f"demonstrations {self.demonstrations}, clips {self.clips}, samples {self.samples} and sampling_steps "
                f"{self.sampling_steps} must be at least 1"
            )
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks are {self.tasks}; wanted one or more, each once")
        if self.preset not in PRESETS:
            raise ValueError(f"there is no preset {self.preset!r} (presets: {', '.join(PRESETS)})")
        if self.form().views != 1 or self.form().robot:
            raise ValueError(f"preset {self.preset!r} wants several cameras or a robot of its own: take cpu or tiny")

    def form(self) -> VPP:
        """Returns the preset as it stands."""
        return PRESETS[self.preset]()


def settings_of(out: Path) -> tuple[VPPQuickstart, VPP]:
    """Returns what the quickstart in ``out`` was begun with.

    Raises:
        ValueError: ``out`` is no quickstart of VPP, or its settings were damaged.
    """
    path = out / "quickstart.json"
    if not path.is_file():
        raise ValueError(f"{out} holds no quickstart (quickstart.json): give the --out of `ideomotor vpp quickstart`")
    with readable(path):
        then = read_json(path)
        return config_from_json(VPPQuickstart, then["quickstart"]), config_from_json(VPP, then["model"])


def report_of(out: Path) -> Path:
    """Writes report.html and report.json from what the run holds so far and returns the page's path.

    Raises:
        ValueError: ``out`` is no quickstart of VPP.
    """
    config, _ = settings_of(out)
    by_arm = {arm: read_log(out / f"rollouts-{arm}.jsonl") for arm in ARMS}
    filled = {arm: results for arm, results in by_arm.items() if results}
    plain = VPPQuickstart(world=config.world, tasks=TASKS[config.world])
    data = report.ReportData(
        title="ideomotor: VPP quickstart",
        subtitle="From video without actions to a policy that acts on what its video model sees of the future",
        command=command_line("vpp quickstart", out, config, plain),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        protocol=_protocol(config, filled) | _gate(out / "gate"),
        arms={arm: report.summarize(results, config.tasks) for arm, results in filled.items()},
        comparison=report.compare(by_arm["pretrained"], by_arm["control"]),
        imagination=imagination_of(out / "gate"),
        rollouts=films_of(out / "films", filled),
        curves=curves_of(out, ("vae", "video", "policy", "control")),
        stages=stages_of(out, STAGES),
        settings=dict(read_json(out / "quickstart.json")["model"]),
        environment=environment(),
    )
    return report.write_report(out, data)


def _protocol(config: VPPQuickstart, filled: dict[str, list[EpisodeResult]]) -> dict[str, Any]:
    n = config.demonstrations
    protocol: dict[str, Any] = {
        **(METAWORLD if config.world == "metaworld" else {"simulator": config.world}),
        "goals": "randomized; training goals 0-29, evaluation goals 30-49, disjoint",
        "pre-training": f"stage 1 on {2 * n} episodes a task without actions: expert, noisy and failed",
        "fine-tuning": f"stage 2 on {n} expert demonstrations a task",
        "control": "the same head and stage 2 on a CNN of the newest frame, without pre-training",
        "evaluation": f"{config.episodes} episodes a task, both arms on the same goals",
        "training seeds": [config.seed],
    }
    for arm, rows in filled.items():
        cpu = 1000 * sum(row.inference_cpu_seconds for row in rows) / max(1, sum(row.steps for row in rows))
        protocol[f"CPU-ms of the policy per environment step, {arm}"] = round(cpu, 2)
    return protocol


def _gate(folder: Path) -> dict[str, Any]:
    """What the gate found of sampled video, by step."""
    path = folder / "gate.json"
    if not path.is_file():
        return {}
    with readable(path):
        found = read_json(path)
        lines = {
            f"{name}, moving-pixel PSNR by step": ", ".join(f"{row['value']:.2f}" for row in found["moving_psnr"][name])
            for name in (OURS, STILL, PAINTED)
        }
        return {"gate of stage 1 (gate/gate.html)": found["verdict"], **lines}
