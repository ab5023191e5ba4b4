"""Moving-pixel error step by step, of each clip by itself, so that figures pooled over clips have intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.evaluation.statistics import Estimate, ratio_of_sums
from ideomotor.evaluation.video_metrics import moving_error


class MovingErrors(NamedTuple):
    """Squared errors summed over the moving pixels of each step of each clip, and the number of values.

    See ``video_metrics.moving_error``. Which pixels move is told by the truth, so all imaginations of the same clips
    have the same ``pixels``.
    """

    total: Float[Tensor, "b t"]
    pixels: Float[Tensor, "b t"]

    @classmethod
    def of(
        cls,
        truth: UInt8[Tensor, "b t c h w"],
        imagined: UInt8[Tensor, "b t c h w"],
        last: UInt8[Tensor, "b 1 c h w"],
    ) -> MovingErrors:
        """Returns the errors of one imagination of each clip; ``last`` is the last frame seen."""
        errors = [
            [
                moving_error(truth[b : b + 1, t : t + 1], imagined[b : b + 1, t : t + 1], last[b : b + 1])
                for t in range(truth.shape[1])
            ]
            for b in range(len(truth))
        ]
        total = torch.tensor([[step.total for step in row] for row in errors], dtype=torch.float64)
        return cls(total, torch.tensor([[step.count for step in row] for row in errors], dtype=torch.float64))

    @classmethod
    def mean(cls, futures: Sequence[MovingErrors]) -> MovingErrors:
        """Returns the mean of several futures of the same clips: what one future gets."""
        return cls(torch.stack([future.total for future in futures]).mean(0), futures[0].pixels)

    @classmethod
    def best(cls, futures: Sequence[MovingErrors]) -> MovingErrors:
        """Returns each clip's future of the least error over all steps, the same one at every step."""
        totals = torch.stack([future.total for future in futures])  # futures b t
        chosen = totals.sum(2).argmin(0)
        return cls(totals[chosen, torch.arange(len(chosen))], futures[0].pixels)

    @classmethod
    def join(cls, parts: Sequence[MovingErrors]) -> MovingErrors:
        """Returns the errors of all clips."""
        return cls(torch.cat([part.total for part in parts]), torch.cat([part.pixels for part in parts]))

    def psnr(self, episodes: Sequence[Hashable]) -> list[Estimate]:
        """Returns the pooled PSNR of each step in dB, with intervals over ``episodes`` (one a clip).

        Raises:
            ValueError: nothing moves at a step, in any clip.
        """
        self._check()
        steps = zip(self.total.T.tolist(), self.pixels.T.tolist(), strict=True)
        errors = [ratio_of_sums(total, count, episodes) for total, count in steps]
        # Less error is more PSNR, so the ends change places.
        return [Estimate(_psnr(error.value), _psnr(error.high), _psnr(error.low)) for error in errors]

    def gain_over(self, other: MovingErrors, episodes: Sequence[Hashable]) -> list[Estimate]:
        """Returns by how many dB each step is nearer than another imagination of the same clips, which are paired.

        Raises:
            ValueError: other clips, or nothing moves at a step.
        """
        self._check()
        if not torch.equal(self.pixels, other.pixels):
            raise ValueError("the two imaginations are of other clips or frames, so they do not pair")
        steps = zip(self.total.T.tolist(), other.total.T.tolist(), strict=True)
        ratios = [ratio_of_sums(ours, theirs, episodes) for ours, theirs in steps]
        return [Estimate(_gain(ratio.value), _gain(ratio.high), _gain(ratio.low)) for ratio in ratios]

    def _check(self) -> None:
        still = [number for number, count in enumerate(self.pixels.sum(0).tolist(), 1) if not count]
        if still:
            raise ValueError(
                f"nothing moves at step {', '.join(map(str, still))} of any of {len(self.pixels)} clips, so nothing "
                "tells how near an imagination is: take more clips, or frames further apart"
            )


def _psnr(error: float) -> float:
    return 10 * math.log10(255**2 / error) if error > 0 else math.nan if math.isnan(error) else math.inf


def _gain(ratio: float) -> float:
    return -10 * math.log10(ratio) if ratio > 0 else math.nan if math.isnan(ratio) else math.inf
