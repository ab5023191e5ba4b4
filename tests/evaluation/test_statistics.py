import itertools
import math

import numpy as np
import pytest

from ideomotor.evaluation.statistics import (
    mean_of_clips,
    mean_success,
    paired_difference,
    probability_of_improvement,
    rank_agreement,
    ratio_of_sums,
    spearman,
    wilson,
)

OURS = [[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]]  # two seeds, two tasks, two episodes
CONTROL = [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]


def every_resample(*arms):
    """Means of the cells, arm by arm, for every equally likely outcome of drawing seeds, then tasks, then episodes."""
    pairs = list(itertools.product(range(2), repeat=2))
    for seeds, tasks in itertools.product(pairs, pairs):
        for episodes in itertools.product(pairs, repeat=4):
            yield [
                [
                    [np.mean([arm[seeds[i]][tasks[j]][e] for e in episodes[2 * i + j]]) for j in range(2)]
                    for i in range(2)
                ]
                for arm in arms
            ]


def wins(ours, control):
    """Probability of improvement by counting, task by task, run against run."""
    points = [
        1.0 if ours[i][task] > control[j][task] else 0.5 if ours[i][task] == control[j][task] else 0.0
        for task, i, j in itertools.product(range(2), repeat=3)
    ]
    return sum(points) / len(points)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 5), (1, 7), (12, 20), (19, 20), (20, 20), (500, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_is_where_the_score_test_just_rejects(successes, episodes, level):
    estimate = wilson(successes, episodes, level)
    z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054}[level]
    share = successes / episodes
    assert estimate.value == share
    for bound, end in ((estimate.low, 0), (estimate.high, 1)):
        if share == end:
            assert bound == end
        else:
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / episodes) == pytest.approx(z, rel=1e-9)


def test_wilson_covers_as_often_as_it_says():
    """Exact coverage, averaged over the true rate, by summing the binomial."""
    episodes, rates = 20, np.linspace(0.02, 0.98, 97)
    bounds = [wilson(k, episodes) for k in range(episodes + 1)]
    coverage = [
        sum(
            math.comb(episodes, k) * p**k * (1 - p) ** (episodes - k)
            for k in range(episodes + 1)
            if bounds[k].low <= p <= bounds[k].high
        )
        for p in rates
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    ("estimate", "arms", "statistic"),
    [
        (mean_success, [OURS], lambda a: np.mean(a)),
        (paired_difference, [OURS, CONTROL], lambda a, b: np.mean(a) - np.mean(b)),
        (probability_of_improvement, [OURS, CONTROL], wins),
    ],
)
def test_bootstrap_equals_the_whole_list_of_resamples(estimate, arms, statistic):
    exact = np.sort([statistic(*cells) for cells in every_resample(*arms)])
    assert len(exact) == 4096
    for level in (0.5, 0.9):
        got = estimate(*arms, level=level, resamples=40_000, seed=3)
        assert got.value == pytest.approx(statistic(*[np.mean(arm, axis=-1) for arm in arms]))
        # A bound is right when the exact distribution has the wanted mass on either side of it.
        for bound, mass in ((got.low, (1 - level) / 2), (got.high, (1 + level) / 2)):
            assert np.mean(exact < bound - 1e-9) <= mass + 0.01
            assert np.mean(exact <= bound + 1e-9) >= mass - 0.01


def test_paired_difference_is_the_mean_of_the_differences():
    differences = (np.array(OURS) - np.array(CONTROL)).tolist()
    assert paired_difference(OURS, CONTROL, resamples=500) == pytest.approx(mean_success(differences, resamples=500))


def test_pairing_narrows_the_interval():
    rng = np.random.Generator(np.random.Philox(key=1))
    hard = rng.random((3, 6, 10))
    ours, control = (hard < 0.6).astype(float).tolist(), (hard < 0.5).astype(float).tolist()
    paired = paired_difference(ours, control, resamples=2000)
    shuffled = paired_difference(ours, rng.permuted(control, axis=2).tolist(), resamples=2000)
    assert paired.high - paired.low < shuffled.high - shuffled.low


def test_same_seed_same_interval():
    scores = np.random.Generator(np.random.Philox(key=2)).random((2, 3, 7)).tolist()
    assert mean_success(scores, resamples=300, seed=5) == mean_success(scores, resamples=300, seed=5)
    assert mean_success(scores, resamples=300, seed=5) != mean_success(scores, resamples=300, seed=6)


def test_unequal_numbers_of_episodes_weigh_tasks_alike():
    scores = [[[1.0], [0.0, 1.0, 0.0, 0.0]]]
    estimate = mean_success(scores, level=0.5, resamples=20_000)
    assert estimate.value == pytest.approx((1.0 + 0.25) / 2)
    rng = np.random.Generator(np.random.Philox(key=9))
    slow = [
        np.mean([np.mean(rng.choice(scores[0][task], len(scores[0][task]))) for task in rng.integers(2, size=2)])
        for _ in range(20_000)
    ]
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(slow, [0.25, 0.75]), abs=0.07)


