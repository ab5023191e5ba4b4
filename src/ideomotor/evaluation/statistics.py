"""How sure a figure is: intervals of a count, of a mean over seeds, tasks and episodes, of a paired difference, of a
mean over clips, of two rankings' agreement.

Episodes of one task and one training seed are not independent trials of "the method": tasks differ in difficulty and
training runs differ in luck. So the mean is resampled from the top down: seeds, then tasks, then episodes. Seeds and
tasks are crossed (every seed meets the same tasks), hence one draw of tasks serves all drawn seeds of a resample; new
tasks for each seed would divide the spread between tasks by the number of seeds, and so understate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Scores = Sequence[Sequence[Sequence[float]]]
"""``scores[seed][task][episode]``, 1.0 for success. Every seed has the same tasks in the same order; its cells may
differ in their numbers of episodes."""

FEWEST_SEEDS = 3
"""With two seeds Student's interval is 12.7 standard errors to either side, and tells nothing that is worth a claim."""

_DRAWS_AT_ONCE = 1 << 20  # bounds memory to some tens of MB whatever the number of seeds, tasks and episodes


class Estimate(NamedTuple):
    """A figure and its interval, all three in the unit of the figure."""

    value: float
    low: float
    high: float

    def plain(self) -> dict[str, float | None]:
        """Returns the three by name, for JSON; what is not finite (the interval of a single episode) is None."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


def wilson(successes: int, episodes: int, level: float = 0.95) -> Estimate:
    """Returns the share of successes with Wilson's score interval.

    The interval stays inside 0..1 and keeps a width at 0 and at ``episodes`` successes, where the usual one has none.

    Raises:
        ValueError: no episodes, more successes than episodes, or a level outside (0, 1).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(
            f"{successes} successes of {episodes} episodes; wanted 0 <= successes <= episodes and at least 1 episode"
        )
    z = NormalDist().inv_cdf(0.5 + _checked(level) / 2)
    share = successes / episodes
    spread = z * ((share * (1 - share) + z * z / (4 * episodes)) / episodes) ** 0.5
    middle, scale = share + z * z / (2 * episodes), 1 + z * z / episodes
    # At the ends the bound is exactly 0 or 1; rounding would leave it a hair off, and beyond the share itself.
    low = 0.0 if successes == 0 else (middle - spread) / scale
    high = 1.0 if successes == episodes else (middle + spread) / scale
    return Estimate(share, low, high)


