"""The worlds that can be collected from, and what recording them needs to know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ideomotor.envs import metaworld_tasks
from ideomotor.evaluation.metaworld_levels import LEVELS


@dataclass(frozen=True, kw_only=True)
class WorldFacts:
    """What a dataset says of its world.

    Attributes:
        fps: control steps a second, each of which is a frame.
        camera: the one that is recorded where none is named.
        robot: type of robot.
        actions: names of an action's numbers.
        states: names of the numbers of proprioception.
    """

    fps: int
    camera: str
    robot: str
    actions: tuple[str, ...]
    states: tuple[str, ...]


WORLDS = {
    "metaworld": WorldFacts(
        fps=80,
        camera="corner2",
        robot="sawyer",
        actions=("hand_dx", "hand_dy", "hand_dz", "gripper_effort"),
        states=("hand_x", "hand_y", "hand_z", "gripper_open"),
    ),
    "toy": WorldFacts(fps=20, camera="main", robot="toy", actions=("hand_dx", "hand_dy"), states=("hand_x", "hand_y")),
}


def tasks_of(world: str) -> tuple[str, ...]:
    """Returns the names of all tasks of a world."""
    if world == "metaworld":
        return metaworld_tasks.TASKS
    from ideomotor.envs import toy

    return toy.TASKS


def named_tasks(world: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the tasks that ``names`` stand for: "all", a level of Meta-World's (easy, middle, hard), or a task.

    Where groups are among them, a task that is named twice is meant once.

    Raises:
        ValueError: a name is no task, and nearly that of a group. Worlds refuse other unknown tasks themselves.
    """
    groups = {"all": tasks_of(world)} | (dict(LEVELS) if world == "metaworld" else {})
    for name in set(names) - set(tasks_of(world)) - set(groups):
        if near := difflib.get_close_matches(name, groups, n=1):
            raise ValueError(f"{world} has no task {name!r}; did you mean {near[0]!r}, which stands for several?")
    tasks = tuple(task for name in names for task in groups.get(name, (name,)))
    return tuple(dict.fromkeys(tasks)) if set(names) & set(groups) else tasks


def world_config(world: str, settings: Mapping[str, Any], task: str) -> Any:
    """Returns the config of one task's world.

    Raises:
        ValueError: the task, a camera or another setting is unknown there.
    """
    if world == "toy":
        from ideomotor.envs.toy import ToyConfig

        return ToyConfig(task=task, **settings)
    from ideomotor.envs.metaworld import MetaWorldConfig

    return MetaWorldConfig(task=task, **settings)


def make_world(world: str, settings: Mapping[str, Any], task: str) -> Any:
    """Returns a new world of that task; ``settings`` are the other fields of its config."""
    config = world_config(world, settings, task)
    if world == "toy":
        from ideomotor.envs.toy import ToyEnv

        return ToyEnv(config)
    from ideomotor.envs.metaworld import MetaWorldEnv

    return MetaWorldEnv(config)
