"""DrQ-v2 in a run: two learners, the target network, the noise, and the updates of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.transforms import random_shift
from ideomotor.policies.actor_critic import (
    ActorCritic,
    ActorCriticConfig,
    ActorLearning,
    CriticLearning,
    Seen,
    deviation,
    noisy,
)
from ideomotor.training.learner import Learner, seed_of
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Run
from ideomotor.types import Batch, Transitions

PUBLISHED = OptimConfig(
    lr=1e-4, weight_decay=1e-6, decay="gradient", betas=(0.9, 0.999), warmup=0, schedule="constant", clip_norm=None
)


@dataclass(frozen=True, kw_only=True)
class DrQv2Config:
    """Settings of the agent; the defaults are those of iVideoGPT.

    Attributes:
        network: sizes.
        optim: of both learners; its schedule must be constant.
        noise: deviation of the actions' noise by agent step, straight lines between these.
        noise_clip: farthest noise in an update; collecting has no bound.
        follow: share of the way that the target network moves an update.
        shift: pixels that pictures are moved by at random, in each direction.
        reward_scale: what rewards are multiplied by before they are learned from; the two prices below are beside it.
        outward: price of actions at their bounds, see ``ActorLearning``.
        cloning: price of actions unlike the demonstrations', where there are any, see ``ActorLearning``.
    """

    network: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    optim: OptimConfig = PUBLISHED
    noise: tuple[tuple[int, float], ...] = ((0, 1.0), (100_000, 0.1))
    noise_clip: float = 0.3
    follow: float = 0.01
    shift: int = 4
    reward_scale: float = 1.0
    outward: float = 0.0
    cloning: float = 0.0

    def __post_init__(self) -> None:
        deviation(0, self.noise)
        if self.optim.schedule != "constant":
            raise ValueError(f"optim has the schedule {self.optim.schedule!r}; an agent's has no end: use 'constant'")
        if not (0 < self.follow <= 1 and self.noise_clip > 0 and self.shift >= 0):
            raise ValueError(
                f"follow {self.follow} must be in (0, 1], noise_clip {self.noise_clip} above 0, shift {self.shift} 0 "
                "or more"
            )
        if not (self.reward_scale > 0 and min(self.outward, self.cloning) >= 0):
            raise ValueError(
                f"reward_scale {self.reward_scale} must be above 0, outward {self.outward} and cloning {self.cloning} "
                "0 or more"
            )


class DrQv2:
    """The agent in a run. All that is random follows from the run's seed and the step, so nothing random is saved."""

    def __init__(self, run: Run, config: DrQv2Config) -> None:
        self.config, self.seed, self.device = config, run.seed, run.device
        self.network = ActorCritic(config.network)
        self._critic = CriticLearning(self.network, config.noise_clip)
        self._actor = ActorLearning(self.network, config.noise_clip, config.outward, config.cloning)
        # A constant schedule is the same for any number of steps, so a run may later be given more.
        self.learners = (
            run.learner(self._critic, config.optim, steps=1, name="critic"),
            run.learner(self._actor, config.optim, steps=1, name="actor"),
        )

    def updates(
        self, batch: Transitions, step: int, draw: int, shown: Transitions | None = None
    ) -> Iterator[tuple[Learner, Batch]]:
        """Yields the two updates of a batch, each to be made before the next is asked for.

        Args:
            batch: from replay, imagination or both.
            step: agent steps so far, for the noise.
            draw: number of the batch, for the shifts.
            shown: from demonstrations, for the actor to be like; its rewards are not looked at.
        """
        critic, actor = self.learners
        self._critic.std = self._actor.std = deviation(step, self.config.noise)
        batch = replace(batch, rewards=batch.rewards * self.config.reward_scale)
        yield critic, shifted(batch, self.config.shift, seed_of(self.seed, "shift", draw))
        assert self._critic.seen is not None
        yield actor, self._critic.seen if shown is None else self._beside(self._critic.seen, shown, draw)
        self._critic.follow(self.config.follow)

    def explore(self, frames: UInt8[Tensor, "b t c h w"], step: int) -> Float[Tensor, "b action"]:
        """Returns actions with the noise of that step, to collect experience with."""
        return self.noised(self.network.mean_action(frames.to(self.device)), step, "explore", step)

    @torch.no_grad()
    def _beside(self, seen: Seen, shown: Transitions, draw: int) -> Seen:
        """Returns what was seen with what is made of the demonstrations."""
        moved = shifted(shown, self.config.shift, seed_of(self.seed, "shift", "shown", draw))
        with self.config.optim.autocast(self.device):
            features = self.network.encoder(moved.frames.to(self.device))
        return replace(seen, shown=features, done=moved.actions.to(self.device))

    def noised(self, mean: Float[Tensor, "b action"], step: int, *words: str | int) -> Float[Tensor, "b action"]:
        """Returns the actions with as much noise as at that step; same ``words``, same draws."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, *words))
        noise = torch.randn(mean.shape, generator=generator)
        return noisy(mean.cpu(), deviation(step, self.config.noise), noise)


def shifted(batch: Transitions, pixels: int, seed: int) -> Transitions:
    """Returns the batch with each observation moved at random, all frames of one alike."""
    generator = torch.Generator().manual_seed(seed)
    return replace(
        batch,
        frames=random_shift(batch.frames, pixels, generator),
        next_frames=random_shift(batch.next_frames, pixels, generator),
    )
