"""Convolutional parts: a residual block, and the stem with which a policy looks at pixels."""

from dataclasses import dataclass
from itertools import pairwise

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, channels_last, nn


@dataclass(frozen=True, kw_only=True)
class PixelStemConfig:
    """A small convolutional encoder of the newest frames of one camera.

    Attributes:
        frames: how many of the newest frames are stacked on the colour axis.
        patch: pixels of a patch's side are folded into channels first, which is cheap and loses nothing.
        widths: channels of the first convolution, and after each halving of the resolution.
        blocks: residual blocks at each resolution after the first.
    """

    frames: int = 1
    patch: int = 4
    widths: tuple[int, ...] = (64, 128, 128)
    blocks: int = 1


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
        first = config.widths[0]
        parts: list[nn.Module] = [nn.Conv2d(3 * config.frames * config.patch**2, first, 3, padding=1)]
        for before, after in pairwise(config.widths):
            parts += [nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 4, stride=2, padding=1)]
            parts += [ResidualBlock(after) for _ in range(config.blocks)]
        parts += [nn.GroupNorm(8, config.widths[-1]), nn.SiLU()]
        self.body = nn.Sequential(*parts).to(memory_format=channels_last)  # AMX convolutions want channels last

    def grid(self, size: int) -> int:
        """Returns rows (and columns) of tokens for square frames of ``size`` pixels."""
        return size // (self.config.patch * 2 ** (len(self.config.widths) - 1))

    def forward(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b n d"]:
        """Returns the tokens of the newest frames; pixels are scaled to [-1, 1] here."""
        if frames.shape[1] < self.config.frames:
            raise ValueError(f"the stem looks at {self.config.frames} frames and got {frames.shape[1]}: lengthen the context")
        newest = frames[:, -self.config.frames :]
        patch = self.config.patch
        folded = rearrange(newest.float() / 127.5 - 1, "b t c (h y) (w x) -> b (t c y x) h w", y=patch, x=patch)
        return rearrange(self.body(folded.contiguous(memory_format=channels_last)), "b d h w -> b (h w) d")