def test_all_alike_has_no_width():
    assert mean_success([[[1.0, 1.0], [1.0]]], resamples=50) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: wilson(3, 2), "3 successes of 2 episodes"),
        (lambda: wilson(0, 0), "at least 1 episode"),
        (lambda: wilson(1, 2, level=95), "level 95"),
        (lambda: mean_success([]), "at least one seed"),
        (lambda: mean_success([[[1.0], []]]), "at least one episode"),
        (lambda: mean_success([[[1.0]], [[1.0], [0.0]]]), "the same tasks for every seed"),
        (lambda: mean_success(OURS, resamples=0), "0 resamples"),
        (lambda: paired_difference(OURS, CONTROL[:1]), "do not pair"),
    ],
)
def test_errors_say_what_was_wanted(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_same_policy_twice_rarely_looks_different():
    """Arms alike, each task with some luck of its own: about one interval in twenty may leave out zero."""
    rng = np.random.Generator(np.random.Philox(key=4))
    alarms = 0
    for _ in range(200):
        rates = np.clip(rng.beta(1.2, 0.8, size=(1, 5, 1)) + 0.1 * rng.standard_normal((2, 1, 5, 1)), 0, 1)
        ours, control = (rng.random((2, 1, 5, 20)) < rates).astype(float).tolist()
        gap = paired_difference(ours, control, resamples=400)
        alarms += gap.low > 0 or gap.high < 0
    assert alarms <= 200 * 0.08


def test_mean_of_clips_draws_whole_episodes():
    """Against all 27 draws of three episodes with one, two and three clips."""
    values, episodes = [5.0, 1.0, 2.0, 7.0, 8.0, 9.0], ["a", "b", "b", "c", "c", "c"]
    clips = {"a": [5.0], "b": [1.0, 2.0], "c": [7.0, 8.0, 9.0]}
    draws = [np.mean([v for name in drawn for v in clips[name]]) for drawn in itertools.product("abc", repeat=3)]
    got = mean_of_clips(values, episodes, level=0.6, resamples=20_000)
    assert got.value == pytest.approx(np.mean(values))
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(draws, [0.2, 0.8])), abs=0.35)
    assert mean_of_clips(values, episodes) == mean_of_clips(values, episodes)


def test_mean_of_clips_alone_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for run in range(200):
        got = mean_of_clips((rng.standard_normal(40) + 3).tolist(), resamples=500, seed=run)
        held += got.low <= 3 <= got.high
    assert 178 <= held <= 198  # 190 wanted; percentiles of 40 clips hold a little less


def test_mean_of_clips_has_no_interval_with_one_episode():
    got = mean_of_clips([1.0, 2.0], ["a", "a"])
    assert got.value == 1.5
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    for values, episodes, resamples in (([], None, 9), ([1.0], ["a", "b"], 9), ([1.0], None, 0)):
        with pytest.raises(ValueError, match="at least one clip"):
            mean_of_clips(values, episodes, resamples=resamples)


def test_spearman_counts_places_and_ties_share_theirs():
    up = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    found = spearman(up, np.array([[9.0, -1.0, 0.0], [9.0, -1.0, 0.0], [1.0, 2.0, 3.0]]))
    assert found[:2].tolist() == [1.0, -0.5] and math.isnan(found[2])
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_agreement_of_rankings_is_resampled_over_policies_and_shared_episodes():
    ours = [[0.0, 3.0], [1.0, 1.5], [2.0, 1.0], [4.0, 3.5]]
    theirs = [[0.0, 1.0], [2.0, 0.5], [1.0, 0.0], [5.0, 0.8]]
    every = [
        spearman(*(np.asarray(way)[list(policies)][:, list(episodes)].mean(1) for way in (ours, theirs)))
        for policies in itertools.product(range(4), repeat=4)
        for episodes in itertools.product(range(2), repeat=2)
        if len(set(policies)) > 1
    ]
    every = [found for found in every if np.isfinite(found)]
    found = rank_agreement(ours, theirs, level=0.6, resamples=20_000)
    assert found.value == spearman(np.mean(ours, 1), np.mean(theirs, 1))
    below, beyond = (np.mean(np.asarray(every) < end) for end in (found.low - 1e-9, found.high + 1e-9))
    assert below < 0.21 and beyond > 0.79  # an end is where the shares of all outcomes cross 20 and 80 %
    assert np.mean(np.asarray(every) <= found.low + 1e-9) > 0.19
    assert rank_agreement(ours, ours)[:2] == (1.0, 1.0)
    assert all(map(math.isnan, rank_agreement(ours, [[1.0, 1.0]] * 4)))


@pytest.mark.parametrize("theirs", [[[1.0]] * 3, [[1.0, 2.0]] * 2, [[1.0, 2.0], [1.0, 2.0], [1.0]], [[], [], []]])
def test_rankings_that_do_not_pair_are_refused(theirs):
    with pytest.raises(ValueError, match="wanted the same 3 policies"):
        rank_agreement([[1.0, 2.0]] * len(theirs) if len(theirs) > 2 else theirs, theirs)


def test_a_ratio_of_sums_is_pooled_and_drawn_by_episode():
    above, below, episodes = [1.0, 2.0, 3.0, 10.0], [1.0, 0.0, 1.0, 2.0], "aabc"
    found = ratio_of_sums(above, below, episodes)
    sums, counts = np.array([3.0, 3.0, 10.0]), np.array([1.0, 1.0, 2.0])
    every = [sums[list(drawn)].sum() / counts[list(drawn)].sum() for drawn in itertools.product(range(3), repeat=3)]
    assert found.value == 4.0
    assert found.low == pytest.approx(np.quantile(every, 0.025)) and found.high == pytest.approx(max(every))
    assert ratio_of_sums([2.0, 1.0], [0.0, 1.0]).low == 1.0  # draws with nothing to divide by are left out
    assert mean_of_clips(above, episodes) == ratio_of_sums(above, [1.0] * 4, episodes)
    assert math.isnan(ratio_of_sums(above, below, "aaaa").low)
    assert ratio_of_sums(above, below, "aaaa").plain() == {"value": 4.0, "low": None, "high": None}
    for wrong in ([0.0] * 4, [1.0, -1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="wanted more than 0"):
            ratio_of_sums(above, wrong)
    with pytest.raises(ValueError, match="names of episodes"):
        ratio_of_sums(above, below[:3])
