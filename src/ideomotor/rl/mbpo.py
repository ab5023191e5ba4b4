"""Model-based policy optimization: an agent that learns from real steps and from those it imagines in a learned world.

Source: MBPO (1906.08253) as iVideoGPT (2405.15223) does it. What differs on purpose: the agent sees imagined pictures
as it sees real ones, a frame's reward is its own, the world does not drop anything out while it imagines, and a killed
run goes on to the same weights. ``MBPOConfig.faults`` brings the first two of the published faults back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.replay import Segments, Trajectory
from ideomotor.evaluation.episodes import EpisodeSpec
from ideomotor.policies.actor_critic import ActorCritic
from ideomotor.rl.collect import Collector, PixelEnv
from ideomotor.rl.dreams import Dreams, Rollouts, imagine
from ideomotor.rl.drqv2 import DrQv2
from ideomotor.rl.model_free import ModelFreeConfig, Told, Trials, beginning, shown, take_step
from ideomotor.rl.world_scores import Film, score_world
from ideomotor.training.learner import Learner, seed_of
from ideomotor.training.run import Round, Run
from ideomotor.types import Batch, Transitions, WorldModel

Fault = Literal["double_scaling", "late_reward"]


@dataclass(frozen=True, kw_only=True)
class WorldPart:
    """What learns of a world.

    Attributes:
        learner: its schedule must be constant, since a run may later be given more steps.
        every: agent steps between its updates.
        batch: what it learns from of segments; the number seeds what it draws of them.
    """

    learner: Learner
    every: int
    batch: Callable[[Segments, int], Batch]

    def __post_init__(self) -> None:
        if self.every < 1 or self.learner.config.schedule != "constant":
            raise ValueError(
                f"{self.learner.name} learns every {self.every} steps by the schedule "
                f"{self.learner.config.schedule!r}; wanted 1 or more, and 'constant'"
            )


@dataclass(frozen=True, kw_only=True)
class MBPOConfig:
    """Settings of a run, counted in agent steps; the defaults are iVideoGPT's, who count frames, two a step.

    Attributes:
        real: the agent, and what it does in the real world; ``real.steps`` are all the real steps.
        world_start: step at which the world begins to learn; it learns from real episodes and demonstrations.
        world_initial: updates of each of its parts then.
        world_batch: segments of an update.
        horizon: frames of a rollout.
        imagine_initial: batches of rollouts that are imagined once the world has begun.
        imagine_every: steps between later batches.
        imagine_batch: rollouts of a batch.
        real_ratio: share of an agent's batch that is real, once there is something imagined.
        bounded: cuts imagined rewards to the range of the real ones. (Published: not. A young world foretells several
            times what there is to earn, as it learns a reward's logarithm, and the critic believes it.)
        keep: batches of rollouts that are drawn from, the newest. (Published: all there ever were.)
        validate_every: episodes between looks at how well the world foretells the one that has just ended, before
            anything has learned from it.
        faults: published faults to be made on purpose, to see what they cost: "double_scaling" (the agent is nearly
            blind in imagination), "late_reward" (the world learns each frame's reward as that of the frame before).
    """

    real: ModelFreeConfig
    world_start: int = 2000
    world_initial: int = 1000
    world_batch: int = 16
    horizon: int = 10
    imagine_initial: int = 20
    imagine_every: int = 100
    imagine_batch: int = 32
    real_ratio: float = 0.5
    bounded: bool = False
    keep: int = 150
    validate_every: int = 5
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        counts = {f.name: getattr(self, f.name) for f in fields(self) if type(getattr(self, f.name)) is int}
        if min(counts.values()) < 1 or not 0 <= self.real_ratio <= 1:
            raise ValueError(f"{counts} must be 1 or more each, real_ratio {self.real_ratio} in 0..1")
        if self.world_start >= self.real.steps:
            raise ValueError(
                f"world_start is {self.world_start} of {self.real.steps} steps: the world would never begin; let it "
                "begin earlier, or train without it"
            )
        if self.horizon < self.real.replay.steps:
            raise ValueError(
                f"horizon is {self.horizon} and a transition takes {self.real.replay.steps} steps: lengthen the one or "
                "shorten the other (replay.steps)"
            )

    @property
    def rounds(self) -> int:
        """Rounds of the run: its agent steps, and at ``world_start`` one for each initial update of the world and for
        each initial batch of rollouts, so that a run can be stopped among them.
        """
        return self.real.steps + self.world_initial + self.imagine_initial

    def agent_steps(self, rounds: int) -> int:
        """Returns how many agent steps were taken in the first ``rounds`` rounds."""
        return min(rounds, max(self.world_start, rounds - self.world_initial - self.imagine_initial))


def train(
    run: Run,
    config: MBPOConfig,
    world: PixelEnv,
    trial_world: PixelEnv,
    learned: WorldModel,
    parts: Sequence[WorldPart],
    trials: Sequence[EpisodeSpec] = (),
    say: Callable[[str], None] = print,
    told: Told = lambda step, result: None,
    film: Film | None = None,
) -> DrQv2:
    """Trains an agent, and the world it dreams in, up to ``config.real.steps``; saves it in the folder as ``agent``.

    ``replay/`` holds real episodes, ``imagined/`` the newest rollouts, ``world_scores/`` how well the world foretold,
    ``trials/`` a row an episode of each trial. Killed at any moment, the same call ends with the same weights.

    Args:
        run: of one process; entered. Its log counts rounds, see ``MBPOConfig.rounds``.
        config: must be the one the run was made with.
        world: the real one, to collect in.
        trial_world: another one, to be tried in.
        learned: the learned one, in eval mode outside of updates.
        parts: what learns of it; learners of this run.
        trials: the episodes of each trial.
        say: told of files that were left out.
        told: called with the step and the row of each episode of a trial.
        film: makes the video of a look at the world.

    Raises:
        Stopped: see ``Run``.
        ValueError: settings or files that do not fit together.
    """
    agent, collector = beginning(run, config.real, world, say)
    dreams = Dreams(run.dir / "imagined", config.real.replay, config.keep)
    run.keep("imagined", dreams)
    tried = Trials(agent, trial_world, trials, run.dir / "trials", config.real, "mbpo", told)
    loop = _Loop(config, agent, collector, dreams, learned, parts, run.dir / "world_scores", film)

    def rounds(start: int) -> Iterator[Round]:
        if start == 0:
            collector.begin()
            dreams.begin()
            tried.forget()
            loop.forget()
        tried.catch_up(config.agent_steps(start))
        return (loop.round(number) for number in range(start, config.rounds))

    def trial(number: int, _: object) -> None:
        if (step := config.agent_steps(number)) > config.agent_steps(number - 1):
            tried.at(step)

    learners = (*agent.learners, *(part.learner for part in parts))
    run.loop(rounds, *learners, steps=config.rounds, hooks=(trial,))
    tried.catch_up(config.real.steps)
    run.save(agent.network, config.real.agent.network, "agent")
    return agent


@dataclass(frozen=True)
class _Loop:
    """What happens in each round."""

    config: MBPOConfig
    agent: DrQv2
    collector: Collector
    dreams: Dreams
    world: WorldModel
    parts: Sequence[WorldPart]
    folder: Path
    film: Film | None

    def forget(self) -> None:
        """Takes away the scores of a run that began here before."""
        for file in self.folder.glob("episode-*"):
            file.unlink()

    def round(self, number: int) -> Round:
        """Returns the updates of a round; see ``MBPOConfig.rounds`` for which is what."""
        c, since = self.config, number - self.config.world_start
        if 0 <= since < c.world_initial:
            return self._learn_world(self.parts, since)
        if 0 <= since < c.world_initial + c.imagine_initial:
            return self._imagine(c.world_start)
        return self._step(c.agent_steps(number))

    def _step(self, step: int) -> Iterator[tuple[Learner, Batch]]:
        """One step in the real world, what the world learns from it and then imagines, and what the agent learns."""
        c, episodes = self.config, self.collector.episodes
        take_step(step, c.real, self.agent, self.collector)
        since = step + 1 - c.world_start
        if since > 0:
            if self.collector.episodes > episodes and self.collector.episodes % c.validate_every == 0:
                self._validate(self.collector.episodes - 1)
            due = [part for part in self.parts if since % part.every == 0]
            yield from self._learn_world(due, c.world_initial + step)
            if since % c.imagine_every == 0:
                yield from self._imagine(step)
        if step >= c.real.random_steps and self.collector.replay.episodes:
            for update in range(c.real.updates):
                draw = step * c.real.updates + update
                imitated = shown(c.real, self.agent, self.collector.replay, draw)
                yield from self.agent.updates(self._mixed(draw), step, draw, imitated)

    def _learn_world(self, parts: Sequence[WorldPart], draw: int) -> Iterator[tuple[Learner, Batch]]:
        if parts:
            seed, length = seed_of(self.agent.seed, "segments"), self.world.context + self.config.horizon
            segments = self.collector.replay.segments(self.config.world_batch, length, seed, draw)
            segments = taught(segments, self.config.faults)
            for part in parts:
                yield part.learner, part.batch(segments, seed_of(seed, draw))

    def _imagine(self, step: int) -> Iterator[tuple[Learner, Batch]]:
        """A batch of rollouts from real observations, by the agent as it is now; moves no weight."""
        number, seed = self.dreams.made, self.agent.seed
        starts = self.collector.replay.transitions(self.config.imagine_batch, seed_of(seed, "starts"), number)
        self.world.seed(seed_of(seed, "imagine", number))

        def act(frames: UInt8[Tensor, "b stack c h w"], ahead: int) -> Float[Tensor, "b action"]:
            mean = imagined_mean(self.agent.network, frames.to(self.agent.device), self.config.faults)
            return self.agent.noised(mean, step, "dream", number, ahead)

        rollouts = imagine(self.world, starts.frames, self.config.horizon, act)
        self.dreams.add(within(rollouts, self.collector.replay.episodes) if self.config.bounded else rollouts)
        return iter(())

    def _mixed(self, draw: int) -> Transitions:
        """A batch for the agent: real, and imagined as soon as there is anything."""
        c, seed = self.config, self.agent.seed
        real = round(c.real.batch * c.real_ratio) if len(self.dreams) else c.real.batch
        drawn = []
        if real:
            drawn.append(self.collector.replay.transitions(real, seed_of(seed, "replay"), draw))
        if real < c.real.batch:
            drawn.append(self.dreams.transitions(c.real.batch - real, seed_of(seed, "imagined"), draw))
        return joined(drawn)

    def _validate(self, episode: int) -> None:
        name, seed = f"episode-{episode:06d}", seed_of(self.agent.seed, "validate", episode)
        self.world.seed(seed)
        score_world(
            self.world, self.collector.replay.own(episode), self.config.horizon, seed, self.folder / name, self.film
        )


def taught(segments: Segments, faults: Sequence[Fault] = ()) -> Segments:
    """Returns the segments as the world learns them; of "late_reward" each reward is that of the frame after its own.

    (The last row then holds the first one's; it belongs to a frame that no segment has.)
    """
    return replace(segments, rewards=segments.rewards.roll(-1, 1)) if "late_reward" in faults else segments


def within(rollouts: Rollouts, episodes: Sequence[Trajectory]) -> Rollouts:
    """Returns the rollouts with rewards no smaller or larger than any of the episodes' (their resets bring none)."""
    real = np.concatenate([episode.rewards[1:] for episode in episodes])
    return replace(rollouts, rewards=rollouts.rewards.clamp(float(real.min()), float(real.max())))


@torch.no_grad()
def imagined_mean(
    network: ActorCritic, frames: UInt8[Tensor, "b t c h w"], faults: Sequence[Fault] = ()
) -> Float[Tensor, "b action"]:
    """Returns what the actor holds best of what it imagines; under "double_scaling" its pixels are divided by 255
    twice, as published.
    """
    if "double_scaling" not in faults:
        return network.mean_action(frames)
    return network.actor(network.encoder.features(frames.flatten(1, 2) / 255 / 255 - 0.5))


def joined(batches: Sequence[Transitions]) -> Transitions:
    """Returns the batches as one."""
    first, *others = batches
    if not others:
        return first
    return Transitions(
        **{f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(Transitions)}
    )
