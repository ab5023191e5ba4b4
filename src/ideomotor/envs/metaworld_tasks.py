"""The 50 tasks of Meta-World v3: their names (without "-v3") and one plain instruction each."""

from __future__ import annotations

import difflib

INSTRUCTIONS: dict[str, str] = {
    "assembly": "lift the ring and put it on the peg",
    "basketball": "drop the ball through the hoop",
    "bin-picking": "move the block from the red bin to the blue bin",
    "box-close": "put the lid on the box",
    "button-press": "press the button from the front",
    "button-press-topdown": "press the button from the top",
    "button-press-topdown-wall": "reach over the wall and press the button from the top",
    "button-press-wall": "go round the wall and press the button from the front",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "lift the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door by turning its lock clockwise",
    "door-open": "open the door",
    "door-unlock": "unlock the door by turning its lock counter-clockwise",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "close the tap by turning its handle clockwise",
    "faucet-open": "open the tap by turning its handle counter-clockwise",
    "hammer": "hit the nail with the hammer",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down from the front",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up from the front",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "raise the lever",
    "peg-insert-side": "slide the peg into the hole in the side",
    "peg-unplug-side": "pull the peg out of the hole in the side",
    "pick-out-of-hole": "lift the puck out of the hole",
    "pick-place": "pick up the puck and hold it at the goal",
    "pick-place-wall": "carry the puck over the wall to the goal",
    "plate-slide": "slide the plate forwards into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "push": "push the puck to the goal",
    "push-back": "pull the puck back to the goal",
    "push-wall": "push the puck round the wall to the goal",
    "reach": "move the hand to the goal",
    "reach-wall": "move the hand past the wall to the goal",
    "shelf-place": "put the block on the shelf",
    "soccer": "push the ball into the net",
    "stick-pull": "take the stick and pull the flask with it",
    "stick-push": "take the stick and push the flask with it",
    "sweep": "sweep the block off the table",
    "sweep-into": "sweep the block into the hole",
    "window-close": "slide the window shut",
    "window-open": "slide the window open",
}
TASKS: tuple[str, ...] = tuple(INSTRUCTIONS)


def instruction(task: str) -> str:
    """Returns the instruction of a task.

    Raises:
        ValueError: no such task; the message names the nearest ones.
    """
    if task not in INSTRUCTIONS:
        near = difflib.get_close_matches(task.removesuffix("-v3").removesuffix("-v2"), TASKS, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see ideomotor.envs.metaworld_tasks.TASKS"
        raise ValueError(f"Meta-World has no task {task!r} (names go without '-v3'): {hint}")
    return INSTRUCTIONS[task]
