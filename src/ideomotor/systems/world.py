"""A learned world to act in: frames in, and then, action by action, the frames and rewards that would follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ideomotor.layers.int8 import to_int8
from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import PUBLISHED_SAMPLING, AutoregressivePredictor, State
from ideomotor.systems.devices import device_named
from ideomotor.tokenizers.context_vqgan import ContextFeatures, ContextVQGAN, in_bf16
from ideomotor.types import Imagined

Weights = Literal["float32", "bf16", "int8"]


class WorldState(NamedTuple):
    """Imaginations under way. A step uses a state up; ``World.fork`` it first to step it more than once."""

    memory: State
    features: ContextFeatures
    newest: UInt8[Tensor, "b context c h w"]


class Imagination(NamedTuple):
    """Several frames in a row; ``tokens`` are those of the frames, rewards are None where the world foretells none."""

    frames: UInt8[Tensor, "b horizon c h w"]
    tokens: Int[Tensor, "b horizon m"]
    rewards: Float[Tensor, "b horizon"] | None


class World:
    """iVideoGPT as a world: a batch of independent imaginations, stepped frame by frame.

    Where the transformer's positions are used up, the newest frames become a new context and the imagination goes on.

    Attributes:
        sampling: of the draws; ``Sampling(temperature=0)`` takes the likeliest tokens.
        horizon: frames after which the window slides; by default as many as the transformer holds. Fewer of them take
            less memory, which counts where many futures are imagined side by side.
    """

    def __init__(
        self,
        tokenizer: ContextVQGAN,
        predictor: AutoregressivePredictor,
        *,
        sampling: Sampling = PUBLISHED_SAMPLING,
        horizon: int | None = None,
        seed: int = 0,
    ) -> None:
        refuse_strangers(tokenizer, predictor)
        if horizon is not None and not 1 <= horizon <= predictor.config.longest:
            raise ValueError(
                f"a horizon of {horizon} frames came; the transformer holds 1 to {predictor.config.longest} behind its "
                "context, and slides for more"
            )
        self.tokenizer, self.predictor = tokenizer.eval(), predictor.eval()
        self.sampling, self.horizon = sampling, horizon
        self.device = next(predictor.parameters()).device
        self._generator = torch.Generator(self.device)
        self.seed(seed)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str | torch.device = "cpu",
        sampling: Sampling = PUBLISHED_SAMPLING,
        horizon: int | None = None,
        seed: int = 0,
        weights: Weights = "float32",
    ) -> World:
        """Returns the world in the OUT folder of ``ideomotor ivideogpt world``, or of ``ideomotor import ivideogpt``.

        Args:
            folder: of the stage or the import.
            device: where its weights shall lie.
            sampling: of the draws.
            horizon: as of ``World``.
            seed: of the draws.
            weights: "bf16" steps faster, "int8" the fastest on a CPU (8-bit transformer, the tokenizer in bf16); both
                change some tokens. Such a world is for use only.

        Raises:
            ValueError: the folder holds no world, or one whose parts do not belong together; or there is no such
                device.
        """
        from ideomotor.systems.ivideogpt_stages import load_world  # the stages know worlds too

        if weights not in ("float32", "bf16", "int8"):
            raise ValueError(f"weights are {weights!r}; wanted 'float32', 'bf16' or 'int8'")
        tokenizer, predictor = load_world(Path(folder), device_named(device))
        if weights != "float32":
            tokenizer = in_bf16(tokenizer)
        if weights == "bf16":
            predictor = predictor.bfloat16()
        elif weights == "int8":
            to_int8(predictor)
        return cls(tokenizer, predictor, sampling=sampling, horizon=horizon, seed=seed)

    @property
    def context(self) -> int:
        """Frames that it must have seen."""
        return self.predictor.config.context

    @property
    def action_width(self) -> int:
        """Numbers of an action, 0 for a world that nobody acts in."""
        return self.predictor.config.action_width

    def seed(self, seed: int) -> None:
        """Begins the draws anew."""
        self._generator.manual_seed(seed)

    @torch.no_grad()  # inference mode would forbid to learn from what comes out
    def reset(self, frames: UInt8[Tensor, "b t c h w"]) -> WorldState:
        """Returns the state after those frames; of more than ``context`` the newest count.

        Raises:
            ValueError: fewer frames than the context, frames of another size, or none at all.
        """
        if frames.ndim != 5 or len(frames) < 1 or frames.shape[1] < self.context:
            raise ValueError(
                f"frames of shape {tuple(frames.shape)} came; this world begins with {self.context} of them: (batch, "
                f"at least {self.context}, 3, {self.tokenizer.config.size}, {self.tokenizer.config.size})"
            )
        newest = frames[:, -self.context :].to(self.device)
        tokens = self.tokenizer.tokenize(newest).context
        return WorldState(
            self.predictor.observe(tokens, self.horizon), self.tokenizer.observe(tokens, newest[:, -1]), newest
        )

    @torch.no_grad()  # inference mode would forbid to learn from what comes out
    def step(self, state: WorldState, action: Float[Tensor, "b a"] | None = None) -> Imagined:
        """Returns the next frame of every imagination, its reward, and the state behind it.

        Args:
            state: of ``reset``, ``fork`` or the last step; it is used up.
            action: what is done now, in the units of the data; None in a world without actions.

        Raises:
            ValueError: no action, one of another width or not finite, or a state that was stepped before.
        """
        imagined, _ = self._step(state, action)
        return imagined

    def fork(self, state: WorldState, times: int) -> WorldState:
        """Returns a state with ``times`` copies of each imagination, side by side; ``state`` stays as it is."""
        return WorldState(
            self.predictor.fork(state.memory, times),
            state.features.repeat(times),
            state.newest.repeat_interleave(times, 0),
        )

    def select(self, state: WorldState, rows: Sequence[int]) -> WorldState:
        """Returns a copy of those imaginations, in that order; ``state`` stays as it is."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        return WorldState(self.predictor.select(state.memory, rows), state.features.select(index), state.newest[index])

    @torch.no_grad()  # inference mode would forbid to learn from what comes out
    def imagine(
        self, frames: UInt8[Tensor, "b t c h w"], horizon: int, actions: Float[Tensor, "b horizon a"] | None = None
    ) -> Imagination:
        """Returns the frames that follow, ``horizon`` of them.

        Args:
            frames: what was seen.
            horizon: frames to be imagined.
            actions: the one that leads to each of them; None in a world without actions.

        Raises:
            ValueError: no horizon, or actions that ``step`` refuses or that are more or fewer.
        """
        if horizon < 1:
            raise ValueError(f"a horizon of {horizon} frames came; wanted 1 or more")
        if actions is not None and actions.shape[1] != horizon:
            raise ValueError(f"{actions.shape[1]} actions came for a horizon of {horizon} frames: give one a frame")
        state = self.reset(frames)
        pictures, tokens, rewards = [], [], []
        for frame in range(horizon):
            imagined, ids = self._step(state, None if actions is None else actions[:, frame])
            state = imagined.state
            pictures.append(imagined.frames)
            tokens.append(ids)
            if imagined.reward is not None:
                rewards.append(imagined.reward)
        return Imagination(
            torch.stack(pictures, 1), torch.stack(tokens, 1), torch.stack(rewards, 1) if rewards else None
        )

    def _step(self, state: WorldState, action: Float[Tensor, "b a"] | None) -> tuple[Imagined, Int[Tensor, "b m"]]:
        if (action is None) != (self.action_width == 0):
            raise ValueError(
                f"{'no action' if action is None else 'an action'} came to a world whose actions have width "
                f"{self.action_width}: give actions of that width, or none where it is 0"
            )
        if action is not None and not bool(action.isfinite().all()):
            raise ValueError("an action holds numbers that are not finite; wanted finite ones, in the data's units")
        if self.predictor.full(state.memory):
            state = self.reset(state.newest)
        action = None if action is None else action.to(self.device)
        step = self.predictor.step(state.memory, action, self._generator, self.sampling)
        frames = self.tokenizer.paint(step.tokens[:, None], state.features)
        newest = torch.cat([state.newest[:, 1:], frames], 1)
        now = WorldState(step.state, state.features, newest)
        return Imagined(frames[:, 0], step.reward, now), step.tokens


def refuse_strangers(tokenizer: ContextVQGAN, predictor: AutoregressivePredictor) -> None:
    """Refuses a tokenizer and a transformer that do not speak of the same tokens.

    Raises:
        ValueError: naming every count that differs.
    """
    ours, theirs = counts(tokenizer), predictor.config
    wrong = [
        f"{name}: {value}, not {getattr(theirs, name)}"
        for name, value in ours.items()
        if value != getattr(theirs, name)
    ]
    if wrong:
        raise ValueError(
            f"tokenizer and transformer do not belong together (tokenizer, transformer): {'; '.join(wrong)}. Take the "
            "two of one run, or bring the context to length (`ideomotor ivideogpt resize`)"
        )


def counts(tokenizer: ContextVQGAN) -> dict[str, int]:
    """Returns what a transformer must know of the tokenizer, by the names of its config."""
    (rows, columns), (few_rows, few_columns) = tokenizer.context_grid, tokenizer.dynamics_grid
    return {
        "context": tokenizer.context_length,
        "context_tokens": rows * columns,
        "dynamics_tokens": few_rows * few_columns,
        "context_codes": tokenizer.context_codes,
        "dynamics_codes": tokenizer.dynamics_codes,
    }
