"""The compressive tokenizer of iVideoGPT: context frames in full, future frames in a few tokens, given the context.

A context frame becomes a grid of tokens on its own. A future frame becomes a grid a quarter as fine on each axis; its
encoder and decoder look at the context's maps through cross-attention, so that its tokens need to hold motion only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ideomotor.layers.attention import KeyValue
from ideomotor.layers.quantize import FSQ, EMACodebook, LearnedCodebook
from ideomotor.layers.resnet import FoldedUpsample, Upsample
from ideomotor.tokenizers.context_branches import Decoder, Encoder
from ideomotor.tokenizers.context_config import ContextVQGANConfig
from ideomotor.tokenizers.losses import Painted, Reconstruction, ReconstructionConfig, price
from ideomotor.types import Clip, Losses


class ContextTokens(NamedTuple):
    """What a clip becomes; ids of both kinds begin at 0. Row-major within a frame."""

    context: Int[Tensor, "b c n"]
    dynamics: Int[Tensor, "b f m"]


class ContextFeatures(NamedTuple):
    """What is kept of a context to paint any number of frames after it; the first axis of all is the batch."""

    pixels: Float[Tensor, "b c colour h w"]
    """The context frames as their tokens give them, in [0, 1] but not clamped."""
    memory: tuple[KeyValue, ...]
    ground: Float[Tensor, "b colour h w"] | None = None
    """The last context frame in [0, 1], onto which a residual tokenizer paints."""

    @property
    def frames(self) -> UInt8[Tensor, "b c colour h w"]:
        """The context frames as their tokens give them."""
        return to_uint8(self.pixels)

    def select(self, rows: Int[Tensor, " rows"]) -> ContextFeatures:
        """Returns those samples, in that order."""
        memory = tuple(KeyValue(past.key[rows], past.value[rows]) for past in self.memory)
        return ContextFeatures(self.pixels[rows], memory, None if self.ground is None else self.ground[rows])

    def repeat(self, times: int) -> ContextFeatures:
        """Returns each sample ``times`` times in a row, so that several futures share one past."""
        ground = None if self.ground is None else self.ground.repeat_interleave(times, 0)
        memory = tuple(past.repeat(times) for past in self.memory)
        return ContextFeatures(self.pixels.repeat_interleave(times, 0), memory, ground)


class ContextVQGAN(nn.Module):
    """Clips to tokens and back, in eval mode; in train mode the cross-attention has dropout and codebooks may move.

    Pixels are scaled to [0, 1] inside. What is painted is clamped and truncated to uint8, as published. Illegal ids
    and a context of another length are errors; the release clamps ids.

    Source: Wu et al. 2024 (iVideoGPT, arXiv 2405.15223), section 3.1, and its release.
    """

    def __init__(self, config: ContextVQGANConfig) -> None:
        super().__init__()
        self.config = config
        latent, width, cell = config.latent, config.code_width, config.latent * config.patch**2
        self.context_encoder = Encoder(config, conditional=False)
        self.context_decoder = Decoder(config, conditional=False)
        self.future_encoder = Encoder(config, conditional=True)
        self.future_decoder = Decoder(config, conditional=True)
        self.to_context, self.from_context = nn.Conv2d(latent, width, 1), nn.Conv2d(width, latent, 1)
        self.to_dynamics, self.from_dynamics = nn.Linear(cell, width), nn.Linear(width, cell)
        self.context_codebook = _codebook(config, config.context_codes)
        self.dynamics_codebook = _codebook(config, config.dynamics_codes)
        if config.residual:  # at the start what is painted is the ground
            nn.init.zeros_(self.future_decoder.conv_out.weight)
            nn.init.zeros_(self.future_decoder.conv_out.bias)  # type: ignore[arg-type]

    @property
    def context_codes(self) -> int:
        """Number of codes of context frames."""
        return self.context_codebook.size

    @property
    def dynamics_codes(self) -> int:
        """Number of codes of future frames."""
        return self.dynamics_codebook.size

    @property
    def context_grid(self) -> tuple[int, int]:
        """Rows and columns of a context frame's tokens."""
        return self.config.side, self.config.side

    @property
    def dynamics_grid(self) -> tuple[int, int]:
        """Rows and columns of a future frame's tokens."""
        return self.config.side // self.config.patch, self.config.side // self.config.patch

    @property
    def context_length(self) -> int:
        """Number of context frames."""
        return self.config.context_length

    @torch.no_grad()
    def tokenize(self, frames: UInt8[Tensor, "b t c h w"]) -> ContextTokens:
        """Returns the tokens of a clip, whose first ``context_length`` frames are the context; there may be no others.

        Raises:
            ValueError: the clip is shorter than the context, or its frames have another size.
        """
        self._check_clip(frames, future=0)
        samples, context = len(frames), self.context_length
        latents, maps = self._look(frames[:, :context])
        _, seen, _ = self.context_codebook(latents)
        seen = rearrange(seen, "(b c) h w -> b c (h w)", b=samples)
        if frames.shape[1] == context:
            rows, columns = self.dynamics_grid
            return ContextTokens(seen, seen.new_zeros(samples, 0, rows * columns))
        _, ids, _ = self.dynamics_codebook(self._compress(frames[:, context:], maps, frames[:, context - 1]))
        return ContextTokens(seen, rearrange(ids, "(b f) m -> b f m", b=samples))

    @torch.no_grad()
    def observe(
        self, context: Int[Tensor, "b c n"], last: UInt8[Tensor, "b colour h w"] | None = None
    ) -> ContextFeatures:
        """Returns the painted context, and what painting the frames after it needs.

        Args:
            context: tokens of the context frames.
            last: the last of these frames as it was seen, where that is known: a better ground for a residual tokenizer
                than the painted one.

        Raises:
            ValueError: an id is no code, or there are not ``context_length`` frames of whole grids.
        """
        rows, columns = self.context_grid
        if context.shape[1:] != (self.context_length, rows * columns):
            raise ValueError(
                f"context ids of shape {tuple(context.shape)}; wanted (batch, {self.context_length}, {rows * columns}):"
                f" give the tokens of {self.context_length} frames, or resize it (`ideomotor ivideogpt resize`)"
            )
        _check_ids(context, self.context_codes, "context")
        codes = self.context_codebook.lookup(rearrange(context, "b c (h w) -> (b c) h w", h=rows))
        return self._remember(codes, len(context), last)

    def paint(self, dynamics: Int[Tensor, "b f m"], features: ContextFeatures) -> UInt8[Tensor, "b f c h w"]:
        """Returns the frames after the context that those tokens stand for.

        Raises:
            ValueError: an id is no code, or the shape is not that of whole frames for each sample of ``features``.
        """
        return to_uint8(self.paint_pixels(dynamics, features))

    @torch.no_grad()
    def paint_pixels(self, dynamics: Int[Tensor, "b f m"], features: ContextFeatures) -> Float[Tensor, "b f c h w"]:
        """Returns the same frames as ``paint``, in [0, 1] but not clamped."""
        tokens = self.dynamics_grid[0] * self.dynamics_grid[1]
        if dynamics.ndim != 3 or dynamics.shape[0] != len(features.pixels) or dynamics.shape[2] != tokens:
            raise ValueError(
                f"dynamics ids of shape {tuple(dynamics.shape)}; wanted ({len(features.pixels)}, frames, {tokens}): "
                "one row a sample of the features (their select and repeat change the batch)"
            )
        _check_ids(dynamics, self.dynamics_codes, "dynamics")
        size = self.config.size
        if not dynamics.shape[1]:
            return features.pixels.new_zeros(len(dynamics), 0, 3, size, size)
        codes = self.dynamics_codebook.lookup(rearrange(dynamics, "b f m -> (b f) m"))
        painted = self._unfold(codes, features, len(dynamics))
        return rearrange(painted, "(b f) c h w -> b f c h w", b=len(dynamics)).float()

    def forward(self, clip: Clip) -> Losses:
        """Returns pixel errors and commitments over every camera; perception and critic: ``tokenizers.critic``."""
        reconstruction = self.reconstruct(torch.cat(list(clip.frames.values())))
        return price(reconstruction, (self.context_codes, self.dynamics_codes), ReconstructionConfig(), None).losses

    def reconstruct(self, frames: UInt8[Tensor, "b t c h w"]) -> Reconstruction:
        """Returns the clip as it comes back from its codes, with gradients."""
        self._check_clip(frames, future=1)
        context = self.context_length
        latents, maps = self._look(frames[:, :context])
        codes, ids, commitment = self.context_codebook(latents)
        last = frames[:, context - 1]
        dynamics, future_ids, future_commitment = self.dynamics_codebook(
            self._compress(frames[:, context:], maps, last)
        )
        features = self._remember(codes, len(frames), last)
        painted = self._unfold(dynamics, features, len(frames))
        true = _unit(rearrange(frames[:, :context], "b c colour h w -> (b c) colour h w"))
        future = _unit(rearrange(frames[:, context:], "b f c h w -> (b f) c h w"))
        before = _unit(last).repeat_interleave(frames.shape[1] - context, 0)
        return Reconstruction(
            Painted(true, features.pixels.flatten(0, 1), commitment, ids.flatten(1)),
            Painted(future, painted, future_commitment, future_ids),
            (future - before).abs().amax(1, keepdim=True),
            dynamics.square().mean(),
        )

    def _look(self, context: UInt8[Tensor, "b c colour h w"]) -> tuple[Float[Tensor, "frames h w d"], list[Tensor]]:
        """Latents of the context frames before quantization, and the maps for the conditional encoder."""
        latents, maps = self.context_encoder(self._scaled(context))
        return rearrange(self.to_context(latents), "frames d h w -> frames h w d"), maps

    def _compress(
        self, future: UInt8[Tensor, "b f c h w"], maps: list[Tensor], last: UInt8[Tensor, "b c h w"]
    ) -> Float[Tensor, "frames m d"]:
        """Latents of the future frames before quantization; ``last`` is the last context frame."""
        shown = self._scaled(future)
        if self.config.residual:
            shown = shown - self._scaled(last[:, None].expand_as(future))
        latents, _ = self.future_encoder(shown, self.future_encoder.remember(maps))
        patch = self.config.patch
        cells = rearrange(latents, "frames d (h y) (w x) -> frames (h w) (y x d)", y=patch, x=patch)
        return self.to_dynamics(cells)

    def _remember(
        self, codes: Float[Tensor, "frames h w d"], samples: int, last: UInt8[Tensor, "b c h w"] | None
    ) -> ContextFeatures:
        latents = self.from_context(rearrange(self._cast(codes), "frames h w d -> frames d h w"))
        pixels, maps = self.context_decoder(latents)
        painted = rearrange(pixels, "(b c) colour h w -> b c colour h w", b=samples).float()
        ground = None
        if self.config.residual:
            ground = painted[:, -1].clamp(0, 1) if last is None else _unit(last)
        return ContextFeatures(painted, self.future_decoder.remember(maps), ground)

    def _unfold(
        self, codes: Float[Tensor, "frames m d"], features: ContextFeatures, samples: int
    ) -> Float[Tensor, "frames _ h w"]:
        patch = self.config.patch
        cells = self.from_dynamics(self._cast(codes))
        latents = rearrange(
            cells, "frames (h w) (y x d) -> frames d (h y) (w x)", h=self.dynamics_grid[0], y=patch, x=patch
        )
        painted = self.future_decoder(latents, features.memory)[0]
        if features.ground is None:
            return painted
        return painted.float() + features.ground.repeat_interleave(len(painted) // samples, 0)

    def _scaled(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "frames c h w"]:
        return self._cast(_unit(rearrange(frames, "b t c h w -> (b t) c h w")))

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.to_dynamics.weight.dtype)

    def _check_clip(self, frames: Tensor, future: int) -> None:
        size, wanted = self.config.size, self.context_length + future
        if frames.ndim != 5 or frames.shape[2:] != (3, size, size):
            raise ValueError(
                f"frames of shape {tuple(frames.shape)}; wanted (batch, frames, 3, {size}, {size}): resize them"
            )
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames of {frames.dtype}; wanted uint8 in 0..255")
        if frames.shape[1] < wanted:
            raise ValueError(
                f"a clip of {frames.shape[1]} frames; a context of {self.context_length} and {future} future frames "
                f"need {wanted}: lengthen the window, or `ideomotor ivideogpt resize` the tokenizer"
            )


