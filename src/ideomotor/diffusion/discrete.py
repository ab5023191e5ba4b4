"""Mask-and-replace diffusion over tokens: what noise does to them, and what a network is asked to undo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " ..."]:
    """Returns float64 draws from [0, 1) on ``device``, but made by the generator's device: the same numbers anywhere."""
    source = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=source, dtype=torch.float64).to(device)


def cosine_ratio(u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Returns the share of tokens to mask for times ``u`` in [0, 1]: cos(pi/2 u), so mostly much."""
    return torch.cos(u * (math.pi / 2))


def mask_tokens(
    x0: Int[Tensor, "b n"],
    mask_id: int,
    ratio: Float[Tensor, " b"],
    generator: torch.Generator | None = None,
    *,
    exact: bool = True,
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Returns the tokens with some masked, and which; at least one a sample.

    Args:
        x0: clean tokens.
        mask_id: what stands for a mask.
        ratio: share of each sample to mask, 0..1.
        generator: of the draws.
        exact: masks the nearest whole number of tokens; otherwise each token on its own with that probability.
    """
    u = uniform(x0.shape, generator, x0.device)
    rank = u.argsort(dim=1).argsort(dim=1)
    if exact:
        masked = rank < (ratio * x0.shape[1]).round().clamp(min=1)[:, None]
    else:
        masked = (u < ratio[:, None]) | (rank == 0)
    return x0.masked_fill(masked, mask_id), masked


def masked_cross_entropy(
    logits: Float[Tensor, "b n k"],
    x0: Int[Tensor, "b n"],
    masked: Bool[Tensor, "b n"],
    weight: Float[Tensor, " b"] | None = None,
    label_smoothing: float = 0.0,
    *,
    largest_weight: float = 10.0,
) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy of the clean tokens over masked positions, in nats, computed in float32.

    With ``weight`` it is the weighted mean; one over the masked share makes it the bound of masked diffusion
    (MD4, arXiv 2406.04329), whose weights are extreme where little is masked: they are clipped at ``largest_weight``.
    Without any masked position it is 0.
    """
    target = torch.where(masked, x0, -100)  # b n
    # Under autocast cross_entropy already runs in float32; outside, half-precision logits would stay so.
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        target.flatten(),
        reduction="none",
        ignore_index=-100,
        label_smoothing=label_smoothing,
    ).view_as(target)
    if weight is None:
        return losses.sum() / masked.sum().clamp(min=1)
    weights = weight.float().clamp(max=largest_weight)[:, None] * masked  # b n
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
