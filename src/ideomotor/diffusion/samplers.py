"""From masks to tokens: samplers as plain functions of the network that foretells the clean tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ideomotor.diffusion.discrete import MaskReplace, uniform

Order = Literal["confidence", "halton", "random"]


@torch.no_grad()
def ancestral(
    logits: Callable[[Int[Tensor, "b n"], Int[Tensor, " b"]], Float[Tensor, "b n k"]],
    x: Int[Tensor, "b n"],
    process: MaskReplace,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    pick: Callable[[Float[Tensor, "b n vocab"]], Int[Tensor, "b n"]] | None = None,
    barred: Bool[Tensor, "n k"] | None = None,
) -> Int[Tensor, "b n"]:
    """Returns ``x`` with its masks denoised by the whole reverse chain, one network call for each step of the schedule.

    Args:
        logits: the network, of noised tokens and the step.
        x: tokens; positions other than the mask are given and never change.
        process: the noise to undo.
        top_p: keeps only the likeliest foretold clean classes that together reach this probability (published: 0.88).
        generator: of the draws.
        pick: draws ids from unnormalised log-probabilities, in place of exact float64 draws.
        barred: classes that never stand at a position, beside those of other groups.
    """
    masked = x == process.vocabulary.mask_id
    never = process.foreign if barred is None else process.foreign | barred
    unreachable = F.pad(never, (0, 1))  # the mask itself can stay
    for step in reversed(range(process.schedule.steps)):
        steps = torch.full((len(x),), step, device=x.device)
        log_x0 = truncate(process.log_x0(logits(x, steps).masked_fill(never, -torch.inf), x), top_p)
        log_p = process.log_posterior(log_x0, x, steps).masked_fill(unreachable, -torch.inf)
        drawn = (
            draw(log_p.double().exp().flatten(0, 1), generator=generator).view_as(x) if pick is None else pick(log_p)
        )
        x = torch.where(masked, drawn, x)
    return x


def truncate(log_p: Float[Tensor, "b n vocab"], top_p: float) -> Float[Tensor, "b n vocab"]:
    """Returns log-probabilities with classes beyond the likeliest, which reach ``top_p``, at -70; not renormalised."""
    if top_p >= 1:
        return log_p
    ranked, classes = log_p.sort(dim=-1, descending=True)
    before = ranked.exp().cumsum(-1)[..., :-1]
    kept = F.pad(before < top_p, (1, 0), value=True)  # the first class always stays
    return log_p.masked_fill(~torch.zeros_like(kept).scatter(-1, classes, kept), -70.0)


def guide(
    conditional: Float[Tensor, "b n vocab"], unconditional: Float[Tensor, "b n vocab"], scale: float
) -> Float[Tensor, "b n vocab"]:
    """Returns foretold log-probabilities pushed from the unconditional ones by ``scale``; the mask stays impossible."""
    free = unconditional[..., :-1]
    pushed = (free + scale * (conditional[..., :-1] - free)).log_softmax(-1).clamp(-70.0, 0)
    return F.pad(pushed, (0, 1), value=-70.0)


@torch.no_grad()
def parallel_decode(
    logits: Callable[[Int[Tensor, "b n"]], Float[Tensor, "b n k"]],
    x: Int[Tensor, "b n"],
    mask_id: int,
    steps: int,
    order: Order = "confidence",
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    grid: tuple[int, ...] | None = None,
    remask: float = 0.0,
) -> Int[Tensor, "b n"]:
    """Returns ``x`` with every mask replaced by a token, several tokens a network call.

    After call ``i`` of ``steps`` a share cos(pi/2 i/steps) of a sample's masks is left, but at least one token is set
    in each call; so there are ``min(steps, most masks in a sample)`` calls, and with as many steps as masks tokens
    come one by one.

    Args:
        logits: the network; ``k`` counts the classes without the mask.
        x: tokens; positions other than ``mask_id`` are given and never change.
        mask_id: id of the mask, at least ``k`` (usually ``k``).
        steps: network calls at most; 1 is a single pass.
        order: which masks go first: those the network is surest of, those that lie far from one another
            (low-discrepancy points on ``grid``), or any.
        temperature: 0 takes the likeliest class; otherwise classes are drawn from softmax(logits / temperature).
        top_p: draws only from the likeliest classes that together reach this probability.
        generator: of all draws.
        grid: axes of the positions for ``halton``, row-major; one axis by default.
        remask: share of the tokens set so far that each call (but the last) masks again, so that they are chosen anew
            with more context; as many others are set in their stead, and the number of masks follows the same course.

    Source: MaskGIT (arXiv 2202.04200), Halton order (2503.17076), remasking after ReMDM (2503.00307). Draws are made
    in float64, since float32 Gumbel noise lowers the temperature unnoticed (2409.02908).
    """
    _check_decoding(order, steps, temperature, top_p, remask)
    device = x.device
    given = x != mask_id
    total = (~given).sum(1)  # b
    left, rounds = total, min(steps, int(total.max())) if x.numel() else 0
    precedence = (
        torch.zeros_like(x[0]) if order != "halton" else -halton_ranks(grid or x.shape[1:], x.shape[1]).to(device)
    )
    for step in range(1, rounds + 1):
        scores = logits(x)  # b n k
        if scores.shape[-1] > mask_id:
            raise ValueError(
                f"the network returned {scores.shape[-1]} classes, but mask_id is {mask_id}: leave the mask's class out"
            )
        masked = x == mask_id
        keep = _masks_left(total, left, step, steps)
        again = (remask * (total - left)).long().minimum(keep)
        count = left - keep + again
        if step == rounds:
            chosen = masked
        elif order == "halton":
            chosen = _highest(precedence.double().expand(x.shape), masked, count)
        elif order == "random":
            chosen = _highest(uniform(x.shape, generator, device), masked, count)
        else:  # only this order must know the tokens first
            tokens = _choose(scores, masked, temperature, top_p, generator)
            chosen = _highest(_log_likelihood(scores, tokens), masked, count)
        if step == rounds or order != "confidence":
            tokens = _choose(scores, chosen, temperature, top_p, generator)
        if remask > 0:
            back = _highest(uniform(x.shape, generator, device), ~masked & ~given, again)
            x = x.masked_fill(back, mask_id)
        x, left = torch.where(chosen, tokens, x), keep
    return x.clone() if rounds == 0 else x


@torch.no_grad()
def decoding_nll(
    logits: Callable[[Int[Tensor, "b n"]], Float[Tensor, "b n k"]],
    x0: Int[Tensor, "b n"],
    mask_id: int,
    steps: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """Returns the nats a token, averaged over each sample, that parallel decoding in ``steps`` calls spends on ``x0``.

    It is the exact negative log-likelihood of the sampler with random order and temperature 1: the tokens of a call are
    foretold independently, given all earlier ones. As many steps as tokens give the network's own chain rule.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; wanted at least 1")
    rank = uniform(x0.shape, generator, x0.device).argsort(dim=1).argsort(dim=1)
    total = torch.full((len(x0),), x0.shape[1], device=x0.device)
    left, spent = total, torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for step in range(1, min(steps, x0.shape[1]) + 1):
        told = logits(x0.masked_fill(rank >= (total - left)[:, None], mask_id)).double().log_softmax(-1)
        keep = _masks_left(total, left, step, steps)
        now = (rank >= (total - left)[:, None]) & (rank < (total - keep)[:, None])
        spent -= (told.gather(2, x0[..., None])[..., 0] * now).sum(1)
        left = keep
    return spent / total