def in_bf16(tokenizer: ContextVQGAN) -> ContextVQGAN:
    """Returns a copy in eval mode that computes in bf16, and chooses among float32 codes; for speed, not for training.

    A few tokens differ from float32's, where two codes are nearly as close.
    """
    fast = copy.deepcopy(tokenizer)
    for decoder in (fast.context_decoder, fast.future_decoder):
        for i, part in enumerate(decoder.upsamples):
            if isinstance(part, Upsample):
                decoder.upsamples[i] = FoldedUpsample(part)
    # Channels last, which bf16 convolutions want on a CPU. Not for float32: torch's group norm sums squares in one pass
    # there, and loses three digits on 256 x 256 maps, which changes tokens.
    fast = fast.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast.context_codebook = copy.deepcopy(tokenizer.context_codebook)
    fast.dynamics_codebook = copy.deepcopy(tokenizer.dynamics_codebook)
    return fast.eval()


def resize_context(
    state: Mapping[str, Tensor], config: ContextVQGANConfig, context_length: int
) -> tuple[dict[str, Tensor], ContextVQGANConfig]:
    """Returns a tokenizer's state and config for another number of context frames.

    Only the context's position tables depend on that number. The newest frames keep their rows. A shorter context
    drops the rows of the oldest frames, as published; in a longer one each new frame, older than all others, begins
    with a copy of the rows of the oldest known one, so that to shorten it again gives the weights it came from. A
    grown tokenizer runs at once, and wants fine-tuning: attention is now shared among more keys.
    """
    if context_length < 1:
        raise ValueError(f"a context of {context_length} frames; wanted at least 1")
    grown = dict(state)
    for name, table in state.items():
        if name.endswith(".context_positions"):
            rows = rearrange(table, "(c n) d -> c n d", c=config.context_length)
            older = rows[:1].expand(max(0, context_length - len(rows)), -1, -1)
            grown[name] = torch.cat([older, rows[-context_length:]]).flatten(0, 1)
    return grown, replace(config, context_length=context_length)


def to_uint8(pixels: Float[Tensor, " *shape"]) -> UInt8[Tensor, " *shape"]:
    """Returns pixels of [0, 1] as uint8: clamped and truncated, as published."""
    return (pixels.clamp(0, 1) * 255).to(torch.uint8)


def _unit(frames: UInt8[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    return frames.float() / 255


def _check_ids(ids: Int[Tensor, " *shape"], size: int, kind: str) -> None:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
        wrong = ids[(ids < 0) | (ids >= size)]
        raise ValueError(
            f"{len(wrong)} {kind} ids are no codes, the first is {int(wrong[0])}; wanted 0..{size - 1}: take offsets "
            "and slot tokens off, and let the world model choose among legal ids only"
        )


def _codebook(config: ContextVQGANConfig, size: int) -> LearnedCodebook | EMACodebook | FSQ:
    if config.codebook == "fsq":
        return FSQ(config.levels)
    if config.codebook == "ema":
        return EMACodebook(size, config.code_width, commitment=config.commitment)
    return LearnedCodebook(size, config.code_width, commitment=config.commitment)
