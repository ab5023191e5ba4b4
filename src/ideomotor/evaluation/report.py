"""What a run has to show, as ``report.html`` (one self-contained page) and ``report.json`` (the same figures)."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ideomotor.evaluation import page
from ideomotor.evaluation.dial import DialPoint
from ideomotor.evaluation.rollout import EpisodeResult
from ideomotor.evaluation.statistics import (
    Estimate,
    Scores,
    mean_success,
    paired_difference,
    probability_of_improvement,
    wilson,
)
from ideomotor.files import write_text


@dataclass(frozen=True, kw_only=True)
class TaskSuccess:
    """How one arm fared on one task; ``interval`` is Wilson's at 95 %."""

    episodes: int
    successes: int
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How one arm fared: ``mean`` over its tasks with its hierarchical bootstrap interval, and each task.

    ``mean`` is None while no task has been met by every seed.
    """

    mean: Estimate | None
    tasks: Mapping[str, TaskSuccess]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The pre-trained arm against the control, over the episodes that both ran.

    Attributes:
        difference: of mean success.
        improvement: probability that a run with pre-training does better on a task.
        episodes: number of pairs.
        seeds: number of training seeds; with one, the intervals hold no luck of training.
    """

    difference: Estimate
    improvement: Estimate
    episodes: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class ImaginedClip:
    """A held-out clip as three mp4 (h264) files, and its own moving-pixel PSNR where known."""

    text: str
    context: bytes
    truth: bytes
    imagination: bytes
    source: str = ""
    moving_psnr: float | None = None
    repeat_last_moving_psnr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Imagination:
    """Moving-pixel PSNR in dB, pooled over all held-out clips, and the clips that are shown."""

    moving_psnr: float
    repeat_last_moving_psnr: float
    num_clips: int
    clips: Sequence[ImaginedClip] = ()


@dataclass(frozen=True, kw_only=True)
class RolloutVideo:
    """One recorded episode as an mp4 (h264) file."""

    result: EpisodeResult
    video: bytes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure logged while a stage trained; curves of one stage are drawn in one picture."""

    stage: str
    name: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage cost: wall-clock seconds and peak resident memory of its processes together."""

    name: str
    seconds: float
    peak_rss_bytes: int
    note: str = ""
    beside: bool = False
    """It ran while the others did, so its time adds nothing to theirs."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page shows. Whatever is empty or None is named on the page as missing, so a half-finished run shows.

    Attributes:
        title: of the page.
        command: what repeats the run, to be typed as it stands.
        protocol: what was run, as names and values (simulator and version, camera, demonstrations, goals, ...).
        arms: by name, "pretrained" and "control".
        dial: what imagining less or more costs and gains; a part of its own, not missed where there is none.
        settings: the run's whole configuration, as JSON allows it.
        created: date and time, ready to print.
        environment: versions and machine, as names and values.
    """

    title: str
    command: str
    subtitle: str = ""
    created: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Arm] = field(default_factory=dict)
    comparison: Comparison | None = None
    imagination: Imagination | None = None
    dial: Sequence[DialPoint] = ()
    rollouts: Sequence[RolloutVideo] = ()
    curves: Sequence[Curve] = ()
    stages: Sequence[Stage] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def summarize(results: Collection[EpisodeResult], tasks: Sequence[str] = ()) -> Arm:
    """Returns how an arm fared, from its episodes.

    Args:
        results: of one arm.
        tasks: their order in tables; those not named come after, by name.

    Raises:
        ValueError: no episode, or episodes of several arms.
    """
    arms = {result.arm for result in results}
    if len(arms) != 1:
        raise ValueError(f"episodes of the arms {sorted(arms)}; wanted at least one episode, all of one arm")
    table = {}
    for name in _ordered({result.task for result in results}, tasks):
        wins = [result.success for result in results if result.task == name]
        estimate = wilson(sum(wins), len(wins))
        table[name] = TaskSuccess(episodes=len(wins), successes=sum(wins), interval=(estimate.low, estimate.high))
    complete = _complete({result.key for result in results})
    return Arm(mean=mean_success(_scores(results, complete)) if complete else None, tasks=table)


