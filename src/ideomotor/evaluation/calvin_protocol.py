"""What CALVIN's evaluation runs: 192 states of the table, 1000 sequences of five tasks, and where everything starts.

No simulator is needed. The sequences are stored beside this file, because drawing them anew takes 7,142,044 draws of
five tasks (minutes); ``draw_sequences`` does it, and found the same thousand in the same order.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product

import numpy as np
from jaxtyping import Float

from ideomotor.evaluation.calvin_tasks import CATEGORIES, COLOURS, TASKS, TableState, follow, successors

NUM_SEQUENCES = 1000
SEQUENCE_LENGTH = 5
MAX_STEPS = 360
"""Steps that each task of a sequence may take."""

_HAND = (0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963)
_JOINTS = (-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928)
_ON_TABLE = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
_IN_CABINET = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
_DOOR_LEFT, _DRAWER_OPEN, _SWITCH_ON = 0.28, 0.22, 0.088  # positions of their joints; 0 is right, closed, off


@dataclass(frozen=True, kw_only=True)
class TaskSequence:
    """One of the sequences to be evaluated.

    Attributes:
        number: its place in the evaluation's order, from 0.
        state: number of its initial state, see ``initial_states``.
        tasks: names, in order.
    """

    number: int
    state: int
    tasks: tuple[str, ...]


@cache
def initial_states() -> tuple[TableState, ...]:
    """Returns the 192 states that sequences begin in.

    One or two blocks are on the table, and at most one on each side of the cabinet; the gripper is empty.
    """
    places = ("table", "slider_right", "slider_left")
    fixtures = product((0, 1), (0, 1), ("right", "left"), ("closed", "open"))
    placements = [blocks for blocks in product(places, repeat=len(COLOURS)) if _well_placed(blocks)]
    return tuple(
        TableState(led, lightbulb, slider, drawer, red, blue, pink, 0)
        for led, lightbulb, slider, drawer in fixtures
        for red, blue, pink in placements
    )


@cache
def evaluation_sequences() -> tuple[TaskSequence, ...]:
    """Returns the 1000 published sequences in their order of evaluation."""
    text = files("ideomotor.evaluation").joinpath("calvin_sequences.csv").read_text(encoding="utf-8")
    rows = [[int(value) for value in row] for row in list(csv.reader(text.splitlines()))[1:]]
    return tuple(
        TaskSequence(number=number, state=state, tasks=tuple(TASKS[task] for task in tasks))
        for number, (state, *tasks) in enumerate(rows)
    )


def draw_sequences(num_sequences: int = NUM_SEQUENCES) -> tuple[TaskSequence, ...]:
    """Returns sequences drawn as the benchmark draws them; the default gives the published ones, in minutes.

    Each initial state gets its share, seeded with the state's number; then all are shuffled with seed 0.
    """
    states = range(len(initial_states()))
    shares = [len(part) for part in np.array_split(np.arange(num_sequences), len(states))]
    drawn = [(state, tasks) for state in states for tasks in draw_from(state, shares[state])]
    order = list(range(len(drawn)))
    np.random.RandomState(0).shuffle(order)
    return tuple(
        TaskSequence(number=number, state=drawn[place][0], tasks=drawn[place][1]) for number, place in enumerate(order)
    )


def draw_from(state: int, count: int) -> list[tuple[str, ...]]:
    """Returns the first ``count`` sequences of an initial state: five tasks are drawn until they make a sequence."""
    start, random = initial_states()[state], np.random.RandomState(state)
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        # Drawing without replacement is the head of a permutation in numpy's legacy generator.
        first, *rest = random.permutation(len(TASKS))[:SEQUENCE_LENGTH].tolist()
        if len(_after(start, first)) == 1:
            tasks = (TASKS[first], *(TASKS[task] for task in rest))
            if is_sequence(start, tasks):
                found.append(tasks)
    return found


def is_sequence(state: TableState, tasks: Sequence[str]) -> bool:
    """Whether the tasks can be done one after the other, each in exactly one way, no two of them of one category."""
    categories = {CATEGORIES[task] for task in tasks}
    return len(categories) == len(tasks) and follow(state, tuple(tasks)) is not None


def start_robot() -> Float[np.ndarray, " 15"]:
    """Returns the robot's state at the start of every sequence, as ``robot_obs`` lays it out.

    Position and Euler angles of the hand, width of the gripper, seven joint angles, and 1 for an open gripper.
    """
    return np.array([*_HAND, *_JOINTS, 1.0])


def start_scene(state: TableState) -> Float[np.ndarray, " 24"]:
    """Returns the scene at the start, as ``scene_obs`` lays it out.

    Joints of door, drawer, button and switch, light bulb, green light, then position and Euler angles of the red, the
    blue and the pink block. The state alone seeds which place on the table a block takes, and how each is turned.
    """
    random = np.random.RandomState(placement_seed(state))
    slots = [0, 1]
    random.shuffle(slots)
    scene = np.zeros(24)
    scene[0] = _DOOR_LEFT if state.slider == "left" else 0.0
    scene[1] = _DRAWER_OPEN if state.drawer == "open" else 0.0
    scene[3] = _SWITCH_ON if state.lightbulb else 0.0
    scene[4], scene[5] = state.lightbulb, state.led
    places = (state.red_block, state.blue_block, state.pink_block)
    for i, place in enumerate(places):
        # Of two blocks on the table the earlier colour takes the first slot. A pink one always takes the second.
        slot = 1 if i == 2 or "table" in places[:i] else 0
        at = 6 * (i + 1)
        scene[at : at + 3] = _ON_TABLE[slots[slot]] if place == "table" else _IN_CABINET[place]
        scene[at + 5] = random.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
    return scene


def read_scene(scene: Float[np.ndarray, " 24"]) -> TableState:
    """Returns the state that a scene at the start of a sequence is in: the way back from ``start_scene``."""
    halfway = _IN_CABINET["slider_left"][1] / 2  # between the table, in front, and the cabinet
    red, blue, pink = (
        "table" if y < halfway else ("slider_left" if x < 0 else "slider_right")
        for x, y in (scene[at : at + 2] for at in (6, 12, 18))
    )
    door = "left" if scene[0] > _DOOR_LEFT / 2 else "right"
    drawer = "open" if scene[1] > _DRAWER_OPEN / 2 else "closed"
    return TableState(int(scene[5] > 0.5), int(scene[4] > 0.5), door, drawer, red, blue, pink, 0)


def placement_seed(state: TableState) -> int:
    """Returns the seed of the blocks' placement, 32 bits.

    It is a hash of how Python prints the state's values: FNV's multiply-then-xor over the text in UTF-16, from 0 where
    FNV itself begins with an offset.
    """
    value = 0
    for byte in f"dict_values({list(state)})".encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


def _well_placed(blocks: Sequence[str]) -> bool:
    cabinet = (blocks.count("slider_right"), blocks.count("slider_left"))
    return blocks.count("table") in (1, 2) and max(cabinet) < 2


@cache
def _after(state: TableState, task: int) -> list[TableState]:
    """Most draws fail at the first task, so that one is looked up."""
    return successors(state, TASKS[task])
