"""The mathematics of sigma against what defines it."""

import math

import pytest
import torch

from ideomotor.diffusion import edm

SCHEDULES = {
    "karras": lambda n: edm.karras(n, 0.01, 50.0),
    "exponential": lambda n: edm.exponential(n, 0.01, 50.0),
    "linear": lambda n: edm.linear(n, 0.01, 50.0),
    "vp": edm.vp,
    "ve": lambda n: edm.ve(n, 0.01, 50.0),
    "cosine_beta": edm.cosine_beta,
    "iddpm": lambda n: edm.iddpm(n, 0.01, 50.0),
}


def test_scaling_gives_the_network_unit_input_and_unit_target(generator):
    x0 = 0.5 * torch.randn(200_000, generator=generator)
    for level in (0.02, 0.5, 9.0):
        sigma = torch.full_like(x0, level)
        x = x0 + sigma * torch.randn(x0.shape, generator=generator)
        factors = edm.scaling(sigma, 0.5)
        wanted = edm.target(x0, x, sigma, 0.5)
        assert (factors.c_in * x).std().item() == pytest.approx(1, rel=0.01)
        assert wanted.std().item() == pytest.approx(1, rel=0.01)
        # c_skip is the one that leaves F least to do: what it foretells says nothing more about x.
        assert (wanted * x).mean().abs() < 0.01 * x.std()


def test_a_network_that_foretells_the_target_is_a_perfect_denoiser(generator):
    x0, sigma = torch.randn(3, 4, 5, generator=generator), torch.tensor([0.01, 1.0, 70.0])
    x = x0 + sigma[:, None, None] * torch.randn(x0.shape, generator=generator)
    seen = {}

    def network(scaled, c_noise):
        seen["scaled"], seen["c_noise"] = scaled, c_noise
        return edm.target(x0, x, sigma, 0.5)

    torch.testing.assert_close(edm.denoised(network, x, sigma, 0.5), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen["c_noise"], sigma.log() / 4)
    torch.testing.assert_close(seen["scaled"], x / (sigma**2 + 0.25).sqrt()[:, None, None])


def test_weight_makes_the_loss_on_x0_that_of_the_network(generator):
    x0, guess = torch.randn(2, 6, 3, generator=generator)
    x, sigma = x0 + 1, torch.rand(6, generator=generator) + 0.1
    off = edm.denoised(lambda scaled, c_noise: guess, x, sigma, 0.7) - x0
    wanted = (guess - edm.target(x0, x, sigma, 0.7)).square().mean(1)
    torch.testing.assert_close(edm.scaling(sigma, 0.7).weight * off.square().mean(1), wanted)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_to_0(name):
    for steps in (1, 2, 7):
        sigmas = SCHEDULES[name](steps)
        assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_schedules_are_even_on_their_own_scale():
    for name, scale in (("karras", lambda s: s ** (1 / 7)), ("exponential", torch.log), ("linear", lambda s: s)):
        sigmas = SCHEDULES[name](9)[:-1].double()
        torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([50.0, 0.01]).double(), rtol=1e-5, atol=0)
        gaps = scale(sigmas).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand(8), rtol=1e-3, atol=0)


def test_iddpm_follows_its_recursion():
    levels, u = 40, [0.0]
    bar = [math.sin(math.pi / 2 * j / levels / 1.008) ** 2 for j in range(levels + 1)]
    for j in range(levels, 0, -1):
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(bar[j - 1] / bar[j], 0.001) - 1))
    sigmas = edm.iddpm(levels, 1e-9, 1e9, levels=levels)
    assert sigmas[:levels].tolist() == pytest.approx(u[:levels], rel=1e-4)


@pytest.mark.parametrize(
    ("draw", "cdf"),
    [
        (edm.log_logistic, lambda s: 1 / (1 + (0.5 / s) ** 2)),  # scale 1/2: exponent 2
        (edm.log_uniform, torch.log),
        (edm.uniform, lambda s: s),
        (edm.v_diffusion, lambda s: (s / 0.5).atan()),
    ],
)
def test_densities_invert_their_distribution(draw, cdf):
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    sigma = draw(u).double()
    low, high = cdf(torch.tensor([0.001, 80.0], dtype=torch.float64))
    torch.testing.assert_close((cdf(sigma) - low) / (high - low), u, atol=1e-5, rtol=0)
    torch.testing.assert_close(sigma[[0, -1]], torch.tensor([0.001, 80.0]).double(), rtol=1e-3, atol=0)


def test_log_logistic_needs_no_range():
    sigma = edm.log_logistic(torch.tensor([0.5]), sigma_min=0.0, sigma_max=math.inf)
    assert sigma.item() == pytest.approx(0.5)


def test_log_normal(generator):
    sigma = edm.log_normal(torch.randn(100_000, generator=generator), 0.7, 1.6)
    assert sigma.median().item() == pytest.approx(math.exp(0.7), rel=0.05)
    assert sigma.log().std().item() == pytest.approx(1.6, rel=0.02)


@pytest.mark.parametrize(("steps", "low", "high"), [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0)])
def test_a_wrong_range_is_named(steps, low, high):
    for schedule in (edm.karras, edm.exponential, edm.linear, edm.ve, edm.iddpm):
        with pytest.raises(ValueError, match=f"steps {steps}, sigma_min {low}"):
            schedule(steps, low, high)


def test_a_range_without_levels_is_named():
    with pytest.raises(ValueError, match="none of 10 levels"):
        edm.iddpm(3, 1e-6, 2e-6, levels=10)
