"""Trials: an agent in a real world, on goals that it never saw, side by side and resumable."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor

from ideomotor.data.video_writing import write_video
from ideomotor.evaluation.episodes import EpisodeResult, EpisodeSpec, read_log
from ideomotor.evaluation.metaworld_levels import LEVELS, summarize_levels
from ideomotor.evaluation.rollout import Ensemble, rollout
from ideomotor.evaluation.statistics import wilson
from ideomotor.files import sole_writer
from ideomotor.systems.collection_worlds import WORLDS, make_world, named_tasks, world_config
from ideomotor.systems.progress import bar
from ideomotor.types import Agent

if TYPE_CHECKING:
    from ideomotor.envs.chunked import Chunked

SLOTS = 20  # simulators side by side, shared by the tasks


@dataclass(frozen=True, kw_only=True)
class View:
    """What an agent sees (``context`` frames of ``size`` px a camera, ``stride`` steps apart), and does."""

    cameras: tuple[str, ...]
    size: int
    context: int
    stride: int
    execute: int
    action_width: int


def make_chunked(world: str, settings: Mapping[str, Any], task: str, view: View) -> Chunked:
    """Returns one world, acted on in chunks; at the top level, because it is called in other processes."""
    from ideomotor.envs.chunked import Chunked

    return Chunked(make_world(world, settings, task), context=view.context, stride=view.stride, chunk=view.execute)


def roll_out(
    agent: Agent,
    view: View,
    tasks: Sequence[str],
    episodes: int,
    log: Path,
    workers: int = 2,
    *,
    world: Literal["metaworld", "toy"] = "metaworld",
    camera: str | None = None,
    look: Literal["fast", "default"] = "fast",
    arm: str = "policy",
    seed: int = 0,
    ensemble: Ensemble | None = None,
    films: Path | None = None,
    filmed: int = 2,
) -> list[EpisodeResult]:
    """Rolls an agent out on held-out goals, all tasks side by side; finished episodes in ``log`` are not run again.

    Args:
        agent: what acts.
        view: what it looks at, and how much of a chunk it executes.
        tasks: names of the world's tasks, or of groups of them (``named_tasks``).
        episodes: a task, each with a goal of its own that no demonstration had.
        log: JSONL of results.
        workers: simulator processes.
        world: which simulator.
        camera: the world's cameras that the agent looks through, joined by commas; that of our collections by default.
        look: of Meta-World's pictures, as in ``collect``.
        arm: name under which the log keeps the results.
        seed: the training seed, for the log.
        ensemble: blends chunks that overlap in time; by default the newest one alone counts.
        films: folder that gets mp4 videos of some episodes.
        filmed: how many a task.

    Raises:
        ValueError: an unknown task, more episodes than held-out goals, or another process that adds to the log.
    """
    from ideomotor.envs.vector import ChunkedVector
    from ideomotor.envs.world import GOALS

    tasks, goals = named_tasks(world, tasks), list(GOALS["test"])  # collection uses the other goals
    if not 1 <= episodes <= len(goals):
        raise ValueError(
            f"episodes is {episodes}; there are {len(goals)} held-out goals a task: take 1 to {len(goals)}"
        )
    if not tasks or len(set(tasks)) < len(tasks) or workers < 0:
        raise ValueError(
            f"tasks are {tuple(tasks)}, workers {workers}; wanted at least one task, none twice, and 0 workers (this "
            "process alone) or more"
        )
    specs = [EpisodeSpec(task=task, seed=seed, goal=goal) for task in tasks for goal in goals[:episodes]]
    slots = [task for task in tasks for _ in range(max(1, min(episodes, SLOTS // len(tasks))))]
    _refuse_other_robot(view, tasks, world)
    cameras = _cameras(view, world, camera)
    settings = _settings(view, tasks, world, cameras, look)
    tried = {result.key: result for result in read_log(log) if result.arm == arm}
    if all(spec.key in tried for spec in specs):
        return [tried[spec.key] for spec in specs]
    makers = [partial(make_chunked, world, settings, task, view) for task in slots]
    over = itertools.count(1)
    with sole_writer(log), ChunkedVector(makers, workers=workers) as vector, bar(f"roll-outs ({arm})") as tell:
        return rollout(
            agent,
            vector,
            specs,
            slots=slots,
            arm=arm,
            log=log,
            cameras=dict(zip(view.cameras, cameras, strict=True)),
            execute=view.execute,
            ensemble=ensemble,
            stride=view.stride,
            record=[spec for spec in specs if films is not None and spec.goal in goals[:filmed]],
            recorder=None if films is None else partial(_write_film, films, cameras[0], WORLDS[world].fps),
            done=lambda result: tell(next(over), len(specs)),
        )


def _write_film(
    films: Path, camera: str, fps: float, result: EpisodeResult, frames: Mapping[str, UInt8[Tensor, "t c h w"]]
) -> None:
    """Writes what one camera saw of an episode, at twice its size."""
    path = films / f"{result.task}-{result.goal}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    video = frames[camera]
    shown = fps * len(video) / max(1, result.steps)
    write_video(path, video.repeat_interleave(2, -1).repeat_interleave(2, -2), fps=shown)


def _cameras(view: View, world: str, camera: str | None) -> tuple[str, ...]:
    """The world's cameras that the agent looks through, as many as it has views."""
    cameras = tuple((camera or WORLDS[world].camera).split(","))
    if len(cameras) != len(view.cameras):
        came = f"{', '.join(cameras)} came" if camera else f"none was named, which stands for {', '.join(cameras)}"
        raise ValueError(
            f"the policy looks through {len(view.cameras)} cameras, and {came}: name that many with --camera, joined "
            "by commas"
        )
    return cameras


