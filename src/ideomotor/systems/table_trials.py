"""Trials at a play table, CALVIN's or our own: five tasks in a row told by sentences, resumable, and their page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, UInt8
from rich.table import Table
from torch import Tensor

from ideomotor.data.transforms import resize_and_crop
from ideomotor.data.video_writing import write_video
from ideomotor.envs.subtasks import Oracle, PlayTable, SubtaskVector
from ideomotor.evaluation.calvin import evaluate_sequences
from ideomotor.evaluation.calvin_page import FailureFilm, SequencePage, write_sequence_report
from ideomotor.evaluation.calvin_protocol import MAX_STEPS, NUM_SEQUENCES, evaluation_sequences
from ideomotor.evaluation.calvin_results import SequenceResult, SequenceSummary, read_sequences, summarize_sequences
from ideomotor.evaluation.rollout import Ensemble
from ideomotor.files import sole_writer
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.progress import Tell, bar
from ideomotor.systems.quickstart_report import environment
from ideomotor.systems.trials import View
from ideomotor.training.folder import sweep
from ideomotor.types import Clip

World = Literal["calvin", "play_table"]
CAMERAS = ("rgb_static", "rgb_gripper")
WORLDS: Mapping[str, str] = {
    "calvin": "CALVIN's own simulator (calvin_env), scene D",
    "play_table": "our own play table: CALVIN's tasks, states and sequences in another simulator, which compares with "
    "nothing published",
}
_ACTION = 7
_FPS, _STRIDE = 30, 4  # steps a second; between two pictures of a film
_SIDE_BY_SIDE = 4  # tables a process, of ours


@dataclass(frozen=True, kw_only=True)
class TableTrial:
    """What is tried, and how.

    Attributes:
        world: "calvin" (the user's own calvin_env), or "play_table" (ours).
        sequences: the first that many of the 1000.
        steps: actions that each task may take; 360 is CALVIN's.
        execute: actions of a chunk that are carried out before looking again; None as trained.
        ensemble: decay with which overlapping chunks are averaged; None as trained.
        temperature: scale of the noise that actions are denoised from.
        sampling: how they are denoised, where otherwise than as trained.
        camera: the table's cameras that the policy looks through, joined by commas; None for those it was trained on.
        calvin: root of the user's calvin_env; None takes the one that can be imported.
        films: the first that many sequences are filmed, and kept where one is not finished.
        workers: processes. CALVIN's table stands alone in its own, of ours a few share one.
    """

    world: World
    sequences: int = NUM_SEQUENCES
    steps: int = MAX_STEPS
    execute: int | None = None
    ensemble: float | None = None
    temperature: float = 1.0
    sampling: SamplingChange = field(default_factory=SamplingChange)
    camera: str | None = None
    calvin: Path | None = None
    films: int = 10
    workers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.sequences <= NUM_SEQUENCES or self.steps < 1 or self.films < 0:
            raise ValueError(
                f"sequences {self.sequences}, steps {self.steps}, films {self.films}: wanted 1 to {NUM_SEQUENCES} "
                "sequences of at least 1 step a task, and 0 films or more"
            )
        if self.workers < (self.world == "calvin"):
            raise ValueError(
                f"workers is {self.workers}: wanted 0 (this process alone) or more, and for calvin, whose table stands "
                "in a process of its own, at least 1"
            )
        if self.calvin is not None and self.world != "calvin":
            raise ValueError(f"--calvin names a calvin_env, and the world is {self.world}: give --world calvin too")


class TableAgent(Protocol):
    """What acts; its noise, where it draws any, comes from one generator a table."""

    def act(
        self, context: Clip, generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the next chunk of each table."""


class Seated:
    """An agent at play tables: pictures scaled as it learned from them, noise of a task's own, chunks blended.

    Args:
        agent: what acts.
        size: height and width of its frames.
        execute: actions of a chunk that are carried out before looking again.
        ensemble: blends overlapping chunks; None for the newest alone.
    """

    def __init__(self, agent: TableAgent, size: int, execute: int, ensemble: Ensemble | None = None) -> None:
        self._agent, self._size, self._execute, self._ensemble = agent, size, execute, ensemble
        self._generators: dict[int, torch.Generator] = {}

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Forgets the chunks of those tables, and seeds their noise."""
        for slot, seed in zip(slots, seeds, strict=True):
            self._generators[slot] = torch.Generator().manual_seed(seed)
        if self._ensemble is not None:
            self._ensemble.forget(slots)

    def act(self, context: Clip, slots: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        """Returns a chunk for each of those tables."""
        # The very function that the stages' caches of frames scale with.
        frames = {name: resize_and_crop(video, (self._size, self._size)) for name, video in context.frames.items()}
        chunks = self._agent.act(replace(context, frames=frames), [self._generators[slot] for slot in slots]).cpu()
        if self._ensemble is not None:
            chunks = self._ensemble.blend(slots, chunks, self._execute)
        return chunks


def make_table(world: World, cameras: tuple[str, ...], calvin: Path | None) -> tuple[PlayTable, Oracle]:
    """Returns a table and its oracle; at the top level, because it is called in other processes."""
    drawn = tuple(name.removeprefix("rgb_") for name in cameras)
    if world == "calvin":
        from ideomotor.envs.calvin import CalvinConfig, CalvinEnv, CalvinOracle

        return CalvinEnv(CalvinConfig(cameras=drawn, path=calvin)), CalvinOracle(calvin)
    from ideomotor.envs.play_table import PlayTableConfig, PlayTableEnv
    from ideomotor.envs.play_table_tasks import PlayTableOracle

    return PlayTableEnv(PlayTableConfig(cameras=drawn)), PlayTableOracle()


def run_in_a_row(
    agent: TableAgent,
    view: View,
    trial: TableTrial,
    out: Path,
    *,
    arm: str,
    name: str,
    command: str,
    ensemble: Ensemble | None = None,
    facts: Mapping[str, Any] | None = None,
) -> SequenceSummary:
    """Runs the sequences that ``out``/sequences.jsonl lacks, and returns how the agent fared in all of them.

    ``out`` gets report.html, results.json, in_a_row.csv, tasks.csv, and films of sequences that were not finished; the
    page is written anew whenever a sequence ends.

    Args:
        agent: what acts.
        view: what it looks at, and how much of a chunk it executes; ``context`` must be 1.
        trial: what is tried.
        out: folder of log, films, tables and page.
        arm: name under which the log keeps the rows: all that decides how they end.
        name: the agent's, for the page.
        command: what repeats the trial.
        ensemble: blends chunks that overlap in time.
        facts: of the agent, for the page.

    Raises:
        ValueError: the agent looks through other cameras or does other actions than the tables have, or another
            process runs sequences in ``out``.
        FileNotFoundError, ModuleNotFoundError: calvin_env, or a part of it, is missing.
    """
    cameras = _cameras(view, trial)
    sequences = evaluation_sequences()[: trial.sequences]
    log, films = out / "sequences.jsonl", out / "films" / arm
    rows: dict[int, SequenceResult] = {}
    protocol = {**_protocol(view, trial, cameras), **(facts or {})}

    def told(result: SequenceResult | None, tell: Tell) -> None:
        if result is not None:
            rows[result.sequence] = result
        tell(len(rows), len(sequences))
        if rows:
            _write_page(out, films, list(rows.values()), trial, name, command, protocol)

    with sole_writer(log), bar(f"sequences ({name})") as tell:
        for folder in (out, films):
            sweep(folder)
        there = (row for row in read_sequences(log) if row.arm == arm and row.sequence < trial.sequences)
        rows.update({row.sequence: row for row in there})
        told(None, tell)
        if len(rows) < len(sequences):
            with _tables(trial, cameras, len(sequences) - len(rows)) as tables:
                evaluate_sequences(
                    Seated(agent, view.size, view.execute, ensemble),
                    tables,
                    sequences,
                    arm=arm,
                    log=log,
                    cameras=dict(zip(view.cameras, cameras, strict=True)),
                    execute=view.execute,
                    max_steps=trial.steps,
                    record=range(trial.films),
                    recorder=partial(_write_film, films, view.cameras[0]),
                    stride=_STRIDE,
                    done=partial(told, tell=tell),
                )
    return summarize_sequences(list(rows.values()))


def sequence_table(summary: SequenceSummary) -> Table:
    """Returns the rates of 1 to 5 tasks in a row and the mean length, with 95 % intervals, for the terminal."""
    table = Table("tasks in a row", "sequences", "share", "95 % interval")
    for row, rate in enumerate(summary.rates, start=1):
        table.add_row(str(row), str(summary.sequences), f"{rate.value:.3f}", f"{rate.low:.3f} to {rate.high:.3f}")
    length = summary.average_length
    known = length.low == length.low  # one initial state, or all ended alike: no interval
    table.add_row("mean length", "", f"{length.value:.2f}", f"{length.low:.2f} to {length.high:.2f}" if known else "")
    return table


def _cameras(view: View, trial: TableTrial) -> tuple[str, ...]:
    """The table's cameras that the agent looks through; what does not fit is told of before anything starts."""
    if view.action_width != _ACTION:
        raise ValueError(
            f"the policy gives actions of width {view.action_width}, a play table takes {_ACTION} (relative position, "
            "relative Euler angles, gripper): try a policy that was fine-tuned on demonstrations of one"
        )
    cameras = tuple(trial.camera.split(",")) if trial.camera else CAMERAS[: len(view.cameras)]
    unknown = [camera for camera in cameras if camera not in CAMERAS]
    if unknown or len(cameras) != len(view.cameras) or len(set(cameras)) < len(cameras):
        raise ValueError(
            f"the policy looks through {len(view.cameras)} cameras, and {', '.join(cameras)} were named: name that "
            f"many of {', '.join(CAMERAS)} with --camera, joined by commas, in the order it was trained with"
        )
    if view.context != 1:
        raise ValueError(f"the policy sees {view.context} frames at once; at a play table it is shown the newest alone")
    if trial.world == "calvin":
        from ideomotor.envs.calvin_home import check_scene, find_home

        check_scene(find_home(trial.calvin), "D")
    return cameras


def _tables(trial: TableTrial, cameras: tuple[str, ...], wanted: int) -> SubtaskVector:
    side_by_side = trial.workers if trial.world == "calvin" else max(1, _SIDE_BY_SIDE * trial.workers)
    maker = partial(make_table, trial.world, cameras, trial.calvin)
    return SubtaskVector([maker] * min(side_by_side, wanted), workers=trial.workers)


def _protocol(view: View, trial: TableTrial, cameras: Sequence[str]) -> dict[str, Any]:
    return {
        "world": WORLDS[trial.world],
        "sequences": f"the first {trial.sequences:,} of CALVIN's {NUM_SEQUENCES:,}, five tasks each, in their order",
        "steps a task": f"at most {trial.steps} (CALVIN's {MAX_STEPS})",
        "instructions": "the one held-out sentence of each task",
        "cameras": f"{', '.join(cameras)}; {view.size} px",
        "actions": f"relative; {view.execute} of a chunk before it looks again; the gripper opens above 0",
        "success": "the task's oracle, asked after every action, from the task's start on",
    }


def _write_page(
    out: Path,
    films: Path,
    rows: Sequence[SequenceResult],
    trial: TableTrial,
    name: str,
    command: str,
    protocol: Mapping[str, Any],
) -> None:
    steps = sum(sum(row.steps) for row in rows)
    cpu = 1000 * sum(row.inference_cpu_seconds for row in rows) / max(1, steps)
    shown = [row for row in rows if row.solved < len(row.tasks) and (films / f"{row.sequence}.mp4").is_file()]
    page = SequencePage(
        title="Five tasks in a row",
        subtitle=f"{name} on {WORLDS[trial.world]}",
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=command,
        arms={name: summarize_sequences(rows)},
        wanted=trial.sequences,
        films=[
            FailureFilm(result=replace(row, arm=name), video=(films / f"{row.sequence}.mp4").read_bytes())
            for row in sorted(shown, key=lambda row: row.sequence)
        ],
        protocol={**protocol, "CPU-ms of the policy per environment step": round(cpu, 2)},
        environment={**environment(), "threads": f"one; {trial.workers} simulator processes"},
    )
    write_sequence_report(out, page)


def _write_film(
    folder: Path, camera: str, result: SequenceResult, frames: Mapping[str, UInt8[Tensor, "t c h w"]]
) -> None:
    video = frames[camera]
    shown = _FPS * len(video) / max(1, sum(result.steps))
    write_video(folder / f"{result.sequence}.mp4", video, fps=shown)
