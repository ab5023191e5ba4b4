"""Planning: which actions score best, by sampling (CEM, MPPI); and how a learned world scores them.

A planner is a plain function of a score; it knows neither worlds nor robots. Receding horizon: carry out the first
actions of a plan, look again, and begin the next plan at what is left of the last one (``shifted``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.types import WorldModel

Score = Callable[[Float[Tensor, "b n horizon a"]], Float[Tensor, "b n"]]
"""How good sequences of actions are; more is better."""


class Plan(NamedTuple):
    """Actions, the deviation that is left of them, and their score."""

    actions: Float[Tensor, "b horizon a"]
    deviation: Float[Tensor, "b horizon a"]
    score: Float[Tensor, " b"]


def cem(
    score: Score,
    start: Plan,
    low: Float[Tensor, " a"],
    high: Float[Tensor, " a"],
    *,
    samples: int = 64,
    elites: int = 8,
    rounds: int = 3,
    generator: torch.Generator | None = None,
) -> Plan:
    """Returns the best plan seen by the cross-entropy method: a round draws around the mean of the last one's elites.

    Args:
        score: of sequences of actions.
        start: mean and deviation of the first round; see ``undecided``.
        low: bound of each dimension of an action, like ``high``.
        high: the other bound.
        samples: sequences a round; the mean is one of them.
        elites: of them, the best ones that the next round is drawn around.
        rounds: of drawing.
        generator: of the draws.

    Raises:
        ValueError: no samples or rounds, or more elites than samples.
    """
    if not 1 < elites <= samples or rounds < 1:
        raise ValueError(
            f"samples {samples}, elites {elites}, rounds {rounds}: wanted 2 elites or more, at least as many samples, "
            "and a round"
        )
    mean, deviation, best = start.actions, start.deviation, start
    for _ in range(rounds):
        tried = _around(mean, deviation, samples, low, high, generator)  # b n horizon a
        scores = _scored(score, tried)
        top, places = scores.topk(elites, 1)
        chosen = tried.gather(1, places[..., None, None].expand(-1, -1, *tried.shape[2:]))
        mean, deviation = chosen.mean(1), chosen.std(1)
        better = top[:, 0] > best.score
        best = Plan(
            torch.where(better[:, None, None], chosen[:, 0], best.actions),
            deviation,
            torch.where(better, top[:, 0], best.score),
        )
    return best


def mppi(
    score: Score,
    start: Plan,
    low: Float[Tensor, " a"],
    high: Float[Tensor, " a"],
    *,
    samples: int = 64,
    temperature: float = 1.0,
    rounds: int = 1,
    generator: torch.Generator | None = None,
) -> Plan:
    """Returns the mean of sampled plans, each weighted by exp(score / temperature).

    Scores are measured in their own deviations over the samples, so that ``temperature`` means the same for every
    score. Source: model predictive path integral control (Williams et al., 1707.02342).

    Args:
        score: of sequences of actions.
        start: mean and deviation of the draws; the deviation stays as it is.
        low: bound of each dimension of an action, like ``high``.
        high: the other bound.
        samples: sequences a round; the mean is one of them.
        temperature: near 0 takes the best sample; much of it the mean of all.
        rounds: of drawing, each around the mean of the last one.
        generator: of the draws.

    Raises:
        ValueError: no samples or rounds, or a temperature that is not above 0.
    """
    if samples < 2 or rounds < 1 or not temperature > 0:
        raise ValueError(
            f"samples {samples}, rounds {rounds}, temperature {temperature}: wanted 2 samples or more, a round, and a "
            "temperature above 0"
        )
    mean = start.actions
    for _ in range(rounds):
        tried = _around(mean, start.deviation, samples, low, high, generator)
        scores = _scored(score, tried)
        spread = scores.std(1, keepdim=True).clamp(min=1e-8)
        weights = ((scores - scores.amax(1, keepdim=True)) / (temperature * spread)).softmax(1)
        mean = torch.einsum("bn,bnta->bta", weights, tried)
    return Plan(mean, start.deviation, _scored(score, mean[:, None])[:, 0])


def undecided(batch: int, horizon: int, low: Float[Tensor, " a"], high: Float[Tensor, " a"]) -> Plan:
    """Returns a plan that knows nothing: the middle of the bounds, half of their width as deviation.

    Raises:
        ValueError: no horizon, or bounds without room between them.
    """
    if horizon < 1 or low.shape != high.shape or not bool((low < high).all()):
        raise ValueError(
            f"horizon {horizon} with bounds {low.tolist()} to {high.tolist()}: wanted at least one step, and room "
            "between the bounds of every dimension"
        )
    shape = (batch, horizon, len(low))
    return Plan(((low + high) / 2).expand(shape), ((high - low) / 2).expand(shape), torch.full((batch,), -torch.inf))


def shifted(plan: Plan, by: int, fresh: Plan) -> Plan:
    """Returns what is left of a plan after its first ``by`` actions; the end comes from ``fresh``, as the deviation."""
    actions = torch.cat([plan.actions[:, by:], fresh.actions[:, :by]], 1)
    return Plan(actions, fresh.deviation, torch.full_like(plan.score, -torch.inf))


def imagined_score(
    world: WorldModel, state: Any, goal: UInt8[Tensor, "b c h w"] | None = None, at_once: int = 256
) -> Score:
    """Returns the score of actions in a learned world: the sum of its rewards, or how near it comes to a goal picture.

    Nearness is minus the mean squared difference of the last imagined frame, in 0..1 pixels.

    Args:
        world: what imagines.
        state: where it stands; it stays as it is.
        goal: a picture a row; None for rewards.
        at_once: rows that are imagined together at most, to bound memory; a whole number of samples a row is taken.

    The score raises ``ValueError`` where the world foretells no reward and there is no goal, or the goal is a picture
    of another size.
    """

    def score(actions: Float[Tensor, "b n horizon a"]) -> Float[Tensor, "b n"]:
        together = max(1, at_once // len(actions))
        return torch.cat([part(chosen) for chosen in actions.split(together, 1)], 1)

    def part(actions: Float[Tensor, "b n horizon a"]) -> Float[Tensor, "b n"]:
        samples = actions.shape[1]
        now, total = world.fork(state, samples), torch.zeros(actions.shape[0] * samples)
        imagined = None
        for action in rearrange(actions, "b n horizon a -> horizon (b n) a"):
            imagined = world.step(now, action)
            now = imagined.state
            if goal is None:
                if imagined.reward is None:
                    raise ValueError("this world foretells no reward: give a goal picture, or a world with a reward")
                total += imagined.reward.cpu()
        if goal is not None:
            assert imagined is not None
            if goal.shape[1:] != imagined.frames.shape[1:]:
                raise ValueError(
                    f"the goal is a picture of shape {tuple(goal.shape[1:])}, and the world's are "
                    f"{tuple(imagined.frames.shape[1:])}: give one of that size, of the camera it has learned from"
                )
            wanted = repeat(goal, "b c h w -> (b n) c h w", n=samples).float()
            total = -(imagined.frames.cpu().float() - wanted.cpu()).div(255).square().mean((1, 2, 3))
        return rearrange(total, "(b n) -> b n", n=samples)

    return score


def _around(
    mean: Float[Tensor, "b horizon a"],
    deviation: Float[Tensor, "b horizon a"],
    samples: int,
    low: Float[Tensor, " a"],
    high: Float[Tensor, " a"],
    generator: torch.Generator | None,
) -> Float[Tensor, "b n horizon a"]:
    """Draws sequences; the first is the mean itself."""
    noise = torch.randn(mean.shape[0], samples, *mean.shape[1:], generator=generator)
    noise[:, 0] = 0.0
    return (mean[:, None] + noise * deviation[:, None]).clamp(low, high)


def _scored(score: Score, actions: Float[Tensor, "b n horizon a"]) -> Float[Tensor, "b n"]:
    scores = score(actions)
    if scores.shape != actions.shape[:2] or not bool(scores.isfinite().all()):
        raise ValueError(
            f"the score answered {tuple(actions.shape[:2])} sequences with shape {tuple(scores.shape)}, finite: "
            f"{bool(scores.isfinite().all())}; wanted a finite number for each"
        )
    return scores
