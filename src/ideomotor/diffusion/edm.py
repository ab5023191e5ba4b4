"""Diffusion over sigma: how a denoiser is scaled, which noise levels are trained and which are stepped through.

A sample is ``x0 + sigma * noise``. The network F sees ``c_in * x`` and ``c_noise``; the denoiser is
``c_skip * x + c_out * F``. Source: EDM (2206.00364), table 1; names of the schedules as in k-diffusion.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Sigmas = Float[Tensor, " levels"]


class Scaling(NamedTuple):
    """EDM's factors at given noise levels; ``weight`` makes a loss on x0 the plain squared error of F."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor

    def over(self, x: Float[Tensor, "b ..."]) -> "Scaling":
        """Returns the factors, one a sample, with axes of length 1 for all others of ``x``."""
        return Scaling(*(rearrange(factor, f"b -> b {'1 ' * (x.ndim - 1)}") for factor in self))


def scaling(sigma: Float[Tensor, " b"], sigma_data: float) -> Scaling:
    """Returns the factors for data of standard deviation ``sigma_data``; ``sigma`` must be above 0.

    A network that foretells v, as Stable Video Diffusion's (``sigma_data`` 1), is -F.
    """
    total = sigma**2 + sigma_data**2
    c_out = sigma * sigma_data / total.sqrt()
    return Scaling(sigma_data**2 / total, c_out, total.rsqrt(), sigma.log() / 4, c_out**-2)


def denoised(
    network: Callable[[Tensor, Tensor], Tensor], x: Float[Tensor, "b ..."], sigma: Float[Tensor, " b"], data: float
) -> Float[Tensor, "b ..."]:
    """Returns the x0 that ``network``, a function of ``c_in * x`` and ``c_noise``, foretells for ``x``.

    Args:
        network: F.
        x: noised samples.
        sigma: their noise levels.
        data: standard deviation of the data.
    """
    factors = scaling(sigma, data)
    wide = factors.over(x)
    return wide.c_skip * x + wide.c_out * network(wide.c_in * x, factors.c_noise)


def target(
    x0: Float[Tensor, "b ..."], x: Float[Tensor, "b ..."], sigma: Float[Tensor, " b"], data: float
) -> Float[Tensor, "b ..."]:
    """Returns what F should have foretold for ``x`` to be denoised to ``x0``; it has unit variance."""
    wide = scaling(sigma, data).over(x)
    return (x0 - wide.c_skip * x) / wide.c_out


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Sigmas:
    """Returns ``steps`` falling noise levels, evenly spaced after a power of 1 / rho, then 0."""
    _check(steps, sigma_min, sigma_max)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _closed(torch.linspace(*ends, steps, dtype=torch.float64) ** rho)


def exponential(steps: int, sigma_min: float, sigma_max: float) -> Sigmas:
    """Returns ``steps`` falling noise levels of constant ratio, then 0."""
    _check(steps, sigma_min, sigma_max)
    return _closed(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64).exp())


def linear(steps: int, sigma_min: float, sigma_max: float) -> Sigmas:
    """Returns ``steps`` falling noise levels of constant difference, then 0."""
    _check(steps, sigma_min, sigma_max)
    return _closed(torch.linspace(sigma_max, sigma_min, steps, dtype=torch.float64))


def vp(steps: int, beta_slope: float = 19.9, beta_min: float = 0.1, end: float = 1e-3) -> Sigmas:
    """Returns the noise levels of the variance-preserving process at evenly spaced times from 1 to ``end``, then 0."""
    _check(steps, end, 1.0)
    time = torch.linspace(1, end, steps, dtype=torch.float64)
    return _closed((beta_slope * time**2 / 2 + beta_min * time).expm1().sqrt())


def ve(steps: int, sigma_min: float, sigma_max: float) -> Sigmas:
    """Returns the published schedule of the variance-exploding process, then 0.

    Its levels have a constant ratio as ``exponential``'s have, but the steps are longer by (steps + 1) / (steps - 1),
    so that the last level lies below ``sigma_min``: the published code spreads ``steps`` times over steps + 1.
    """
    _check(steps, sigma_min, sigma_max)
    if steps == 1:
        return _closed(torch.tensor([sigma_max], dtype=torch.float64))
    share = torch.linspace(0, (steps + 1) / (steps - 1), steps, dtype=torch.float64)
    return _closed(sigma_max * (sigma_min / sigma_max) ** share)


