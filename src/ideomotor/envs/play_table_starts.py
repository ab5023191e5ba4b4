"""Where things lie on our play table when an episode starts: anywhere, or so that a given task is to do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from ideomotor.envs.play_table_scene import (
    BLOCKS,
    COMPARTMENTS,
    DRAWER,
    HANDLES,
    IN_DRAWER,
    LEVER,
    ON_PLANK,
    ON_TABLE,
    SLIDER,
    STACKED,
)

Scene = Float[np.ndarray, " 24"]
Place = Callable[[], tuple[float, float]]

_APART = 0.11  # between the middles of two blocks, so that fingers fit between them
# What a task's parts begin as, by their index in scene_obs.
_PARTS: dict[str, tuple[int, float]] = {
    "move_slider_left": (0, 0.0),
    "move_slider_right": (0, SLIDER),
    "open_drawer": (1, 0.0),
    "close_drawer": (1, DRAWER),
    "place_in_drawer": (1, DRAWER),
    "push_into_drawer": (1, DRAWER),
    "turn_on_lightbulb": (3, 0.0),
    "turn_off_lightbulb": (3, LEVER),
    "turn_on_led": (5, 0.0),
    "turn_off_led": (5, 1.0),
}
_CLEARED = ("push_into_drawer", "stack_block", "unstack_block")  # no further block on the table
_WITH_SOME_BLOCK = ("place_in_slider", "place_in_drawer", "push_into_drawer", "stack_block", "unstack_block")


def free_scene(rng: np.random.Generator) -> Scene:
    """Returns a scene with every part and light in one of its two states, and blocks where they can be reached."""
    while True:
        scene = _parts(rng)
        kept = int(rng.integers(len(BLOCKS) + 1))  # this one lies in the open compartment, or none does
        if kept < len(BLOCKS):
            _lay(scene, kept, _compartment(rng, _open(scene)), ON_PLANK, rng)
        for block in range(len(BLOCKS)):
            if block != kept:
                _lay(scene, block, _within(rng, (0.0, 0.24), (-0.13, -0.03)), ON_TABLE, rng)
        if np.isfinite(scene).all():
            return scene


def scene_for(task: str, rng: np.random.Generator) -> Scene:
    """Returns a random scene in which that task is to do; where it needs a block in the hand, the block is to be taken.

    The task's own block lies where the task wants it, or on the table with room to be moved. Others lie in the
    compartments, in half of the scenes one of them on the table too: which block is meant, the sentence has to tell.
    """
    if task not in _PARTS and task not in _WITH_SOME_BLOCK and not any(f"_{name}_" in task for name in BLOCKS):
        raise ValueError(f"the play table has no task {task!r}")
    scene = _parts(rng)
    if task in _PARTS:
        place, value = _PARTS[task]
        scene[place] = value
        scene[4] = scene[3] > LEVER / 2
    block = next((i for i, name in enumerate(BLOCKS) if f"_{name}_" in task), int(rng.integers(len(BLOCKS))))
    others = [other for other in range(len(BLOCKS)) if other != block]
    if task.startswith("lift") and task.endswith("_slider"):
        _lay(scene, block, _compartment(rng, _open(scene)), ON_PLANK, rng)
        others_in = 1 - _open(scene)
    elif task.startswith("lift") and task.endswith("_drawer"):
        scene[1], others_in = DRAWER, int(rng.integers(2))
        _lay(scene, block, _within(rng, (0.13, 0.23), (-0.31, -0.27)), IN_DRAWER, rng)
    else:
        _lay(scene, block, _on_table(task, rng), ON_TABLE, rng)
        # Where a block is to be put into the open compartment, it is kept empty.
        others_in = 1 - _open(scene) if task == "place_in_slider" else int(rng.integers(2))
    pose = scene[6:].reshape(3, 6)
    if task == "stack_block":
        _lay(scene, others.pop(), _within(rng, (0.0, 0.24), (-0.13, -0.05)), ON_TABLE, rng)
    if task == "unstack_block":
        pose[others.pop()] = pose[block]
        pose[block, 2] = STACKED
    if task not in _CLEARED and rng.random() < 0.5:
        _lay(scene, others.pop(), _beside(task, float(pose[block, 0]), rng), ON_TABLE, rng)
    for other, aside in zip(others, (-0.06, 0.06), strict=False):
        x, y = COMPARTMENTS[others_in][0] + aside, COMPARTMENTS[others_in][1]
        _lay(scene, other, _within(rng, (x - 0.005, x + 0.005), (y, y)), ON_PLANK, rng)
    assert np.isfinite(scene).all()
    return scene


def earlier_tasks(task: str, scene: Scene) -> tuple[str, ...]:
    """Returns what can be done in a scene with its drawer, slider, lever or button before that task, which it leaves
    to do.
    """
    kept = {_PARTS[task][0]} if task in _PARTS else set()
    kept |= {place for place, part in enumerate(("slider", "drawer")) if task.endswith(part)}
    return tuple(
        name
        for name, (place, value) in _PARTS.items()
        if name not in _WITH_SOME_BLOCK and place not in kept and abs(scene[place] - value) < 0.01
    )


def _parts(rng: np.random.Generator) -> Scene:
    scene = np.full(24, np.nan)
    scene[:6] = 0
    scene[0], scene[1] = rng.choice([0.0, SLIDER]), rng.choice([0.0, DRAWER])
    scene[4], scene[5] = rng.integers(2), rng.integers(2)
    scene[3] = LEVER * scene[4]
    return scene


def _open(scene: Scene) -> int:
    """Which compartment the slider leaves free."""
    return 0 if scene[0] < SLIDER / 2 else 1


def _on_table(task: str, rng: np.random.Generator) -> Place:
    if task == "push_into_drawer":
        return _within(rng, (HANDLES["drawer"][0] - 0.06, HANDLES["drawer"][0] + 0.05), (-0.12, -0.08))
    if task.startswith("push"):
        return _within(rng, (0.0, 0.08) if task.endswith("right") else (0.15, 0.23), (-0.12, -0.05))
    return _within(rng, (0.0, 0.24), (-0.13, -0.05))


def _beside(task: str, x: float, rng: np.random.Generator) -> Place:
    """Where another block may lie on the table, out of the way of one at ``x`` that is pushed."""
    left, right = -0.04, 0.28
    if task.startswith("push"):
        left, right = (x + 0.18, right) if task.endswith("right") else (left, x - 0.18)
    return _within(rng, (left, right), (-0.13, -0.05))


def _within(rng: np.random.Generator, x: tuple[float, float], y: tuple[float, float]) -> Place:
    return lambda: (float(rng.uniform(*x)), float(rng.uniform(*y)))


def _compartment(rng: np.random.Generator, which: int) -> Place:
    x, y = COMPARTMENTS[which]
    return _within(rng, (x - 0.07, x + 0.07), (y - 0.005, y + 0.005))


def _lay(scene: Scene, block: int, place: Place, height: float, rng: np.random.Generator) -> None:
    """Puts a block down apart from those that lie there, if there is room; places of the others are not numbers yet."""
    poses = scene[6:].reshape(3, 6)
    for _ in range(100):
        x, y = place()
        if not (np.hypot(poses[:, 0] - x, poses[:, 1] - y) < _APART).any():
            poses[block] = [x, y, height, 0, 0, rng.uniform(-np.pi, np.pi)]
            return
