"""Convolutional parts: folding instead of strides, a residual block, and the stem with which a policy looks at pixels.

Resolution changes by folding neighbours into channels and a linear map, not by strided convolutions: a matrix product
is quicker, and the backward pass of a strided bf16 convolution on two CPU threads stalls for half a second whenever
another process wants a core (docs/log.md, 2026-11-21). Where no gradient is wanted, a CPU folds by such a convolution
all the same: it saves writing the folded map, which in a batch takes longer than the product.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PixelStemConfig:
    """A small convolutional encoder of the newest frames of one camera.

    Attributes:
        frames: how many of the newest frames are stacked on the colour axis.
        patch: pixels of a patch's side are folded into channels first, which is cheap and loses nothing.
        widths: channels at the patch's resolution, and after each halving of it.
        blocks: residual blocks at each resolution after the first, which has one.
    """

    frames: int = 1
    patch: int = 4
    widths: tuple[int, ...] = (64, 128, 128)
    blocks: int = 1


class Fold(nn.Module):
    """Folds ``step`` neighbours an axis into channels and maps them linearly: resolution down, channels free."""

    def __init__(self, before: int, after: int, step: tuple[int, ...]) -> None:
        super().__init__()
        self.step = step
        self.linear = nn.Linear(before * math.prod(step), after)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b d *folded"]:
        """Returns the coarser map.

        Raises:
            ValueError: a side is no multiple of its step.
        """
        if any(side % by for side, by in zip(x.shape[2:], self.step, strict=True)):
            raise ValueError(
                f"a map of {tuple(x.shape[2:])} is not divisible by steps of {self.step}: pad or resize it"
            )
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._folded_at_once(x)
        if len(self.step) == 2:
            folded = rearrange(x, "b c (h y) (w x) -> b h w (c y x)", y=self.step[0], x=self.step[1])
            return rearrange(self.linear(folded), "b h w d -> b d h w")
        time, rows, columns = self.step
        folded = rearrange(x, "b c (t z) (h y) (w x) -> b t h w (c z y x)", z=time, y=rows, x=columns)
        return rearrange(self.linear(folded), "b t h w d -> b d t h w")

    def _folded_at_once(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b d *folded"]:
        weight = self.linear.weight.unflatten(1, (x.shape[1], *self.step))  # d c *step
        if len(self.step) == 2:
            return F.conv2d(x, weight, self.linear.bias, self.step)
        return F.conv3d(x, weight, self.linear.bias, self.step)


class Unfold(nn.Module):
    """The way back: a linear map to ``step`` neighbours an axis, unfolded: resolution up (time, height, width)."""

    def __init__(self, before: int, after: int, step: tuple[int, int, int]) -> None:
        super().__init__()
        self.step = step
        self.linear = nn.Linear(before, after * math.prod(step))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d time height width"]:
        """Returns the finer map."""
        time, rows, columns = self.step
        wide = self.linear(rearrange(x, "b c t h w -> b t h w c"))
        return rearrange(wide, "b t h w (d z y x) -> b d (t z) (h y) (w x)", z=time, y=rows, x=columns)


class ResidualBlock(nn.Module):
    """Norm, activation, 3x3 convolution, twice; added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns the refined map."""
        return x + self.body(x)


class PixelStem(nn.Module):
    """Frames to a grid of tokens, as wide as the last of ``widths``."""

    def __init__(self, config: PixelStemConfig) -> None:
        super().__init__()
        self.config = config
        patch = (config.patch, config.patch)
        parts: list[nn.Module] = [Fold(3 * config.frames, config.widths[0], patch), ResidualBlock(config.widths[0])]
        for before, after in pairwise(config.widths):
            parts += [nn.GroupNorm(8, before), nn.SiLU(), Fold(before, after, (2, 2))]
            parts += [ResidualBlock(after) for _ in range(config.blocks)]
        parts += [nn.GroupNorm(8, config.widths[-1]), nn.SiLU()]
        self.body = nn.Sequential(*parts)

    def grid(self, size: int) -> int:
        """Returns rows (and columns) of tokens for square frames of ``size`` pixels."""
        return size // (self.config.patch * 2 ** (len(self.config.widths) - 1))

    def forward(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b n d"]:
        """Returns the tokens of the newest frames; pixels are scaled to [-1, 1] here."""
        if frames.shape[1] < self.config.frames:
            raise ValueError(
                f"the stem looks at {self.config.frames} frames and got {frames.shape[1]}: lengthen the context"
            )
        newest = rearrange(frames[:, -self.config.frames :], "b t c h w -> b (t c) h w")
        return rearrange(self.body(newest.float() / 127.5 - 1), "b d h w -> b (h w) d")