def mean_success(scores: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Returns the mean over seeds of the mean over tasks of the mean over episodes, with its bootstrap interval.

    With one seed the interval holds no luck of training. Where every episode ended alike it has no width at all:
    resampling cannot invent what was not seen, so show ``wilson`` of the tasks beside it.
    """
    return _bootstrap([scores], lambda cells: cells[0].mean(axis=(-2, -1)), level, resamples, seed)


def paired_difference(
    ours: Scores, control: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Returns ``mean(ours) - mean(control)`` with its interval; both arms are drawn alike.

    Raises:
        ValueError: the arms differ in seeds, tasks or episodes, so that nothing pairs them.
    """
    return _bootstrap(
        [ours, control],
        lambda cells: cells[0].mean(axis=(-2, -1)) - cells[1].mean(axis=(-2, -1)),
        level,
        resamples,
        seed,
    )


def probability_of_improvement(
    ours: Scores, control: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Returns how likely a run of ours beats a run of the control on a task drawn at random; ties count half.

    Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", section 4.3.
    Where they resample runs within a task, this resamples seeds, tasks and episodes, as everywhere in this file.

    Raises:
        ValueError: the arms differ in seeds, tasks or episodes.
    """

    def wins(cells: Float[np.ndarray, "arm *resample seed task"]) -> Float[np.ndarray, "*resample"]:
        gap = cells[0][..., :, None, :] - cells[1][..., None, :, :]  # resample seed seed task
        return ((np.sign(gap) + 1) / 2).mean(axis=(-3, -2, -1))

    return _bootstrap([ours, control], wins, level, resamples, seed)


def difference_over_seeds(ours: Scores, control: Scores, *, level: float = 0.95) -> Estimate:
    """Returns ``mean(ours) - mean(control)`` with Student's interval over the seeds' own differences.

    This is the interval for a claim about the tasks at hand. However the luck of seeds, tasks and episodes is mixed,
    the seeds' differences are independent draws of one quantity, so two equal arms are told apart in 5 % of studies.
    The bootstrap's interval misses that mark on both sides: too narrow where few seeds differ in luck, and too wide
    where episodes do, whose noise it draws three times. With fewer than ``FEWEST_SEEDS`` the interval is NaN.

    Seeds that agree to the episode would leave no width, so their spread counts as one episode then.

    Raises:
        ValueError: the arms differ in seeds, tasks or episodes.
    """
    values, counts = _table([ours, control])
    means = (values.sum(axis=-1) / counts).mean(axis=-1)  # arm seed
    differences = means[0] - means[1]
    value, num_seeds = float(differences.mean()), len(differences)
    quantile = student_quantile(0.5 + _checked(level) / 2, max(1, num_seeds - 1))
    if num_seeds < FEWEST_SEEDS:
        return Estimate(value, float("nan"), float("nan"))
    scores = [score for arm in (ours, control) for tasks in arm for episodes in tasks for score in episodes]
    one_episode = (max(scores) - min(scores)) / float(counts.sum(axis=-1).mean())
    agree = float(np.ptp(differences)) < one_episode / 2
    half = quantile * (one_episode if agree else float(differences.std(ddof=1))) / num_seeds**0.5
    return Estimate(value, value - half, value + half)


def student_quantile(share: float, freedom: float) -> float:
    """Returns what Student's t with ``freedom`` (1 or more) degrees of freedom stays below with probability ``share``.

    With ``t = sqrt(freedom) * tan(angle)`` its density becomes a power of the cosine, which is integrated and searched.

    Raises:
        ValueError: a share outside (0.5, 1), or less than 1 degree of freedom.
    """
    if not 0.5 < share < 1 or freedom < 1:
        raise ValueError(f"share {share}, {freedom} degrees of freedom; wanted a share in (0.5, 1), and at least 1")
    nodes, weights = np.polynomial.legendre.leggauss(64)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        below = scale * angle / 2 * float(weights @ np.cos(angle / 2 * (nodes + 1)) ** (freedom - 1))
        low, high = (angle, high) if 0.5 + below < share else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def mean_of_clips(
    values: Sequence[float],
    episodes: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Returns the mean over clips with its bootstrap interval.

    Clips of one episode show one scene and resemble each other, so episodes are drawn, each with all its clips; taken
    for independent, ten clips an episode would narrow the interval about threefold. With a single episode there is
    nothing to draw and the interval is NaN.

    Args:
        values: one a clip.
        episodes: which episode each clip is of; by default each is of its own.
        level: of the interval.
        resamples: how many means are drawn.
        seed: of the draws.

    Raises:
        ValueError: no clip, not one episode a clip, a level outside (0, 1), or no resamples.
    """
    return ratio_of_sums(values, [1.0] * len(values), episodes, level=level, resamples=resamples, seed=seed)


def ratio_of_sums(
    above: Sequence[float],
    below: Sequence[float],
    episodes: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Returns the sum of ``above`` over clips, divided by that of ``below``, with its bootstrap interval.

    Of squared errors and numbers of pixels it is the pooled error; of two models' errors, by how much they differ.
    Episodes are drawn as in ``mean_of_clips``; draws in which ``below`` sums to 0 are left out.

    Args:
        above: one a clip.
        below: one a clip, none below 0.
        episodes: which episode each clip is of; by default each is of its own.
        level: of the interval.
        resamples: how many ratios are drawn.
        seed: of the draws.

    Raises:
        ValueError: no clip, lengths that differ, nothing to divide by, a level outside (0, 1), or no resamples.
    """
    owners = list(range(len(above)) if episodes is None else episodes)
    if not len(above) or not len(owners) == len(above) == len(below) or resamples < 1:
        raise ValueError(
            f"{len(above)} clips, {len(owners)} names of episodes, {resamples} resamples; wanted at least one clip, "
            "the name of its episode for each, and at least 1 resample"
        )
    if min(below) < 0 or not sum(below) > 0:
        raise ValueError(f"what is divided by sums to {sum(below)}; wanted more than 0, and no clip below")
    names = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    places = [names[name] for name in owners]
    sums, counts = (np.bincount(places, weights=np.asarray(row, dtype=np.float64)) for row in (above, below))
    ratio, tail = float(sums.sum() / counts.sum()), (1 - _checked(level)) / 2
    if len(names) == 1:
        return Estimate(ratio, float("nan"), float("nan"))
    rng = np.random.Generator(np.random.Philox(key=seed))
    block = max(1, _DRAWS_AT_ONCE // len(names))
    draws = []
    for start in range(0, resamples, block):
        picked = rng.integers(len(names), size=(min(block, resamples - start), len(names)))
        upper, lower = sums[picked].sum(axis=-1), counts[picked].sum(axis=-1)
        draws.append(upper[lower > 0] / lower[lower > 0])
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Estimate(ratio, float(low), float(high))


def spearman(ours: Float[np.ndarray, "*resample n"], theirs: Float[np.ndarray, "*resample n"]) -> np.ndarray:
    """Returns Spearman's correlation along the last axis: Pearson's of the ranks, equal values sharing their mean rank.

    NaN where all values of one side are equal, and so have no order.
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (ours, theirs)]
    x, y = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), spread, out=np.full(spread.shape, np.nan), where=spread > 0)


