"""CALVIN's 34 tasks on our play table: names, what is said for them, and the oracle that tells when one is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ideomotor.envs.play_table_contract import check_known
from ideomotor.envs.play_table_scene import BLOCKS

Info = Mapping[str, Any]
Rule = Callable[[Info, Info], bool]

# CALVIN's thresholds: metres, radians; how fast (m/s and rad/s) a block may be that counts as stacked.
_PUSHED, _SLID, _DRAWN = 0.10, 0.15, 0.12
_LIFTED = {"table": 0.05, "slider": 0.03, "drawer": 0.05}
_TURNED, _TILTED, _STRAYED = math.radians(60), math.radians(30), 0.10
_STILL = 1.0
_SURFACES = {"table": "table", "slider": "plank", "drawer": "drawer"}


class PlayTableOracle:
    """Says which tasks were done between two of ``PlayTableEnv.info()``; the rules are CALVIN's."""

    def __init__(self) -> None:
        self._rules = _rules()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(self._rules)

    def completed(self, start: Info, end: Info, tasks: Sequence[str]) -> set[str]:
        """Returns those of the tasks that were done.

        Raises:
            ValueError: a task that is none of the 34.
        """
        check_known(tasks, self.tasks)
        return {task for task in tasks if self._rules[task](start, end)}


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for block in BLOCKS:
        for side, sign in (("right", 1), ("left", -1)):
            # Seen from above, a turn to the right is clockwise.
            rules[f"rotate_{block}_block_{side}"] = _turned(block, -sign)
            rules[f"push_{block}_block_{side}"] = _pushed(block, sign)
        for surface in _SURFACES:
            rules[f"lift_{block}_block_{surface}"] = _lifted(block, surface)
    rules |= {
        "move_slider_left": lambda start, end: end["slider"] - start["slider"] > _SLID,
        "move_slider_right": lambda start, end: start["slider"] - end["slider"] > _SLID,
        "open_drawer": lambda start, end: end["drawer"] - start["drawer"] > _DRAWN,
        "close_drawer": lambda start, end: start["drawer"] - end["drawer"] > _DRAWN,
        "place_in_slider": _placed("plank"),
        "place_in_drawer": _placed("drawer"),
        "push_into_drawer": _fallen,
        "stack_block": lambda start, end: any(_alone(start, b) and _stacked(end, b) for b in BLOCKS),
        "unstack_block": lambda start, end: any(_stacked(start, b) and _alone(end, b) for b in BLOCKS),
    }
    for light in ("lightbulb", "led"):
        rules[f"turn_on_{light}"] = _switched(light, 1)
        rules[f"turn_off_{light}"] = _switched(light, 0)
    return rules


def _turned(block: str, sign: int) -> Rule:
    def rule(start: Info, end: Info) -> bool:
        before, after = start["blocks"][block], end["blocks"][block]
        if np.linalg.norm(after["place"] - before["place"]) > _STRAYED or not end["touches"][block] - {"robot"}:
            return False
        x, y, z = _angles_between(before["quaternion"], after["quaternion"])
        return sign * z > _TURNED and abs(x) < _TILTED and abs(y) < _TILTED

    return rule


def _pushed(block: str, sign: int) -> Rule:
    def rule(start: Info, end: Info) -> bool:
        under, still_under = (info["touches"][block] - {"robot"} for info in (start, end))
        moved = end["blocks"][block]["place"][0] - start["blocks"][block]["place"][0]
        return bool(under) and under <= still_under and sign * moved > _PUSHED

    return rule


def _lifted(block: str, surface: str) -> Rule:
    def rule(start: Info, end: Info) -> bool:
        risen = end["blocks"][block]["place"][2] - start["blocks"][block]["place"][2]
        held = end["touches"][block] == {"robot"}
        return risen > _LIFTED[surface] and held and _SURFACES[surface] in start["touches"][block]

    return rule


def _placed(surface: str) -> Rule:
    def rule(start: Info, end: Info) -> bool:
        if len(start["touches"]["robot"]) != 1:
            return False
        (block,) = start["touches"]["robot"]
        held = block in BLOCKS and start["touches"][block] == {"robot"}
        return held and "robot" not in end["touches"][block] and surface in end["touches"][block]

    return rule


def _fallen(start: Info, end: Info) -> bool:
    return any(
        start["touches"][block] == {"table"}
        and "drawer" in end["touches"][block]
        and "robot" not in end["touches"][block]
        for block in BLOCKS
    )


def _switched(light: str, state: int) -> Rule:
    return lambda start, end: start[light] == 1 - state and end[light] == state


def _alone(info: Info, block: str) -> bool:
    return not info["touches"][block] & set(BLOCKS)


def _stacked(info: Info, block: str) -> bool:
    touched = info["touches"][block]
    return bool(touched) and touched <= set(BLOCKS) and info["blocks"][block]["speed"] < _STILL


def _angles_between(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Euler angles (about fixed x, y, z) of the turn from one orientation (w, x, y, z) to the other."""
    aw, ax, ay, az = after
    bw, bx, by, bz = before * np.array([1, -1, -1, -1])
    w, x, y, z = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return (
        math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
        math.asin(float(np.clip(2 * (w * y - z * x), -1, 1))),
        math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
    )


SENTENCES: dict[str, tuple[str, ...]] = {
    "move_slider_left": ("slide the door to the left", "move the sliding door left", "push the door to the left side"),
    "move_slider_right": (
        "slide the door to the right",
        "move the sliding door right",
        "push the door to the right side",
    ),
    "open_drawer": ("open the drawer", "pull the drawer open", "draw out the drawer by its handle"),
    "close_drawer": ("close the drawer", "shut the drawer", "push the drawer back in"),
    "turn_on_lightbulb": (
        "turn on the light bulb",
        "switch on the yellow light",
        "move the switch back to light the bulb",
    ),
    "turn_off_lightbulb": (
        "turn off the light bulb",
        "switch off the yellow light",
        "draw the switch to put the bulb out",
    ),
    "turn_on_led": ("turn on the led", "press the button to light the led", "switch on the green light"),
    "turn_off_led": ("turn off the led", "press the button to put the led out", "switch off the green light"),
    "place_in_slider": ("put the block in the cabinet", "place the block in the sliding cabinet"),
    "place_in_drawer": ("put the block in the drawer", "place the block in the drawer"),
    "push_into_drawer": ("push the block into the drawer", "let a block fall into the drawer"),
    "stack_block": ("stack the blocks", "put the block on top of another", "place the block on another block"),
    "unstack_block": ("unstack the blocks", "take off the block on top", "remove the block on top of another"),
}
"""What may be said for each task, in our own words: no sentence is one of CALVIN's held-out instructions."""
for _block in BLOCKS:
    for _side in ("right", "left"):
        SENTENCES[f"rotate_{_block}_block_{_side}"] = (
            f"rotate the {_block} block to the {_side}",
            f"turn the {_block} block {_side}",
            f"take the {_block} block and turn it to the {_side}",
        )
        SENTENCES[f"push_{_block}_block_{_side}"] = (
            f"push the {_block} block to the {_side}",
            f"slide the {_block} block {_side}",
            f"push the {_block} block {_side}wards",
        )
    for _surface, _where in (("table", "the table"), ("slider", "the cabinet"), ("drawer", "the drawer")):
        SENTENCES[f"lift_{_block}_block_{_surface}"] = (
            f"lift the {_block} block from {_where}",
            f"grasp the {_block} block in {_where}" if _surface != "table" else f"grasp the {_block} block and lift it",
            f"pick up the {_block} block from {_where}",
        )
TASKS: tuple[str, ...] = tuple(SENTENCES)
