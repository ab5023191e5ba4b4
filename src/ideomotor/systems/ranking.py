"""A world as simulator: policies of different quality are tried in the real world and inside a learned one. Do the two
rank them alike?

The policies are clones of what was recorded, after more or fewer updates, and the best trained of them with a shaking
hand. Both tries begin with the same first frames and sum the rewards of as many steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.replay import ReplayConfig, Trajectory, draw_transitions, read_trajectory
from ideomotor.data.transforms import random_shift
from ideomotor.evaluation.charts import Point, alone, scatter
from ideomotor.evaluation.episodes import EpisodeResult, EpisodeSpec, append, read_log, read_rows
from ideomotor.evaluation.statistics import Estimate, mean_of_clips, rank_agreement, wilson
from ideomotor.files import write_text
from ideomotor.policies.actor_critic import ActorCritic, ActorCriticConfig, Cloning, noisy
from ideomotor.rl.collect import PixelEnv
from ideomotor.rl.dreams import imagine
from ideomotor.systems.agent_worlds import RECORDED_REPEAT, pixel_world
from ideomotor.systems.dream import digest
from ideomotor.systems.world import World
from ideomotor.training.checkpoint import fingerprint, load_model
from ideomotor.training.learner import seed_of
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Round, Run
from ideomotor.types import Transitions

_FEWEST = 8  # policies: fewer have too few orders for a correlation of ranks to say anything


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """What is tried.

    Attributes:
        task: of the world.
        updates: after how many a clone is tried.
        noise: deviations; the clone of the most updates is tried with such noise on its actions too.
        episodes: of each policy, one a test goal.
        steps: of an episode, in both worlds.
        held: recorded steps that an action is held for, as the learned world takes it (its ``window.held``).
        samples: futures imagined for each first frame; their returns are averaged.
        batch: transitions of an update.
        shift: pixels that pictures are moved by at random in cloning.
        network: of the clones.
        optim: of the cloning.
        seed: of everything random.
    """

    task: str
    updates: tuple[int, ...] = (0, 20, 50, 100, 200, 400, 800)
    noise: tuple[float, ...] = (0.3, 0.6, 1.0)
    episodes: int = 20
    steps: int = 50
    held: int = 1
    samples: int = 2
    batch: int = 64
    shift: int = 4
    network: ActorCriticConfig = field(default_factory=lambda: ActorCriticConfig(filters=16, hidden=256))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, schedule="constant", warmup=0))
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.episodes, self.steps, self.held, self.samples, self.batch) < 1 or self.shift < 0:
            raise ValueError(
                f"episodes {self.episodes}, steps {self.steps}, held {self.held}, samples {self.samples}, batch "
                f"{self.batch} must be 1 or more, shift {self.shift} 0 or more"
            )
        if list(self.updates) != sorted(set(self.updates)) or min(self.updates, default=-1) < 0 or not self.last:
            raise ValueError(f"updates are {self.updates}; wanted rising numbers, the last above 0")
        if min(self.noise, default=1) <= 0 or len(set(self.noise)) < len(self.noise):
            raise ValueError(f"noise is {self.noise}; wanted deviations above 0, each once")
        if len(self.updates) + len(self.noise) < _FEWEST:
            raise ValueError(
                f"{len(self.updates)} updates and {len(self.noise)} noises make few policies: give {_FEWEST} or more"
            )

    @property
    def last(self) -> int:
        """Updates in all."""
        return self.updates[-1]


@dataclass(frozen=True, kw_only=True)
class RankingSettings:
    """All that decides what a folder holds; what is there is gone on with under the same ones only."""

    ranking: RankingConfig
    read: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ImaginedResult:
    """The mean return of the futures imagined from one first frame.

    Attributes:
        spread: their standard deviation.
        seconds: of processor time, the share of this first frame.
    """

    arm: str
    goal: int
    total_reward: float
    spread: float
    seconds: float

    @property
    def identity(self) -> tuple[str, int]:
        """Policy and goal."""
        return self.arm, self.goal


class Policy:
    """A clone after some updates, perhaps with noise on its actions."""

    def __init__(self, network: ActorCritic, updates: int, noise: float = 0.0) -> None:
        self.network, self.updates, self.noise = network, updates, noise
        self.name = f"{updates} updates" + (f", noise {noise:g}" if noise else "")

    def act(self, frames: UInt8[Tensor, "b t c h w"], generator: torch.Generator) -> Float[Tensor, "b action"]:
        """Returns what it does, in -1..1."""
        mean = self.network.mean_action(frames).cpu()
        return noisy(mean, self.noise, torch.randn(mean.shape, generator=generator))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What came out: a row a policy, and Spearman's correlation of the imagined returns with the real ones, and with
    the share of successes.
    """

    rows: list[dict[str, Any]]
    of_return: Estimate
    of_success: Estimate


