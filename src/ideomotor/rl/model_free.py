"""Model-free reinforcement learning: collect a step, learn from replay, be tried now and then; resumes exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ideomotor.data.replay import Replay, ReplayConfig, draw_transitions
from ideomotor.evaluation.episodes import EpisodeResult, EpisodeSpec, append, read_log
from ideomotor.rl.collect import Collector, PixelEnv
from ideomotor.rl.drqv2 import DrQv2, DrQv2Config
from ideomotor.training.learner import Learner, seed_of
from ideomotor.training.run import Round, Run
from ideomotor.types import Batch, Transitions

Told = Callable[[int, EpisodeResult], None]
"""Told of the agent step and the row of an episode that was tried."""


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
    told: Told = lambda step, result: None,
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
        told: called with the step and the row of each episode of a trial, also of those that an earlier start left.

    Raises:
        Stopped: see ``Run``.
        ValueError: demonstrations that cannot be read or do not fit, or several processes.
    """
    agent, collector = beginning(run, config, world, say)
    tried = Trials(agent, trial_world, trials, run.dir / "trials", config, "drqv2", told)

    def rounds(start: int) -> Iterator[Round]:
        if start == 0:
            collector.begin()
            tried.forget()
        tried.catch_up(start)
        return (_round(step, config, agent, collector) for step in range(start, config.steps))

    run.loop(rounds, *agent.learners, steps=config.steps, hooks=(lambda step, _: tried.at(step),))
    tried.catch_up(config.steps)
    run.save(agent.network, config.agent.network, "agent")
    return agent


def beginning(
    run: Run, config: ModelFreeConfig, world: PixelEnv, say: Callable[[str], None]
) -> tuple[DrQv2, Collector]:
    """Returns the agent of the run and its collector, whose state the run keeps.

    Raises:
        ValueError: demonstrations that cannot be read or do not fit, or several processes.
    """
    if run.processes.world_size > 1:
        raise ValueError(f"{run.processes.world_size} processes would each collect their own episodes: start one")
    replay = Replay(run.dir / "replay", config.replay, config.demonstrations)
    for left_out in replay.quarantined:
        say(f"left out {left_out.path}: {left_out.reason}")
    agent, collector = DrQv2(run, config.agent), Collector(world, replay, run.seed)
    run.keep("collector", collector)
    return agent, collector


class Trials:
    """Tries the agent now and then; ``folder``/step-NNNNNNNNN.jsonl gets a row an episode.

    Args:
        agent: as it is when it is tried.
        world: to be tried in.
        episodes: of each trial.
        folder: of the rows.
        config: says when.
        arm: the name in the rows.
        told: called with the step and the row of each episode of a trial, once in a process.
    """

    def __init__(
        self,
        agent: DrQv2,
        world: PixelEnv,
        episodes: Sequence[EpisodeSpec],
        folder: Path,
        config: ModelFreeConfig,
        arm: str,
        told: Told,
    ) -> None:
        self.agent, self.world, self.episodes, self.folder = agent, world, episodes, folder
        self.config, self.arm, self.told = config, arm, told
        self._known = set[tuple[int, tuple[str, int, int]]]()

    def forget(self) -> None:
        """Takes away what is there: of a run that was killed before its first state, or thrown away (fresh)."""
        for file in self.folder.glob("step-*.jsonl"):
            file.unlink()

    def catch_up(self, step: int) -> None:
        """Tells of the trials up to ``step`` that were made, and ends the one of this very step: a kill may have come
        after the state was saved and before the trial's last row was.
        """
        for earlier in range(1, step):
            if self._due(earlier) and self._log(earlier).is_file():
                self._tell(earlier, read_log(self._log(earlier)))
        self.at(step)

    def at(self, step: int) -> None:
        """Tries the agent where it is time to."""
        if self._due(step):
            self._tell(step, evaluate(self.agent, self.world, self.episodes, self._log(step), self.arm))

    def _tell(self, step: int, rows: Iterable[EpisodeResult]) -> None:
        for row in rows:
            if (step, row.key) not in self._known:
                self._known.add((step, row.key))
                self.told(step, row)

    def _due(self, step: int) -> bool:
        return (
            bool(self.episodes) and step > 0 and (step % self.config.evaluate_every == 0 or step == self.config.steps)
        )

    def _log(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.jsonl"


def _round(step: int, config: ModelFreeConfig, agent: DrQv2, collector: Collector) -> Iterator[tuple[Learner, Batch]]:
    """One agent step in the world, and the updates after it."""
    take_step(step, config, agent, collector)
    if step >= config.random_steps and collector.replay.episodes:
        for update in range(config.updates):
            draw = step * config.updates + update
            batch = collector.replay.transitions(config.batch, seed_of(agent.seed, "replay"), draw)
            yield from agent.updates(batch, step, draw, shown(config, agent, collector.replay, draw))


def shown(config: ModelFreeConfig, agent: DrQv2, replay: Replay, draw: int) -> Transitions | None:
    """Returns half as many transitions of demonstrations as a batch has; None where they shall not be cloned."""
    if not config.agent.cloning or not replay.demonstrations:
        return None
    episodes, count = list(replay.demonstrations.values()), max(1, config.batch // 2)
    return draw_transitions(episodes, replay.config, count, seed_of(agent.seed, "shown"), draw)


def take_step(step: int, config: ModelFreeConfig, agent: DrQv2, collector: Collector) -> None:
    """One agent step in the world, at random in the beginning."""
    if step < config.random_steps:
        rng = np.random.default_rng(seed_of(agent.seed, "random", step))
        action = rng.uniform(-1, 1, agent.config.network.actions).astype(np.float32)
    else:
        action = agent.explore(torch.from_numpy(collector.observation)[None], step)[0].numpy()
    collector.step(action)


def evaluate(
    agent: DrQv2, world: PixelEnv, trials: Iterable[EpisodeSpec], log: Path, arm: str = "drqv2"
) -> list[EpisodeResult]:
    """Returns how the episodes went without noise; those already in ``log`` are not run again."""
    rows = {row.key: row for row in read_log(log)}
    for spec in trials:
        if spec.key not in rows:
            rows[spec.key] = _episode(agent, world, spec, arm)
            append(log, rows[spec.key])
    return list(rows.values())


def _episode(agent: DrQv2, world: PixelEnv, spec: EpisodeSpec, arm: str) -> EpisodeResult:
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
        arm=arm,
        task=spec.task,
        seed=spec.seed,
        goal=spec.goal,
        success=success,
        steps=steps,
        total_reward=total,
        seconds=time.perf_counter() - began,
        inference_cpu_seconds=cpu,
    )
