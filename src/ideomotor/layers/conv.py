"""Convolutional parts: a residual block, and the stem with which a policy looks at pixels."""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, channels_last, nn


@dataclass(frozen=True, kw_only=True)
class PixelStemConfig:
    """A small convolutional encoder of the newest frames of one camera.

    Attributes:
        frames: how many of the newest frames are stacked on the colour axis.
        widths: channels after each halving of the resolution.
        width: width of the tokens that come out.
    """

    frames: int = 1
    widths: tuple[int, ...] = (32, 64, 128, 192)
    blocks: int = 1
    width: int = 192


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
    """Frames to a grid of tokens; each halving of the resolution is one strided convolution."""

    def __init__(self, config: PixelStemConfig) -> None:
        super().__init__()
        self.config = config
        parts: list[nn.Module] = []
        channels = 3 * config.frames
        for width in config.widths:
            parts += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            channels = width
        parts += [ResidualBlock(channels) for _ in range(config.blocks)]
        parts += [nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, config.width, 1)]
        self.body = nn.Sequential(*parts).to(memory_format=channels_last)  # AMX convolutions want channels last

    def grid(self, size: int) -> int:
        """Returns rows (and columns) of tokens for square frames of ``size`` pixels."""
        return size // 2 ** len(self.config.widths)

    def forward(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b n d"]:
        """Returns the tokens of the newest frames; pixels are scaled to [-1, 1] here."""
        if frames.shape[1] < self.config.frames:
            raise ValueError(f"the stem looks at {self.config.frames} frames and got {frames.shape[1]}: lengthen the context")
        newest = rearrange(frames[:, -self.config.frames :], "b t c h w -> b (t c) h w")
        scaled = (newest.float() / 127.5 - 1).to(memory_format=channels_last)
        return rearrange(self.body(scaled), "b d h w -> b (h w) d")
