"""DrQ-v2: an actor and two critics on what one convolutional encoder sees of a few stacked frames.

Source: Yarats et al., Mastering Visual Continuous Control (2021), with the settings of iVideoGPT's model-based RL.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ideomotor.types import Borrowed, Clip, Losses, Transitions

_BOUND = 0.97  # where a tanh has 6 % of its slope left
_EDGE = 1 - 1e-6  # an action of exactly 1 has no finite likelihood under some distributions, hence the published margin


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """Sizes of the networks; the defaults are the published ones.

    Attributes:
        stack: frames an observation holds, the newest at the end.
        size: side of the square pictures, in pixels.
        actions: width of an action.
        filters: channels of each of the four convolutions.
        features: width the encoder's maps are brought to, in the actor and in the critic.
        hidden: width of the hidden layers.
    """

    stack: int = 3
    size: int = 64
    actions: int = 4
    filters: int = 32
    features: int = 50
    hidden: int = 1024

    def __post_init__(self) -> None:
        counts = (self.stack, self.actions, self.filters, self.features, self.hidden)
        if min(counts) < 1 or self.size < 15:
            raise ValueError(
                f"stack, actions, filters, features, hidden are {counts} and must be 1 or more; size is {self.size}, "
                "and four convolutions need pictures of 15 px or more"
            )


class Encoder(nn.Module):
    """Stacked frames to one flat vector of features. The only place where pictures are scaled: to -0.5..0.5."""

    def __init__(self, config: ActorCriticConfig) -> None:
        super().__init__()
        width = config.filters
        self.convs = nn.ModuleList(
            nn.Conv2d(width if i else 3 * config.stack, width, 3, stride=1 if i else 2) for i in range(4)
        )
        side = (config.size - 3) // 2 + 1 - 3 * 2
        self.width = width * side * side

    def forward(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b d"]:
        """Returns the features.

        Raises:
            TypeError: frames are not uint8; scaled ones would be scaled twice, and the agent be nearly blind.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames are {frames.dtype}; wanted uint8 in 0..255, which the encoder scales itself")
        return self.features(frames.flatten(1, 2).float().div_(255).sub_(0.5))

    def features(self, x: Float[Tensor, "b stacked h w"]) -> Float[Tensor, "b d"]:
        """Returns the features of pictures that are scaled already, the channels of a stack one after the other."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.flatten(1)  # b d


class Trunk(nn.Sequential):
    """The encoder's features brought to a few numbers in -1..1."""

    def __init__(self, width: int, config: ActorCriticConfig) -> None:
        super().__init__(nn.Linear(width, config.features), nn.LayerNorm(config.features), nn.Tanh())


