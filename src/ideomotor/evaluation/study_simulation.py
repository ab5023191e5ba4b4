"""Studies whose truth is known: two equal arms, or one better by so much, to see how often an interval claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ideomotor.evaluation.statistics import Estimate, Scores, wilson

Interval = Callable[[Scores, Scores], Estimate]
"""Takes ours and the control, as ``statistics.paired_difference``."""


@dataclass(frozen=True, kw_only=True)
class Luck:
    """What one training run has that another of the same method has not, in logits of success.

    Attributes:
        seed: spread of a training run over all its tasks.
        cell: spread of a training run on each of its tasks.
        task: spread over tasks of what one method is better at than the other; 0 is the same method twice.
        shared: part of the variance of ``seed`` and ``cell`` that both arms of a pair share.
    """

    seed: float
    cell: float
    task: float = 0.0
    shared: float = 0.5


def two_arms(
    seeds: int, tasks: int, episodes: int, luck: Luck, rng: np.random.Generator, better: float = 0.0
) -> tuple[Scores, Scores]:
    """Returns the successes of two arms; the first is better by ``better`` logits, on average over all tasks.

    Half of the tasks are easy and half are hard, as in Meta-World's tiers; an episode's start is easy or hard for both.
    """
    easy = rng.random(tasks) < 0.5
    base = np.where(easy, rng.normal(1.4, 0.7, tasks), rng.normal(-1.0, 0.9, tasks))

    def lucky(part: float) -> Float[np.ndarray, "seed task"]:
        drawn = luck.seed * rng.normal(size=(seeds, 1)) + luck.cell * rng.normal(size=(seeds, tasks))
        return np.sqrt(part) * drawn

    both = base + lucky(luck.shared)
    gap = (better + luck.task * rng.normal(size=tasks)) / 2
    start = rng.normal(size=(seeds, tasks, episodes))
    arms = []
    for side in (gap, -gap):
        logits = (both + lucky(1 - luck.shared) + side)[..., None] + start  # seed task episode
        arms.append((rng.random(start.shape) < 1 / (1 + np.exp(-logits))).astype(float).tolist())
    return arms[0], arms[1]


def share_of_claims(
    interval: Interval, design: tuple[int, int, int], luck: Luck, comparisons: int, seed: int = 0, better: float = 0.0
) -> Estimate:
    """Returns how often the interval leaves out zero, with Wilson's interval of that share itself.

    Args:
        interval: of the paired difference.
        design: seeds, tasks and episodes.
        luck: of the training runs.
        comparisons: how many studies are simulated.
        seed: of all draws.
        better: 0 makes the answer the share of false alarms, anything else the power.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    claims = 0
    for _ in range(comparisons):
        found = interval(*two_arms(*design, luck, rng, better))
        claims += found.low > 0 or found.high < 0  # of an interval that is NaN neither holds
    return wilson(claims, comparisons)
