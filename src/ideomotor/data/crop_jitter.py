"""The augmentation of the iVideoGPT release: a random crop scaled to a square, then colours changed in random order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from ideomotor.data.transforms import LUMA
from ideomotor.types import Clip

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class CropJitterConfig:
    """How far crops and colours go; see ``normal`` and ``strong`` for the release's two settings.

    Attributes:
        size: edge of the square that comes out, in pixels.
        area: of the crop, from and to, as a share of the square over the picture's shorter side.
        ratio: of the crop's width to its height, from and to.
        color: brightness, contrast and saturation are each multiplied by ``1 - color .. 1 + color``.
        hue: turned by ``-hue .. hue`` of the whole circle.
    """

    size: int = 64
    area: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    color: float = 0.1
    hue: float = 0.05

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"augmentation has size={self.size}, area={self.area}, ratio={self.ratio}; wanted a size of 1 or more, "
                "areas in 0..1, ratios above 0, and the smaller bound first"
            )
        if not (0 <= self.color <= 1 and 0 <= self.hue <= 0.5):
            raise ValueError(f"augmentation has color={self.color}, hue={self.hue}; they lie in 0..1 and 0..0.5")


def normal(size: int = 64) -> CropJitterConfig:
    """Returns the setting that the release trains with by default."""
    return CropJitterConfig(size=size)


def strong(size: int = 64) -> CropJitterConfig:
    """Returns its setting ``strong_aug``."""
    return CropJitterConfig(size=size, area=(0.6, 1.0), ratio=(0.75, 4 / 3), color=0.4, hue=0.5)


def crop_and_jitter(clip: Clip, config: CropJitterConfig, generator: Generator) -> Clip:
    """Returns the clip with each camera's frames cropped and coloured at random, all frames of a sample alike.

    For training only: what is validated on is scaled with ``transforms.resize`` and otherwise left alone (the release
    changes its validation frames too, unless told not to).

    Raises:
        ValueError: the clip has tokens, which stand for the unchanged frames.
    """
    if clip.tokens is not None:
        raise ValueError("the clip's tokens stand for its unchanged frames: load without a token cache to augment")
    return replace(clip, frames={name: _changed(video, config, generator) for name, video in clip.frames.items()})


def kept_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the height and width to keep recorded frames at, of which crops of ``size`` are taken.

    Their aspect is kept, and the shorter side is half as long again as ``size``, so that no crop of ``strong`` has to
    be enlarged, but not longer than recorded.
    """
    scale = min(1.0, 1.5 * size / min(height, width))
    return round(height * scale), round(width * scale)


def crop_boxes(
    count: int, height: int, width: int, config: CropJitterConfig, generator: Generator
) -> Int[Tensor, "count 4"]:
    """Returns top, left, height and width of ``count`` random crops.

    Ten tries are drawn for each, of which the first that fits is taken; where none does, it is the largest crop of the
    picture's middle whose ratio is allowed.
    """
    uniform = torch.rand((count, _TRIES, 4), generator=generator)
    short = min(height, width)
    area = short**2 * (config.area[0] + (config.area[1] - config.area[0]) * uniform[..., 0])  # count tries
    low, high = log(config.ratio[0]), log(config.ratio[1])
    ratio = (low + (high - low) * uniform[..., 1]).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    top = (uniform[..., 2] * (height - h + 1)).floor()
    left = (uniform[..., 3] * (width - w + 1)).floor()
    boxes = torch.stack([top, left, h, w], dim=-1).long()
    first = fits.int().argmax(dim=1)
    chosen = boxes[torch.arange(count), first]
    return torch.where(fits.any(dim=1, keepdim=True), chosen, torch.tensor(_middle(height, width, config)))


def _middle(height: int, width: int, config: CropJitterConfig) -> tuple[int, int, int, int]:
    h, w = height, width
    if width / height < config.ratio[0]:
        h = round(width / config.ratio[0])
    elif width / height > config.ratio[1]:
        w = round(height * config.ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _changed(
    video: UInt8[Tensor, "b t c h w"], config: CropJitterConfig, generator: Generator
) -> UInt8[Tensor, "b t c size size"]:
    b, t, c, height, width = video.shape
    boxes = crop_boxes(b, height, width, config, generator).tolist()
    spread = torch.tensor([config.color] * 3 + [config.hue])
    factors = (spread * (2 * torch.rand((b, 4), generator=generator) - 1)).tolist()
    orders = torch.rand((b, 4), generator=generator).argsort(dim=1).tolist()
    changed = torch.empty((b, t, c, config.size, config.size), dtype=torch.uint8, device=video.device)
    for row, (top, left, h, w) in enumerate(boxes):
        crop = video[row, :, :, top : top + h, left : left + w].float() / 255
        frames = F.interpolate(crop, (config.size, config.size), mode="bilinear", antialias=True).clamp(0, 1)
        for step in orders[row]:
            frames = _CHANGES[step](frames, factors[row][step])
        changed[row] = (255 * frames + 0.5).to(torch.uint8)
    return changed


def _grey(frames: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 1 h w"]:
    return (frames * torch.tensor(LUMA, device=frames.device)[:, None, None]).sum(dim=1, keepdim=True)


def _brightness(frames: Float[Tensor, "t 3 h w"], change: float) -> Float[Tensor, "t 3 h w"]:
    return ((1 + change) * frames).clamp(0, 1)


def _contrast(frames: Float[Tensor, "t 3 h w"], change: float) -> Float[Tensor, "t 3 h w"]:
    # About the mean grey of the whole segment; the release takes each frame's own, which makes it flicker.
    return ((1 + change) * frames - change * _grey(frames).mean()).clamp(0, 1)


def _saturation(frames: Float[Tensor, "t 3 h w"], change: float) -> Float[Tensor, "t 3 h w"]:
    return ((1 + change) * frames - change * _grey(frames)).clamp(0, 1)


def _hue(frames: Float[Tensor, "t 3 h w"], change: float) -> Float[Tensor, "t 3 h w"]:
    """Turns the hue and keeps value and saturation.

    Source:
        A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978: the hexcone model.
    """
    value, which = frames.max(dim=1)
    chroma = value - frames.min(dim=1).values
    red, green, blue = frames.unbind(1)
    safe = chroma.clamp(min=1e-8)
    sixths = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    hue = sixths.gather(1, which.unsqueeze(1)).squeeze(1) + 6 * change
    # A colour channel is at full strength within a sixth of the circle of its own hue, and gone beyond two.
    turned = [value - chroma * _away(hue + offset) for offset in (5, 3, 1)]
    return torch.stack(turned, dim=1).clamp(0, 1)


def _away(sixths: Float[Tensor, "t h w"]) -> Float[Tensor, "t h w"]:
    place = sixths.remainder(6)
    return torch.minimum(place, 4 - place).clamp(0, 1)


_CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
