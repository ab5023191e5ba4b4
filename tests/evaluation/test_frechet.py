import math

import pytest
import torch

from ideomotor.evaluation.frechet import frechet_distance, frechet_estimate, moments


def vectors(generator, n, d, scale=1.0, shift=0.0):
    mix = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mix * scale + shift


def test_one_number_has_the_closed_form(generator):
    a, b = torch.randn(50, 1, generator=generator).double(), 3 * torch.randn(70, 1, generator=generator).double() + 2
    for divisor, correction in (("population", 0), ("sample", 1)):
        wanted = (a.mean() - b.mean()) ** 2 + (a.std(correction=correction) - b.std(correction=correction)) ** 2
        assert frechet_distance(moments(a), moments(b), divisor) == pytest.approx(float(wanted), rel=1e-10)


def test_it_equals_the_root_of_the_product(generator):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    a, b = vectors(generator, 40, 6).double(), vectors(generator, 30, 6, 2.0, 1.0).double()
    root = torch.from_numpy(linalg.sqrtm((a.T.cov() @ b.T.cov()).numpy()).real)
    wanted = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert frechet_distance(moments(a), moments(b), "sample") == pytest.approx(float(wanted), rel=1e-8)


def test_fewer_vectors_than_numbers_stay_exact(generator):
    """Covariances of rank 7 in 40 dimensions: the same answer as in the 9 dimensions they come from."""
    small_a, small_b = vectors(generator, 8, 9).double(), vectors(generator, 8, 9).double()
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q[:9]
    wide = frechet_distance(moments(small_a @ turn), moments(small_b @ turn), "sample")
    assert wide == pytest.approx(frechet_distance(moments(small_a), moments(small_b), "sample"), rel=1e-5)
    assert frechet_distance(moments(small_a @ turn), moments(small_a @ turn), "sample") == pytest.approx(0, abs=1e-5)


def test_adding_is_pooling_even_far_from_zero(generator):
    features = vectors(generator, 30, 5).double() + 1e6
    whole, parts = moments(features), moments(features[:4]) + moments(features[4:5]) + moments(features[5:])
    assert parts.count == 30
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.covariance("sample"), features.T.cov(), rtol=1e-6, atol=1e-6)


def test_the_jackknife_tells_the_spread_of_the_figure(generator):
    """Against the true spread over fresh sets of the same size, whose middle the interval should hold."""

    def draw():
        real, fake = torch.randn(80, 3, generator=generator), 1.5 * torch.randn(80, 3, generator=generator) + 0.5
        return [moments(block) for block in real.chunk(20)], [moments(block) for block in fake.chunk(20)]

    middle = sum(frechet_estimate(*([sum(b[1:], b[0])] for b in draw()), "sample").value for _ in range(200)) / 200
    estimates = [frechet_estimate(*draw(), "sample") for _ in range(60)]
    held = sum(estimate.low <= middle <= estimate.high for estimate in estimates)
    assert 51 <= held <= 60  # 57 wanted
    assert all(0 <= estimate.low < estimate.value < estimate.high for estimate in estimates)


def test_one_block_has_no_interval(generator):
    block = [moments(vectors(generator, 9, 3))]
    estimate = frechet_estimate(block, block, "population")
    assert estimate.value == pytest.approx(0, abs=1e-6)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: moments(f[:0]), "at least one vector"),
        (lambda f: moments(f[0]), "wanted finite `n d`"),
        (lambda f: moments(f / 0), "wanted finite"),
        (lambda f: moments(f[:1]).covariance("sample"), "at least 2"),
        (lambda f: frechet_estimate([moments(f)], [], "sample"), "as many"),
    ],
)
def test_errors_say_what_was_wanted(call, says, generator):
    with pytest.raises(ValueError, match=says):
        call(vectors(generator, 4, 3))
