"""From noise to samples: samplers as plain functions of the denoiser, what it starts from, and falling noise levels.

``denoise(x, sigma)`` foretells x0 for a batch, ``sigma`` one number a sample. ``x`` starts as noise times the first of
``sigmas``; the last is usually 0, and is never given to the denoiser. In what follows lambda = -ln sigma. Source: what
each says, with the names of k-diffusion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.diffusion.edm import exponential, iddpm, karras, linear, noise_like, ve, vp

Denoise = Callable[[Tensor, Tensor], Tensor]
Deterministic = Literal["ddim", "euler", "heun", "dpm2", "lms", "dpmpp_2m", "dpmpp_2s"]
Stochastic = Literal["euler_ancestral", "dpmpp_2m_sde"]
Levels = Literal["karras", "exponential", "linear", "vp", "ve", "iddpm"]


@torch.no_grad()
def euler(denoise: Denoise, x: Float[Tensor, "b ..."], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "b ..."]:
    """Returns samples by Euler steps of dx/dsigma = (x - x0) / sigma; first order, one call a step."""
    for now, then in _pairs(sigmas):
        x = _toward(x, _at(denoise, x, now), now, then)
    return x


# DDIM, or DPM-Solver of first order, holds x0 and the noise for the length of a step: in sigma that is Euler's step.
ddim = euler


@torch.no_grad()
def euler_ancestral(
    denoise: Denoise,
    x: Float[Tensor, "b ..."],
    sigmas: Float[Tensor, " levels"],
    generator: torch.Generator | None = None,
    eta: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """Returns samples by Euler steps to below the next level, from which fresh noise leads back up; ``eta`` 0 is none.

    Source: ancestral sampling of DDPM (2006.11239), in sigma.
    """
    for now, then in _pairs(sigmas):
        fresh = min(then, eta * then * math.sqrt(max(0.0, 1 - (then / now) ** 2)))
        x = _toward(x, _at(denoise, x, now), now, math.sqrt(then**2 - fresh**2))
        if then > 0:
            x = x + fresh * noise_like(x, generator)
    return x


@torch.no_grad()
def heun(denoise: Denoise, x: Float[Tensor, "b ..."], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "b ..."]:
    """Returns samples by Heun's steps (the mean slope of both ends); second order, two calls a step, one for the last.

    Source: EDM (2206.00364), algorithm 1.
    """
    for now, then in _pairs(sigmas):
        x0 = _at(denoise, x, now)
        moved = _toward(x, x0, now, then)
        if then > 0:
            slopes = (x - x0) / now + (moved - _at(denoise, moved, then)) / then
            moved = x + (then - now) / 2 * slopes
        x = moved
    return x


@torch.no_grad()
def dpm2(denoise: Denoise, x: Float[Tensor, "b ..."], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "b ..."]:
    """Returns samples by steps along the slope halfway in lambda; second order, two calls a step, one for the last."""
    for now, then in _pairs(sigmas):
        x0 = _at(denoise, x, now)
        if then > 0:
            half = math.sqrt(now * then)
            middle = _toward(x, x0, now, half)
            x = x + (then - now) / half * (middle - _at(denoise, middle, half))
        else:
            x = _toward(x, x0, now, then)
    return x


@torch.no_grad()
def lms(
    denoise: Denoise, x: Float[Tensor, "b ..."], sigmas: Float[Tensor, " levels"], order: int = 4
) -> Float[Tensor, "b ..."]:
    """Returns samples by steps along the polynomial through the last ``order`` slopes; one call a step.

    Raises:
        ValueError: ``order`` is not 1 to 4.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order is {order}; wanted 1 to 4")
    slopes: list[Tensor] = []  # the newest first
    seen: list[float] = []
    for now, then in _pairs(sigmas):
        slopes = [(x - _at(denoise, x, now)) / now, *slopes[: order - 1]]
        seen = [now, *seen[: order - 1]]
        for weight, slope in zip(_adams_bashforth(seen, now, then), slopes, strict=True):
            x = x + weight * slope
    return x


def dpmpp_2m(denoise: Denoise, x: Float[Tensor, "b ..."], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "b ..."]:
    """Returns samples by steps toward an x0 carried on from the last two; second order, one call a step.

    Source: DPM-Solver++ (2211.01095), algorithm 2.
    """
    return dpmpp_2m_sde(denoise, x, sigmas, eta=0.0)


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoise,
    x: Float[Tensor, "b ..."],
    sigmas: Float[Tensor, " levels"],
    generator: torch.Generator | None = None,
    eta: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """Returns samples of the stochastic equation: ``dpmpp_2m`` with fresh noise in each step; ``eta`` 0 is none."""
    last: tuple[float, Tensor] | None = None
    for now, then in _pairs(sigmas):
        x0 = _at(denoise, x, now)
        if then == 0:
            return x0
        h = math.log(now / then)
        keep = then / now * math.exp(-eta * h)
        x = keep * x + (1 - keep) * _carried(x0, last, now, then)
        if eta > 0:
            x = x + then * math.sqrt(-math.expm1(-2 * eta * h)) * noise_like(x, generator)
        last = now, x0
    return x


