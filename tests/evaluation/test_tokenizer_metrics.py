"""Code use and the probe, against counting and against the textbook's formula."""

import math
from collections import Counter

import pytest
import torch

from ideomotor.evaluation.tokenizer_metrics import code_use, probe_r2, ridge


def test_code_use_equals_counting(generator):
    ids = torch.randint(0, 5, (3, 2, 7), generator=generator)
    counts = Counter(ids.flatten().tolist())
    entropy = -sum(n / 42 * math.log(n / 42) for n in counts.values())
    use = code_use(ids, 8)
    assert use.share == len(counts) / 8 and use.perplexity == pytest.approx(math.exp(entropy), rel=1e-5)
    assert code_use(torch.arange(8), 8) == pytest.approx((1.0, 8.0))
    assert code_use(torch.zeros(9, dtype=torch.long), 4) == pytest.approx((0.25, 1.0))


@pytest.mark.parametrize("ids", [[], [-1, 0], [0, 4]])
def test_tokens_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match="vocabulary of 4"):
        code_use(torch.tensor(ids, dtype=torch.long), 4)


@pytest.mark.parametrize("width", [3, 40])  # fewer and more features than samples
def test_ridge_equals_the_normal_equations(generator, width):
    x, y = torch.randn(20, width, generator=generator) + 5, torch.randn(20, 2, generator=generator) - 3
    asked = torch.randn(4, width, generator=generator)
    centred = (x - x.mean(0)).double()
    strength = 0.1 * centred.square().sum(1).mean()
    weights = torch.linalg.inv(centred.T @ centred + strength * torch.eye(width)) @ centred.T @ (y - y.mean(0)).double()
    wanted = (asked - x.mean(0)).double() @ weights + y.mean(0)
    torch.testing.assert_close(ridge(x, y, asked, 0.1).double(), wanted, atol=1e-5, rtol=1e-4)


def test_probe_reads_what_is_there_and_nothing_where_nothing_is(generator):
    x = torch.randn(300, 6, generator=generator)
    y = x @ torch.randn(6, 2, generator=generator) + 1
    assert probe_r2(x[:200], y[:200], x[200:], y[200:]) > 0.99
    noise = torch.randn(300, 2, generator=generator)
    assert -0.2 < probe_r2(x[:200], noise[:200], x[200:], noise[200:]) < 0.1
    flat = torch.ones(300, 6)
    assert probe_r2(flat[:200], y[:200], flat[200:], y[200:]) == pytest.approx(0, abs=0.05)
    assert math.isnan(probe_r2(x[:200], y[:200], x[200:], torch.ones(100, 2)))


def test_probe_refuses_too_few_samples():
    with pytest.raises(ValueError, match="at least 10"):
        probe_r2(torch.ones(9, 2), torch.ones(9, 1), torch.ones(2, 2), torch.ones(2, 1))