class Actor(nn.Module):
    """Features to the mean of the action."""

    def __init__(self, width: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.trunk = Trunk(width, config)
        self.head = _perceptron(config.features, config.hidden, config.actions)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b action"]:
        """Returns the means, in -1..1."""
        return self.unbounded(features).tanh()

    def unbounded(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b action"]:
        """Returns what becomes the means by a tanh."""
        return self.head(self.trunk(features)).float()


class Critic(nn.Module):
    """Features and action to two estimates of the return, of which the lower one is trusted."""

    def __init__(self, width: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.trunk = Trunk(width, config)
        self.heads = nn.ModuleList(_perceptron(config.features + config.actions, config.hidden, 1) for _ in range(2))

    def forward(self, features: Float[Tensor, "b d"], actions: Float[Tensor, "b action"]) -> Float[Tensor, "b 2"]:
        """Returns both estimates."""
        x = torch.cat([self.trunk(features), actions], -1)
        return torch.cat([head(x) for head in self.heads], -1).float()


class ActorCritic(nn.Module):
    """All networks of the agent; what acts needs ``encoder`` and ``actor`` alone."""

    def __init__(self, config: ActorCriticConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.actor, self.critic = Actor(self.encoder.width, config), Critic(self.encoder.width, config)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                gain = nn.init.calculate_gain("relu") if isinstance(part, nn.Conv2d) else 1.0
                nn.init.orthogonal_(part.weight, gain)
                part.bias.data.zero_()  # type: ignore[union-attr]
        self.target = copy.deepcopy(self.critic).requires_grad_(False)

    @torch.no_grad()
    def mean_action(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b action"]:
        """Returns what the actor holds best, in -1..1."""
        return self.actor(self.encoder(frames))

    def act(self, context: Clip) -> Float[Tensor, "b 1 action"]:
        """Returns the best action as a chunk of one (the ``Agent`` protocol); the clip has one camera."""
        (frames,) = context.frames.values()
        return self.mean_action(frames)[:, None]


class CriticLearning(nn.Module):
    """Owns the encoder and the critic: the two estimates shall equal reward plus what the target expects to follow.

    The target network is held here too, to be saved with it; it has no gradient and moves by ``follow`` alone.

    Attributes:
        std: deviation of the noise on the next actions; whoever trains sets it before an update.
        seen: the features of the last batch, before its update. The actor learns on the same ones, as published, which
            also saves encoding every frame twice.
    """

    def __init__(self, network: ActorCritic, clip: float = 0.3) -> None:
        super().__init__()
        self.encoder, self.critic, self.target = network.encoder, network.critic, network.target
        self.actor, self.clip, self.std = Borrowed(network.actor), clip, 1.0
        self.seen: Seen | None = None

    def forward(self, batch: Transitions) -> Losses:
        """Returns the squared errors of both estimates."""
        return self.losses(batch, torch.randn_like(batch.actions))

    def losses(self, batch: Transitions, noise: Float[Tensor, "b action"]) -> Losses:
        """Returns the losses under given standard-normal noise of the next actions."""
        with torch.no_grad():
            following = self.encoder(batch.next_frames)
            actions = noisy(self.actor.module(following), self.std, noise, self.clip)
            worth = self.target(following, actions).amin(-1)
            target = batch.rewards + batch.discounts * worth
        features = self.encoder(batch.frames)
        q = self.critic(features, batch.actions)
        self.seen = Seen(features=features.detach())
        total = (q - target[:, None]).square().mean(0).sum()
        q1, q2 = q.detach().mean(0)
        return Losses(
            total=total, terms={"q1": q1, "q2": q2, "target": target.mean(), "batch_reward": batch.rewards.mean()}
        )

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Moves the target network that share of the way to the critic."""
        for target, critic in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            target.lerp_(critic, share)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the encoder made of a batch of frames.

    Attributes:
        shown: beside it, what was made of frames of demonstrations; None for none.
        done: what was done there.
    """

    features: Float[Tensor, "b d"]
    shown: Float[Tensor, "n d"] | None = None
    done: Float[Tensor, "n action"] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Seen:
        """Returns it on ``device``."""
        return Seen(
            features=self.features.to(device, non_blocking=non_blocking),
            shown=None if self.shown is None else self.shown.to(device, non_blocking=non_blocking),
            done=None if self.done is None else self.done.to(device, non_blocking=non_blocking),
        )


class ActorLearning(nn.Module):
    """Owns the actor: what it does, with noise, shall be worth much to the lower of the two estimates.

    Args:
        network: whose actor it is.
        clip: the farthest that noise goes.
        outward: price of the mean square of what becomes an action by a tanh. Far out no gradient is left: an actor
            that has climbed a young critic that far does the same for ever.
        cloning: price of the mean squared distance from what was done in demonstrations.

    Attributes:
        std: deviation of the noise; whoever trains sets it before an update.
    """

    def __init__(self, network: ActorCritic, clip: float = 0.3, outward: float = 0.0, cloning: float = 0.0) -> None:
        super().__init__()
        self.outward, self.cloning = outward, cloning
        self.actor, self.critic = network.actor, Borrowed(network.critic)
        self.actions, self.clip, self.std = network.config.actions, clip, 1.0

    def forward(self, seen: Seen) -> Losses:
        """Returns the negative estimate, and what far actions and strange ones cost beside it."""
        return self.losses(seen, torch.randn(len(seen), self.actions, device=seen.features.device))

    def losses(self, seen: Seen, noise: Float[Tensor, "b action"]) -> Losses:
        """Returns the losses under given standard-normal noise of the actions."""
        unbounded = self.actor.unbounded(seen.features)
        mean = unbounded.tanh()
        actions = noisy(mean, self.std, noise, self.clip)
        worth = self.critic(seen.features, actions).amin(-1)
        with torch.no_grad():
            normal = torch.distributions.Normal(mean, self.std)
            terms = {
                "log_likelihood": normal.log_prob(actions).sum(-1).mean(),
                "entropy": normal.entropy().sum(-1).mean(),
                "at_its_bounds": (mean.abs() > _BOUND).float().mean(),
            }
        total = -worth.mean()
        if self.outward:
            total = total + self.outward * unbounded.square().mean()
        if self.cloning and seen.shown is not None and seen.done is not None:
            strange = (self.actor(seen.shown) - seen.done).square().mean()
            terms["cloning"] = strange.detach()
            total = total + self.cloning * strange
        return Losses(total=total, terms=terms)


class Cloning(nn.Module):
    """Owns the encoder and the actor: what it does shall be what was done (behaviour cloning)."""

    def __init__(self, network: ActorCritic) -> None:
        super().__init__()
        self.encoder, self.actor = network.encoder, network.actor

    def forward(self, batch: Transitions) -> Losses:
        """Returns the mean squared error of the actions."""
        return Losses(total=(self.actor(self.encoder(batch.frames)) - batch.actions).square().mean())


def noisy(
    mean: Float[Tensor, "b action"], std: float, noise: Float[Tensor, "b action"], clip: float | None = None
) -> Float[Tensor, "b action"]:
    """Returns ``mean`` plus ``std`` times standard-normal noise, within -1..1.

    The gradient passes as if nothing had been cut at the edges.

    Args:
        mean: in -1..1.
        std: deviation.
        noise: standard normal.
        clip: the farthest from the mean; None for any distance.
    """
    moved = noise * std
    actions = mean + (moved if clip is None else moved.clamp(-clip, clip))
    return actions + (actions.clamp(-_EDGE, _EDGE) - actions).detach()


def deviation(step: int, knots: Sequence[tuple[int, float]]) -> float:
    """Returns the deviation of the noise at a step: straight lines between ``(step, value)``, constant outside."""
    places, values = zip(*knots, strict=True)
    if math.inf in places or list(places) != sorted(set(places)) or min(values) < 0:
        raise ValueError(f"the noise has knots {tuple(knots)}; wanted rising steps, each with a deviation of 0 or more")
    return float(np.interp(step, places, values))


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