def compare(ours: Collection[EpisodeResult], control: Collection[EpisodeResult]) -> Comparison | None:
    """Returns the paired comparison over the episodes that both arms ran (same task, seed and goal); None without any.

    While a run is unfinished, a task that some seed has not met in both arms is left out.
    """
    shared = {result.key for result in ours} & {result.key for result in control}
    complete = _complete(shared)
    pairs = {key for key in shared if key[0] in complete}
    if not pairs:
        return None
    a, b = (_scores([result for result in arm if result.key in pairs], complete) for arm in (ours, control))
    return Comparison(
        difference=paired_difference(a, b),
        improvement=probability_of_improvement(a, b),
        episodes=len(pairs),
        seeds=len({seed for _, seed, _ in pairs}),
    )


def as_json(data: ReportData) -> dict[str, Any]:
    """Returns the content of ``report.json``; a figure that is not finite becomes null, as JSON knows no other."""
    arms = {
        name: {
            "mean_success": arm.mean and arm.mean.value,
            "mean_interval": arm.mean and [arm.mean.low, arm.mean.high],
            "tasks": {
                task: {"episodes": row.episodes, "successes": row.successes, "interval": list(row.interval)}
                for task, row in arm.tasks.items()
            },
        }
        for name, arm in data.arms.items()
    }
    imagination, comparison = data.imagination, data.comparison
    content = {
        "title": data.title,
        "created": data.created,
        "command": data.command,
        "protocol": dict(data.protocol),
        "arms": arms,
        "comparison": comparison
        and {
            "difference": comparison.difference.value,
            "interval": [comparison.difference.low, comparison.difference.high],
            "probability_of_improvement": comparison.improvement.value,
            "probability_interval": [comparison.improvement.low, comparison.improvement.high],
            "paired_episodes": comparison.episodes,
            "seeds": comparison.seeds,
        },
        "imagination": imagination
        and {
            "moving_psnr": imagination.moving_psnr,
            "repeat_last_moving_psnr": imagination.repeat_last_moving_psnr,
            "clips": imagination.num_clips,
        },
        "dial": [
            {
                "name": point.name,
                "cpu_ms": point.cpu_ms,
                "successes": point.successes,
                "episodes": point.episodes,
                "interval": list(point.interval),
            }
            for point in data.dial
        ],
        "stages": [
            {"name": stage.name, "seconds": stage.seconds, "peak_rss_bytes": stage.peak_rss_bytes}
            for stage in data.stages
        ],
        "missing": list(page.missing(data)),
        "settings": dict(data.settings),
        "environment": dict(data.environment),
    }
    return {name: _plain(value) for name, value in content.items()}


def render(data: ReportData) -> str:
    """Returns the page: one HTML file that asks nothing of any network.

    Raises:
        ValueError: the bytes given for a video are no mp4.
    """
    return page.render(data)


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes ``report.html`` and ``report.json`` into ``folder`` and returns the page's path.

    Each file is replaced whole, so a failure leaves the old one.
    """
    written = {"report.html": render(data), "report.json": json.dumps(as_json(data), indent=2, allow_nan=False) + "\n"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        write_text(folder / name, text)
    return folder / "report.html"


def _ordered(names: set[str], order: Sequence[str]) -> list[str]:
    return [name for name in order if name in names] + sorted(names - set(order))


def _complete(keys: Collection[tuple[str, int, int]]) -> list[str]:
    """Returns the tasks that every seed among the keys (task, seed, goal) has met: seeds and tasks must be crossed."""
    seeds = {seed for _, seed, _ in keys}
    return sorted(task for task in {t for t, _, _ in keys} if seeds == {s for t, s, _ in keys if t == task})


def _scores(results: Collection[EpisodeResult], tasks: Sequence[str]) -> Scores:
    """Returns success as ``[seed][task][episode]``; goals in order, so that two arms line up."""
    cells: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for result in results:
        cells.setdefault((result.seed, result.task), []).append((result.goal, float(result.success)))
    seeds = sorted({seed for seed, _ in cells})
    return [[[score for _, score in sorted(cells[seed, task])] for task in tasks] for seed in seeds]


def _plain(value: Any) -> Any:
    """Returns the value as JSON allows it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