def rank(
    config: RankingConfig,
    world: World,
    folders: Sequence[Path],
    out: Path,
    say: Callable[[str], None] = print,
    real: Callable[[str, int, int], Any] = lambda task, stack, held: pixel_world(
        task, "test", stack, RECORDED_REPEAT * held
    ),
) -> Ranking:
    """Clones, tries in both worlds, and writes ``out``/ranking.svg. Killed, the same call goes on.

    Args:
        config: what is tried.
        world: learned, with a reward head.
        folders: of the task's recorded episodes, in the replay layout.
        out: gets the clones, a row an episode in real.jsonl and imagined.jsonl, and the drawing.
        say: told of each policy that was tried.
        real: makes the real world of a task, with that many frames an observation, that holds an action for so many
            recorded steps.

    Raises:
        ValueError: a world that does not fit, or nothing recorded.
    """
    from ideomotor.envs.world import GOALS

    refuse_unfit(config, world)
    goals = GOALS["test"][: config.episodes]
    if len(goals) < config.episodes:
        raise ValueError(f"episodes is {config.episodes}; there are {len(goals)} test goals: take at most that many")
    read = {str(number): digest(folder) for number, folder in enumerate(folders)}
    read["world"] = fingerprint(world.predictor, world.predictor.config)
    specs = [EpisodeSpec(task=config.task, seed=config.seed, goal=goal) for goal in goals]
    tried = real(config.task, config.network.stack, config.held)
    try:
        with Run(out, seed=config.seed, config=RankingSettings(ranking=config, read=read)) as run:
            fine = [read_trajectory(path) for folder in folders for path in sorted(folder.glob("*.npz"))]
            episodes = [episode.coarse(config.held, start) for episode in fine for start in range(config.held)]
            clone(config, run, episodes)
            starts = first_frames(tried, specs)
            for policy in policies(config, run):
                try_real(policy, tried, specs, config.steps, out / "real.jsonl")
                try_imagined(config, policy, world, starts, specs, out / "imagined.jsonl")
                say(f"tried: {policy.name}")
            ranking = summary(config, out)
            write_text(out / "ranking.svg", drawing(ranking))
    finally:
        tried.close()
    return ranking


def refuse_unfit(config: RankingConfig, world: World) -> None:
    """Refuses a world that these policies cannot act in.

    Raises:
        ValueError: naming what differs.
    """
    network = config.network
    if not world.predictor.config.reward:
        raise ValueError("this world foretells no reward, so nothing can be ranked in it: train it with --world.reward")
    ours, theirs = (network.size, network.actions), (world.tokenizer.config.size, world.action_width)
    if ours != theirs or network.stack < world.context:
        raise ValueError(
            f"the policies have (px, numbers of an action) {ours} and see {network.stack} frames, the world has "
            f"{theirs} and begins with {world.context} frames: give the same, and at least as many frames"
        )


def clone(config: RankingConfig, run: Run, episodes: Sequence[Trajectory]) -> None:
    """Learns to do what was done, and saves the network after each number of updates; a killed run goes on."""
    network = ActorCritic(config.network)
    learner = run.learner(Cloning(network), config.optim, config.last)
    drawn = ReplayConfig(stack=config.network.stack, steps=1)

    def batch(step: int) -> Transitions:
        plain = draw_transitions(episodes, drawn, config.batch, seed_of(config.seed, "clone"), step)
        generator = torch.Generator().manual_seed(seed_of(config.seed, "shift", step))
        return replace(plain, frames=random_shift(plain.frames, config.shift, generator))

    def save(step: int) -> None:
        if step in config.updates:
            run.save(network, config.network, f"clone-{step:06d}")

    def rounds(start: int) -> Iterator[Round]:
        save(start)  # the first; or one that a kill came before
        return ([(learner, batch(step))] for step in range(start, config.last))

    run.loop(rounds, learner, steps=config.last, hooks=(lambda step, _: save(step),))
    save(run.step)


def policies(config: RankingConfig, run: Run) -> Iterable[Policy]:
    """Yields the clones, then the best trained one with more and more noise."""
    for updates, noise in [
        *((count, 0.0) for count in config.updates),
        *((config.last, each) for each in config.noise),
    ]:
        folder = run.dir / f"clone-{updates:06d}"
        yield Policy(load_model(folder, ActorCritic, ActorCriticConfig, run.device), updates, noise)


def first_frames(world: PixelEnv, specs: Sequence[EpisodeSpec]) -> UInt8[Tensor, "b stack c h w"]:
    """Returns what is seen at the start of each episode, oriented as the real world shows it."""
    seen = [world.reset(seed=spec.seed, options={"goal": spec.goal})[0] for spec in specs]
    return torch.from_numpy(np.stack(seen))


def try_real(policy: Policy, world: PixelEnv, specs: Sequence[EpisodeSpec], steps: int, log: Path) -> None:
    """Adds a row an episode of the real world; those that are there are not run again."""
    there = {row.identity for row in read_log(log)}
    for spec in specs:
        if (policy.name, *spec.key) not in there:
            append(log, _episode(policy, world, spec, steps))