@torch.no_grad()
def dpmpp_2s(denoise: Denoise, x: Float[Tensor, "b ..."], sigmas: Float[Tensor, " levels"]) -> Float[Tensor, "b ..."]:
    """Returns samples by steps toward the x0 of halfway in lambda; second order, two calls a step, one for the last.

    Source: DPM-Solver++ (2211.01095), algorithm 1 with r = 1/2.
    """
    for now, then in _pairs(sigmas):
        x0 = _at(denoise, x, now)
        if then > 0:
            half = math.sqrt(now * then)
            x0 = _at(denoise, _toward(x, x0, now, half), half)
        x = _toward(x, x0, now, then)
    return x


def sample(
    sampler: Deterministic | Stochastic,
    denoise: Denoise,
    x: Float[Tensor, "b ..."],
    sigmas: Float[Tensor, " levels"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b ..."]:
    """Returns samples by the sampler of that name, for configurations; ``generator`` is of the stochastic ones.

    Raises:
        ValueError: no sampler has that name.
    """
    if sampler == "euler_ancestral":
        return euler_ancestral(denoise, x, sigmas, generator)
    if sampler == "dpmpp_2m_sde":
        return dpmpp_2m_sde(denoise, x, sigmas, generator)
    if sampler in _DETERMINISTIC:
        return _DETERMINISTIC[sampler](denoise, x, sigmas)
    raise ValueError(f"sampler is {sampler!r}; wanted one of {', '.join((*_DETERMINISTIC, *get_args(Stochastic)))}")


_DETERMINISTIC: dict[Deterministic, Callable[[Denoise, Tensor, Tensor], Tensor]] = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "lms": lms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2s": dpmpp_2s,
}


_RANGED: dict[Levels, Callable[[int, float, float], Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "linear": linear,
    "ve": ve,
    "iddpm": iddpm,
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How noise becomes a sample, for configurations: a sampler, and the noise levels it steps through.

    "vp" has a range of its own.
    """

    sampler: Deterministic | Stochastic = "ddim"
    levels: Levels = "exponential"
    steps: int = 10
    sigma_min: float = 0.001
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        for field, value, known in (
            ("sampler", self.sampler, (*get_args(Deterministic), *get_args(Stochastic))),
            ("levels", self.levels, get_args(Levels)),
        ):
            if value not in known:
                raise ValueError(f"{field} is {value!r}; wanted one of {', '.join(known)}")
        self.sigmas()

    def sigmas(self) -> Float[Tensor, " levels"]:
        """Returns the noise levels, the last 0."""
        if self.levels == "vp":
            return vp(self.steps)
        return _RANGED[self.levels](self.steps, self.sigma_min, self.sigma_max)

    def run(
        self, denoise: Denoise, noise: Float[Tensor, "b ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b ..."]:
        """Returns samples.

        Args:
            denoise: foretells x0.
            noise: standard normal, to start from.
            generator: of the fresh noise of a stochastic sampler.
        """
        sigmas = self.sigmas()
        return sample(self.sampler, denoise, noise * sigmas[0].item(), sigmas, generator)


def _pairs(sigmas: Float[Tensor, " levels"]) -> list[tuple[float, float]]:
    levels = sigmas.tolist()  # once, for on an accelerator each reading waits
    if len(levels) < 2 or min(levels[:-1]) <= 0 or levels[-1] < 0 or any(np.diff(levels) > 0):
        raise ValueError(
            f"sigmas are {[float(f'{level:.4g}') for level in levels]}; wanted at least two falling levels, of which "
            "only the last may be 0"
        )
    return list(pairwise(levels))


def _at(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision would move the level
    return denoise(x, torch.full((len(x),), sigma, dtype=dtype, device=x.device))


def _toward(x: Tensor, x0: Tensor, now: float, then: float) -> Tensor:
    """Where x gets from level ``now`` to ``then`` if x0 stays."""
    return x0 + then / now * (x - x0)


def _carried(x0: Tensor, last: tuple[float, Tensor] | None, now: float, then: float) -> Tensor:
    """x0 halfway through the step in lambda, on the line through this and the last one."""
    if last is None or then == 0:
        return x0
    share = math.log(now / then) / (2 * math.log(last[0] / now))
    return x0 + share * (x0 - last[1])


def _adams_bashforth(seen: list[float], now: float, then: float) -> list[float]:
    """Integrals from ``now`` to ``then`` of the Lagrange polynomials of ``seen``."""
    nodes, weights = np.polynomial.legendre.leggauss(2)  # exact up to degree 3
    at = (now + then) / 2 + (then - now) / 2 * nodes
    integrals = []
    for j, own in enumerate(seen):
        others = np.array([level for k, level in enumerate(seen) if k != j])
        values = np.prod((at[:, None] - others) / (own - others), axis=1)
        integrals.append(float((then - now) / 2 * weights @ values))
    return integrals
