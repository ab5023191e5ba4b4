"""Scripted ways to do each of the 34 tasks on our play table, knowing where everything is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ideomotor.envs.play_table_scene import (
    BLOCK_SIZES,
    BLOCKS,
    COMPARTMENTS,
    DRAWER,
    HANDLES,
    IN_DRAWER,
    LEVER,
    LID,
    ON_PLANK,
    ON_TABLE,
    SLIDER,
    STACKED,
)
from ideomotor.envs.play_table_walk import Waypoint, grasp_yaw

_ACROSS = math.pi / 2  # fingers open along x
_HIGH = 0.62  # above everything, also with a block in the hand
_LOW = 0.568  # below this, something may be in the way of going sideways; the starting pose is above
_SIDE = 0.045  # from the middle of a handle to that of closed fingers beside it

Place = tuple[float, float, float]
Waypoints = tuple[Waypoint, ...]


@dataclass(frozen=True, kw_only=True)
class Script:
    """A way to do a task.

    Attributes:
        before: done first and no part of the task: taking the block to be placed or stacked, where none is held.
        task: the task itself.
    """

    before: Waypoints = ()
    task: Waypoints


def script(task: str, robot_obs: Float[np.ndarray, " 15"], scene_obs: Float[np.ndarray, " 24"]) -> Script:
    """Returns how to do a task from a state in which it is to do, such as one of ``scene_for``.

    Raises:
        ValueError: a task that is none of the 34, or one for which no block is where it has to be.
    """
    poses = scene_obs[6:].reshape(3, 6)
    if task in ("place_in_slider", "place_in_drawer", "stack_block"):
        return _with_block(task, robot_obs, scene_obs)
    freed, poses = _free_hand(robot_obs, poses)
    return Script(task=freed + _way(task, robot_obs, scene_obs, poses))


def _way(task: str, robot_obs: np.ndarray, scene_obs: np.ndarray, poses: np.ndarray) -> Waypoints:
    yaw = float(robot_obs[5])
    block = next((i for i, name in enumerate(BLOCKS) if f"_{name}_" in task), None)
    if block is not None and task.startswith("lift"):
        uncovered = _uncover(float(scene_obs[0]), float(poses[block, 0])) if task.endswith("slider") else ()
        return uncovered + _take(block, poses, yaw)
    if block is not None and task.startswith("push"):
        return _push(poses[block], 1 if task.endswith("right") else -1)
    if block is not None and task.startswith("rotate"):
        return _turn(block, poses, yaw, 1 if task.endswith("left") else -1)
    if task in ("move_slider_left", "move_slider_right"):
        return _slide(float(scene_obs[0]), left=task.endswith("left"))
    if task in ("open_drawer", "close_drawer"):
        return _draw(float(scene_obs[1]), opening=task == "open_drawer")
    if task in ("turn_on_led", "turn_off_led"):
        return _press()
    if task in ("turn_on_lightbulb", "turn_off_lightbulb"):
        return _switch(float(scene_obs[3]))
    if task == "unstack_block":
        return _take(int(np.argmax(poses[:, 2])), poses, yaw)
    if task == "push_into_drawer":
        lying = _lying(task, poses)
        # A block that is touched when the task begins does not count.
        return _tip(
            min(
                (poses[i] for i in lying),
                key=lambda pose: (math.dist(pose[:3], robot_obs[:3]) < 0.06, abs(pose[0] - HANDLES["drawer"][0])),
            )
        )
    raise ValueError(f"{task!r} is none of the 34 tasks")


def _with_block(task: str, robot_obs: np.ndarray, scene_obs: np.ndarray) -> Script:
    """Scripts that begin with a block in the hand."""
    poses, yaw = scene_obs[6:].reshape(3, 6), float(robot_obs[5])
    before: Waypoints = ()
    held = _held(robot_obs, poses)
    if held is None:
        held = _lying(task, poses)[0]
        take = _take(held, poses, yaw)
        before, yaw = _free_hand(robot_obs, poses)[0] + take, take[-1].yaw or 0.0
    others = np.delete(poses, held, 0)
    if task == "place_in_drawer":
        x = _freest([HANDLES["drawer"][0] + aside for aside in (0, -0.055, 0.055)], others[others[:, 2] < 0.42])
        return Script(before=before, task=_put((x, -0.07 - DRAWER, 0.40), yaw))
    if task == "place_in_slider":
        right = scene_obs[0] > SLIDER / 2
        middle, y = COMPARTMENTS[int(right)]
        # First where the lid is not, should it be moved half-way only.
        options = [middle + (aside if right else -aside) for aside in (0.05, 0, -0.05)]
        x = _freest(options, others[others[:, 1] > 0.05])
        return Script(before=before, task=_put((x, y, 0.47), yaw))
    # Another on the table, else one in the cabinet; what lies in the drawer is out of reach where that is closed.
    below = min(others, key=lambda pose: (abs(pose[2] - ON_TABLE) > 0.01, pose[1] > 0.05))
    place = (float(below[0]), float(below[1]), STACKED + 0.002)
    return Script(before=before, task=_put(place, grasp_yaw(float(below[5]), yaw)))


def _lying(task: str, poses: np.ndarray) -> list[int]:
    """Blocks that lie on the table."""
    lying = [i for i in range(len(BLOCKS)) if abs(poses[i, 2] - ON_TABLE) < 0.006 and poses[i, 1] < 0.03]
    if not lying:
        raise ValueError(f"{task} needs a block on the table")
    return lying


def _held(robot_obs: np.ndarray, poses: np.ndarray) -> int | None:
    """The block between the closed fingers, if there is one."""
    apart = np.linalg.norm(poses[:, :3] - robot_obs[:3], axis=1)
    nearest = int(np.argmin(apart))
    return nearest if robot_obs[14] < 0 and apart[nearest] < 0.022 else None


def _freest(options: Sequence[float], others: np.ndarray) -> float:
    """The first of the places on x with room for a block, else the one farthest from the others."""
    room = [min((abs(x - other) for other in others[:, 0]), default=1.0) for x in options]
    return float(next((x for x, free in zip(options, room, strict=True) if free > 0.1), options[int(np.argmax(room))]))


def _free_hand(robot_obs: np.ndarray, poses: np.ndarray) -> tuple[Waypoints, np.ndarray]:
    """Lets go of a block where it lies, or puts it down on the table, and goes up where the hand is among things.

    Returns the way, and where the blocks are after it.
    """
    x, y, z = (float(value) for value in robot_obs[:3])
    held = _held(robot_obs, poses)
    up = Waypoint(place=(x, y, _HIGH), near=0.02)
    if held is None:
        # Fingers stay as they are: to open them would push what is beside them.
        return (replace(up, grip=1 if robot_obs[14] > 0 else -1),) if z < _LOW else (), poses
    if min(abs(float(poses[held, 2]) - height) for height in (ON_TABLE, ON_PLANK, IN_DRAWER)) < 0.006:
        return (Waypoint(place=(x, y, z), hold=6, near=0.05), up), poses
    others = np.delete(poses, held, 0)
    spot = _freest((0.1, 0.0, 0.2, 0.3), others[(others[:, 1] < 0.03) & (others[:, 1] > -0.18)])
    after = poses.copy()
    after[held, :3] = spot, -0.08, ON_TABLE
    return (replace(up, grip=-1), *_put((spot, -0.08, ON_TABLE), float(robot_obs[5]))), after


def _uncover(slider: float, x: float) -> Waypoints:
    """Slides the lid aside where it is, even in part, over a block at that x."""
    lid = HANDLES["slider"][0] - slider
    return _slide(slider, left=x > lid) if abs(x - lid) < LID + 0.06 else ()


def _press() -> Waypoints:
    x, y = HANDLES["button"]
    return (
        Waypoint(place=(x, y, 0.52), grip=-1, near=0.012),
        Waypoint(place=(x, y, 0.455), grip=-1, speed=0.5, patience=30),
        Waypoint(place=(x, y, 0.53), grip=-1),
    )


def _slide(slider: float, *, left: bool) -> Waypoints:
    x, y = HANDLES["slider"]
    side = 1 if left else -1
    start = x - slider + side * _SIDE
    end = x - (SLIDER if left else 0) + side * 0.02
    return _sweep((start, y, 0.56), (end, y, 0.56), _HIGH)


def _draw(drawer: float, *, opening: bool) -> Waypoints:
    x, y = HANDLES["drawer"]
    start = y - drawer + (0.035 if opening else -0.04)  # any farther is where the hand cannot be
    end = y - DRAWER + 0.02 if opening else y - 0.015
    return _sweep((x, start, 0.378), (x, end, 0.378), 0.5)


def _switch(lever: float) -> Waypoints:
    x, y = HANDLES["lever"]
    on = lever < LEVER / 2
    start = y + lever + (-_SIDE if on else _SIDE)
    end = y + LEVER if on else y
    return _sweep((x, start, 0.49), (x, end, 0.49), _HIGH)


def _sweep(start: Place, end: Place, above: float) -> Waypoints:
    """With closed fingers down to one place, along to another, and up."""
    return (
        Waypoint(place=(*start[:2], above), yaw=_ACROSS, grip=-1, near=0.015),
        Waypoint(place=start, yaw=_ACROSS, grip=-1, near=0.01, patience=50),
        Waypoint(place=end, yaw=_ACROSS, grip=-1, speed=0.5, patience=90),
        Waypoint(place=(*end[:2], above), yaw=_ACROSS, grip=-1, near=0.03),
    )


def _take(block: int, poses: np.ndarray, yaw: float) -> Waypoints:
    x, y, z = (float(value) for value in poses[block, :3])
    turned = _grasp(block, poses, yaw)
    return (
        Waypoint(place=(x, y, _HIGH), yaw=turned, near=0.015),
        Waypoint(place=(x, y, z), yaw=turned, near=0.006, hold=2, speed=0.6),
        Waypoint(place=(x, y, z), yaw=turned, grip=-1, near=0.02, hold=8),
        Waypoint(place=(x, y, _HIGH), yaw=turned, grip=-1, near=0.015, speed=0.6),
    )


def _grasp(block: int, poses: np.ndarray, yaw: float) -> float:
    """The yaw to take a block at: across its short side; across the long one where another is in the fingers' way."""
    across = grasp_yaw(float(poses[block, 5]), yaw)
    others = np.delete(poses, block, 0)[:, :3] - poses[block, :3]
    near = others[(np.linalg.norm(others[:, :2], axis=1) < 0.11) & (np.abs(others[:, 2]) < 0.02)]
    if len(near) == 0 or BLOCK_SIZES[BLOCKS[block]][0] > 0.06:
        return across
    # Fingers open along the direction (sin yaw, -cos yaw): how much of the nearest one's distance lies on it.
    nearest = near[np.argmin(np.linalg.norm(near[:, :2], axis=1))]
    on_axis = abs(nearest[0] * math.sin(across) - nearest[1] * math.cos(across)) / np.linalg.norm(nearest[:2])
    return across if on_axis < 0.7 else grasp_yaw(across + math.pi / 2, yaw)


