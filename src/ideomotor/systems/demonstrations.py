"""Which demonstrations a policy learns from: too short ones and those with a glitch are left out by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from ideomotor.data.signals import all_actions
from ideomotor.types import Dataset, Quarantined

FAR = 1000  # times further out than 95 of 100 values: no robot's units span that, a glitch of a sensor does
_ENOUGH = 20  # values that differ, before 95 of 100 of them say anything


def learnable(dataset: Dataset, chunk: int) -> Dataset:
    """Returns the data set without demonstrations that hold no whole chunk, or a value far beyond all others.

    One such value would be the mean of an outermost bin, and the robot would be sent there.

    Raises:
        ValueError: nothing is left; or actions are missing, damaged or of two widths.
    """
    strayed = _strayed(all_actions(dataset))
    kept, lost, end = [], [], 0
    for episode in dataset.episodes:
        first, end = end, end + episode.length
        reason = ""
        if episode.length < chunk:
            reason = (
                f"has {episode.length} frames, a chunk is {chunk} actions: record longer ones, or set a smaller "
                "--window.chunk and --policy.chunk (for a world of iVideoGPT --window.frames)"
            )
        elif (rows := [row for row in strayed if first <= row < end]) != []:
            reason = f"row {rows[0] - first} of the actions holds {strayed[rows[0]]}: repair the recording"
        if reason:
            lost.append(Quarantined(path=episode.id, reason=reason))
        else:
            kept.append(episode)
    if not kept:
        raise ValueError(
            f"none of the {len(lost)} demonstrations of {dataset.name!r} can be learned from: {lost[0].path} "
            f"{lost[0].reason}"
        )
    return replace(dataset, episodes=tuple(kept), quarantined=(*dataset.quarantined, *lost))


def _strayed(actions: Float[np.ndarray, "n action"]) -> dict[int, str]:
    """Rows with a value much further from the middle than the others of its dimension, and what they hold."""
    found: dict[int, str] = {}
    for values in actions.astype(np.float64).T:
        middle = float(np.median(values))
        distance = np.abs(values - middle)
        moved = distance[distance > 0]  # a dimension may rest most of the time
        if len(moved) < _ENOUGH:
            continue
        usual = float(np.quantile(moved, 0.95, method="lower"))
        for row in np.flatnonzero(distance > FAR * usual).tolist():
            found[row] = f"{values[row]:g}, and 95 of 100 values lie within {usual:.3g} of {middle:.3g}"
    return found
