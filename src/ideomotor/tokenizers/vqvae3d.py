"""A convolutional VQ-VAE over short clips: a few frames become one grid of tokens, and come back.

The grid is a setting (strides on time, height, width), the codebook is a setting (learned by running averages, or FSQ),
and the reconstruction may weight what moves, so that small objects are not averaged away.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ideomotor.layers.conv import Fold, Unfold
from ideomotor.layers.quantize import FSQ, EMACodebook
from ideomotor.types import Clip, Losses


@dataclass(frozen=True, kw_only=True)
class VQVAE3DConfig:
    """Grid, sizes and codebook of the tokenizer.

    Attributes:
        strides: by how much time, height and width shrink; powers of two. A latent frame stands for ``strides[0]``
            frames.
        patch: how much of the strides is done first, by folding pixels into channels (cheap); the rest are halvings.
        widths: channels of the first convolution and after each halving.
        blocks: residual blocks at the coarsest grid, on each side.
        codebook: "fsq" (fixed grid of codes, nothing to collapse) or "ema" (learned, restarts of unused codes).
        levels: FSQ's steps a channel; their product is the vocabulary.
        codes, code_width: size of the learned codebook.
        motion_weight: a pixel's squared error counts ``1 + motion_weight * m`` with m in [0, 1] its distance from the
            clip's mean frame, as a share of full scale.
    """

    strides: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (4, 4, 4)
    widths: tuple[int, ...] = (128, 192)
    blocks: int = 2
    codebook: Literal["fsq", "ema"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)
    codes: int = 1024
    code_width: int = 64
    motion_weight: float = 20.0
    commitment: float = 0.25

    def __post_init__(self) -> None:
        for stride, patch in zip(self.strides, self.patch, strict=True):
            if min(stride, patch) < 1 or stride & (stride - 1) or patch & (patch - 1) or patch > stride:
                raise ValueError(
                    f"strides {self.strides} and patch {self.patch} must be powers of two, no patch above its stride"
                )
        if min(self.widths) < 1 or self.blocks < 0 or min(self.levels) < 2 or not 0 <= self.motion_weight < math.inf:
            raise ValueError(
                f"widths {self.widths} must be at least 1, blocks {self.blocks} at least 0, levels {self.levels} at "
                f"least 2, motion_weight {self.motion_weight} a number of at least 0"
            )
        if len(self.widths) != len(self.halvings) + 1:
            raise ValueError(
                f"strides {self.strides} after patch {self.patch} need {len(self.halvings)} halvings, so "
                f"{len(self.halvings) + 1} widths; {len(self.widths)} were given"
            )

    @property
    def halvings(self) -> list[tuple[int, int, int]]:
        """What is left of the strides after the patch, in steps of at most two an axis."""
        left = [stride // patch for stride, patch in zip(self.strides, self.patch, strict=True)]
        steps = []
        while max(left) > 1:
            step = (min(left[0], 2), min(left[1], 2), min(left[2], 2))
            left = [rest // part for rest, part in zip(left, step, strict=True)]
            steps.append(step)
        return steps


class VQVAE3D(nn.Module):
    """Clips to tokens and back. Source: VideoGPT (2104.10157) as VPDD uses it; here without attention, and causal in
    nothing.
    """

    def __init__(self, config: VQVAE3DConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = (
            FSQ(config.levels)
            if config.codebook == "fsq"
            else EMACodebook(config.codes, config.code_width, commitment=config.commitment)
        )
        first, wide = config.widths[0], config.widths[-1]
        down: list[nn.Module] = [Fold(3, first, config.patch), _Residual(first)]
        up: list[nn.Module] = [_linear(self.codebook.width, wide)] + [_Residual(wide) for _ in range(config.blocks)]
        for step, before, after in zip(config.halvings, config.widths[:-1], config.widths[1:], strict=True):
            down += [nn.SiLU(), Fold(before, after, step)]
        for step, before, after in zip(config.halvings[::-1], config.widths[:0:-1], config.widths[-2::-1], strict=True):
            up += [nn.SiLU(), Unfold(before, after, step)]
        down += [_Residual(wide) for _ in range(config.blocks)] + [nn.SiLU(), _linear(wide, self.codebook.width)]
        up += [_Residual(first), nn.SiLU(), Unfold(first, 3, config.patch)]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up)

    @property
    def vocab(self) -> int:
        """Number of codes."""
        return self.codebook.size

    @property
    def frames_per_latent(self) -> int:
        """How many frames one latent frame stands for."""
        return self.config.strides[0]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a latent frame's tokens."""
        _, rows, columns = self.config.strides
        if height % rows or width % columns:
            raise ValueError(
                f"frames of {height}x{width} do not divide into cells of {rows}x{columns}: resize them to multiples "
                "of the strides"
            )
        return height // rows, width // columns

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b latent n"]:
        """Returns the tokens, row-major within a latent frame."""
        _, ids, _ = self.codebook(self._embed(self._latent_frames(frames)))  # (b latent) 1 h w
        return rearrange(ids, "(b latent) 1 h w -> b latent (h w)", b=len(frames))

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "b latent n"], grid: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "b t c h w"]:
        """Returns the video those tokens stand for; ``grid`` is needed where it is not square."""
        rows, columns = grid or (round(tokens.shape[-1] ** 0.5),) * 2
        if rows * columns != tokens.shape[-1]:
            raise ValueError(
                f"{tokens.shape[-1]} tokens a latent frame do not fill a grid of {rows}x{columns}: give the grid"
            )
        codes = self.codebook.lookup(rearrange(tokens, "b latent (h w) -> (b latent) 1 h w", h=rows))
        video = ((self._paint(codes) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(video, "(b latent) t c h w -> b (latent t) c h w", b=len(tokens))

    def forward(self, clip: Clip) -> Losses:
        """Returns the reconstruction loss over every camera of the clip, and the codebook's health."""
        frames = torch.cat(list(clip.frames.values()))
        return self.loss(self._latent_frames(frames))

    def loss(self, frames: UInt8[Tensor, "b t c h w"]) -> Losses:
        """Returns the motion-weighted squared error (pixels in [-1, 1]) plus the codebook's commitment."""
        target = _scaled(frames)
        quantized, ids, commitment = self.codebook(self._embed(frames))
        error = (self._paint(quantized).float() - target).square()
        motion = (target - target.mean(1, keepdim=True)).abs().amax(2, keepdim=True) / 2  # b t 1 h w, 0..1
        weight = 1 + self.config.motion_weight * motion
        reconstruction = (error * weight).sum() / (weight.sum() * error.shape[2])
        usage = torch.bincount(ids.flatten(), minlength=self.vocab).count_nonzero() / self.vocab
        psnr = -10 * (error.detach().mean() / 4).log10()
        return Losses(
            total=reconstruction + commitment.float(),
            terms={
                "reconstruction": reconstruction.detach(),
                "commitment": commitment.detach().float(),
                "psnr": psnr,
                "codes_in_batch": usage,
            },
        )

    def _latent_frames(self, frames: UInt8[Tensor, "b t c h w"]) -> UInt8[Tensor, "latents t c h w"]:
        """Each latent frame is coded on its own: what is seen knows nothing of what follows, as none can who acts."""
        if frames.shape[1] % self.frames_per_latent:
            raise ValueError(
                f"{frames.shape[1]} frames do not divide into latent frames of {self.frames_per_latent}: "
                "take a window whose length is a multiple"
            )
        return rearrange(frames, "b (latent t) c h w -> (b latent) t c h w", t=self.frames_per_latent)

    def _embed(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b latent h w d"]:
        self.grid(*frames.shape[-2:])
        pixels = rearrange(_scaled(frames), "b t c h w -> b c t h w")
        return rearrange(self.encoder(pixels), "b d t h w -> b t h w d")

    def _paint(self, codes: Float[Tensor, "b latent h w d"]) -> Float[Tensor, "b t c h w"]:
        return rearrange(self.decoder(rearrange(codes, "b t h w d -> b d t h w")), "b c t h w -> b t c h w")


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv3d(width, width // 2, (1, 3, 3), padding=(0, 1, 1)),
            nn.GroupNorm(4, width // 2), nn.SiLU(), nn.Conv3d(width // 2, width, 1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        return x + self.body(x)


def _scaled(frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    return frames.float() / 127.5 - 1


def _linear(before: int, after: int) -> Fold:
    """A linear map at every place."""
    return Fold(before, after, (1, 1, 1))