def rank_agreement(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Returns how alike two ways of trying rank the same policies: Spearman's correlation of the policies' means.

    The interval is of policies drawn anew, and of episodes drawn anew. All policies met the same episodes (goals,
    first frames), in both ways, so one draw of episodes serves all policies of a resample and both ways. A policy that
    is drawn twice ties with itself on both sides. Resamples in which one side has no order are left out; the
    correlation, or its interval, is NaN where there is none.

    Args:
        ours: ``ours[policy][episode]``.
        theirs: the same policies and episodes, tried in the other way.
        level: of the interval.
        resamples: how many are drawn.
        seed: of the draws.

    Raises:
        ValueError: the two do not pair, fewer than 3 policies, no episodes, a level outside (0, 1), or no resamples.
    """
    sizes = [[len(episodes) for episodes in way] for way in (ours, theirs)]
    if sizes[0] != sizes[1] or len(sizes[0]) < 3 or len(set(sizes[0])) > 1 or not sizes[0][0] or resamples < 1:
        raise ValueError(
            f"episodes a policy are {sizes[0]} and {sizes[1]}, resamples {resamples}; wanted the same 3 policies or "
            "more on both sides, each with the same episodes, and at least 1 resample"
        )
    values = np.asarray([ours, theirs], np.float64)  # way policy episode
    _, policies, episodes = values.shape
    tail, rng = (1 - _checked(level)) / 2, np.random.Generator(np.random.Philox(key=seed))
    drawn = rng.integers(episodes, size=(resamples, episodes))
    weights = np.stack([np.bincount(row, minlength=episodes) for row in drawn]) / episodes
    means = np.swapaxes(values @ weights.T, 1, 2)  # way resample policy
    picked = rng.integers(policies, size=(resamples, policies))
    found = spearman(*np.take_along_axis(means, picked[None], axis=2))
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [tail, 1 - tail]) if found.size else (float("nan"), float("nan"))
    return Estimate(float(spearman(*values.mean(-1))), float(low), float(high))


def _ranks(values: Float[np.ndarray, "*resample n"]) -> Float[np.ndarray, "*resample n"]:
    """From 1 on; what is equal shares the mean of its places."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    alike = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (alike + 1) / 2


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level {level}; wanted a share between 0 and 1, e.g. 0.95")
    return level


def _bootstrap(
    arms: Sequence[Scores],
    statistic: Callable[[Float[np.ndarray, "arm *resample seed task"]], Float[np.ndarray, "*resample"]],
    level: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """Returns the statistic of the cells' means (one cell per seed and task), with its percentile interval."""
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; wanted at least 1 (10,000 for two steady digits)")
    values, counts = _table(arms)
    rng = np.random.Generator(np.random.Philox(key=seed))
    block = max(1, _DRAWS_AT_ONCE // values[0].size)
    draws = [
        statistic(_resampled(values, counts, min(block, resamples - start), rng))
        for start in range(0, resamples, block)
    ]
    tail = (1 - _checked(level)) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    # Padding is zero, so a plain sum over episodes is the sum over the real ones.
    return Estimate(float(statistic(values.sum(axis=-1) / counts)), float(low), float(high))


def _table(
    arms: Sequence[Scores],
) -> tuple[Float[np.ndarray, "arm seed task episode"], Int[np.ndarray, "seed task"]]:
    """Returns the scores padded with zeros to one array, and how many episodes each cell really has."""
    shapes = [[[len(episodes) for episodes in tasks] for tasks in arm] for arm in arms]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"the arms do not pair: episodes per seed and task are {shapes[0]} and {shapes[1]}; try both arms on "
            "the same seeds, tasks and episodes, or leave out what only one of them has"
        )
    shape = shapes[0]
    if not shape or not shape[0] or any(len(tasks) != len(shape[0]) for tasks in shape) or min(map(min, shape)) < 1:
        raise ValueError(
            f"episodes per seed and task are {shape}; wanted at least one seed, the same tasks for every seed, and "
            "at least one episode in each"
        )
    counts = np.array(shape)
    values = np.zeros((len(arms), *counts.shape, counts.max()))
    for a, arm in enumerate(arms):
        for s, tasks in enumerate(arm):
            for t, episodes in enumerate(tasks):
                values[a, s, t, : len(episodes)] = episodes
    return values, counts


def _resampled(
    values: Float[np.ndarray, "arm seed task episode"],
    counts: Int[np.ndarray, "seed task"],
    resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "arm resample seed task"]:
    """Returns the cells' means of that many resamples: seeds drawn, then tasks, then episodes within each cell."""
    _, num_seeds, num_tasks, num_episodes = values.shape
    seeds = rng.integers(num_seeds, size=(resamples, num_seeds))[:, :, None]
    tasks = rng.integers(num_tasks, size=(resamples, num_tasks))[:, None, :]
    sizes = counts[seeds, tasks][..., None]  # resample seed task 1
    picked = (rng.random((resamples, num_seeds, num_tasks, num_episodes)) * sizes).astype(np.int64)
    real = np.arange(num_episodes) < sizes  # a cell of n episodes is resampled by n draws
    return (values[:, seeds[..., None], tasks[..., None], picked] * real).sum(axis=-1) / sizes[..., 0]
