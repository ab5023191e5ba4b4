"""VPDD: foretell video by discrete diffusion, learned from video without actions; then act on what is foretold.

Source: "Learning an Actionable Discrete Diffusion Policy via Large-Scale Actionless Video Pre-Training" (2402.14407),
in a fast form: masked tokens instead of 100 posterior steps, a plain transformer instead of the Perceiver, pixels of
the policy's own. The way of the data can be read from top to bottom: tokenizer, pre-training, fine-tuning; acting is in
``systems.vpdd_agent``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ideomotor.data.transforms import color_jitter, random_shift
from ideomotor.data.windows import WindowConfig
from ideomotor.diffusion.discrete import cosine_ratio
from ideomotor.layers.conv import PixelStemConfig
from ideomotor.layers.transformer import TransformerConfig
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.optim import OptimConfig
from ideomotor.types import DOMAINS, Borrowed, Clip, Losses

TextEncoder = Callable[[Sequence[str]], Float[Tensor, "b d"]]
VIEW = "main"  # the first camera of this system, whatever a data set calls it
Dial = Literal["none", "features", "half", "full"]
"""The imagine dial: no foresight; that of one pass over an unknown future; of a future decoded in half of
``imagine_steps`` passes; of one decoded in all of them, as a video."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How long and how a network is trained."""

    steps: int
    batch: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)
    every: int = 1  # a window starts at every how many frames

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.every) < 1:
            raise ValueError(f"steps {self.steps}, batch {self.batch}, every {self.every} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class VPDD:
    """Everything about one VPDD: what it looks at, its networks, and its stages.

    Attributes:
        size: frames of a camera are squares of that many pixels.
        views: cameras. Each is coded by itself; predictor and policy see all of them, one above the other.
        window: what is seen, what is foretold, and how far apart frames are (in frames of the robot's data).
        execute: actions of a chunk that are carried out before looking again.
        ensemble: decay with which overlapping chunks are averaged (``TemporalEnsemble``); None for the newest alone.
        action_steps: denoising passes for a chunk of actions.
        imagine_steps: denoising passes for the tokens of an imagined video.
        shift: pixels by which the policy's pictures are moved at random in training.
        jitter: strength of random colour changes in training, 0 for none.
        reveal: share of fine-tuning samples that are shown a part of the true future, so that the policy can also act
            on a future that is wholly or partly decoded.
        dial: how far the policy imagines before it acts: see ``Dial``.
        save_every: training steps after which a stage's state is saved.
        text: "sentence" (the packaged MiniLM, 384 wide), "hashed" (no weights; for tests), or a folder with CLIP
            in the transformers layout (its projection_dim is then ``text_width`` of predictor and policy).
    """

    size: int = 96
    views: int = 1
    window: WindowConfig = field(
        default_factory=lambda: WindowConfig(context=4, horizon=4, stride=4, chunk=8, outlook=22)
    )
    execute: int = 4
    ensemble: float | None = None
    action_steps: int = 2
    imagine_steps: int = 8
    shift: int = 4
    jitter: float = 0.0
    reveal: float = 0.2
    dial: Dial = "features"
    save_every: int = 200
    text: str = "sentence"
    tokenizer: VQVAE3DConfig = field(default_factory=VQVAE3DConfig)
    predictor: DiscreteDiffusionPredictorConfig = field(
        default_factory=lambda: DiscreteDiffusionPredictorConfig(
            domains=len(DOMAINS), trunk=TransformerConfig(width=192, layers=4, heads=4)
        )
    )
    policy: DiscreteDiffusionPolicyConfig = field(
        default_factory=lambda: DiscreteDiffusionPolicyConfig(foresight_dropout=0.5, outlook=3.0)
    )
    # A window is two clips of the tokenizer, its context and its horizon: 16 windows are 32 clips.
    tokenizer_stage: Stage = field(
        default_factory=lambda: Stage(steps=600, batch=16, optim=OptimConfig(lr=1e-3, warmup=50, bf16=True))
    )
    pretrain_stage: Stage = field(
        default_factory=lambda: Stage(
            steps=600, batch=64, every=2, optim=OptimConfig(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98), bf16=True)
        )
    )
    finetune_stage: Stage = field(
        default_factory=lambda: Stage(
            steps=2400, batch=32, optim=OptimConfig(lr=1e-3, weight_decay=0.05, ema=0.995, bf16=True)
        )
    )

    def __post_init__(self) -> None:
        if min(self.action_steps, self.imagine_steps, self.save_every) < 1 or self.shift < 0:
            raise ValueError(
                f"action_steps {self.action_steps}, imagine_steps {self.imagine_steps} and save_every "
                f"{self.save_every} must be at least 1, shift {self.shift} at least 0"
            )
        if not (0 <= self.jitter <= 1 and 0 <= self.reveal <= 1):
            raise ValueError(f"jitter {self.jitter} and reveal {self.reveal} must lie in [0, 1]")
        window, per_latent = self.window, self.tokenizer.strides[0]
        for name, frames, latents in (
            ("context", window.context, self.predictor.context_latents),
            ("horizon", window.horizon, self.predictor.latents),
        ):
            if frames != latents * per_latent:
                raise ValueError(
                    f"{name} {frames} frames is not {latents} latent frames of {per_latent}: change the window, the "
                    "predictor's latents, or the tokenizer's strides"
                )
        if not 1 <= self.execute <= window.chunk or self.policy.chunk != window.chunk:
            raise ValueError(
                f"chunk is {window.chunk} in the window and {self.policy.chunk} in the policy (they must agree), and "
                f"execute {self.execute} must lie in 1..chunk"
            )
        if (window.outlook > 0) != (self.policy.outlook > 0):
            raise ValueError(
                f"the window has {window.outlook} actions behind the chunk and the policy an outlook of weight "
                f"{self.policy.outlook}: set both --window.outlook and --policy.outlook above 0, or both to 0"
            )
        vocab = math.prod(self.tokenizer.levels) if self.tokenizer.codebook == "fsq" else self.tokenizer.codes
        if self.predictor.vocab != vocab:
            raise ValueError(
                f"the tokenizer has {vocab} codes, the predictor {self.predictor.vocab}: set --predictor.vocab {vocab}"
            )
        if self.ensemble is not None and self.execute == window.chunk:
            raise ValueError(
                f"all {self.execute} actions of a chunk are executed, so no chunks overlap: take a smaller execute, or "
                "set ensemble to none"
            )
        foresight = (self.predictor.latents * self.predictor.positions, self.predictor.trunk.width)
        if self.policy.features not in ((0, 0), foresight):
            raise ValueError(
                f"the predictor gives {foresight[0]} features of width {foresight[1]}, the policy expects "
                f"{self.policy.features}: set --policy.features {foresight[0]} {foresight[1]}, or 0 0 for none"
            )
        grid = (self.views * (self.size // self.tokenizer.strides[1]), self.size // self.tokenizer.strides[2])
        views = {self.predictor.views, self.policy.views}
        if self.predictor.grid != grid or views != {self.views} or self.policy.pixels != self.size:
            raise ValueError(
                f"frames of {self.size} px give a grid of {grid} for {self.views} views; the predictor has "
                f"{self.predictor.grid} for {self.predictor.views}, and the policy {self.policy.pixels} px and "
                f"{self.policy.views} views: set all of them"
            )


def view_names(views: int) -> tuple[str, ...]:
    """Returns what clips call the cameras of this system."""
    return (VIEW, *(f"view{number}" for number in range(1, views)))


def seen_frames(clip: Clip, views: int) -> UInt8[Tensor, "b t c h w"]:
    """Returns the frames of all views, one above the other.

    Raises:
        ValueError: the clip lacks a view.
    """
    names = view_names(views)
    absent = [name for name in names if name not in clip.frames]
    if absent:
        raise ValueError(
            f"the clip has views {list(clip.frames)} and lacks {absent}: call the cameras {', '.join(names)}"
        )
    return torch.cat([clip.frames[name] for name in names], -2)


def encode(tokenizer: VQVAE3D, frames: UInt8[Tensor, "b t c h w"], views: int) -> Int[Tensor, "b latent n"]:
    """Returns the tokens of views that stand one above the other, each coded by itself."""
    tokens = tokenizer.encode(rearrange(frames, "b t c (view h) w -> (b view) t c h w", view=views))
    return rearrange(tokens, "(b view) latent n -> b latent (view n)", view=views)


def decode(
    tokenizer: VQVAE3D, tokens: Int[Tensor, "b latent n"], grid: tuple[int, int], views: int
) -> UInt8[Tensor, "b t c h w"]:
    """Returns the video of all views, one above the other; ``grid`` is that of all."""
    single = rearrange(tokens, "b latent (view n) -> (b view) latent n", view=views)
    video = tokenizer.decode(single, (grid[0] // views, grid[1]))
    return rearrange(video, "(b view) t c h w -> b t c (view h) w", view=views)


class VideoDenoising(nn.Module):
    """Actionless clip -> tokens -> masked future tokens -> the tokens themselves."""

    def __init__(self, predictor: DiscreteDiffusionPredictor, tokenizer: VQVAE3D, text: TextEncoder) -> None:
        super().__init__()
        self.predictor, self.tokenizer, self.text = predictor, Borrowed(tokenizer), text

    def forward(self, clip: Clip) -> Losses:
        """Returns the masked cross-entropy of the future."""
        tokens = tokens_of(clip, self.tokenizer.module, self.predictor.config.views)  # b latent n
        context = self.predictor.config.context_latents
        text = self.text(clip.text).to(tokens.device)
        return self.predictor.loss(tokens[:, :context], tokens[:, context:], text, clip.domain)


class ActionDenoising(nn.Module):
    """Clip with actions -> foretold features, and pixels -> masked action tokens -> the actions themselves."""

    def __init__(
        self,
        policy: DiscreteDiffusionPolicy,
        predictor: DiscreteDiffusionPredictor | None,
        tokenizer: VQVAE3D | None,
        text: TextEncoder,
        context: int,
        shift: int,
        jitter: float,
        reveal: float = 0.0,
    ) -> None:
        super().__init__()
        self.policy, self.text, self.context, self.shift, self.jitter = policy, text, context, shift, jitter
        self.reveal = reveal
        self.predictor = None if predictor is None else Borrowed(predictor)
        self.tokenizer = None if tokenizer is None else Borrowed(tokenizer)

    def forward(self, clip: Clip) -> Losses:
        """Returns the masked cross-entropy of the recorded actions."""
        if clip.actions is None:
            raise ValueError("a clip without actions came to fine-tuning: give demonstrations, not actionless video")
        text = self.text(clip.text).to(clip.actions.device)
        features = None
        if self.predictor is not None and self.tokenizer is not None:
            with torch.no_grad():
                features = self._foresight(clip, text)
        chance = torch.default_generator  # the learner seeds it anew at every step
        moved = []
        for name in view_names(self.policy.config.views):
            newest = clip.frames[name][:, : self.context]  # what follows is the future
            moved.append(random_shift(newest[:, -self.policy.config.stem.frames :], self.shift, chance))
        frames = torch.cat(moved, -2)
        if self.jitter > 0:
            frames = color_jitter(frames, self.jitter, self.jitter, self.jitter, chance)
        return self.policy.loss(frames, features, text, clip.actions, clip.action_mask, clip.proprio)

    def _foresight(self, clip: Clip, text: Float[Tensor, "b d"]) -> Float[Tensor, "b m d"]:
        """The features of an unknown future; for some samples (``reveal``) of one that is partly known."""
        assert self.predictor is not None and self.tokenizer is not None
        predictor = self.predictor.module
        if self.reveal == 0:
            seen = context_tokens(clip, self.tokenizer.module, predictor)
            return predictor.features(seen, text, domain=clip.domain)
        latents = predictor.config.context_latents
        tokens = tokens_of(clip, self.tokenizer.module, predictor.config.views)
        shown = torch.rand(len(text)) < self.reveal
        ratio = torch.where(shown, cosine_ratio(torch.rand(len(text))), 1.0)
        future = predictor.noised(tokens[:, latents:], ratio.to(tokens.device))
        return predictor.features(tokens[:, :latents], text, future, clip.domain)


def tokens_of(clip: Clip, tokenizer: VQVAE3D, views: int = 1) -> Int[Tensor, "b latent n"]:
    """Returns the clip's tokens of all views, from the cache where it has them."""
    if clip.tokens is not None:
        return torch.cat([clip.tokens[name] for name in view_names(views)], -1).long()
    return encode(tokenizer, seen_frames(clip, views), views)


def context_tokens(clip: Clip, tokenizer: VQVAE3D, predictor: DiscreteDiffusionPredictor) -> Int[Tensor, "b latent n"]:
    """Returns the tokens of the clip's context, from the cache where it has them."""
    latents, views = predictor.config.context_latents, predictor.config.views
    if clip.tokens is not None:
        return tokens_of(clip, tokenizer, views)[:, :latents]
    return encode(tokenizer, seen_frames(clip, views)[:, : latents * tokenizer.frames_per_latent], views)


def fast() -> VPDD:
    """The default: minutes on two cores; what the quickstart trains."""
    return VPDD()


def tiny() -> VPDD:
    """Seconds on one core; for tests and for trying a pipeline out. It learns, but not well."""
    trunk = TransformerConfig(width=32, layers=2, heads=2)
    stage = Stage(steps=20, batch=8, optim=OptimConfig(lr=2e-3, warmup=4), every=4)
    return VPDD(
        size=32,
        save_every=5,
        text="hashed",
        tokenizer=VQVAE3DConfig(widths=(16, 16), blocks=1, levels=(5, 5, 5)),
        predictor=DiscreteDiffusionPredictorConfig(vocab=125, grid=(4, 4), domains=len(DOMAINS), trunk=trunk),
        policy=DiscreteDiffusionPolicyConfig(
            bins=16, features=(4, 32), pixels=32, squeeze=8, read_tokens=2, noisings=2, foresight_dropout=0.1,
            outlook=1.0, stem=PixelStemConfig(widths=(16, 16)), trunk=replace(trunk, dropout=0.0),
        ),
        tokenizer_stage=stage, pretrain_stage=stage, finetune_stage=stage,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], VPDD]] = {"fast": fast, "tiny": tiny}
