"""An agent tried in many worlds at once: batched inference, chunks of actions, stop at success, resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ideomotor.evaluation.episodes import EpisodeResult, EpisodeSpec, append, read_log
from ideomotor.types import Agent, Clip

Observation = Mapping[str, Any]
"""``{"frames": {camera: uint8 (n, context, c, h, w)}, "proprio": float32 (n, p)}``; ``proprio`` may be absent."""


class VectorWorld(Protocol):
    """``n`` worlds acted on in chunks, as ``envs.vector.ChunkedVector`` offers them."""

    num_envs: int

    def reset(
        self,
        seeds: Sequence[int | None] | None = None,
        options: Sequence[dict[str, Any] | None] | None = None,
        where: Sequence[bool] | np.ndarray | None = None,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Starts an episode in every world, or in those ``where`` says; the first call is of all."""

    def step(
        self, chunks: np.ndarray, active: Sequence[bool] | np.ndarray | None = None
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Executes a chunk ``(k, a)`` in each active world; ``info["executed"]`` counts the actions really taken."""


class Ensemble(Protocol):
    """Blends the chunks of each world that overlap in time, as ``policies.actions.TemporalEnsemble`` does."""

    def blend(
        self, slots: Sequence[int], chunks: Float[Tensor, "b chunk action"], executed: int
    ) -> Float[Tensor, "b chunk action"]:
        """Returns new chunks of those worlds, blended with their earlier ones, ``executed`` steps after these."""

    def forget(self, slots: Sequence[int]) -> None:
        """Drops the earlier chunks of worlds that begin an episode."""


Recorder = Callable[[EpisodeResult, Mapping[str, UInt8[Tensor, "t c h w"]]], None]


@dataclass
class _Running:
    spec: EpisodeSpec
    steps: int = 0
    reward: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    pictures: list[dict[str, np.ndarray]] = field(default_factory=list)  # by camera, each `t c h w`

    def add(self, steps: int, reward: float, seconds: float, cpu: float) -> None:
        self.steps, self.reward = self.steps + steps, self.reward + reward
        self.seconds, self.cpu = self.seconds + seconds, self.cpu + cpu


def rollout(
    agent: Agent,
    world: VectorWorld,
    episodes: Sequence[EpisodeSpec],
    *,
    slots: Sequence[str],
    arm: str,
    log: Path | None = None,
    cameras: Mapping[str, str] | None = None,
    execute: int | None = None,
    ensemble: Ensemble | None = None,
    record: Collection[EpisodeSpec] = (),
    recorder: Recorder | None = None,
    stride: int = 4,
    done: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Runs the episodes and returns their results, in the order asked for; those already in ``log`` are not run again.

    All worlds step together. A world whose episode is over takes the next one of its task; the agent sees only the
    worlds that still run, as one batch. An agent that draws random numbers draws them batch by batch, so what an
    episode meets then depends on which ran beside it, also after an interruption.

    Args:
        agent: what acts.
        world: the worlds; the caller closes them.
        episodes: each once.
        slots: the task of each world.
        arm: name of what is tried, for the log and the report.
        log: a JSONL file that a row is appended to when an episode ends; a last line torn by a kill is dropped.
        cameras: the agent's camera names to the worlds', e.g. ``{"main": "corner2"}``; by default the worlds' own.
        execute: how many actions of a chunk are executed before the agent looks again; by default all.
        ensemble: blends chunks that overlap in time; by default the newest one alone counts.
        record: the episodes whose frames are kept.
        recorder: receives those episodes' frames by camera, before the row is logged.
        stride: environment steps between the frames of an observation; a recording has this step too.
        done: told of each episode as it ends.

    Raises:
        ValueError: an episode twice, a task without a world, a damaged log, or actions that are not finite.
    """
    _check(world, episodes, slots)
    finished = {result.key: result for result in (read_log(log) if log else []) if result.arm == arm}
    queues = {task: deque(e for e in episodes if e.task == task and e.key not in finished) for task in set(slots)}
    running: list[_Running | None] = [None] * world.num_envs
    recorded = {spec.key for spec in record}
    observation, infos = dict[str, Any](), list[dict[str, Any]]()
    while True:
        began = time.perf_counter()
        fresh = _begin(running, queues, slots)
        active = np.array([episode is not None for episode in running])
        if not active.any():
            return [finished[spec.key] for spec in episodes]
        if fresh:
            observation, infos = _reset(world, running, None if not infos else fresh)
            for slot in fresh:
                _keep(running[slot], observation, slot, 1, recorded)
            if ensemble is not None:
                ensemble.forget(fresh)
        chunks, cpu = _act(agent, observation, infos, active, cameras, execute, ensemble)
        observation, rewards, terminated, truncated, infos = world.step(chunks, active)
        elapsed = time.perf_counter() - began
        for slot in np.flatnonzero(active).tolist():
            episode = running[slot]
            assert episode is not None
            executed, acting = int(infos[slot]["executed"]), int(active.sum())
            episode.add(executed, float(rewards[slot]), elapsed / acting, cpu / acting)
            _keep(episode, observation, slot, max(1, executed // stride), recorded)
            if terminated[slot] or truncated[slot]:
                result = _result(episode, arm, bool(infos[slot]["success"]))
                if recorder is not None and result.key in recorded:
                    recorder(result, _film(episode))
                if log is not None:
                    append(log, result)
                finished[result.key] = result
                running[slot] = None
                if done is not None:
                    done(result)


def _check(world: VectorWorld, episodes: Sequence[EpisodeSpec], slots: Sequence[str]) -> None:
    if len(slots) != world.num_envs:
        raise ValueError(f"slots name {len(slots)} tasks; wanted the task of each of the {world.num_envs} worlds")
    homeless = sorted({spec.task for spec in episodes} - set(slots))
    if homeless:
        raise ValueError(f"no world runs the tasks {homeless}; the worlds run {sorted(set(slots))}")
    seen: set[tuple[str, int, int]] = set()
    for spec in episodes:
        if spec.key in seen:
            raise ValueError(f"episode {spec} is asked for twice; an episode counts once")
        seen.add(spec.key)


def _begin(running: list[_Running | None], queues: Mapping[str, deque[EpisodeSpec]], slots: Sequence[str]) -> list[int]:
    """Gives idle slots the next episode of their task; returns those that got one."""
    fresh = []
    for slot, task in enumerate(slots):
        if running[slot] is None and queues[task]:
            running[slot] = _Running(queues[task].popleft())
            fresh.append(slot)
    return fresh


def _reset(
    world: VectorWorld, running: Sequence[_Running | None], fresh: Sequence[int] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Starts the fresh slots' episodes; with None all slots, since a first reset must be of all, idle ones too."""
    seeds = [episode.spec.seed if episode else None for episode in running]
    options = [{"goal": episode.spec.goal} if episode else None for episode in running]
    where = None if fresh is None else np.isin(np.arange(world.num_envs), fresh)
    return world.reset(seeds, options, where)


def _act(
    agent: Agent,
    observation: Observation,
    infos: Sequence[Mapping[str, Any]],
    active: Bool[np.ndarray, " n"],
    cameras: Mapping[str, str] | None,
    execute: int | None,
    ensemble: Ensemble | None,
) -> tuple[Float[np.ndarray, "n chunk action"], float]:
    """Returns a chunk for every world, zeros where none acts, and the CPU-seconds that the agent took."""
    frames = observation["frames"]
    names = cameras or {name: name for name in frames}
    absent = sorted(set(names.values()) - set(frames))
    if absent:
        raise ValueError(
            f"the worlds show no camera {absent}; they show {sorted(frames)}: change `cameras` or the worlds'"
        )
    proprio = observation.get("proprio")
    context = Clip(
        frames={name: torch.from_numpy(np.ascontiguousarray(frames[theirs][active])) for name, theirs in names.items()},
        text=tuple(str(infos[slot]["text"]) for slot in np.flatnonzero(active).tolist()),
        proprio=None if proprio is None else torch.from_numpy(np.ascontiguousarray(proprio[active])),
    )
    began = time.process_time()
    with torch.no_grad():
        actions = agent.act(context).float().cpu()
    cpu = time.process_time() - began
    if actions.ndim != 3 or len(actions) != len(context) or not actions.isfinite().all():
        raise ValueError(
            f"the agent answered {len(context)} observations with actions of shape {tuple(actions.shape)}, finite: "
            f"{bool(actions.isfinite().all())}; wanted ({len(context)}, chunk, action), all finite"
        )
    if execute is not None and not 1 <= execute <= actions.shape[1]:
        raise ValueError(
            f"execute is {execute}; the agent gives chunks of {actions.shape[1]} actions: take 1 to that many"
        )
    if ensemble is not None:
        actions = ensemble.blend(np.flatnonzero(active).tolist(), actions, execute or actions.shape[1])
    actions = actions[:, :execute]
    chunks = np.zeros((len(active), *actions.shape[1:]), dtype=np.float32)
    chunks[active] = actions.numpy()
    return chunks, cpu


def _keep(episode: _Running | None, observation: Observation, slot: int, new: int, recorded: Collection[Any]) -> None:
    """Keeps the newest frames of an observation, where the episode is recorded."""
    if episode is not None and episode.spec.key in recorded:
        episode.pictures.append({name: video[slot][-new:].copy() for name, video in observation["frames"].items()})


def _film(episode: _Running) -> dict[str, UInt8[Tensor, "t c h w"]]:
    cameras = episode.pictures[0]
    return {name: torch.from_numpy(np.concatenate([part[name] for part in episode.pictures])) for name in cameras}


def _result(episode: _Running, arm: str, success: bool) -> EpisodeResult:
    return EpisodeResult(
        arm=arm,
        task=episode.spec.task,
        seed=episode.spec.seed,
        goal=episode.spec.goal,
        success=success,
        steps=episode.steps,
        total_reward=episode.reward,
        seconds=episode.seconds,
        inference_cpu_seconds=episode.cpu,
    )
