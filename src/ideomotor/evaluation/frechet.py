"""The Frechet distance between two sets of features, each taken for a Gaussian; FVD is this distance on I3D features.

The figure falls with the number of videos even where nothing gets better, most where there are fewer vectors than
numbers in one. So compare it at equal numbers of videos, frames and samples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.evaluation.statistics import Estimate

Divisor = Literal["population", "sample"]
"""What a covariance of n vectors is divided by: n, or n - 1."""


@dataclass(frozen=True)
class Moments:
    """How many vectors, their mean, and the sum of the outer products of what is left without the mean.

    Sums about the mean and not about zero, in float64: large means would swallow small spreads.
    """

    count: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    def __add__(self, other: Moments) -> Moments:
        """Returns the moments of both sets together."""
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), scatter)

    def covariance(self, divisor: Divisor) -> Float[Tensor, "d d"]:
        """Returns the covariance.

        Raises:
            ValueError: a single vector has no sample covariance.
        """
        if divisor == "sample" and self.count < 2:
            raise ValueError(
                f"{self.count} feature vector has no sample covariance; wanted at least 2: take more videos"
            )
        return self.scatter / (self.count - (divisor == "sample"))


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Returns the moments of a set of vectors; add those of further sets.

    Raises:
        ValueError: no vector, or values that are not finite.
    """
    if features.ndim != 2 or len(features) == 0 or not bool(features.isfinite().all()):
        raise ValueError(f"features of shape {tuple(features.shape)}; wanted finite `n d` with at least one vector")
    features = features.to(torch.float64)
    mean = features.mean(0)
    return Moments(len(features), mean, (features - mean).T @ (features - mean))


def frechet_distance(real: Moments, fake: Moments, divisor: Divisor) -> float:
    """Returns the squared Frechet distance between the two Gaussians.

    The trace of the root of the product of covariances is summed from eigenvalues of a symmetric matrix, which stays
    exact where covariances are singular; the roots of a general matrix do not.

    Source: Dowson and Landau 1982; as a measure of pictures Heusel et al. 2017, arXiv 1706.08500, equation 6.
    """
    a, b = real.covariance(divisor), fake.covariance(divisor)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return float((real.mean - fake.mean).square().sum() + a.trace() + b.trace() - 2 * shared)


def frechet_estimate(
    real: Sequence[Moments], fake: Sequence[Moments], divisor: Divisor, *, level: float = 0.95
) -> Estimate:
    """Returns the distance between the sums of the blocks, with the interval of the block jackknife.

    A bootstrap would draw videos twice, which narrows the sets and raises the distance itself; the jackknife leaves out
    one block (of real and of fake alike) at a time. The interval tells how far other videos of the same number would
    move the figure, and nothing about how the figure depends on that number. It is NaN with a single block.

    Args:
        real: moments of the true videos, block by block.
        fake: those of the samples of the same videos, in the same order.
        divisor: of the covariance.
        level: of the interval.

    Raises:
        ValueError: no block, or blocks that do not pair.
    """
    if not real or len(real) != len(fake):
        raise ValueError(f"{len(real)} blocks of true and {len(fake)} of imagined videos; wanted as many, at least 1")
    value = frechet_distance(_sum(real), _sum(fake), divisor)
    blocks = len(real)
    if blocks == 1:
        return Estimate(value, float("nan"), float("nan"))
    left = torch.tensor(
        [
            frechet_distance(_sum([*real[:i], *real[i + 1 :]]), _sum([*fake[:i], *fake[i + 1 :]]), divisor)
            for i in range(blocks)
        ],
        dtype=torch.float64,
    )
    deviation = float((left.var(correction=0) * (blocks - 1)).sqrt())
    spread = NormalDist().inv_cdf(0.5 + level / 2) * deviation
    return Estimate(value, max(0.0, value - spread), value + spread)


def _sum(blocks: Sequence[Moments]) -> Moments:
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total