def _put(place: Place, yaw: float) -> Waypoints:
    above = (*place[:2], _HIGH)
    return (
        Waypoint(place=above, yaw=yaw, grip=-1, near=0.01),
        Waypoint(place=place, yaw=yaw, grip=-1, near=0.005, hold=4, speed=0.5),
        Waypoint(place=place, yaw=yaw, hold=6, near=0.03),
        Waypoint(place=above, yaw=yaw, near=0.03, speed=0.6),
    )


def _push(pose: np.ndarray, side: int, way: float = 0.10) -> Waypoints:
    x, y, low = float(pose[0]), float(pose[1]), ON_TABLE - 0.002
    return _sweep((x - side * 0.085, y, low), (x + side * way, y, low), 0.54)


def _tip(pose: np.ndarray) -> Waypoints:
    """Over the table's front edge into the open drawer, after a push along x where the block is not before it."""
    x, y, middle = float(pose[0]), float(pose[1]), HANDLES["drawer"][0]
    aside: Waypoints = ()
    if abs(x - middle) > 0.07:
        side = 1 if x < middle else -1
        aside, x = _push(pose, side, abs(middle - x) - 0.035), middle
    return aside + _sweep((x, y + 0.075, ON_TABLE), (x, -0.20, ON_TABLE), 0.54)


def _turn(block: int, poses: np.ndarray, yaw: float, sign: int) -> Waypoints:
    x, y, z = (float(value) for value in poses[block, :3])
    *down, closed, _ = _take(block, poses, yaw)
    end = _grasp(block, poses, yaw) + sign * math.radians(80)
    return (
        *down,
        closed,
        Waypoint(place=(x, y, z), yaw=end, grip=-1, near=0.02, speed=0.6),
        Waypoint(place=(x, y, z), yaw=end, hold=6, near=0.03),
        Waypoint(place=(x, y, _HIGH), yaw=end, near=0.03),
    )
