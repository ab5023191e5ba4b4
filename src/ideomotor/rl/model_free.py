"""Model-free reinforcement learning: collect a step, learn from replay, be tried now and then; resumes exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ideomotor.data.replay import Replay, ReplayConfig
from ideomotor.evaluation.episodes import EpisodeResult, EpisodeSpec, append, read_log
from ideomotor.rl.collect import Collector, PixelEnv
from ideomotor.rl.drqv2 import DrQv2, DrQv2Config
from ideomotor.training.learner import Learner, seed_of
from ideomotor.training.run import Round, Run
from ideomotor.types import Batch


@dataclass(frozen=True, kw_only=True)
class ModelFreeConfig:
    """Settings of a run, counted in agent steps; the defaults are those of iVideoGPT's runs of 100,000 frames.

    Attributes:
        task: the name of what is learned, for the rows of its trials.
        steps: in all.
        random_steps: at the beginning, with random actions and no learning.
        updates: after each later step.
        batch: transitions of an update.
        evaluate_every: steps between trials.
        demonstrations: folder of episodes that are drawn from beside the agent's own; it is never written.
    """

    task: str
    steps: int = 50_001
    random_steps: int = 2000
    updates: int = 2
    batch: int = 256
    evaluate_every: int = 1000
    demonstrations: Path | None = None
    agent: DrQv2Config = field(default_factory=DrQv2Config)
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    def __post_init__(self) -> None:
        counts = (self.steps, self.updates, self.batch, self.evaluate_every)
        if min(counts) < 1 or self.random_steps < 0:
            raise ValueError(
                f"steps, updates, batch, evaluate_every are {counts} and must be 1 or more; random_steps "
                f"{self.random_steps} not below 0"
            )
        if self.agent.network.stack != self.replay.stack:
            raise ValueError(
                f"the agent sees {self.agent.network.stack} frames and the replay stacks {self.replay.stack}: give "
                "both the same"
            )


def train(
    run: Run,
    config: ModelFreeConfig,
    world: PixelEnv,
    trial_world: PixelEnv,
    trials: Sequence[EpisodeSpec] = (),
    say: Callable[[str], None] = print,
) -> DrQv2:
    """Trains an agent up to ``config.steps`` in the run's folder, and saves it there as ``agent``.

    ``replay/`` holds its episodes, ``trials/step-NNNNNNNNN.jsonl`` a row an episode of each trial. Killed at any
    moment, the same call goes on and ends with the same weights.

    Args:
        run: of one process; entered.
        config: must be the one the run was made with.
        world: to collect in.
        trial_world: to be tried in; another one, so that a trial does not disturb the episode that is being collected.
        trials: the episodes of each trial.
        say: told of files that were left out.

    Raises:
        Stopped: see ``Run``.
        ValueError: demonstrations that cannot be read or do not fit, or several processes.
    """
    if run.processes.world_size > 1:
        raise ValueError(f"{run.processes.world_size} processes would each collect their own episodes: start one")
    replay = Replay(run.dir / "replay", config.replay, config.demonstrations)
    for left_out in replay.quarantined:
        say(f"left out {left_out.path}: {left_out.reason}")
    agent, collector = DrQv2(run, config.agent), Collector(world, replay, run.seed)
    run.keep("collector", collector)

    def rounds(start: int) -> Iterator[Round]:
        if start == 0:  # what is there is of a run that was killed before its first state, or thrown away (fresh)
            collector.begin()
            for file in (run.dir / "trials").glob("step-*.jsonl"):
                file.unlink()
        trial(start, {})  # a kill may have come after the state was saved and before the trial's last row was
        return (_round(step, config, agent, collector) for step in range(start, config.steps))

    def trial(step: int, metrics: Mapping[str, float]) -> None:
        if trials and step and (step % config.evaluate_every == 0 or step == config.steps):
            evaluate(agent, trial_world, trials, run.dir / "trials" / f"step-{step:09d}.jsonl")

    run.loop(rounds, *agent.learners, steps=config.steps, hooks=(trial,))
    trial(config.steps, {})
    run.save(agent.network, config.agent.network, "agent")
    return agent


def _round(step: int, config: ModelFreeConfig, agent: DrQv2, collector: Collector) -> Iterator[tuple[Learner, Batch]]:
    """One agent step in the world, and the updates after it."""
    if step < config.random_steps:
        rng = np.random.default_rng(seed_of(agent.seed, "random", step))
        action = rng.uniform(-1, 1, agent.config.network.actions).astype(np.float32)
    else:
        action = agent.explore(torch.from_numpy(collector.observation)[None], step)[0].numpy()
    collector.step(action)
    if step >= config.random_steps and collector.replay.episodes:
        for update in range(config.updates):
            draw = step * config.updates + update
            batch = collector.replay.transitions(config.batch, seed_of(agent.seed, "replay"), draw)
            yield from agent.updates(batch, step, draw)


def evaluate(agent: DrQv2, world: PixelEnv, trials: Iterable[EpisodeSpec], log: Path) -> list[EpisodeResult]:
    """Returns how the episodes went without noise; those already in ``log`` are not run again."""
    rows = {row.key: row for row in read_log(log)}
    for spec in trials:
        if spec.key not in rows:
            rows[spec.key] = _episode(agent, world, spec)
            append(log, rows[spec.key])
    return list(rows.values())


def _episode(agent: DrQv2, world: PixelEnv, spec: EpisodeSpec) -> EpisodeResult:
    began, cpu = time.perf_counter(), 0.0
    observation, _ = world.reset(seed=spec.seed, options={"goal": spec.goal})
    total, steps, success, over = 0.0, 0, False, False
    while not over:
        before = time.process_time()
        frames = torch.from_numpy(observation)[None].to(agent.device)
        action = agent.network.mean_action(frames)[0].cpu().numpy()
        cpu += time.process_time() - before
        observation, reward, terminated, truncated, info = world.step(action)
        total, steps, success = total + float(reward), steps + 1, success or bool(info["success"])
        over = terminated or truncated
    return EpisodeResult(
        arm="drqv2",
        task=spec.task,
        seed=spec.seed,
        goal=spec.goal,
        success=success,
        steps=steps,
        total_reward=total,
        seconds=time.perf_counter() - began,
        inference_cpu_seconds=cpu,
    )
