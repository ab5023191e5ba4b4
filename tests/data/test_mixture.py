import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from ideomotor.data.mixture import Mixture, Source
from ideomotor.data.permutation import permuted
from ideomotor.data.synthetic import synthetic_dataset


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_permutations_are_permutations(length: int):
    for seed, stream, epoch in itertools.product((0, -3, 1 << 70), (0, 1), (0, 5)):
        order = permuted(np.arange(length), length, seed, stream, np.full(length, epoch))
        assert sorted(order.tolist()) == list(range(length))


def test_permutations_depend_on_each_of_seed_stream_and_epoch():
    def order(seed: int, stream: int, epoch: int) -> tuple[int, ...]:
        return tuple(permuted(np.arange(50), 50, seed, stream, np.full(50, epoch)).tolist())

    orders = {order(*key) for key in itertools.product(range(4), range(4), range(4))}
    assert len(orders) == 64


def test_permutations_are_even():
    # Where index i goes, over many epochs: every place equally often (chi squared, 99.9 % at 11 degrees: 31.3).
    epochs = 3000
    for index in range(12):
        places = permuted(np.full(epochs, index), 12, 0, 0, np.arange(epochs))
        counts = np.bincount(places, minlength=12)
        assert ((counts - epochs / 12) ** 2 / (epochs / 12)).sum() < 40
    # And which two come in a row.
    pairs = {(i, j): 0 for i in range(6) for j in range(6) if i != j}
    for epoch in range(1500):
        order = permuted(np.arange(6), 6, 1, 0, np.full(6, epoch)).tolist()
        for pair in itertools.pairwise(order):
            pairs[pair] += 1
    counts = np.array(list(pairs.values()))
    assert abs(counts / 250 - 1).max() < 0.3


def test_the_order_is_the_same_for_ever():
    # Recorded once: an order that changed would break resuming across versions.
    sources, windows = Mixture([1.0, 3.0], [10, 1000], seed=7).samples(100, 8)
    assert sources.tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
    assert windows.tolist() == [378, 8, 126, 8, 19, 600, 559, 4]


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [0.1, 0.2, 0.7], [3, 1e-3, 5, 0.25], [1, 2, 3, 4, 5, 6, 7]])
def test_sources_have_their_exact_share_at_any_point(weights: list[float]):
    mixture = Mixture(weights, [5] * len(weights), seed=0)
    sources, _ = mixture.samples(0, 4000)
    shares = np.asarray(weights) / sum(weights)
    counts = np.zeros(len(weights), dtype=int)
    for k, source in enumerate(sources.tolist()):
        assert [mixture.count(number, k) for number in range(len(weights))] == counts.tolist()
        assert mixture.sample(k) == (source, counts[source])
        assert abs(counts - k * shares).max() <= len(weights)
        counts[source] += 1
    # Far out, where counting is out of the question.
    far = 10**15 + 7
    assert sum(mixture.count(number, far) for number in range(len(weights))) == far
    assert abs(mixture.count(0, far) - far * shares[0]) < 2 + far * 1e-15


def test_every_window_comes_once_an_epoch():
    mixture = Mixture([2.0, 1.0], [7, 40], seed=3)
    sources, windows = mixture.samples(0, 210)
    for source, length in ((0, 7), (1, 40)):
        stream = windows[sources == source]
        epochs = [stream[first : first + length].tolist() for first in range(0, len(stream) - length + 1, length)]
        assert len(epochs) > 0 and all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert len(epochs) < 2 or epochs[0] != epochs[1]


def test_samples_are_the_same_wherever_one_starts():
    mixture = Mixture([1.0, 2.5, 0.3], [11, 4, 100], seed=9)
    sources, windows = mixture.samples(0, 300)
    for start, count in ((0, 1), (17, 50), (299, 1), (120, 0)):
        part = mixture.samples(start, count)
        assert np.array_equal(part[0], sources[start : start + count])
        assert np.array_equal(part[1], windows[start : start + count])
    other = Mixture([1.0, 2.5, 0.3], [11, 4, 100], seed=10).samples(0, 300)
    assert np.array_equal(other[0], sources) and not np.array_equal(other[1], windows)


def test_the_order_costs_little():
    mixture = Mixture([0.1, 0.2, 0.3, 0.4], [10**6, 10**7, 3, 77_777], seed=0)
    seconds = []
    for start in (0, 10**9, 10**12):
        begin = time.perf_counter()
        mixture.samples(start, 256)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.05  # 2 ms for a batch of 256


def test_what_cannot_be_mixed_is_refused():
    dataset = synthetic_dataset(2, 3, 4)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights are positive"):
            Source(dataset, weight)
    with pytest.raises(ValueError, match="no camera 'wrist'; it has 'video'"):
        Source(dataset, cameras={"main": "wrist"})
    with pytest.raises(ValueError, match="has no cameras"):
        Source(dataset, cameras={})
    with pytest.raises(ValueError, match="no domain 'martian': take one of unknown, human, robot, simulated"):
        Source(dataset, domain="martian")
    with pytest.raises(ValueError, match="no episodes"):
        Source(replace(dataset, episodes=()))
    assert Source(dataset).camera_names() == {"main": "video"}
    for weights, windows in (([], []), ([1.0], [1, 2]), ([1.0], [0]), ([0.0], [1])):
        with pytest.raises(ValueError, match="weights"):
            Mixture(weights, windows, seed=0)
    with pytest.raises(ValueError, match="begins at 0"):
        Mixture([1.0], [1], seed=0).samples(-1, 2)
