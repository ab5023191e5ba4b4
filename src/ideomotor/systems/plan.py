"""Plan: acts by search alone. Candidate actions are imagined in a learned world, and the best are carried out.

Receding horizon: the first actions of a plan are done, the world is looked at again, and the next plan begins at what
is left of the last one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from ideomotor.data.replay import read_trajectory
from ideomotor.data.video_writing import write_video
from ideomotor.evaluation.episodes import EpisodeResult, append, read_log
from ideomotor.rl.collect import PixelEnv
from ideomotor.rl.planning import Plan, Score, cem, imagined_score, mppi, shifted, undecided
from ideomotor.systems.agent_worlds import pixel_world
from ideomotor.systems.dream import FPS
from ideomotor.systems.ivideogpt_stages import load_config
from ideomotor.systems.panels import framed, side_by_side
from ideomotor.systems.quickstarts import claim
from ideomotor.systems.world import World
from ideomotor.systems.world_pace import steps_held
from ideomotor.training.checkpoint import fingerprint
from ideomotor.training.config import config_to_json
from ideomotor.training.folder import lock
from ideomotor.training.learner import seed_of
from ideomotor.types import WorldModel


@dataclass(frozen=True, kw_only=True)
class Planning:
    """How a plan is searched for.

    Attributes:
        planner: "cem" or "mppi".
        horizon: actions of a plan.
        samples: sequences imagined a round.
        rounds: of drawing.
        elites: of "cem", the best ones that the next round is drawn around.
        temperature: of "mppi".
        execute: actions that are done before the next plan.
    """

    planner: Literal["cem", "mppi"] = "cem"
    horizon: int = 8
    samples: int = 64
    rounds: int = 3
    elites: int = 8
    temperature: float = 0.3
    execute: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.horizon:
            raise ValueError(f"execute is {self.execute} of a plan of {self.horizon} actions: do 1 to that many")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """All that decides what an episode brings; rows of others are not mixed. World and goal are told by digests."""

    task: str
    seed: int
    steps: int
    planning: Planning
    world: str
    goal: str
    repeat: int  # steps of Meta-World that an action is held


class Acted(NamedTuple):
    """An episode: what was seen, what each plan foresaw for the same moment, and what it brought."""

    seen: UInt8[np.ndarray, "t c h w"]
    foreseen: UInt8[np.ndarray, "t c h w"]
    rewards: Float32[np.ndarray, " steps"]
    success: bool


def act_by_planning(
    world: PixelEnv,
    inside: WorldModel,
    planning: Planning,
    steps: int,
    *,
    start: int,
    goal: UInt8[np.ndarray, "c h w"] | None = None,
    seed: int = 0,
) -> Acted:
    """Acts for ``steps`` steps, or until the episode ends, from the start of that number.

    Args:
        world: the real one, whose stack holds the learned one's context.
        inside: the learned one.
        planning: how.
        steps: at most.
        start: which goal the task's world is reset to.
        goal: a picture to be brought about; None for rewards, which the learned world must foretell then.
        seed: of the draws.

    Raises:
        ValueError: the learned world hears other actions, or sees more frames than a stack holds.
    """
    low, high = (torch.as_tensor(bound) for bound in (world.action_space.low, world.action_space.high))
    if len(low) != inside.action_width:
        raise ValueError(
            f"the task's actions have width {len(low)} and the learned world's {inside.action_width}: take a world "
            "that was trained on this robot"
        )
    wanted = None if goal is None else torch.from_numpy(goal)[None]
    observation, _ = world.reset(seed=seed, options={"goal": start})
    if len(observation) < inside.context:
        raise ValueError(
            f"an observation has {len(observation)} frames, the learned world begins with {inside.context}"
        )
    generator = torch.Generator().manual_seed(seed_of(seed, "plan", start))
    plan = fresh = undecided(1, planning.horizon, low, high)
    seen, foreseen, rewards = [observation[-1]], [observation[-1]], list[float]()
    success = over = False
    while not over and len(rewards) < steps:
        state = inside.reset(torch.from_numpy(observation)[None])
        plan = searched(imagined_score(inside, state, wanted), plan, planning, low, high, generator)
        for action in plan.actions[0, : planning.execute]:
            imagined = inside.step(state, action[None])
            state = imagined.state
            observation, reward, terminated, truncated, info = world.step(action.numpy())
            seen.append(observation[-1])
            foreseen.append(imagined.frames[0].cpu().numpy())
            rewards.append(float(reward))
            success, over = success or bool(info["success"]), terminated or truncated
            if over or len(rewards) >= steps:
                break
        plan = shifted(plan, planning.execute, fresh)
    return Acted(np.stack(seen), np.stack(foreseen), np.array(rewards, np.float32), success)


def searched(
    score: Score, start: Plan, planning: Planning, low: torch.Tensor, high: torch.Tensor, generator: torch.Generator
) -> Plan:
    """Returns the plan that the search ends with."""
    if planning.planner == "cem":
        return cem(
            score, start, low, high, samples=planning.samples, elites=planning.elites, rounds=planning.rounds,
            generator=generator,
        )  # fmt: skip
    return mppi(
        score, start, low, high, samples=planning.samples, temperature=planning.temperature, rounds=planning.rounds,
        generator=generator,
    )  # fmt: skip


def run_plan(
    task: str,
    folder: Path,
    out: Path,
    planning: Planning,
    *,
    goal: Path | None = None,
    episodes: int = 5,
    steps: int = 100,
    device: str = "cpu",
    seed: int = 0,
    told: Callable[[EpisodeResult], None] = lambda result: None,
) -> None:
    """``ideomotor ivideogpt plan``: a row an episode in ``out``/plan.jsonl, and a video of what was seen and foreseen.

    Episodes that are there are not run again; ``out``/plan.json says with what settings they were.

    Args:
        task: of Meta-World, or of the toy world.
        folder: of the learned world.
        out: where rows and videos go.
        planning: how.
        goal: an episode in the replay layout, whose last frame is to be brought about; None for rewards.
        episodes: each from a test goal of its own, at most 20.
        steps: of an episode at most.
        device: where the learned world computes.
        seed: of the draws.
        told: called with the row of each episode.

    Raises:
        ValueError: ``out`` holds episodes of other settings, another process writes there, or world, task and goal do
            not fit together.
    """
    from ideomotor.envs.world import GOALS

    if not 1 <= episodes <= len(GOALS["test"]) or steps < 1:
        raise ValueError(f"episodes is {episodes}, steps {steps}; wanted 1 to {len(GOALS['test'])}, and 1 or more")
    inside = World.load(folder, device=device, horizon=planning.horizon, seed=seed)
    repeat = steps_held(folder, load_config(folder).window)
    picture = None if goal is None else read_trajectory(goal).frames[-1]
    settings = PlanSettings(
        task=task, seed=seed, steps=steps, planning=planning,
        world=fingerprint(inside.predictor, inside.predictor.config),
        goal="" if goal is None else hashlib.sha256(goal.read_bytes()).hexdigest(), repeat=repeat,
    )  # fmt: skip
    with ExitStack() as held:
        world = held.enter_context(closing(pixel_world(task, "test", max(3, inside.context), repeat)))
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(out))  # two at once would each add their rows
        if (out / "plan.json").exists():
            claim(out, config_to_json(settings), "plan")
        rows = {row.goal: row for row in read_log(out / "plan.jsonl")}
        for start in GOALS["test"][:episodes]:
            if start not in rows:
                began, cpu = time.perf_counter(), time.process_time()
                inside.seed(seed_of(seed, "inside", start))
                acted = act_by_planning(world, inside, planning, steps, start=start, goal=picture, seed=seed)
                claim(out, config_to_json(settings), "plan")  # not before: what is mistyped claims no folder
                write_video(out / f"plan-{start:02d}.mp4", beside(acted), FPS)
                row = EpisodeResult(
                    arm=planning.planner, task=task, seed=seed, goal=start, success=acted.success,
                    steps=len(acted.rewards), total_reward=float(acted.rewards.sum()),
                    seconds=time.perf_counter() - began, inference_cpu_seconds=time.process_time() - cpu,
                )  # fmt: skip
                append(out / "plan.jsonl", row)
                rows[start] = row
            told(rows[start])


def beside(acted: Acted) -> UInt8[torch.Tensor, "t c h w"]:
    """Returns what was seen, on the left, and what the plans had foreseen."""
    seen, foreseen = torch.from_numpy(acted.seen), torch.from_numpy(acted.foreseen)
    return side_by_side([framed(seen, "truth"), framed(foreseen, "imagined")])
