"""Changes of picture: random ones for training, batched and repeatable from a generator, and scaling to a size.

All of them take and return uint8 video ``b t c h w`` and change every frame of a sample alike: a shift that differed
from frame to frame would be motion that never happened.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from ideomotor.types import Clip

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: what colours weigh in a grey picture


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far the random changes go; 0 leaves a thing alone.

    Attributes:
        shift: at most this many pixels, in each direction.
        brightness: factors in ``1 - brightness .. 1 + brightness``; contrast and saturation likewise.
        flip: share of samples mirrored left to right; only for video without actions.
    """

    shift: int = 4
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    flip: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (field.name != "shift" and value > 1):
                limits = "at least 0 pixels" if field.name == "shift" else "between 0 and 1"
                raise ValueError(f"augmentation has {field.name}={value}; it must be {limits}")


def augment(clip: Clip, config: AugmentConfig, generator: Generator) -> Clip:
    """Returns the clip with each camera's frames changed at random; a mirrored sample is mirrored in every camera.

    Raises:
        ValueError: mirroring a clip that has actions (they would have to be mirrored too), or changing the frames of a
            clip that has tokens of the unchanged ones.
    """
    if config.flip > 0 and clip.actions is not None:
        raise ValueError(
            f"flip={config.flip} mirrors the picture but not the actions: set flip=0 where clips have actions"
        )
    if clip.tokens is not None:
        raise ValueError("the clip's tokens stand for its unchanged frames: load without a token cache to augment")
    mirrored = torch.rand(len(clip), generator=generator) < config.flip
    frames = {}
    for camera, video in clip.frames.items():
        if config.flip > 0:
            video = flip(video, mirrored.to(video.device))
        video = random_shift(video, config.shift, generator)
        frames[camera] = color_jitter(video, config.brightness, config.contrast, config.saturation, generator)
    return replace(clip, frames=frames)


def random_shift(video: UInt8[Tensor, "b t c h w"], pixels: int, generator: Generator) -> UInt8[Tensor, "b t c h w"]:
    """Returns each sample moved by up to ``pixels`` in both directions, its edge repeated where nothing is known.

    Raises:
        ValueError: ``pixels`` is not smaller than the picture.
    """
    b, _, _, height, width = video.shape
    if not 0 <= pixels < min(height, width):
        raise ValueError(
            f"shift of {pixels} pixels on {height} x {width} pictures; it must be 0..{min(height, width) - 1}"
        )
    moves = torch.randint(-pixels, pixels + 1, (b, 2), generator=generator)
    return video if pixels == 0 else shift(video, moves)


def shift(video: UInt8[Tensor, "b t c h w"], moves: Int[Tensor, "b 2"]) -> UInt8[Tensor, "b t c h w"]:
    """Returns each sample moved by its own (down, right), its edge repeated where nothing is known."""
    if video.is_cuda:
        return _gathered(video, moves)
    moved = torch.empty_like(video)
    for source, target, (down, right) in zip(video, moved, moves.tolist(), strict=True):
        # Whole blocks are copied, then the borders: per-pixel gathering of uint8 is an order of magnitude slower.
        to_y, from_y = _overlap(down, video.shape[-2])
        to_x, from_x = _overlap(right, video.shape[-1])
        target[..., to_y, to_x] = source[..., from_y, from_x]
        target[..., to_y, : to_x.start] = target[..., to_y, to_x.start : to_x.start + 1]
        target[..., to_y, to_x.stop :] = target[..., to_y, to_x.stop - 1 : to_x.stop]
        target[..., : to_y.start, :] = target[..., to_y.start : to_y.start + 1, :]
        target[..., to_y.stop :, :] = target[..., to_y.stop - 1 : to_y.stop, :]
    return moved


def _gathered(video: UInt8[Tensor, "b t c h w"], moves: Int[Tensor, "b 2"]) -> UInt8[Tensor, "b t c h w"]:
    """The same as ``shift`` in a few kernels a batch; five a sample would keep a GPU waiting for their launches."""
    b, _, _, height, width = video.shape
    down, right = moves.to(video.device, non_blocking=True).unsqueeze(-1).unbind(1)  # b 1 each
    rows = (torch.arange(height, device=video.device) - down).clamp(0, height - 1)  # b h
    columns = (torch.arange(width, device=video.device) - right).clamp(0, width - 1)  # b w
    sample = torch.arange(b, device=video.device)[:, None, None]
    return video.movedim((3, 4), (1, 2))[sample, rows[:, :, None], columns[:, None, :]].movedim((1, 2), (3, 4))


def _overlap(move: int, extent: int) -> tuple[slice, slice]:
    return slice(max(move, 0), extent + min(move, 0)), slice(max(-move, 0), extent + min(-move, 0))


