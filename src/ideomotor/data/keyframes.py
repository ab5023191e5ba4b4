"""Keyframes of a demonstration: the few steps whose poses tell what was done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def keyframes(
    gripper_open: Float[np.ndarray, " t"],
    joint_velocities: Float[np.ndarray, "t joint"],
    still: float = 0.1,
    rest: int = 4,
) -> list[int]:
    """Returns the steps at which the gripper changes, the arm stands still, or the episode ends.

    The arm stands still where no joint is faster than ``still`` and the gripper has not changed from two steps before
    to one step after (before the start, the last steps stand in, as in the release); a standstill is counted once in
    ``rest`` + 1 steps. The first step is never a keyframe, and one directly before the last is dropped.

    Raises:
        ValueError: the two differ in length, or there is no step.

    Source: James and Davison 2022 (arXiv 2105.14829), as the VPDD release sets it.
    """
    length = len(gripper_open)
    if length < 1 or len(joint_velocities) != length:
        raise ValueError(
            f"{length} gripper states and {len(joint_velocities)} joint velocities came; wanted as many, at least one"
        )
    slow = (np.abs(joint_velocities) <= still).all(1)
    before, change = np.roll(gripper_open, 1), np.asarray(gripper_open) != np.roll(gripper_open, 1)
    held = ~change & (before == np.roll(gripper_open, 2)) & ~np.roll(change, -1)
    held[max(length - 2, 0) :] = False  # at the last step but one the arm slows down for the end
    found, quiet_until = [], 0
    for step in range(length):
        stands = bool(slow[step] and held[step] and step >= quiet_until)
        if stands:
            quiet_until = step + rest + 1
        if step > 0 and (change[step] or stands or step == length - 1):
            found.append(step)
    if len(found) > 1 and found[-2] == found[-1] - 1:
        del found[-2]
    return found


def next_keyframes(
    found: Sequence[int], step: int, count: int
) -> tuple[Int[np.ndarray, " chunk"], Bool[np.ndarray, " chunk"]]:
    """Returns the ``count`` keyframes after ``step``, and where they exist; after the last one, the last again.

    Where there are fewer, the last is repeated and the mask is False (the release puts zeros there).

    Raises:
        ValueError: there are no keyframes.
    """
    if not found:
        raise ValueError("the demonstration has no keyframes: it needs at least two steps")
    first = min(int(np.searchsorted(found, step, side="right")), len(found) - 1)
    places = first + np.arange(count)
    return np.asarray(found)[np.minimum(places, len(found) - 1)], places < len(found)
