"""Samplers against data whose best denoiser, and so whose path, is known."""

import math
from itertools import pairwise

import pytest
import torch

from ideomotor.diffusion import edm
from ideomotor.diffusion import sigma_samplers as samplers

ORDER = {
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "dpm2": 2,
    "dpmpp_2m": 2,
    "dpmpp_2s": 2,
    "lms": 2.4,
}  # lms starts with one Euler step
DETERMINISTIC = tuple(ORDER)
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde")
STD = 0.8


def gaussian(x, sigma):
    """The best denoiser of data N(0, STD^2)."""
    return x * (STD**2 / (STD**2 + sigma**2))[:, None]


def two_points(x, sigma):
    """The best denoiser of data that is -1 or 1."""
    return (x / sigma[:, None] ** 2).tanh()


def error(name, steps):
    """How far a sampler ends from the exact path of a Gaussian, from sigma 4 to 0.2."""
    sigmas = edm.exponential(steps + 1, 0.2, 4.0)[:-1].double()
    x = torch.ones(1, 1, dtype=torch.float64)
    exact = math.sqrt((STD**2 + sigmas[-1] ** 2) / (STD**2 + sigmas[0] ** 2))
    return abs(samplers.sample(name, gaussian, x, sigmas).item() - exact)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order(name):
    coarse, fine = error(name, 40), error(name, 80)
    assert math.log2(coarse / fine) == pytest.approx(ORDER[name], abs=0.3)


def test_lms_integrates_a_cubic_slope():
    """The first steps are tiny, since they know too few slopes."""
    sigmas = torch.tensor([4, 3.999, 3.998, 3.997, 3, 2, 1, 0.5], dtype=torch.float64)

    def denoise(x, sigma):
        return x - (sigma * (sigma**3 - 2 * sigma**2 + 3))[:, None]

    got = samplers.lms(denoise, torch.zeros(1, 1, dtype=torch.float64), sigmas).item()
    assert got == pytest.approx((0.5**4 - 4**4) / 4 - 2 * (0.5**3 - 4**3) / 3 + 3 * (0.5 - 4), rel=1e-4)


def test_ddim_follows_its_published_form():
    """x' = (sigma'/sigma) x - expm1(-h) x0 with h = ln(sigma / sigma')."""
    x, sigmas = torch.tensor([[0.3], [-2.0]]), torch.tensor([3.0, 1.0, 0.2, 0.0])
    got, wanted = samplers.ddim(two_points, x, sigmas), x
    for now, then in pairwise(sigmas):
        x0 = two_points(wanted, now.expand(2))
        wanted = then / now * wanted - torch.expm1(-(now / then).log()) * x0
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_path_ends_on_the_data(name):
    x = 20 * torch.tensor([[-1.4], [-0.3], [0.2], [1.1]])
    got = samplers.sample(name, two_points, x, edm.karras(30, 0.01, 20.0))
    torch.testing.assert_close(got, x.sign(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_of_the_right_size(name, generator):
    x = 20 * torch.randn(5_000, 1, generator=generator)
    got = samplers.sample(name, gaussian, x, edm.exponential(200, 0.01, 20.0), generator)
    assert got.std().item() == pytest.approx(STD, rel=0.05)
    assert got.mean().abs() < 0.05
    assert (got * x).mean().abs() / (got.std() * x.std()) < 0.1  # the start is forgotten


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_generator_replays_them(name):
    def run(seed):
        start, generator = torch.linspace(-9, 9, 8)[:, None], torch.Generator().manual_seed(seed)
        return samplers.sample(name, gaussian, start, edm.karras(5, 0.1, 9.0), generator)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_without_fresh_noise_they_are_the_deterministic_ones():
    x, sigmas = torch.linspace(-9, 9, 8)[:, None], edm.karras(6, 0.1, 9.0)
    for stochastic, plain in (
        (samplers.euler_ancestral, samplers.euler),
        (samplers.dpmpp_2m_sde, samplers.dpmpp_2m),
    ):
        torch.testing.assert_close(stochastic(two_points, x, sigmas, eta=0.0), plain(two_points, x, sigmas))


def test_calls_and_what_they_are_given():
    counts = {"ddim": 4, "heun": 7, "dpm2": 7, "lms": 4, "dpmpp_2m": 4, "dpmpp_2s": 7, "euler_ancestral": 4}
    for name, count in counts.items():
        seen = []

        def denoise(x, sigma, seen=seen):
            assert sigma.dtype == torch.float32 and sigma.shape == (len(x),)
            seen.append(sigma[0].item())
            return 0 * x

        got = samplers.sample(name, denoise, torch.ones(2, 3, dtype=torch.bfloat16), edm.karras(4, 0.1, 9.0))
        assert len(seen) == count and min(seen) > 0 and got.dtype == torch.bfloat16


def test_errors_name_what_came():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="'dimm'; wanted one of ddim, euler"):
        samplers.sample("dimm", gaussian, x, edm.karras(4, 0.1, 9.0))
    for sigmas in ([1.0], [0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 2.0, 0.0]):
        with pytest.raises(ValueError, match="falling levels"):
            samplers.euler(gaussian, x, torch.tensor(sigmas))
    with pytest.raises(ValueError, match="order is 5"):
        samplers.lms(gaussian, x, edm.karras(4, 0.1, 9.0), order=5)


def test_sampling_runs_from_unit_noise() -> None:
    noise = torch.tensor([[-1.4], [1.1]])
    for levels in ("karras", "exponential", "linear", "vp", "ve", "iddpm"):
        plan = samplers.Sampling(sampler="heun", levels=levels, steps=30, sigma_min=0.02)
        assert len(plan.sigmas()) == 31
        torch.testing.assert_close(plan.run(two_points, noise), noise.sign(), atol=0.05, rtol=0)
    for message, wrong in (
        ("sampler is 'hoin'; wanted one of ddim", {"sampler": "hoin"}),
        ("levels is 'x'; wanted one of karras", {"levels": "x"}),
        ("steps 0", {"steps": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            samplers.Sampling(**wrong)