def color_jitter(
    video: UInt8[Tensor, "b t c h w"], brightness: float, contrast: float, saturation: float, generator: Generator
) -> UInt8[Tensor, "b t c h w"]:
    """Returns each sample with factors of brightness, contrast and saturation of its own, from ``1 - x .. 1 + x``."""
    widths = torch.tensor([brightness, contrast, saturation])
    factors = 1 + widths * (2 * torch.rand((len(video), 3), generator=generator) - 1)
    return video if not widths.any() else adjust_color(video, factors)


def adjust_color(video: UInt8[Tensor, "b t c h w"], factors: Float[Tensor, "b 3"]) -> UInt8[Tensor, "b t c h w"]:
    """Returns each sample with its factors of brightness, contrast and saturation applied, in this order.

    Contrast is about the mean grey of the whole sample, not of each frame, so that nothing flickers.
    """
    bright, contrast, saturation = factors.to(video.device, torch.float32)[:, :, None, None].unbind(1)  # b 1 1 each
    luma = torch.tensor(LUMA, device=video.device)
    # All three are affine in colour, so together they are one 3 x 3 matrix and one offset a sample.
    matrix = contrast * bright * (saturation * torch.eye(3, device=video.device) + (1 - saturation) * luma)  # b 3 3
    thumbnail = video[..., ::4, ::4].float().mean(dim=(1, 3, 4))  # b c; every fourth pixel tells the mean well enough
    # The saturation matrix leaves a grey offset as it is: each of its rows sums to one. The half is for rounding.
    offset = (1 - contrast) * bright * (thumbnail @ luma)[:, None, None] + 0.5  # b 1 1
    adjusted = torch.empty_like(video)
    for row, sample in enumerate(video):  # one by one they stay in the processor's cache: four times faster
        pixels = matrix[row] @ sample.flatten(2).float()  # t c (h w)
        adjusted[row] = pixels.add_(offset[row]).clamp_(0, 255).reshape(sample.shape)
    return adjusted


def flip(video: UInt8[Tensor, "b t c h w"], mirrored: Bool[Tensor, " b"]) -> UInt8[Tensor, "b t c h w"]:
    """Returns the video with those samples mirrored left to right."""
    return torch.where(mirrored[:, None, None, None, None], video.flip(-1), video)


def covering_size(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns ``source`` (height, width) scaled, its aspect kept, to the least that covers ``size``.

    For a square that puts the shorter side to its length; where the aspect is the same already, it is ``size`` itself.
    """
    scale = max(size[0] / source[0], size[1] / source[1])
    return max(round(source[0] * scale), size[0]), max(round(source[1] * scale), size[1])


def resize(
    video: UInt8[Tensor, "*batch c h w"], size: tuple[int, int], smooth: bool = True
) -> UInt8[Tensor, "*batch c height width"]:
    """Returns the video at ``size`` (height, width): each pixel the mean of its area where shrinking, bilinear else.

    Without ``smooth`` it is bilinear always, for weights that were trained on such pictures: see ``bilinear``.
    """
    *batch, c, height, width = video.shape
    if (height, width) == tuple(size):
        return video
    if not smooth:
        return bilinear(video, size).add_(0.5).clamp_(0, 255).to(torch.uint8)
    shrinks = size[0] <= height and size[1] <= width
    pictures = video.reshape(-1, c, height, width).float()
    if shrinks:
        scaled = F.interpolate(pictures, size=size, mode="area")
    else:
        scaled = F.interpolate(pictures, size=size, mode="bilinear", align_corners=False, antialias=True)
    return scaled.add_(0.5).clamp_(0, 255).to(torch.uint8).reshape(*batch, c, *size)


def bilinear(video: UInt8[Tensor, "*batch c h w"], size: tuple[int, int]) -> Float[Tensor, "*batch c height width"]:
    """Returns the video at ``size``, unrounded in 0..255, from the four pixels around each new pixel's centre.

    Where it shrinks, the pixels between are skipped and fine patterns flicker; VideoGPT and VPDD train on this.
    """
    *batch, c, height, width = video.shape
    pictures = video.reshape(-1, c, height, width).float()
    return F.interpolate(pictures, size=size, mode="bilinear", align_corners=False).reshape(*batch, c, *size)


def center_crop(video: Real[Tensor, "*batch c h w"], size: tuple[int, int]) -> Real[Tensor, "*batch c height width"]:
    """Returns the middle ``size`` (height, width) of each picture.

    Raises:
        ValueError: a picture is smaller than that.
    """
    height, width = video.shape[-2:]
    if height < size[0] or width < size[1]:
        raise ValueError(f"cannot cut {size[0]} x {size[1]} out of {height} x {width} pictures: resize them first")
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return video[..., top : top + size[0], left : left + size[1]]


def resize_and_crop(
    video: UInt8[Tensor, "*batch c h w"], size: tuple[int, int], smooth: bool = True
) -> UInt8[Tensor, "*batch c height width"]:
    """Returns the video scaled to cover ``size`` (height, width), its aspect kept, and cut to its centre.

    ``smooth`` as in ``resize``.
    """
    height, width = video.shape[-2:]
    return center_crop(resize(video, covering_size((height, width), size), smooth), size)
