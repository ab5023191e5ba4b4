"""CALVIN's evaluation: five tasks one after the other, until the first that fails; batched inference, resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.evaluation.calvin_protocol import (
    MAX_STEPS,
    SEQUENCE_LENGTH,
    TaskSequence,
    initial_states,
    start_robot,
    start_scene,
)
from ideomotor.evaluation.calvin_results import SequenceResult, read_sequences
from ideomotor.evaluation.calvin_tasks import INSTRUCTIONS
from ideomotor.evaluation.episodes import append
from ideomotor.types import Agent, Clip

CAMERAS: Mapping[str, str] = {"rgb_static": "rgb_static", "rgb_gripper": "rgb_gripper"}
"""The agent's camera names to the tables'; by default they are the same."""

Observation = Mapping[str, np.ndarray]
"""Pictures by camera, uint8 (h, w, c), and ``robot_obs`` (15,)."""


class SubtaskTables(Protocol):
    """``n`` tables that judge their own tasks, as ``envs.subtasks.SubtaskVector`` offers them."""

    num_envs: int

    def reset(self, options: Mapping[int, dict[str, Any]]) -> Mapping[int, Observation]:
        """Puts tables into the states that ``robot_obs`` and ``scene_obs`` describe; returns what is seen there."""

    def act(
        self, chunks: Mapping[int, np.ndarray], *, begin: Mapping[int, str], film: Collection[int], stride: int
    ) -> Mapping[int, tuple[Observation, int, bool, Sequence[Observation]]]:
        """Executes chunks until a table's task is done.

        ``begin`` names the task of tables that begin one. What comes back is seen after the chunk, the number of
        actions taken, whether the task was solved, and what was seen in between in the tables that are filmed.
        """


class SubtaskAgent(Protocol):
    """What acts, and may keep something for each table from one look to the next."""

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Forgets all about those tables, where a new task begins.

        The seed belongs to the task's place in the evaluation (``5 * sequence + place``). An agent that draws from
        one generator a table, seeded with it, acts alike whichever tables run beside, also after an interruption.
        """

    def act(self, context: Clip, slots: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        """Returns a chunk for each of those tables; ``context`` holds the newest frame of each camera."""


class Memoryless:
    """Lets an agent take part that keeps nothing between two looks."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """There is nothing to forget."""

    def act(self, context: Clip, slots: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        """Returns what the agent answers."""
        return self.agent.act(context)


Recorder = Callable[[SequenceResult, Mapping[str, UInt8[Tensor, "t c h w"]]], None]


@dataclass
class _Running:
    sequence: TaskSequence
    filmed: bool
    solved: int = 0
    steps: list[int] = field(default_factory=lambda: [0])
    seconds: float = 0.0
    cpu: float = 0.0
    pictures: list[Observation] = field(default_factory=list)

    @property
    def task(self) -> str:
        return self.sequence.tasks[self.solved]

    @property
    def begins(self) -> bool:
        return self.steps[-1] == 0


def evaluate_sequences(
    agent: SubtaskAgent,
    tables: SubtaskTables,
    sequences: Sequence[TaskSequence],
    *,
    arm: str,
    log: Path | None = None,
    cameras: Mapping[str, str] = CAMERAS,
    execute: int | None = None,
    max_steps: int = MAX_STEPS,
    record: Collection[int] = (),
    recorder: Recorder | None = None,
    stride: int = 4,
    done: Callable[[SequenceResult], None] | None = None,
) -> list[SequenceResult]:
    """Runs the sequences and returns their results, in the order asked for; those already in ``log`` are not run again.

    All tables act together; one whose sequence is over takes the next. Pictures are drawn only where the agent looks:
    after each chunk. A task is solved when the oracle finds it done between its start and now, looked at after each
    action; the next one begins where it ended. The agent is told the one held-out instruction of the task.

    Args:
        agent: what acts; ``Memoryless`` makes one of a plain agent.
        tables: the caller closes them.
        sequences: each once, see ``calvin_protocol.evaluation_sequences``.
        arm: name of what is tried, for the log and the report.
        log: a JSONL file that a row is appended to when a sequence ends; a last line torn by a kill is dropped.
        cameras: the agent's camera names to the tables'.
        execute: how many actions of a chunk are executed before the agent looks again; by default all.
        max_steps: actions that each task may take.
        record: numbers of sequences that are filmed.
        recorder: receives the film of those that failed, before the row is logged.
        stride: environment steps between two pictures of a film.
        done: told of each sequence as it ends.

    Raises:
        ValueError: a sequence twice, a log of other sequences or damaged, or actions that are not finite.
    """
    finished = _finished(sequences, log, arm)
    queue = deque(sequence for sequence in sequences if sequence.number not in finished)
    running: dict[int, _Running] = {}
    seen: dict[int, Observation] = {}
    while True:
        began = time.perf_counter()
        fresh = [slot for slot in range(tables.num_envs) if slot not in running][: len(queue)]
        running |= {slot: _start(queue.popleft(), record, recorder) for slot in fresh}
        if not running:
            return [finished[sequence.number] for sequence in sequences]
        if fresh:
            seen |= tables.reset({slot: _options(running[slot].sequence) for slot in fresh})
        for slot in fresh:
            running[slot].pictures = [seen[slot]] if running[slot].filmed else []
        begin = {slot: one.task for slot, one in running.items() if one.begins}
        if begin:
            agent.begin(list(begin), [_seed(running[slot]) for slot in begin])
        chunks, cpu = _act(agent, running, seen, cameras, execute, max_steps)
        film = [slot for slot, one in running.items() if one.filmed]
        outcomes = tables.act(chunks, begin=begin, film=film, stride=stride)
        elapsed, acting = time.perf_counter() - began, len(running)
        for slot, (seen[slot], executed, solved, between) in outcomes.items():
            one = running[slot]
            one.steps[-1] += executed
            one.seconds, one.cpu = one.seconds + elapsed / acting, one.cpu + cpu / acting
            one.pictures += [*between, seen[slot]] if one.filmed else []
            if _over(one, solved, max_steps):
                result = _result(running.pop(slot), arm)
                if recorder is not None and one.filmed and result.solved < len(result.tasks):
                    recorder(result, _film(one.pictures, cameras))
                if log is not None:
                    append(log, result)
                finished[result.sequence] = result
                if done is not None:
                    done(result)


def _finished(sequences: Sequence[TaskSequence], log: Path | None, arm: str) -> dict[int, SequenceResult]:
    wanted: dict[int, TaskSequence] = {}
    for sequence in sequences:
        if sequence.number in wanted:
            raise ValueError(f"sequence {sequence.number} is asked for twice; a sequence counts once")
        wanted[sequence.number] = sequence
    rows = {row.sequence: row for row in (read_sequences(log) if log else []) if row.arm == arm}
    for number, row in rows.items():
        same = wanted.get(number)
        if same is not None and (same.state, list(same.tasks)) != (row.state, row.tasks):
            raise ValueError(
                f"{log} holds another sequence {number}: state {row.state}, {', '.join(row.tasks)}; asked for was "
                f"state {same.state}, {', '.join(same.tasks)}. Take another log for other sequences"
            )
    return rows


def _start(sequence: TaskSequence, record: Collection[int], recorder: Recorder | None) -> _Running:
    return _Running(sequence, filmed=recorder is not None and sequence.number in record)


def _options(sequence: TaskSequence) -> dict[str, Any]:
    return {"robot_obs": start_robot(), "scene_obs": start_scene(initial_states()[sequence.state])}


def _seed(one: _Running) -> int:
    return SEQUENCE_LENGTH * one.sequence.number + one.solved


def _act(
    agent: SubtaskAgent,
    running: Mapping[int, _Running],
    seen: Mapping[int, Observation],
    cameras: Mapping[str, str],
    execute: int | None,
    max_steps: int,
) -> tuple[dict[int, Float[np.ndarray, "chunk action"]], float]:
    """Returns a chunk for each running table, none longer than its task may still take, and the agent's CPU-seconds."""
    slots = sorted(running)
    absent = sorted(set(cameras.values()) - set(seen[slots[0]]))
    if absent:
        raise ValueError(f"the tables show no camera {absent}; they show {sorted(seen[slots[0]])}: change `cameras`")
    pictures = {name: np.stack([seen[slot][theirs] for slot in slots]) for name, theirs in cameras.items()}  # b h w c
    context = Clip(
        frames={
            name: torch.from_numpy(video).permute(0, 3, 1, 2)[:, None].contiguous() for name, video in pictures.items()
        },
        text=tuple(INSTRUCTIONS[running[slot].task] for slot in slots),
        proprio=torch.from_numpy(np.stack([seen[slot]["robot_obs"] for slot in slots])).float(),
    )
    began = time.process_time()
    with torch.no_grad():
        actions = agent.act(context, slots).float().cpu()
    cpu = time.process_time() - began
    if actions.ndim != 3 or len(actions) != len(slots) or not actions.isfinite().all():
        raise ValueError(
            f"the agent answered {len(slots)} observations with actions of shape {tuple(actions.shape)}, finite: "
            f"{bool(actions.isfinite().all())}; wanted ({len(slots)}, chunk, action), all finite"
        )
    if execute is not None and not 1 <= execute <= actions.shape[1]:
        raise ValueError(
            f"execute is {execute}; the agent gives chunks of {actions.shape[1]} actions: take 1 to that many"
        )
    left = [max_steps - running[slot].steps[-1] for slot in slots]
    chunks = zip(slots, actions[:, :execute].numpy(), left, strict=True)
    return {slot: chunk[:most] for slot, chunk, most in chunks}, cpu


def _over(one: _Running, solved: bool, max_steps: int) -> bool:
    """Counts a solved task, and returns whether the sequence is over."""
    one.solved += solved
    if solved and one.solved < len(one.sequence.tasks):
        one.steps.append(0)
        return False
    return solved or one.steps[-1] >= max_steps


def _film(seen: Sequence[Observation], cameras: Mapping[str, str]) -> dict[str, UInt8[Tensor, "t c h w"]]:
    return {
        name: torch.from_numpy(np.stack([one[theirs] for one in seen])).permute(0, 3, 1, 2)
        for name, theirs in cameras.items()
    }


def _result(one: _Running, arm: str) -> SequenceResult:
    return SequenceResult(
        arm=arm,
        sequence=one.sequence.number,
        state=one.sequence.state,
        tasks=list(one.sequence.tasks),
        solved=one.solved,
        steps=one.steps,
        seconds=one.seconds,
        inference_cpu_seconds=one.cpu,
    )