def cosine_beta(steps: int, offset: float = 0.008) -> Sigmas:
    """Returns the betas of the cosine schedule in falling order, at most 0.999, then 0.

    The published code takes these as noise levels, although they are none (a sampler that starts from 0.999 was given
    noise of that level); kept for comparisons only.
    """
    _check(steps, 1.0, 1.0)
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = ((time + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    return _closed((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999).flip(0))


def iddpm(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    levels: int = 1000,
    ratio_min: float = 0.001,
    offset: float = 0.008,
) -> Sigmas:
    """Returns levels of the improved DDPM's cosine process that lie in the range, evenly picked by number, then 0."""
    _check(steps, sigma_min, sigma_max)
    time = torch.arange(levels + 1, dtype=torch.float64) / levels
    alpha_bar = (math.pi / 2 * time / (offset + 1)).sin() ** 2
    ratio = (alpha_bar[:-1] / alpha_bar[1:]).clamp(min=ratio_min)
    # sigma_j^2 + 1 is the product of 1 / ratio over all later levels; that of the last level itself is 1.
    grown = (-ratio.log()).flip(0).cumsum(0).flip(0)
    sigma = torch.cat([grown.expm1().sqrt(), torch.zeros(1, dtype=torch.float64)])
    within = sigma[(sigma >= sigma_min) & (sigma <= sigma_max)]
    if not len(within):
        raise ValueError(f"none of {levels} levels lies in {sigma_min}..{sigma_max}: widen the range or raise levels")
    picked = (torch.arange(steps, dtype=torch.float64) * ((len(within) - 1) / max(1, steps - 1))).round().long()
    return _closed(within[picked])


def log_logistic(
    u: Float[Tensor, "*b"],
    location: float = math.log(0.5),
    scale: float = 0.5,
    sigma_min: float = 0.001,
    sigma_max: float = 80.0,
) -> Float[Tensor, "*b"]:
    """Returns sigma, log-logistic within the range, at those shares ``u`` in [0, 1] of its probability."""
    low, high = (
        1 / (1 + math.exp((location - math.log(end)) / scale)) if 0 < end < math.inf else float(end > 0)
        for end in (sigma_min, sigma_max)
    )
    share = low + u.double() * (high - low)
    return (share.logit() * scale + location).exp().float()


def log_uniform(u: Float[Tensor, "*b"], sigma_min: float = 0.001, sigma_max: float = 80.0) -> Float[Tensor, "*b"]:
    """Returns sigma whose logarithm is uniform in the range."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return (low + u.double() * (high - low)).exp().float()


def uniform(u: Float[Tensor, "*b"], sigma_min: float = 0.001, sigma_max: float = 80.0) -> Float[Tensor, "*b"]:
    """Returns sigma, uniform in the range."""
    return (sigma_min + u.double() * (sigma_max - sigma_min)).float()


def v_diffusion(
    u: Float[Tensor, "*b"], sigma_data: float = 0.5, sigma_min: float = 0.001, sigma_max: float = 80.0
) -> Float[Tensor, "*b"]:
    """Returns sigma whose angle arctan(sigma / sigma_data) is uniform in the range."""
    low, high = math.atan(sigma_min / sigma_data), math.atan(sigma_max / sigma_data)
    return (sigma_data * (low + u.double() * (high - low)).tan()).float()


def log_normal(normal: Float[Tensor, "*b"], mean: float, std: float) -> Float[Tensor, "*b"]:
    """Returns sigma = exp(mean + std * normal)."""
    return (mean + std * normal).exp()


def noise_like(x: Float[Tensor, "..."], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Returns standard normal noise of the shape, type and place of ``x``, drawn where the generator lives."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def _closed(sigmas: Sigmas) -> Sigmas:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def _check(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(
            f"steps {steps}, sigma_min {sigma_min}, sigma_max {sigma_max}; wanted steps >= 1 and 0 < sigma_min <= "
            "sigma_max"
        )
