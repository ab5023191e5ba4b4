"""From one chunk of actions to a later one: fading over, or the mean of all that reach a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Turns:
    """Which numbers of an action are rotations, whose mean is not the mean of the numbers.

    Attributes:
        quaternions: the first column of each, of four; either sign is the same rotation.
        angles: columns in radians, which begin anew after a whole turn.
    """

    quaternions: tuple[int, ...] = ()
    angles: tuple[int, ...] = ()

    def near(self, actions: np.ndarray, to: np.ndarray) -> np.ndarray:
        """Returns the same actions ``(..., width)``, each rotation told by the numbers nearest to those of ``to``.

        Raises:
            ValueError: a rotation lies outside of the action.
        """
        ends = [*(first + 4 for first in self.quaternions), *(column + 1 for column in self.angles)]
        if max(ends, default=0) > actions.shape[-1] or min(*self.quaternions, *self.angles, 0, 0) < 0:
            raise ValueError(
                f"actions have {actions.shape[-1]} numbers; quaternions that begin at {self.quaternions} and angles at "
                f"{self.angles} do not lie in them: count columns from 0, four a quaternion"
            )
        told = actions.copy()
        for first in self.quaternions:
            turn = told[..., first : first + 4]
            turn *= np.where((turn * to[..., first : first + 4]).sum(-1, keepdims=True) < 0, -1, 1)
        columns = list(self.angles)
        told[..., columns] += 2 * np.pi * np.round((to[..., columns] - told[..., columns]) / (2 * np.pi))
        return told

    def whole(self, actions: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        """Returns means of actions ``(..., width)`` with quaternions of length 1, and angles between -pi and pi; where
        a mean has no direction, the quaternion of ``otherwise``.
        """
        made = actions.copy()
        for first in self.quaternions:
            place = slice(first, first + 4)
            length = np.linalg.norm(made[..., place], axis=-1, keepdims=True)
            unit = made[..., place] / np.maximum(length, 1e-6)
            made[..., place] = np.where(length > 1e-6, unit, otherwise[..., place])
        columns = list(self.angles)
        made[..., columns] -= 2 * np.pi * np.round(made[..., columns] / (2 * np.pi))
        return made


NUMBERS = Turns()
"""No rotations: numbers alone."""


def crossfade(old: np.ndarray, new: np.ndarray, turns: Turns = NUMBERS) -> np.ndarray:
    """Returns ``(k, width)`` actions that lead from ``old`` to ``new``, both ``(k, width)``, by weights in a line.

    The first is mostly ``old``, the last mostly ``new``; neither end is wholly one of them.
    """
    weight = (np.arange(1, len(new) + 1) / (len(new) + 1)).astype(new.dtype)[:, None]
    return turns.whole((1 - weight) * turns.near(old, new) + weight * new, new)


def ensemble(chunks: list[np.ndarray], decay: float, turns: Turns = NUMBERS) -> np.ndarray:
    """Returns the mean, at each step of the last chunk, of what all chunks say that reach it, weighted by their age.

    All begin at the same step, the oldest comes first. What chunk ``i`` says, 0 the oldest that reaches the step,
    weighs ``exp(-decay * i)``: 0 weighs all alike, more trusts the older ones, less than 0 the newer ones.

    Source: ACT (Zhao et al. 2023, 2304.13705), algorithm 2.
    """
    newest = chunks[-1]
    said, logs = np.zeros((len(chunks), *newest.shape)), np.full((len(chunks), len(newest), 1), -np.inf)
    for i, chunk in enumerate(chunks):
        reach = min(len(chunk), len(newest))
        said[i, :reach], logs[i, :reach] = turns.near(chunk[:reach], newest[:reach]), -decay * i
    weights = np.exp(logs - logs.max(0))  # which chunk is number 0 does not matter: the weights are normalised
    return turns.whole((weights * said).sum(0) / weights.sum(0), newest).astype(newest.dtype)
