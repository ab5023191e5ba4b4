"""Foretells video tokens one after the other: context tokens, and before each future frame what is done.

The sequence is ``[n ids] (context slot, n ids)... (frame slot, m ids)...``: every context frame has ``n`` tokens, every
future frame ``m``, and a slot stands before each frame but the first. An action is added to the embedding of the slot
before the frame that it leads to; the reward of a frame is read behind its last token. For a goal, the picture of the
goal is given as first context frame, and what was seen follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ideomotor.layers.linear import Linear
from ideomotor.layers.llama import KeyValueCache, Llama, LlamaConfig
from ideomotor.layers.sampling import Sampling
from ideomotor.layers.shared_rows import merge_rows, share_rows
from ideomotor.layers.symlog import symexp, symlog
from ideomotor.types import Losses

PUBLISHED_SAMPLING = Sampling(top_k=100)
"""The published draws: temperature 1 among the 100 likeliest."""


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """What the predictor reads and foretells; all counts are the tokenizer's.

    Attributes:
        context_codes: codes of context frames; their ids are the first of the vocabulary.
        dynamics_codes: codes of future frames; their ids follow. Two slots are the last ids.
        context_tokens: tokens of a context frame.
        dynamics_tokens: tokens of a future frame.
        context: frames seen.
        action_width: numbers of an action; 0 where the future does not depend on actions.
        action_limit: actions are clipped to at most this, up and down, as the robot does; None leaves them as they are.
        reward: foretells rewards too.
        action_reconstruction: weight of telling each frame's action from what is foretold; 0 for none.
        trunk: sizes of the transformer.
    """

    context_codes: int = 8192
    dynamics_codes: int = 8192
    context_tokens: int = 256
    dynamics_tokens: int = 16
    context: int = 2
    action_width: int = 0
    action_limit: float | None = None
    reward: bool = False
    action_reconstruction: float = 0.0
    trunk: LlamaConfig = field(default_factory=LlamaConfig)

    def __post_init__(self) -> None:
        counts = (self.context_codes, self.dynamics_codes, self.context_tokens, self.dynamics_tokens, self.context)
        if min(counts) < 1 or self.action_width < 0 or self.action_reconstruction < 0:
            raise ValueError(f"codes, tokens and context must be at least 1, nothing below 0: {self}")
        if self.action_limit is not None and not self.action_limit > 0:
            raise ValueError(f"action_limit is {self.action_limit}; it must be above 0, or None for no limit")
        if self.action_reconstruction and not self.action_width:
            raise ValueError("action_reconstruction tells actions from frames: it wants an action_width above 0")
        if self.longest < 1:
            raise ValueError(
                f"a context of {self.context} frames takes {self.prompt} of {self.trunk.positions} positions, a future "
                f"frame {self.dynamics_tokens + 1}: raise trunk.positions or shorten the context"
            )

    @property
    def vocab(self) -> int:
        """Ids: both kinds of codes, and the two slots."""
        return self.context_codes + self.dynamics_codes + 2

    @property
    def context_slot(self) -> int:
        """Id before each context frame but the first."""
        return self.vocab - 2

    @property
    def frame_slot(self) -> int:
        """Id before each future frame."""
        return self.vocab - 1

    @property
    def prompt(self) -> int:
        """Positions that the context takes; the first frame slot stands behind them."""
        return self.context * (self.context_tokens + 1) - 1

    @property
    def longest(self) -> int:
        """Most future frames that fit behind the context."""
        return (self.trunk.positions - self.prompt) // (self.dynamics_tokens + 1)


def small() -> AutoregressiveConfig:
    """Returns the published small model without actions: 138,434,304 parameters."""
    return AutoregressiveConfig()


def medium() -> AutoregressiveConfig:
    """Returns the published medium model without actions: 436,261,888 parameters."""
    return AutoregressiveConfig(trunk=LlamaConfig(layers=24, heads=16, width=1024, inner=4096))


class State(NamedTuple):
    """Rollouts under way, all at the same frame. A step uses a state up (its memory goes over into the next one):
    ``fork`` it first, to step it more than once.
    """

    cache: KeyValueCache
    length: int


class Step(NamedTuple):
    """One foretold frame of each rollout."""

    tokens: Int[Tensor, "b m"]
    reward: Float[Tensor, " b"] | None
    state: State


class AutoregressivePredictor(nn.Module):
    """Source: iVideoGPT (2405.15223). Same weights and numbers as published; what is generated differs on purpose:
    slots are put and not sampled, only codes of future frames are drawn, and nothing is computed twice.
    """

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        width = config.trunk.width
        self.embedding = nn.Embedding(config.vocab, width)
        self.trunk = Llama(config.trunk)
        self.head = Linear(width, config.vocab, bias=False)
        for name, weight in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(weight, std=0.02)
        self.action = nn.Linear(config.action_width, width) if config.action_width else None
        if self.action is not None:  # at the start the future does not depend on actions
            nn.init.zeros_(self.action.weight)
            nn.init.zeros_(self.action.bias)
        self.reward = nn.Linear(width, 1) if config.reward else None
        self.reconstruction = nn.Linear(width, config.action_width) if config.action_reconstruction else None

    def share_codes(self, context: Float[Tensor, "codes f"], dynamics: Float[Tensor, "codes g"]) -> None:
        """Lets codes that have features in common share what is learned of them, until ``merge_codes``.

        Embedding and head begin anew, the embedding larger than published: else a narrow transformer takes long to
        find out that a token mostly stays what it was, as what the first layer adds drowns which one it is.
        """
        features = torch.block_diag(context, dynamics, torch.eye(2))
        share_rows(self.embedding, features, std=0.25, own_std=0.02)
        share_rows(self.head, features, std=0.01, own_std=0.002)

    def merge_codes(self) -> None:
        """Ends ``share_codes``: the same numbers, in the tables of before."""
        merge_rows(self.embedding)
        merge_rows(self.head)

    def sequence(self, context: Int[Tensor, "b c n"], dynamics: Int[Tensor, "b f m"]) -> Int[Tensor, "b l"]:
        """Returns the ids that the transformer reads; codes of both kinds count from 0 here."""
        config = self.config
        _check(context, "context", (config.context, config.context_tokens), config.context_codes)
        _check(dynamics, "future", (dynamics.shape[1], config.dynamics_tokens), config.dynamics_codes)
        seen = F.pad(context, (1, 0), value=config.context_slot).flatten(1)[:, 1:]
        future = F.pad(dynamics + config.context_codes, (1, 0), value=config.frame_slot).flatten(1)
        return torch.cat([seen, future], 1)

    def labels(self, ids: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """Returns the ids that are foretold, -100 for the context and the first frame slot; later slots count."""
        labels = ids.clone()
        labels[:, : self.config.prompt + 1] = -100
        return labels

    def features(
        self, ids: Int[Tensor, "b l"], actions: Float[Tensor, "b f action"] | None = None, last: int | None = None
    ) -> Float[Tensor, "b last d"]:
        """Returns the features of the ``last`` positions (all by default) of whole sequences.

        Args:
            ids: what ``sequence`` returns.
            actions: the one that leads to each future frame; None leaves the slots bare, as in pre-training.
            last: positions whose features are wanted.
        """
        if ids.shape[1] > self.config.trunk.positions:
            raise ValueError(
                f"{ids.shape[1]} ids came, the transformer was built for {self.config.trunk.positions}: at most "
                f"{self.config.longest} future frames follow {self.config.context} context frames"
            )
        x = self.embedding(ids)
        if actions is not None:
            every = self.config.dynamics_tokens + 1
            slots = x[:, self.config.prompt :: every]
            x = x.clone()
            x[:, self.config.prompt :: every] = slots + self._embedded(actions, slots.shape[:2])
        return self.trunk(x, last=last)

    def loss(
        self,
        context: Int[Tensor, "b c n"],
        dynamics: Int[Tensor, "b f m"],
        actions: Float[Tensor, "b f action"] | None = None,
        rewards: Float[Tensor, "b f"] | None = None,
    ) -> Losses:
        """Returns the mean cross-entropy of all ids behind the first frame slot, and what the heads add to it.

        Args:
            context: tokens of the frames seen.
            dynamics: tokens of the frames to be foretold.
            actions: the one that leads to each future frame; None for video without actions.
            rewards: of each future frame, in its own units (its symlog is learned); None where unknown.
        """
        ids, (frames, codes) = self.sequence(context, dynamics), dynamics.shape[1:]
        features = self.features(ids, actions, frames * (codes + 1))
        logits, wanted = self.head(features[:, :-1]), ids[:, self.config.prompt + 1 :]
        total = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
        right = (logits.detach().argmax(-1) == wanted)[wanted != self.config.frame_slot].float().mean()
        terms = {"cross_entropy": total.detach(), "accuracy": right}
        of_frames = rearrange(features, "b (f k) d -> b f k d", f=frames)
        if rewards is not None:
            error = F.mse_loss(self.rewards(of_frames), symlog(rewards).float())
            total, terms["reward"] = total + error, error.detach()
        if self.reconstruction is not None and actions is not None:
            error = F.mse_loss(
                self.reconstruction(of_frames).float(),
                self._carried_out(actions)[:, :, None].expand(-1, -1, codes + 1, -1),
            )
            total = total + self.config.action_reconstruction * error
            terms["action_reconstruction"] = error.detach()
        return Losses(total=total, terms=terms)

    def rewards(self, features: Float[Tensor, "b f k d"]) -> Float[Tensor, "b f"]:
        """Returns the symlog of each frame's reward, read behind its last token."""
        if self.reward is None:
            raise ValueError("rewards came to a predictor without reward head: build it with reward=True")
        return self.reward(features[:, :, -1])[..., 0].float()

    @torch.no_grad()
    def observe(self, context: Int[Tensor, "b c n"], horizon: int | None = None) -> State:
        """Returns the state after the context, with room for ``horizon`` frames (by default for all that fit)."""
        config = self.config
        horizon = config.longest if horizon is None else horizon
        if not 1 <= horizon <= config.longest:
            raise ValueError(
                f"a horizon of {horizon} frames came; the {config.trunk.positions} positions of the transformer hold 1 "
                f"to {config.longest} behind {config.context} context frames: step so far, then observe the newest "
                "frames as a new context"
            )
        prompt = self.sequence(context, context.new_empty(len(context), 0, config.dynamics_tokens))
        cache = self.trunk.empty_cache(len(context), config.prompt + horizon * (config.dynamics_tokens + 1))
        self.trunk(self.embedding(prompt), cache, last=1)
        return State(cache, config.prompt)

    @torch.no_grad()
    def step(
        self,
        state: State,
        action: Float[Tensor, "b action"] | None = None,
        generator: torch.Generator | None = None,
        sampling: Sampling = PUBLISHED_SAMPLING,
    ) -> Step:
        """Returns the next frame's tokens, its reward (in its own units) and the state behind it.

        Args:
            state: what ``observe``, ``fork`` or the last step returned; it is used up.
            action: leads to that frame; None leaves the slot bare, as in pre-training.
            generator: of the draws.
            sampling: of the draws; ``Sampling(temperature=0)`` takes the likeliest.
        """
        _check_unused(state)
        self._check_room(state)
        config, cache = self.config, state.cache
        batch = cache.key.shape[1]
        slot = torch.full((batch, 1), config.frame_slot, device=cache.key.device)
        x = self.embedding(slot)
        if action is not None:
            x = x + self._embedded(action[:, None], (batch, 1))
        tokens = []
        features = self.trunk(x, cache)
        first = config.context_codes
        for _ in range(config.dynamics_tokens):
            logits = self.head.rows(features[:, -1], first, first + config.dynamics_codes)
            tokens.append(sampling.choose(logits.float(), generator))
            features = self.trunk(self.embedding(tokens[-1][:, None] + first), cache)
        reward = None if self.reward is None else symexp(self.rewards(features[:, None])[:, 0])
        return Step(torch.stack(tokens, 1), reward, State(cache, cache.filled))

    def fork(self, state: State, times: int) -> State:
        """Returns a copy with each rollout ``times`` times in a row; the state itself stays good."""
        if times < 1:
            raise ValueError(f"{times} copies of each rollout were asked for; wanted 1 or more")
        batch = state.cache.key.shape[1]
        return self.select(state, [row for row in range(batch) for _ in range(times)])

    def select(self, state: State, rows: Sequence[int]) -> State:
        """Returns a copy of those rollouts, in that order; the state itself stays good."""
        _check_unused(state)
        index = torch.tensor(list(rows), dtype=torch.long, device=state.cache.key.device)
        return State(state.cache.select(index), state.length)

    def full(self, state: State) -> bool:
        """Says whether no further frame fits behind the state."""
        return state.length + self.config.dynamics_tokens + 1 > state.cache.capacity

    def generate(
        self,
        context: Int[Tensor, "b c n"],
        horizon: int,
        actions: Float[Tensor, "b f action"] | None = None,
        generator: torch.Generator | None = None,
        sampling: Sampling = PUBLISHED_SAMPLING,
    ) -> tuple[Int[Tensor, "b f m"], Float[Tensor, "b f"] | None]:
        """Returns tokens, and rewards where there is a head for them, of ``horizon`` frames that follow the context."""
        if actions is not None and actions.shape[1] != horizon:
            raise ValueError(f"{actions.shape[1]} actions came for a horizon of {horizon} frames: give one a frame")
        state, steps = self.observe(context, horizon), []
        for frame in range(horizon):
            steps.append(self.step(state, None if actions is None else actions[:, frame], generator, sampling))
            state = steps[-1].state
        rewards = [step.reward for step in steps if step.reward is not None]
        return torch.stack([step.tokens for step in steps], 1), torch.stack(rewards, 1) if rewards else None

    def _embedded(self, actions: Float[Tensor, "b f action"], wanted: Sequence[int]) -> Float[Tensor, "b f d"]:
        if self.action is None or tuple(actions.shape) != (*wanted, self.config.action_width):
            raise ValueError(
                f"actions of shape {tuple(actions.shape)} came for {wanted[0]} samples of {wanted[1]} future frames; "
                f"the predictor's action_width is {self.config.action_width}: give one such action a future frame, or "
                "build it for these actions"
            )
        return self.action(self._carried_out(actions).to(self.action.weight.dtype))

    def _carried_out(self, actions: Float[Tensor, "b f action"]) -> Float[Tensor, "b f action"]:
        limit = self.config.action_limit
        return actions if limit is None else actions.clamp(-limit, limit)

    def _check_room(self, state: State) -> None:
        if self.full(state):
            every = self.config.dynamics_tokens + 1
            raise ValueError(
                f"the state is full: {(state.cache.capacity - self.config.prompt) // every} frames were foretold. "
                f"Observe with a longer horizon (at most {self.config.longest}), or observe the newest frames as a new "
                "context"
            )


def _check_unused(state: State) -> None:
    if state.length != state.cache.filled:
        raise ValueError(
            f"this state ends at position {state.length} and was stepped on to {state.cache.filled}: fork it before "
            "the first step, to go on from it again"
        )


def _check(tokens: Int[Tensor, "b f n"], what: str, wanted: tuple[int, int], codes: int) -> None:
    if tuple(tokens.shape[1:]) != wanted:
        raise ValueError(
            f"{tokens.shape[1]} {what} frames of {tokens.shape[2]} tokens came; the predictor was built for "
            f"{wanted[0]} of {wanted[1]}: use the tokenizer and window it was trained with"
        )
    lowest, highest = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
    if lowest < 0 or highest >= codes:
        raise ValueError(
            f"{what} tokens lie in {lowest}..{highest}; wanted 0..{codes - 1}, without the offsets of the sequence: "
            "use the tokenizer the predictor was trained with"
        )
