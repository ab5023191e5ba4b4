"""iVideoGPT: an interactive world model. Clip -> few tokens a frame -> the next frame's tokens, given what is done.

Source: "iVideoGPT: Interactive VideoGPTs are Scalable World Models" (2405.15223). The way of the data can be read from
top to bottom: compressive tokenizer, world model; ``systems/world.py`` steps what is learned here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ideomotor.data.segments import SegmentWindow
from ideomotor.layers.llama import LlamaConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.systems.vpdd import VIEW, Stage
from ideomotor.tokenizers.context_config import ContextVQGANConfig, published_64, published_256
from ideomotor.tokenizers.context_vqgan import ContextTokens, ContextVQGAN
from ideomotor.tokenizers.critic import PatchCriticConfig
from ideomotor.tokenizers.losses import ReconstructionConfig
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Borrowed, Clip, Losses


@dataclass(frozen=True, kw_only=True)
class IVideoGPT:
    """Everything about one iVideoGPT: what it looks at, its networks, and its stages.

    Attributes:
        window: segments that the world model learns from: frames seen and foretold, and how far apart they are.
        painted: segments that the tokenizer learns from; by default frames drawn from a longer stretch.
        tokenizer: sizes of the compressive tokenizer.
        reconstruction: weights of its losses.
        perceptual: files with the weights of the perceptual distance (LPIPS); none leaves those terms out.
        critic: an adversary of the tokenizer, None for none.
        critic_start: tokenizer step from which the critic counts.
        world: sizes of the transformer.
        shared_codes: codes of an FSQ tokenizer that agree in a coordinate share what a world that begins from nothing
            learns of it. Not published; the world that is saved has the published form.
        save_every: training steps after which a stage's state is saved.
    """

    window: SegmentWindow = field(default_factory=lambda: SegmentWindow(frames=16, context=2))
    painted: SegmentWindow = field(
        default_factory=lambda: SegmentWindow(frames=8, context=2, mode="random_selection", span=16)
    )
    tokenizer: ContextVQGANConfig = field(default_factory=published_64)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    perceptual: tuple[Path, ...] = ()
    critic: PatchCriticConfig | None = None
    critic_start: int = 0
    world: AutoregressiveConfig = field(default_factory=AutoregressiveConfig)
    shared_codes: bool = False
    save_every: int = 200
    tokenizer_stage: Stage = field(
        default_factory=lambda: Stage(steps=500_000, batch=64, optim=OptimConfig(lr=5e-4, warmup=500, bf16=True))
    )
    world_stage: Stage = field(
        default_factory=lambda: Stage(
            steps=1_000_000, batch=64, optim=OptimConfig(lr=1e-4, warmup=5000, weight_decay=0.01, bf16=True)
        )
    )

    def __post_init__(self) -> None:
        tokenizer, world = self.tokenizer, self.world
        if self.save_every < 1 or self.critic_start < 0:
            raise ValueError(
                f"save_every is {self.save_every} and critic_start {self.critic_start}; wanted 1, 0 or more"
            )
        if self.shared_codes and tokenizer.codebook != "fsq":
            raise ValueError(
                f"shared_codes wants codes with coordinates; the tokenizer's codebook is {tokenizer.codebook!r}: set "
                "tokenizer.codebook 'fsq', or shared_codes False"
            )
        context = {tokenizer.context_length, self.window.context, self.painted.context, world.context}
        if len(context) > 1:
            raise ValueError(
                f"context is {self.window.context} frames in the window, {self.painted.context} in the tokenizer's "
                f"(painted), {tokenizer.context_length} in the tokenizer and {world.context} in the world: set all four"
            )
        if self.window.horizon > world.longest:
            raise ValueError(
                f"the window foretells {self.window.horizon} frames; {world.longest} fit behind the context: shorten "
                "window.frames or raise world.trunk.positions"
            )
        if (world.action_width or world.reward) and self.window.mode not in ("in_order", "first"):
            raise ValueError(
                f"segments of mode {self.window.mode!r} are not in order of time, so no action leads from one to the "
                "next, and none brings its reward: set world.action_width 0 and world.reward False"
            )
        tokens = (tokenizer.side**2, (tokenizer.side // tokenizer.patch) ** 2)
        if tokens != (world.context_tokens, world.dynamics_tokens):
            raise ValueError(
                f"the tokenizer makes {tokens[0]} and {tokens[1]} tokens of a frame, the world reads "
                f"{world.context_tokens} and {world.dynamics_tokens}: set --world.context-tokens {tokens[0]} and "
                f"--world.dynamics-tokens {tokens[1]}"
            )
        codes = tokenizer.num_codes
        if codes != (world.context_codes, world.dynamics_codes):
            raise ValueError(
                f"the tokenizer has {codes[0]} and {codes[1]} codes, the world {world.context_codes} and "
                f"{world.dynamics_codes}: set --world.context-codes {codes[0]} and --world.dynamics-codes {codes[1]}"
            )

    @property
    def size(self) -> int:
        """Height and width of a frame."""
        return self.tokenizer.size

    @property
    def views(self) -> int:
        """Cameras: one."""
        return 1


class WorldModeling(nn.Module):
    """Clip -> tokens of context and future -> the future's tokens, one after the other, given what was done."""

    def __init__(self, predictor: AutoregressivePredictor, tokenizer: ContextVQGAN) -> None:
        super().__init__()
        self.predictor, self.tokenizer = predictor, Borrowed(tokenizer)

    def forward(self, clip: Clip) -> Losses:
        """Returns the cross-entropy of the future, and what reward and actions add where they are wanted.

        Raises:
            ValueError: the world hears actions or foretells rewards, and the clip has none.
        """
        config = self.predictor.config
        tokens = tokens_of(clip, self.tokenizer.module)
        leading = slice(config.context - 1, -1)  # the action at a frame leads to the next one
        actions = rewards = None
        if config.action_width:
            if clip.actions is None:
                raise ValueError("a clip without actions came to a world with actions: set --world.action-width 0")
            actions = clip.actions[:, leading]
        if config.reward:
            if clip.rewards is None:
                raise ValueError("a clip without rewards came to a world with rewards: set --world.no-reward")
            rewards = clip.rewards[:, leading]
        return self.predictor.loss(tokens.context, tokens.dynamics, actions, rewards)