def draw(
    probabilities: Float[Tensor, "m k"], top_p: float = 1.0, generator: torch.Generator | None = None
) -> Int[Tensor, " m"]:
    """Returns one class a row, drawn by inverting the cumulative sum in float64; rows need not be normalised."""
    p = probabilities.double()
    if top_p < 1:
        p, classes = p.sort(dim=-1, descending=True)
    cumulative = p.cumsum(-1)
    if top_p < 1:
        kept = (cumulative - p < top_p * cumulative[:, -1:]).sum(-1, keepdim=True)  # at least 1
        reach = cumulative.gather(1, kept - 1)
    else:
        kept, reach = torch.full_like(cumulative[:, :1], p.shape[-1], dtype=torch.long), cumulative[:, -1:]
    u = uniform((len(p), 1), generator, p.device) * reach
    pick = torch.searchsorted(cumulative, u, right=True).minimum(
        kept - 1
    )  # right: classes of probability 0 are passed over
    return (classes.gather(1, pick) if top_p < 1 else pick)[:, 0]


@lru_cache(maxsize=64)
def halton_ranks(grid: tuple[int, ...], n: int) -> Int[Tensor, " n"]:
    """Returns when each cell of a grid (row-major) is first hit by the Halton sequence: 0 for the first cell.

    Raises:
        ValueError: the grid has not ``n`` cells, or more than 4 axes.
    """
    bases = (2, 3, 5, 7)[: len(grid)]
    if math.prod(grid) != n or len(grid) > 4 or n < 1:
        raise ValueError(
            f"grid {grid} has {math.prod(grid)} cells for {n} positions; give 1 to 4 axes whose product is {n}"
        )
    # A cell twice as wide as a box of base**-digits holds a whole such box, and each box is hit once a period.
    digits = [math.ceil(math.log(2 * side, base)) for side, base in zip(grid, bases, strict=True)]
    points = torch.arange(math.prod(base**count for base, count in zip(bases, digits, strict=True)))
    cell = torch.zeros_like(points)
    for side, base, count in zip(grid, bases, digits, strict=True):
        mirrored = sum((points // base**place % base) * base ** (count - 1 - place) for place in range(count))
        cell = cell * side + mirrored * side // base**count
    first = torch.full((n,), len(points)).scatter_reduce(0, cell, points, "amin")
    return first.argsort().argsort()


def _masks_left(total: Int[Tensor, " b"], left: Int[Tensor, " b"], step: int, steps: int) -> Int[Tensor, " b"]:
    course = (total * math.cos(math.pi / 2 * step / steps)).long() if step < steps else torch.zeros_like(total)
    return (
        course.clamp(min=steps - step).minimum(left - 1).clamp(min=0)
    )  # each call sets one, each later call finds one


def _highest(score: Float[Tensor, "b n"], among: Bool[Tensor, "b n"], count: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    ranked = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(score.shape[1], device=score.device) < count[:, None]
    return torch.zeros_like(among).scatter(1, ranked, taken)


def _choose(
    scores: Float[Tensor, "b n k"],
    where: Bool[Tensor, "b n"],
    temperature: float,
    top_p: float,
    generator: torch.Generator | None,
) -> Int[Tensor, "b n"]:
    """Returns a token for each of the positions asked for; elsewhere what is returned means nothing."""
    if temperature == 0:
        return scores.argmax(-1)
    tokens = torch.zeros(where.shape, dtype=torch.long, device=scores.device)
    tokens[where] = draw((scores[where].double() / temperature).softmax(-1), top_p, generator)
    return tokens


def _log_likelihood(scores: Float[Tensor, "b n k"], tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    scores = scores.float()
    return scores.gather(2, tokens[..., None])[..., 0] - scores.logsumexp(-1)


def _check_decoding(order: str, steps: int, temperature: float, top_p: float, remask: float) -> None:
    if order not in get_args(Order):
        raise ValueError(f"order {order!r}; wanted one of {', '.join(get_args(Order))}")
    if steps < 1 or temperature < 0 or not 0 < top_p <= 1 or not 0 <= remask <= 1:
        raise ValueError(
            f"steps {steps}, temperature {temperature}, top_p {top_p}, remask {remask}; "
            "wanted steps >= 1, temperature >= 0, 0 < top_p <= 1, 0 <= remask <= 1"
        )
