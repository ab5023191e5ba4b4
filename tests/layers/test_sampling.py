"""Draws from logits, against distributions made by hand."""

import pytest
import torch

from ideomotor.layers.sampling import Sampling, filtered
from ideomotor.layers.symlog import symexp, symlog


def test_what_is_left_out():
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.4, 0.4, 0.1]]).log()
    assert filtered(logits, top_k=1).isfinite().tolist() == [[True, False, False, False], [False, True, True, False]]
    assert filtered(logits, top_k=3).isfinite().tolist() == [[True] * 4, [True] * 4]  # equals stay
    assert filtered(logits, top_p=0.45).isfinite().sum(-1).tolist() == [1, 2]
    assert filtered(logits, top_p=0.75).isfinite().tolist() == [[True, True, False, False], [False, True, True, False]]
    assert filtered(logits, top_k=9).equal(logits) and filtered(logits).equal(logits)


def test_draws_follow_the_distribution(generator):
    logits = torch.tensor([0.5, 0.3, 0.1, 0.1]).log().expand(20000, 4)
    drawn = Sampling(top_k=2).choose(logits, generator).bincount(minlength=4) / 20000
    torch.testing.assert_close(drawn, torch.tensor([5 / 8, 3 / 8, 0, 0]), atol=0.02, rtol=0)
    warm = Sampling(temperature=0.5).probabilities(logits[:1])[0]
    torch.testing.assert_close(warm, torch.tensor([25, 9, 1, 1]) / 36)
    assert (Sampling(temperature=0).choose(logits) == 0).all()


def test_the_same_seed_draws_the_same():
    logits = torch.zeros(50, 7)
    first, second = (Sampling().choose(logits, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.equal(second) and len(first.unique()) == 7


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Sampling(**wrong)


def test_symlog_and_back():
    x = torch.tensor([-1e4, -2.0, 0, 1e-3, 5, 1e6])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-4, atol=1e-6)
    assert float(symlog(torch.tensor(-(torch.e - 1)))) == pytest.approx(-1)