def _refuse_other_robot(view: View, tasks: Sequence[str], world: str) -> None:
    """Refuses tasks that are misspelt, and a policy of a robot that cannot act in the world, whatever it looks at."""
    for task in tasks:
        world_config(world, {"cameras": (WORLDS[world].camera,)}, task)
    width = len(WORLDS[world].actions)
    if view.action_width != width:
        raise ValueError(
            f"the policy gives actions of width {view.action_width}, the robot of {world} takes {width}: try a policy "
            "that was fine-tuned on demonstrations of this robot"
        )


def _settings(view: View, tasks: Sequence[str], world: str, cameras: tuple[str, ...], look: str) -> dict[str, Any]:
    """The worlds' settings; what does not fit is told of here, not in a process of its own."""
    settings: dict[str, Any] = {"cameras": cameras, "size": view.size, "goals": "test"}
    if world == "metaworld":
        settings["look"] = look
    try:
        world_config(world, settings, tasks[0])
    except ValueError as error:
        raise ValueError(
            f"the policy looks through {', '.join(cameras)}: {error}. Name others with --camera"
        ) from error
    return settings


def success_table(results: Sequence[EpisodeResult]) -> Table:
    """Returns successes a task with Wilson's 95 % intervals, for the terminal.

    Tasks of Meta-World stand by level where there are several levels, or all tasks of one; a level's mean counts each
    task the same, and has a bootstrap's interval.
    """
    table = Table("task", "episodes", "successes", "95 % interval", "steps", "CPU-ms a step")
    levels = _by_level(results)
    for level, mine in levels.items():
        for task in dict.fromkeys(result.task for result in mine):
            rows = [result for result in mine if result.task == task]
            estimate = wilson(sum(result.success for result in rows), len(rows))
            _add_row(table, task, rows, "", f"{estimate.low:.2f} to {estimate.high:.2f}")
        if level:
            table.add_section()
    if not levels.keys() <= {""}:
        _add_levels(table, results)
    return table


def _by_level(results: Sequence[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    """The results by level, those met alone; under "" where levels say nothing: other tasks, or a part of one level."""
    level_of = {task: level for level, tasks in LEVELS.items() for task in tasks}
    levels: dict[str, list[EpisodeResult]] = {level: [] for level in LEVELS}
    for result in results:
        levels.setdefault(level_of.get(result.task, ""), []).append(result)
    met = {level: rows for level, rows in levels.items() if rows}
    whole = [level for level in met if {row.task for row in met[level]} >= set(LEVELS.get(level, ("",)))]
    return met if "" not in met and (len(met) > 1 or whole) else {"": list(results)}


def _add_levels(table: Table, results: Sequence[EpisodeResult]) -> None:
    """Adds a row a level that was met, and one of all; says how many tasks of it that is."""
    wanted = {**LEVELS, "average": tuple(task for tasks in LEVELS.values() for task in tasks)}
    for level, found in summarize_levels(results).items():
        rows = [result for result in results if result.task in wanted[level]]
        if not rows:
            continue
        met = len(wanted[level]) - len(found.missing)
        mean = found.success
        if mean is None or mean.low == mean.high:  # all ended alike: resampling gives no width, which claims too much
            interval = "see the tasks"
        else:
            interval = f"{mean.low:.2f} to {mean.high:.2f}"
        share = "" if mean is None else f", mean {mean.value:.2f}"
        _add_row(table, f"{level}, {met} of {len(wanted[level])} tasks", rows, share, interval)
        if found.missing:
            table.caption = "a level that lacks tasks compares with no published figure"


def _add_row(table: Table, name: str, rows: Sequence[EpisodeResult], share: str, interval: str) -> None:
    steps = sum(result.steps for result in rows)
    cost = 1000 * sum(result.inference_cpu_seconds for result in rows) / max(1, steps)
    won = f"{sum(result.success for result in rows)}{share}"
    table.add_row(name, str(len(rows)), won, interval, f"{steps / len(rows):.0f}", f"{cost:.1f}")