def tokens_of(clip: Clip, tokenizer: ContextVQGAN) -> ContextTokens:
    """Returns the clip's tokens, from the cache where it has them."""
    if clip.tokens is None:
        return tokenizer.tokenize(clip.frames[VIEW])
    return unpacked(clip.tokens[VIEW].long(), tokenizer)


def packed(tokens: ContextTokens) -> Int[Tensor, "b 1 n"]:
    """Returns a clip's tokens as one row, as a cache holds them."""
    return torch.cat([tokens.context.flatten(1), tokens.dynamics.flatten(1)], 1)[:, None]


def unpacked(row: Int[Tensor, "b 1 n"], tokenizer: ContextVQGAN) -> ContextTokens:
    """Returns the tokens that ``packed`` made a row of."""
    context, each = tokenizer.context_length, tokenizer.context_grid[0] * tokenizer.context_grid[1]
    few = tokenizer.dynamics_grid[0] * tokenizer.dynamics_grid[1]
    seen, future = row[:, 0, : context * each], row[:, 0, context * each :]
    return ContextTokens(seen.unflatten(1, (context, each)), future.unflatten(1, (-1, few)))


def published_small() -> IVideoGPT:
    """Returns the published form for 64 px."""
    return IVideoGPT()


def published_large() -> IVideoGPT:
    """Returns the published form for 256 px; its critic begins where the release has it begin."""
    return IVideoGPT(
        tokenizer=published_256(),
        critic=PatchCriticConfig(),
        critic_start=125_000,
        tokenizer_stage=Stage(steps=125_000, batch=32, optim=OptimConfig(lr=5e-4, warmup=500, bf16=True)),
    )


def cpu() -> IVideoGPT:
    """Returns a form that two cores train in minutes: 64 px, 64 tokens a context frame and 16 a future one."""
    tokenizer = ContextVQGANConfig(
        fold=4, widths=(64, 96), blocks=1, latent=16, patch=2, norm_groups=8, codebook="fsq", levels=(7, 5, 5, 5),
        attention_limit=16, symmetric=True, residual=True, dropout=0.0,
    )  # fmt: skip
    codes, _ = tokenizer.num_codes
    world = AutoregressiveConfig(
        context_codes=codes, dynamics_codes=codes, context_tokens=64, dynamics_tokens=16, action_width=4,
        trunk=LlamaConfig(layers=4, heads=4, width=256, inner=768, positions=512),
    )  # fmt: skip
    return IVideoGPT(
        window=SegmentWindow(frames=12, context=2, stride=4, pooled=True),  # nearer frames hardly tell actions
        painted=SegmentWindow(frames=6, context=2, stride=4, mode="random_selection", span=12),
        tokenizer=tokenizer,
        world=world,
        shared_codes=True,
        reconstruction=ReconstructionConfig(pixels="l2", motion_weight=30.0, economy=0.004),
        tokenizer_stage=Stage(steps=600, batch=16, optim=OptimConfig(lr=1e-3, warmup=50, bf16=True)),
        world_stage=Stage(
            steps=2000, batch=8, optim=OptimConfig(lr=1e-3, warmup=50, weight_decay=0.05, betas=(0.9, 0.98), bf16=True)
        ),
    )


def tiny() -> IVideoGPT:
    """Returns a form that learns little in seconds; for tests and for trying a pipeline out."""
    tokenizer = ContextVQGANConfig(
        size=32, widths=(16, 16, 32), blocks=1, latent=8, patch=4, norm_groups=8, codebook="fsq", levels=(5, 5, 5),
        attention_limit=8, dropout=0.0,
    )  # fmt: skip
    world = AutoregressiveConfig(
        context_codes=125, dynamics_codes=125, context_tokens=64, dynamics_tokens=4, action_width=2,
        trunk=LlamaConfig(layers=2, heads=2, width=32, inner=64, positions=192),
    )  # fmt: skip
    stage = Stage(steps=4, batch=4, optim=OptimConfig(lr=2e-3, warmup=2), every=4)
    return IVideoGPT(
        window=SegmentWindow(frames=6, context=2), painted=SegmentWindow(frames=4, context=2), tokenizer=tokenizer,
        world=world, tokenizer_stage=stage, world_stage=stage, save_every=2,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], IVideoGPT]] = {
    "cpu": cpu,
    "published-64": published_small,
    "published-256": published_large,
    "tiny": tiny,
}
