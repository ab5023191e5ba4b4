"""Settings of the compressive tokenizer: the two published sizes, and one for a CPU."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ContextVQGANConfig:
    """Sizes of the tokenizer; the defaults are those published for 64 px.

    Attributes:
        size: rows and columns of a frame, in pixels.
        context_length: frames that are coded in full; the frames after them are coded given these.
        fold: rows and columns of pixels that are folded into channels before the first convolution, and unfolded
            behind the last: most of the cost lies at the finest resolution, where there is little to compute. 1 is the
            published form.
        widths: channels at each resolution, beginning with the (folded) frame's; each but the first halves it.
        blocks: residual blocks at each resolution of an encoder; a decoder has one more.
        latent: channels at the coarsest resolution.
        patch: rows and columns of latents that share one token in a future frame.
        codebook: "learned" (by gradient, as published), "ema" (running averages, unused codes restarted) or "fsq" (a
            fixed grid of codes, nothing to collapse). Both codebooks are of that kind.
        context_codes, dynamics_codes: sizes of the codebooks, where they are not FSQ.
        levels: FSQ's steps a channel; their product is the size of either codebook.
        commitment: weight of the loss that draws latents to their codes.
        norm_groups: of every group norm.
        heads: of the cross-attention.
        attention_limit: future frames attend to the context where maps have at most so many rows.
        dropout: of the cross-attention, in training.
        middle_attention: the context's own branch has attention too, at its coarsest resolution.
        symmetric: the decoder attends to the context at the resolutions where the encoder does. False is the published
            form, which attends after each upsampling instead, and so misses one of them.
        residual: future frames are told and painted as what differs from the last context frame. Where a camera stands
            still, their tokens then need not hold the scene, and painting begins as good as repeating that frame.
    """

    size: int = 64
    context_length: int = 2
    fold: int = 1
    widths: tuple[int, ...] = (128, 256, 512)
    blocks: int = 2
    latent: int = 64
    patch: int = 4
    codebook: Literal["learned", "ema", "fsq"] = "learned"
    context_codes: int = 8192
    dynamics_codes: int = 8192
    levels: tuple[int, ...] = (8, 8, 8, 4, 4)
    commitment: float = 1.0
    norm_groups: int = 32
    heads: int = 4
    attention_limit: int = 16
    dropout: float = 0.1
    middle_attention: bool = False
    symmetric: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        sizes = (self.size, self.context_length, self.fold, len(self.widths), *self.widths, self.blocks, self.latent)
        counts = (self.patch, self.context_codes, self.dynamics_codes, self.norm_groups, self.heads)
        if min(*sizes, *counts) < 1 or not 0 <= self.dropout < 1 or self.commitment < 0:
            raise ValueError(f"sizes must be at least 1, dropout in [0, 1), commitment not below 0: {self}")
        if self.codebook not in ("learned", "ema", "fsq"):
            raise ValueError(f"codebook is {self.codebook!r}; wanted 'learned', 'ema' or 'fsq'")
        cell = self.fold * 2 ** (len(self.widths) - 1) * self.patch
        if self.size % cell:
            raise ValueError(
                f"frames of {self.size} px do not divide into cells of {cell} (fold {self.fold}, {len(self.widths)} "
                f"widths, patch {self.patch}): choose a multiple, or fewer widths"
            )
        odd = [width for width in self.widths if width % self.norm_groups or width % self.heads]
        if odd:
            raise ValueError(f"widths {odd} must be multiples of norm_groups={self.norm_groups} and heads={self.heads}")

    @property
    def side(self) -> int:
        """Rows (and columns) of the latent grid."""
        return self.size // self.fold // 2 ** (len(self.widths) - 1)

    @property
    def num_codes(self) -> tuple[int, int]:
        """Codes of context frames and of future frames."""
        fsq = math.prod(self.levels)
        return (fsq, fsq) if self.codebook == "fsq" else (self.context_codes, self.dynamics_codes)

    @property
    def code_width(self) -> int:
        """Numbers in a code."""
        return len(self.levels) if self.codebook == "fsq" else self.latent


def published_64(context_length: int = 2) -> ContextVQGANConfig:
    """Returns the published form for 64 px: 114,159,174 parameters with two context frames."""
    return ContextVQGANConfig(context_length=context_length)


def published_256(context_length: int = 2) -> ContextVQGANConfig:
    """Returns the published form for 256 px: 310,472,774 parameters with two context frames."""
    return ContextVQGANConfig(
        size=256, widths=(128, 256, 256, 512, 768), attention_limit=32, context_length=context_length
    )


def small_64(context_length: int = 2) -> ContextVQGANConfig:
    """Returns a form for 64 px that a CPU can train: same grids, narrow, with codebooks that restart unused codes."""
    return ContextVQGANConfig(
        widths=(32, 64, 96),
        blocks=1,
        latent=16,
        norm_groups=8,
        codebook="ema",
        context_codes=512,
        dynamics_codes=512,
        commitment=0.25,
        context_length=context_length,
    )
