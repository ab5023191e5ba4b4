"""Mask-and-replace diffusion over tokens: what noise does to them, and what a network is asked to undo.

Several modalities share one sequence and one vocabulary: each position belongs to a group, and only classes of its
group, or the one shared [MASK] (the last id), can stand there. Noise keeps a token, replaces it by any class of its
group, or masks it for good. Masking alone, the published 1e-6 of replacement and a real mixture differ in their
schedule only.

Class axes: ``k`` has the ordinary classes, ``vocab`` has the mask as well (k + 1). A diffusion time is ``step``, from 0
(least noise) to ``steps - 1``.

Source: D3PM (arXiv 2107.03006), VQ-Diffusion (2111.14822), UniD3 (2211.14842), VPDD (2402.14407).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ideomotor.diffusion.schedule import Schedule, Vocabulary

_LOG_ZERO = -70.0  # stands for the logarithm of 0 in distributions, so that differences stay finite
_LOG_FLOOR = math.log(1e-30)  # the same inside one-hot vectors; both numbers are those of the published code


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Float[Tensor, " ..."]:
    """Returns float64 draws from [0, 1) on ``device``, drawn where the generator lives: alike anywhere."""
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


def log_one_hot(ids: Int[Tensor, "b n"], vocab: int) -> Float[Tensor, "b n vocab"]:
    """Returns logarithms of one-hot vectors, with 1e-30 in place of 0."""
    return torch.full((*ids.shape, vocab), _LOG_FLOOR, device=ids.device).scatter_(-1, ids[..., None], 0.0)


@dataclass(frozen=True, eq=False)
class MaskReplace:
    """The noise process over a sequence whose positions belong to groups.

    Args:
        vocabulary: groups of classes.
        schedule: amounts of noise, made for that vocabulary.
        group: of each position.
        published: computes what the published code does: replacements of every group reach every position (rows of the
            transition matrix then sum to 1 + 1e-6); only sampling stays within the groups.
    """

    vocabulary: Vocabulary
    schedule: Schedule
    group: Int[Tensor, " n"]
    published: bool = False

    @cached_property
    def class_groups(self) -> Int[Tensor, " k"]:
        """The group of each ordinary class."""
        return self.vocabulary.class_groups().to(self.group.device)

    @cached_property
    def foreign(self) -> Bool[Tensor, "n k"]:
        """True where a class can never stand at a position."""
        return self.class_groups != self.group[:, None]

    def to(self, device: torch.device | str) -> MaskReplace:
        """Returns the process on ``device``."""
        return MaskReplace(self.vocabulary, self.schedule.to(device), self.group.to(device), self.published)

    def sample(
        self, x0: Int[Tensor, "b n"], step: Int[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "b n"]:
        """Returns a draw of the noised tokens after ``step``."""
        classes, offsets = (
            torch.tensor(v, device=x0.device)[self.group] for v in (self.vocabulary.groups, self.vocabulary.offsets)
        )
        masked = self.schedule.log_gamma_bar[step].exp()[:, None]
        replaced = masked + self.schedule.log_beta_bar[step].exp()[:, self.group] * classes  # b n
        u, which = uniform((2, *x0.shape), generator, x0.device)
        drawn = offsets + (which * classes).long()
        return torch.where(u < replaced, drawn, x0).masked_fill(u < masked, self.vocabulary.mask_id)

    def log_marginal(self, log_x0: Float[Tensor, "b n vocab"], step: Int[Tensor, " b"]) -> Float[Tensor, "b n vocab"]:
        """Returns log q(x_step | x0) for clean tokens with distribution ``log_x0``; step -1 is before any noise."""
        s = self.schedule
        return self._mix(
            log_x0, *(v[step] for v in (s.log_alpha_bar, s.log_beta_bar, s.log_gamma_bar, s.log_one_minus_gamma_bar))
        )

    def log_one_step(self, log_x: Float[Tensor, "b n vocab"], step: Int[Tensor, " b"]) -> Float[Tensor, "b n vocab"]:
        """Returns log q(x_step | x_(step-1)) for tokens with distribution ``log_x`` before the step."""
        s = self.schedule
        return self._mix(log_x, *(v[step] for v in (s.log_alpha, s.log_beta, s.log_gamma, s.log_one_minus_gamma)))

    def log_x0(self, logits: Float[Tensor, "b n k"], xt: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Returns the foretold log-distribution of clean tokens: classes of the position's group only, never a mask.

        Where the schedule only masks, a token that is not masked is clean, whatever the network says.
        """
        log_p = logits.masked_fill(self.foreign, -torch.inf).double().log_softmax(-1).float()
        log_p = F.pad(log_p, (0, 1), value=_LOG_ZERO).clamp(_LOG_ZERO, 0)
        if self.schedule.replaces:
            return log_p
        return torch.where((xt == self.vocabulary.mask_id)[..., None], log_p, log_one_hot(xt, self.vocabulary.size))

    def log_posterior(
        self, log_x0: Float[Tensor, "b n vocab"], xt: Int[Tensor, "b n"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b n vocab"]:
        """Returns log q(x_(step-1) | x_step = xt, x0), averaged over clean tokens with distribution ``log_x0``.

        With a foretold ``log_x0`` this is the network's reverse process. Not normalised where it is clamped at -70.
        """
        masked, hot = (xt == self.vocabulary.mask_id)[..., None], log_one_hot(xt, self.vocabulary.size)
        # The ordinary block is symmetric, so a column of the transition matrix is read as a row.
        log_gamma_bar, log_gamma = (
            v[step].float()[:, None, None] for v in (self.schedule.log_gamma_bar, self.schedule.log_gamma)
        )
        given_x0 = torch.where(masked, log_gamma_bar, self.log_marginal(hot, step)[..., :-1])
        given_previous = torch.where(masked, log_gamma, self.log_one_step(hot, step)[..., :-1])
        given_previous = torch.cat([given_previous, torch.where(masked, 0.0, _LOG_FLOOR)], -1)
        ratio = log_x0[..., :-1] - given_x0
        if not self.published:  # 1e-30 over 1e-30 would count as evidence
            ratio = ratio.masked_fill(self.foreign, _LOG_ZERO)
        ratio = F.pad(ratio, (0, 1), value=_LOG_FLOOR)
        total = ratio.logsumexp(-1, keepdim=True)
        return (self.log_marginal(ratio - total, step - 1) + given_previous + total).clamp(_LOG_ZERO, 0)

    def _mix(self, log_x: Tensor, log_alpha: Tensor, log_beta: Tensor, log_gamma: Tensor, log_keep: Tensor) -> Tensor:
        beta = log_beta[:, None, self.class_groups]  # b 1 k
        if not self.published:
            beta = beta.masked_fill(self.foreign, -torch.inf)
        keep, gamma, alpha = (v.to(log_x)[:, None, None] for v in (log_keep, log_gamma, log_alpha))
        unmasked = torch.log1p(-log_x[..., -1:].exp())  # masks are for good: only the rest is replaced
        ordinary = torch.logaddexp(log_x[..., :-1] + alpha, beta.to(log_x) + unmasked)
        return torch.cat([ordinary, torch.logaddexp(log_x[..., -1:] + keep, gamma)], -1)


class DiffusionLoss(NamedTuple):
    """``total`` is differentiated; the rest are its parts at every position, before weights and probabilities."""

    total: Float[Tensor, ""]
    main: Float[Tensor, "b n"]
    auxiliary: Float[Tensor, "b n"]


def posterior_loss(
    process: MaskReplace,
    logits: Float[Tensor, "b n k"],
    x0: Int[Tensor, "b n"],
    xt: Int[Tensor, "b n"],
    step: Int[Tensor, " b"],
    probability: Float[Tensor, " b"] | None = None,
    auxiliary: float = 5e-4,
    focal: float = 0.0,
) -> DiffusionLoss:
    """Returns the variational bound's loss: KL of true to foretold posterior, or -log p(x0 | x1) at step 0, in nats.

    Added is ``auxiliary`` (2 - step/steps) times the cross-entropy of the foretold clean tokens. The sum is divided by
    positions, batch and ``probability`` (of having drawn the step; 1 by default). ``focal`` weakens the KL (not step 0)
    where the clean token is already foretold with probability p, by (1 - p)^focal.
    """
    hot = log_one_hot(x0, process.vocabulary.size)
    foretold = process.log_x0(logits, xt)
    true, model = process.log_posterior(hot, xt, step), process.log_posterior(foretold, xt, step)
    kl = (true.exp() * (true - model)).sum(-1)  # b n
    if focal > 0:
        kl = kl * (1 - foretold.softmax(-1).gather(-1, x0[..., None])[..., 0]) ** focal
    first = (step == 0)[:, None]
    nll = -model.gather(-1, x0[..., None])[..., 0]
    main = torch.where(first, nll, kl)
    clean = torch.where(first, nll, -foretold.gather(-1, x0[..., None])[..., 0])
    weight = auxiliary * (2 - step / process.schedule.steps)
    per_sample = main.sum(1) + weight * clean.sum(1)
    if probability is not None:
        per_sample = per_sample / probability
    return DiffusionLoss(per_sample.sum() / x0.numel(), main, clean)


class TimeSampler(nn.Module):
    """Draws diffusion times, those with larger losses more often; uniformly until each was drawn more than 10 times.

    Its memory lies in buffers, so that it survives a resume. Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), §3.3.
    """

    history: Tensor
    count: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.register_buffer("history", torch.zeros(steps))
        self.register_buffer("count", torch.zeros(steps))

    def probabilities(self) -> Float[Tensor, " steps"]:
        """Returns the chance of each step to be drawn."""
        if not bool((self.count > 10).all()):
            return torch.full_like(self.history, 1 / len(self.history))
        p = (self.history + 1e-10).sqrt() + 1e-4
        p[0] = p[1]  # the loss of step 0 is of another kind
        return p / p.sum()

    def sample(
        self, batch: int, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """Returns drawn steps, and the probability each was drawn with."""
        p = self.probabilities()
        cumulative = p.double().cumsum(0)
        u = uniform((batch,), generator, p.device) * cumulative[-1]
        step = torch.searchsorted(cumulative, u, right=True).clamp(max=len(p) - 1)
        return step, p[step]

    @torch.no_grad()
    def record(self, step: Int[Tensor, " b"], loss: Float[Tensor, " b"]) -> None:
        """Takes note of the samples' losses at their steps; repeated steps count with their mean square."""
        times = torch.zeros_like(self.count).index_add_(0, step, torch.ones_like(loss))
        squares = torch.zeros_like(self.history).index_add_(0, step, loss.float().square())
        updated = 0.9 * self.history + 0.1 * squares / times.clamp(min=1)
        self.history.copy_(torch.where(times > 0, updated, self.history))
        self.count.add_(times)