def try_imagined(
    config: RankingConfig,
    policy: Policy,
    world: World,
    starts: UInt8[Tensor, "b stack c h w"],
    specs: Sequence[EpisodeSpec],
    log: Path,
) -> None:
    """Adds a row a first frame of what the policy earns inside the learned world, unless all are there."""
    there = {row.identity for row in read_rows(log, ImaginedResult)}
    if all((policy.name, spec.goal) in there for spec in specs):
        return
    began = time.process_time()
    world.seed(seed_of(config.seed, "imagined", policy.name))
    generator = torch.Generator().manual_seed(seed_of(config.seed, "imagined noise", policy.name))
    device = next(policy.network.parameters()).device
    many = starts.repeat_interleave(config.samples, 0)
    futures = imagine(world, many, config.steps, lambda frames, _: policy.act(frames.to(device), generator))
    returns = futures.rewards.sum(1).unflatten(0, (len(starts), config.samples)).double()
    share = (time.process_time() - began) / len(specs)
    for spec, earned in zip(specs, returns, strict=True):
        if (policy.name, spec.goal) not in there:
            row = ImaginedResult(
                arm=policy.name,
                goal=spec.goal,
                total_reward=float(earned.mean()),
                spread=float(earned.std(correction=0)),
                seconds=share,
            )
            append(log, row)


def summary(config: RankingConfig, out: Path) -> Ranking:
    """Returns the ranking from the rows of both logs."""
    real = {row.identity: row for row in read_log(out / "real.jsonl")}
    imagined = {row.identity: row for row in read_rows(out / "imagined.jsonl", ImaginedResult)}
    names = list(dict.fromkeys(arm for arm, *_ in real))
    by_policy = {name: [row for (arm, *_), row in real.items() if arm == name] for name in names}
    foreseen = {name: [imagined[name, row.goal] for row in by_policy[name]] for name in names}
    rows = []
    for name in names:
        earned = mean_of_clips([row.total_reward for row in by_policy[name]])
        inside = mean_of_clips([row.total_reward for row in foreseen[name]])
        solved = wilson(sum(row.success for row in by_policy[name]), len(by_policy[name]))
        row: dict[str, Any] = {"policy": name}
        for what, found in (("return", earned), ("imagined return", inside), ("success", solved)):
            row |= {what: found.value, f"{what}, low": _finite(found.low), f"{what}, high": _finite(found.high)}
        row["seconds"] = sum(row.seconds for row in by_policy[name])
        row["imagined CPU-s"] = sum(row.seconds for row in foreseen[name])
        rows.append(row)
    inside_returns = [[row.total_reward for row in foreseen[name]] for name in names]
    real_returns = [[row.total_reward for row in by_policy[name]] for name in names]
    successes = [[float(row.success) for row in by_policy[name]] for name in names]
    return Ranking(
        rows=rows,
        of_return=rank_agreement(real_returns, inside_returns, seed=config.seed),
        of_success=rank_agreement(successes, inside_returns, seed=config.seed),
    )


def drawing(ranking: Ranking) -> str:
    """Returns the scatter of imagined over real returns, as an SVG file."""

    def axis(row: dict[str, Any], what: str) -> tuple[float, float, float]:
        value = row[what]
        low, high = row[f"{what}, low"], row[f"{what}, high"]
        return value, value if low is None else low, value if high is None else high

    points = [Point(row["policy"], axis(row, "return"), axis(row, "imagined return")) for row in ranking.rows]
    found = ranking.of_return
    said = "real return; they rank nothing alike or unlike, as one side has no order"
    if np.isfinite(found.value):
        said = (
            f"real return; Spearman's correlation {found.value:.2f} (95% interval {found.low:.2f} to {found.high:.2f})"
        )
    return alone(scatter(points, "imagined over real returns of policies", said, "imagined return"))


def _episode(policy: Policy, world: PixelEnv, spec: EpisodeSpec, steps: int) -> EpisodeResult:
    began, cpu, total, success, taken = time.perf_counter(), 0.0, 0.0, False, 0
    generator = torch.Generator().manual_seed(seed_of(spec.seed, "real noise", policy.name, spec.goal))
    device = next(policy.network.parameters()).device
    observation, _ = world.reset(seed=spec.seed, options={"goal": spec.goal})
    for _ in range(steps):
        before = time.process_time()
        action = policy.act(torch.from_numpy(observation)[None].to(device), generator)[0].numpy()
        cpu += time.process_time() - before
        observation, reward, terminated, truncated, info = world.step(action)
        total, success, taken = total + float(reward), success or bool(info["success"]), taken + 1
        if (terminated or truncated) and taken < steps:
            raise ValueError(
                f"the episode of {spec.task!r} ended after {taken} steps, and {steps} are imagined: set fewer steps"
            )
    return EpisodeResult(
        arm=policy.name,
        task=spec.task,
        seed=spec.seed,
        goal=spec.goal,
        success=success,
        steps=taken,
        total_reward=total,
        seconds=time.perf_counter() - began,
        inference_cpu_seconds=cpu,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
