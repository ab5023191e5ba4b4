"""What a tokenizer's tokens are worth beside the pictures they give back: how many codes are used, what they tell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ideomotor.layers.quantize import perplexity

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the ridge that ``probe_r2`` chooses from, as shares of the samples' mean squared length."""


class CodeUse(NamedTuple):
    """How a set of tokens is spread over the vocabulary.

    Attributes:
        share: of the codes that occur at all, 0..1.
        perplexity: how many codes, equally used, would carry as much (1 to the size of the vocabulary).
    """

    share: float
    perplexity: float


def code_use(ids: Int[Tensor, " *shape"], vocab: int) -> CodeUse:
    """Returns how many of the codes are used; few tokens can use few codes, so compare sets of one size.

    Raises:
        ValueError: no token was given, or one lies outside ``0..vocab - 1``.
    """
    if ids.numel() == 0 or int(ids.min()) < 0 or int(ids.max()) >= vocab:
        raise ValueError(
            f"{ids.numel()} tokens for a vocabulary of {vocab}; wanted at least one, all in 0..{vocab - 1}"
        )
    return CodeUse(len(ids.unique()) / vocab, float(perplexity(ids, vocab)))


def probe_r2(
    train: Float[Tensor, "n d"],
    train_targets: Float[Tensor, "n action"],
    test: Float[Tensor, "m d"],
    test_targets: Float[Tensor, "m action"],
) -> float:
    """Returns how well a linear map foretells held-out targets: R^2, mean over their numbers (1 is perfect).

    With a clip's features and the actions taken in it, it is an **inverse-dynamics probe**: what of the actions can be
    read from the features. The map is ridge regression on centred data, in closed form by inner products of samples, so
    that ``d`` may be far larger than ``n``. The ridge's strength is the one of ``PENALTIES`` that does best on the last
    fifth of the training samples after learning from the first four; keep samples of one episode together.

    R^2 is measured against foretelling the training set's mean: 0 is no better, below 0 is worse. It is NaN where a
    target does not vary in the test set.

    Raises:
        ValueError: fewer than ten training samples, or shapes that do not fit.
    """
    if len(train) < 10 or len(train) != len(train_targets) or len(test) != len(test_targets):
        raise ValueError(
            f"{len(train)} training samples with {len(train_targets)} targets, {len(test)} held-out ones with "
            f"{len(test_targets)}; wanted a target each, and at least 10 samples to learn from"
        )
    cut = len(train) - len(train) // 5
    scores = [_r2(train[:cut], train_targets[:cut], train[cut:], train_targets[cut:], each) for each in PENALTIES]
    best = PENALTIES[int(torch.tensor(scores).nan_to_num(-torch.inf).argmax())]
    return _r2(train, train_targets, test, test_targets, best)


def ridge(
    train: Float[Tensor, "n d"], targets: Float[Tensor, "n action"], test: Float[Tensor, "m d"], penalty: float
) -> Float[Tensor, "m action"]:
    """Returns what ridge regression foretells for ``test``; the intercept is not penalised.

    Args:
        train: features to learn from.
        targets: what belongs to them.
        test: features whose targets are foretold.
        penalty: as a share of the centred training samples' mean squared length.
    """
    middle, mean = train.double().mean(0), targets.double().mean(0)
    known, asked = train.double() - middle, test.double() - middle
    products = known @ known.T  # n n
    strength = penalty * products.diagonal().mean() + 1e-12  # features that are all alike must not divide by zero
    weights = torch.linalg.solve(products + strength * torch.eye(len(known)).to(products), targets.double() - mean)
    return (asked @ known.T @ weights + mean).to(targets.dtype)


def _r2(
    train: Float[Tensor, "n d"],
    targets: Float[Tensor, "n action"],
    test: Float[Tensor, "m d"],
    wanted: Float[Tensor, "m action"],
    penalty: float,
) -> float:
    left = (ridge(train, targets, test, penalty) - wanted).double().square().sum(0)
    spread = (wanted - targets.mean(0)).double().square().sum(0)
    varies = wanted.double().var(0, correction=0) > 0
    return float(torch.where(varies, 1 - left / spread, torch.nan).mean())
