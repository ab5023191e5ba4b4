"""CALVIN's 34 tasks: names, held-out instructions, and what each does to the table, in symbols instead of physics.

A state says of eight things where or how they are; a task maps it to the states that may follow. Names, categories,
instructions and effects are those of the benchmark (Mees et al. 2022, "CALVIN: a benchmark for language-conditioned
policy learning", 2112.03227; MIT licence), so sequences drawn from this model are its sequences.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

COLOURS = ("red", "blue", "pink")

# Name, category, instruction. The order is part of the protocol: draws of tasks count through it. Two tasks of one
# category never meet in a sequence. The instruction is the one sentence of the validation set, never trained on.
_TABLE: tuple[tuple[str, int, str], ...] = (
    ("rotate_red_block_right", 1, "take the red block and rotate it to the right"),
    ("rotate_red_block_left", 1, "take the red block and rotate it to the left"),
    ("rotate_blue_block_right", 1, "take the blue block and rotate it to the right"),
    ("rotate_blue_block_left", 1, "take the blue block and rotate it to the left"),
    ("rotate_pink_block_right", 1, "take the pink block and rotate it to the right"),
    ("rotate_pink_block_left", 1, "take the pink block and rotate it to the left"),
    ("push_red_block_right", 1, "go push the red block right"),
    ("push_red_block_left", 1, "go push the red block left"),
    ("push_blue_block_right", 1, "go push the blue block right"),
    ("push_blue_block_left", 1, "go push the blue block left"),
    ("push_pink_block_right", 1, "go push the pink block right"),
    ("push_pink_block_left", 1, "go push the pink block left"),
    ("move_slider_left", 2, "push the sliding door to the left side"),
    ("move_slider_right", 2, "push the sliding door to the right side"),
    ("open_drawer", 3, "pull the handle to open the drawer"),
    ("close_drawer", 3, "push the handle to close the drawer"),
    ("lift_red_block_table", 4, "grasp and lift the red block"),
    ("lift_red_block_slider", 5, "lift the red block from the sliding cabinet"),
    ("lift_red_block_drawer", 6, "Take the red block from the drawer"),
    ("lift_blue_block_table", 4, "grasp and lift the blue block"),
    ("lift_blue_block_slider", 5, "lift the blue block from the sliding cabinet"),
    ("lift_blue_block_drawer", 6, "Take the blue block from the drawer"),
    ("lift_pink_block_table", 4, "grasp and lift the pink block"),
    ("lift_pink_block_slider", 5, "lift the pink block from the sliding cabinet"),
    ("lift_pink_block_drawer", 6, "Take the pink block from the drawer"),
    ("place_in_slider", 7, "store the grasped block in the sliding cabinet"),
    ("place_in_drawer", 7, "store the grasped block in the drawer"),
    ("stack_block", 10, "stack the grasped block"),
    ("unstack_block", 11, "remove the stacked block"),
    ("turn_on_lightbulb", 8, "use the switch to turn on the light bulb"),
    ("turn_off_lightbulb", 8, "use the switch to turn off the light bulb"),
    ("turn_on_led", 8, "press the button to turn on the led light"),
    ("turn_off_led", 8, "press the button to turn off the led light"),
    ("push_into_drawer", 9, "slide the block that it falls into the drawer"),
)
TASKS: tuple[str, ...] = tuple(name for name, _, _ in _TABLE)
CATEGORIES: Mapping[str, int] = {name: category for name, category, _ in _TABLE}
INSTRUCTIONS: Mapping[str, str] = {name: sentence for name, _, sentence in _TABLE}


class TableState(NamedTuple):
    """What is told of the table.

    Attributes:
        led: 1 where the green light is on.
        lightbulb: 1 where the yellow light is on.
        slider: which side the sliding door is on, "left" or "right"; it covers that side of the cabinet.
        drawer: "open" or "closed".
        red_block: "table", "slider_left", "slider_right", "drawer", "grasped", "stacked_top" or "stacked_bottom".
        blue_block: likewise.
        pink_block: likewise.
        grasped: 1 while a block is in the gripper.
    """

    led: int
    lightbulb: int
    slider: str
    drawer: str
    red_block: str
    blue_block: str
    pink_block: str
    grasped: int


class Rule(NamedTuple):
    """One way to do a task: the values that each named field may have before, and the values that fields then take."""

    before: Mapping[str, tuple[object, ...]]
    after: Mapping[str, object]

    def allows(self, state: TableState) -> bool:
        """Whether the task can be done in this way from that state."""
        told = state._asdict()
        return all(told[field] in values for field, values in self.before.items())


def successors(state: TableState, task: str) -> list[TableState]:
    """Returns the states in which doing the task may end, none where it cannot be done.

    Raises:
        ValueError: there is no such task.
    """
    return [TableState(**(state._asdict() | dict(rule.after))) for rule in rules(task) if rule.allows(state)]


def rules(task: str) -> tuple[Rule, ...]:
    """Returns the ways to do a task.

    Raises:
        ValueError: there is no such task; the message names the nearest ones.
    """
    if task not in _RULES:
        near = difflib.get_close_matches(task, TASKS, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else "see ideomotor.evaluation.calvin_tasks.TASKS"
        )
        raise ValueError(f"CALVIN has no task {task!r}: {hint}")
    return _RULES[task]


def follow(state: TableState, tasks: tuple[str, ...]) -> TableState | None:
    """Returns the state after the tasks, one after the other; None where one cannot be done in exactly one way."""
    for task in tasks:
        ends = successors(state, task)
        if len(ends) != 1:
            return None
        state = ends[0]
    return state


def _free(before: Mapping[str, tuple[object, ...]], after: Mapping[str, object]) -> Rule:
    """A rule that wants an empty gripper."""
    return Rule({**before, "grasped": (0,)}, after)


def _fixtures() -> dict[str, tuple[Rule, ...]]:
    """Tasks on what is built into the table."""
    switched = {"move_slider_left": ("slider", "right", "left"), "move_slider_right": ("slider", "left", "right")}
    switched |= {"open_drawer": ("drawer", "closed", "open"), "close_drawer": ("drawer", "open", "closed")}
    table: dict[str, tuple[Rule, ...]] = {
        task: (_free({field: (old,)}, {field: new}),) for task, (field, old, new) in switched.items()
    }
    for light in ("lightbulb", "led"):
        table[f"turn_on_{light}"] = (_free({light: (0,)}, {light: 1}),)
        table[f"turn_off_{light}"] = (_free({light: (1,)}, {light: 0}),)
    return table


def _one_block() -> dict[str, tuple[Rule, ...]]:
    """Tasks on a block of a named colour. Pushing and turning it changes no symbol."""
    table: dict[str, tuple[Rule, ...]] = {}
    for colour in COLOURS:
        block = f"{colour}_block"
        held = {block: "grasped", "grasped": 1}
        for side in ("left", "right"):
            for verb in ("rotate", "push"):
                table[f"{verb}_{block}_{side}"] = (_free({block: ("table",)}, {}),)
        table[f"lift_{block}_table"] = (_free({block: ("table",)}, held),)
        table[f"lift_{block}_drawer"] = (_free({block: ("drawer",), "drawer": ("open",)}, held),)
        table[f"lift_{block}_slider"] = tuple(
            _free({block: (f"slider_{side}",), "slider": (door,)}, held)
            for side, door in (("left", "right"), ("right", "left"))
        )
    return table


def _any_block() -> dict[str, tuple[Rule, ...]]:
    """Tasks on whichever block suits: the held one, the stacked ones, the only one on the table."""
    names = [f"{colour}_block" for colour in COLOURS]
    pairs = [(top, bottom) for top in names for bottom in names if top != bottom]
    cabinet = ("slider_left", "slider_right")
    return {
        # The block then counts as on the door's side, from where it cannot be lifted before the door has moved.
        "place_in_slider": tuple(
            Rule({name: ("grasped",), "slider": (side,)}, {name: f"slider_{side}", "grasped": 0})
            for name in names
            for side in ("left", "right")
        ),
        "place_in_drawer": tuple(
            Rule({name: ("grasped",), "drawer": ("open",)}, {name: "drawer", "grasped": 0}) for name in names
        ),
        "stack_block": tuple(
            Rule({top: ("grasped",), bottom: ("table",)}, {top: "stacked_top", bottom: "stacked_bottom", "grasped": 0})
            for top, bottom in pairs
        ),
        "unstack_block": tuple(
            _free({top: ("stacked_top",), bottom: ("stacked_bottom",)}, {top: "table", bottom: "table"})
            for top, bottom in pairs
        ),
        "push_into_drawer": tuple(
            _free(
                {name: ("table",), "drawer": ("open",)} | {other: cabinet for other in names if other != name},
                {name: "drawer"},
            )
            for name in names
        ),
    }


_RULES: Mapping[str, tuple[Rule, ...]] = _fixtures() | _one_block() | _any_block()
