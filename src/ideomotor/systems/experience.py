"""Experience for a world model: experts whose hand shakes or wanders act in Meta-World, seen as an agent sees it.

Episodes are files of the replay layout, a folder a task, so that they lie beside published demonstrations of that
layout, and a reinforcement learner may read them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ideomotor.data.replay import Replay, ReplayConfig, Trajectory, read_trajectory, write_trajectory
from ideomotor.systems.agent_worlds import RECORDED_REPEAT, pixel_world
from ideomotor.systems.progress import bar

if TYPE_CHECKING:
    from ideomotor.envs.pixels import PixelWorld

SHAKING = (0.0, 0.3, 0.6, 1.0)
"""Deviation of the noise on the expert's actions, in every other episode one after the other; it also holds still for
the last third of every fourth of these. In the episodes between, the hand wanders: what an expert does next can be told
from the picture, so that a world learned from experts alone need not listen to actions."""
TURNS = 0.15
"""Chance of a wandering hand to turn at a step."""


def collect_experience(out: Path, tasks: Sequence[str], episodes: int, seed: int = 0, workers: int = 2) -> Path:
    """Records ``episodes`` a task into ``out``/TASK and returns ``out``; those that are there are not made again.

    Same seed, same episodes, whatever the number of processes.

    Raises:
        ValueError: no task or episode is asked for, or an unknown task.
    """
    if not tasks or episodes < 1 or workers < 1:
        raise ValueError(
            f"tasks are {tuple(tasks)}, episodes {episodes}, workers {workers}: wanted at least one of each"
        )
    for leftover in out.glob("*/.*.part"):  # of a killed start
        leftover.unlink()
    jobs = [(out, task, number, seed) for number in range(episodes) for task in tasks]
    with bar("record experience") as tell, get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_record, jobs)):
            tell(done + 1, len(jobs))
    return out


def _record(job: tuple[Path, str, int, int]) -> None:
    from ideomotor.envs.pixels import metaworld_pixels

    out, task, number, seed = job
    path = out / task / f"{number:06d}.npz"
    if path.is_file():
        read_trajectory(path)  # refuses what is damaged, before hours are spent on it
        return
    rng = np.random.default_rng([seed, *task.encode(), number])
    world = metaworld_pixels(task)
    try:
        turn, wanders = divmod(number, 2)
        episode = wandering(world, rng) if wanders else shaken(world, SHAKING[turn % 4], turn % 4 == 3, rng)
    finally:
        world.close()
    write_trajectory(path, episode)


def experts(
    task: str, folder: Path, count: int, stack: int, repeat: int = RECORDED_REPEAT, noise: Sequence[float] = (0.0,)
) -> Path:
    """Records what is missing of ``count`` episodes of the scripted expert in ``folder``, and returns it.

    Args:
        task: as ``pixel_world`` knows it.
        folder: of the replay layout.
        count: of episodes.
        stack: frames of an observation.
        repeat: steps of Meta-World that an action is held.
        noise: deviations on the actions, of one episode after the other.
    """
    replay, world = Replay(folder, ReplayConfig(stack=stack)), pixel_world(task, "train", stack, repeat)
    try:
        for number in range(count):
            if not (folder / f"{number:06d}.npz").is_file():
                rng = np.random.default_rng([*task.encode(), number])
                replay.add(number, shaken(world, noise[number % len(noise)], False, rng))
    finally:
        world.close()
    return folder


def shaken(world: PixelWorld, noise: float, rests: bool, rng: np.random.Generator) -> Trajectory:
    """Returns an episode of an expert with noise on its actions, smooth over a few steps."""
    push = np.zeros(world.action_space.shape or (), np.float32)

    def act(step: int) -> np.ndarray:
        nonlocal push
        push = 0.7 * push + 0.7 * rng.standard_normal(push.shape, np.float32)
        if rests and step >= 2 * world.config.duration // 3:
            return np.zeros_like(push)
        return np.asarray(np.clip(world.world.expert_action() + np.float32(noise) * push, -1, 1))

    return recorded(world, act, rng)


def wandering(world: PixelWorld, rng: np.random.Generator) -> Trajectory:
    """Returns an episode of a hand that goes anywhere, in straight lines of a few steps."""
    course = np.zeros(world.action_space.shape or (), np.float32)

    def act(step: int) -> np.ndarray:
        nonlocal course
        if step == 0 or rng.random() < TURNS:
            course = rng.uniform(-1, 1, course.shape).astype(np.float32)
        return course

    return recorded(world, act, rng)


def recorded(world: PixelWorld, act: Callable[[int], np.ndarray], rng: np.random.Generator) -> Trajectory:
    """Returns an episode from a drawn start to its end; ``act`` is asked for the action of each step."""
    observation, _ = world.reset(seed=int(rng.integers(2**31)))
    frames, actions, rewards = [observation[-1]], [np.zeros(world.action_space.shape or (), np.float32)], [0.0]
    over = False
    while not over:
        action = act(len(actions) - 1)
        observation, reward, terminated, truncated, _ = world.step(action)
        frames.append(observation[-1])
        actions.append(action)
        rewards.append(float(reward))
        over = terminated or truncated
    return Trajectory(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        discounts=np.ones(len(frames), np.float32),
    )
