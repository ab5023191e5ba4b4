"""How near an imagined video is to what happened.

Most of a robot's video stands still, so a picture that repeats the last frame seen scores well over all pixels. What an
imagination must get right is what moves; hence **moving-pixel PSNR**, with ``repeat_last`` as the baseline to beat.

None of these figures says whether a policy will act well (VP2, ICLR 2023): they compare imaginations of one data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

MOVING_THRESHOLD = 20
"""A pixel moves when a channel differs by more than this (of 255) from the last frame seen: above what h264 at a usual
quality and a flickering lamp do to a still scene, below what the edge of a moving arm does."""


@dataclass(frozen=True)
class SquaredError:
    """Squared error summed over some values (one a channel of a pixel), in units of 0..255; add to pool over a set.

    Pooled, every moving pixel of the set weighs the same, whereas the mean of the clips' own PSNRs would let the
    clips in which least happens decide.
    """

    total: float = 0.0
    count: int = 0

    def __add__(self, other: SquaredError) -> SquaredError:
        """Returns the error over both sets of values."""
        return SquaredError(self.total + other.total, self.count + other.count)

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB; infinite where both videos are equal.

        Raises:
            ValueError: no value was compared, e.g. nothing moved in the whole set.
        """
        if self.count == 0:
            raise ValueError(
                "no pixel was compared (does anything move in these clips?): take more clips, or a longer horizon"
            )
        return math.inf if self.total == 0 else 10 * math.log10(255**2 * self.count / self.total)


def squared_error(truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]) -> SquaredError:
    """Returns the error over all pixels; ``squared_error(...).psnr`` is the usual PSNR, pooled over the batch."""
    _check(truth, imagined)
    return SquaredError(float(_difference(truth, imagined).square().sum(dtype=torch.int64)), truth.numel())


def moving_error(
    truth: UInt8[Tensor, "b t c h w"],
    imagined: UInt8[Tensor, "b t c h w"],
    last: UInt8[Tensor, "b 1 c h w"],
    threshold: int = MOVING_THRESHOLD,
) -> SquaredError:
    """Returns the error over the pixels that move in the truth; ``sum`` those of a set and read ``.psnr``.

    Args:
        truth: what happened.
        imagined: what was foretold for the same frames.
        last: the last context frame. What moves is told by truth against it, so it is the same for every imagination.
        threshold: of 255; see ``MOVING_THRESHOLD``.
    """
    _check(truth, imagined)
    _check(truth[:, :1], last)
    moving = (_difference(truth, last).abs() > threshold).any(dim=2, keepdim=True)  # b t 1 h w
    squares = _difference(truth, imagined).square() * moving
    return SquaredError(float(squares.sum(dtype=torch.int64)), int(moving.sum()) * truth.shape[2])


def masked_error(
    truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"], mask: Bool[Tensor, "b t h w"]
) -> SquaredError:
    """Returns the error over the pixels of a mask; with masks of the small objects its PSNR is the **object PSNR**."""
    _check(truth, imagined)
    if mask.dtype != torch.bool or mask.shape != (*truth.shape[:2], *truth.shape[3:]):
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)} for frames {tuple(truth.shape)}; wanted bool `b t h w`"
        )
    squares = _difference(truth, imagined).square() * mask[:, :, None]
    return SquaredError(float(squares.sum(dtype=torch.int64)), int(mask.sum()) * truth.shape[2])


def repeat_last(context: UInt8[Tensor, "b context c h w"], horizon: int) -> UInt8[Tensor, "b horizon c h w"]:
    """Returns the imagination that nothing will move: the last context frame, ``horizon`` times."""
    return context[:, -1:].expand(-1, horizon, -1, -1, -1)


PictureDistance = Callable[[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]
"""Tells how far apart pictures in [0, 1] look, pair by pair; a ``PerceptualDistance`` of ``layers`` is one."""


def mse(truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    """Returns every frame's mean squared error, with pixels counted from 0 to 1 as papers do."""
    return _mean_square(truth, imagined).float()


def psnr(
    truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"], epsilon: float = 0.0
) -> Float[Tensor, "b t"]:
    """Returns every frame's PSNR over all its pixels in dB.

    Args:
        truth: what happened.
        imagined: what was foretold for the same frames.
        epsilon: added to the squared error (of pixels from 0 to 1). Equal frames have infinite PSNR without it, and
            80 dB with the 1e-8 of the published protocols.
    """
    return (-10 * torch.log10(_mean_square(truth, imagined) + epsilon)).float()


def perceptual(
    truth: UInt8[Tensor, "b t 3 h w"], imagined: UInt8[Tensor, "b t 3 h w"], network: PictureDistance
) -> Float[Tensor, "b t"]:
    """Returns every frame's distance by a network; it is LPIPS if the network has the trained weights of LPIPS."""
    _check(truth, imagined)
    true, foretold = (video.flatten(0, 1).to(torch.float32) / 255 for video in (truth, imagined))
    with torch.no_grad():
        return network(true, foretold).reshape(truth.shape[:2]).float()


def ssim(truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    """Returns every frame's structural similarity, mean over channels and over the windows that lie inside the frame.

    Gaussian window of 11x11 and deviation 1.5, constants 0.01 and 0.03, as in the source. (torchmetrics also counts
    windows that hang over the border, on mirrored pixels, and so differs in the third digit.)

    Raises:
        ValueError: frames smaller than the window.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    _check(truth, imagined)
    if min(truth.shape[-2:]) < 11:
        raise ValueError(f"frames of {truth.shape[-2]}x{truth.shape[-1]} pixels; SSIM's window needs at least 11x11")
    offsets = torch.arange(11, dtype=torch.float32, device=truth.device) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    line = line / line.sum()

    def blurred(images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
        return functional.conv2d(functional.conv2d(images, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    x, y = (video.to(torch.float32).reshape(-1, 1, *truth.shape[-2:]) for video in (truth, imagined))
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (
        (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return similarity.reshape(*truth.shape[:3], -1).mean(dim=(2, 3))


def _mean_square(truth: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    _check(truth, imagined)
    return _difference(truth, imagined).square().to(torch.float64).mean(dim=(2, 3, 4)) / 255**2


def _difference(a: UInt8[Tensor, "b t c h w"], b: UInt8[Tensor, "b u c h w"]) -> Tensor:
    return a.to(torch.int32) - b.to(torch.int32)  # uint8 would wrap; int32 holds any square


def _check(truth: Tensor, imagined: Tensor) -> None:
    for name, video in (("truth", truth), ("imagined", imagined)):
        if video.dtype != torch.uint8 or video.ndim != 5:
            raise ValueError(
                f"{name} is {video.dtype} of shape {tuple(video.shape)}; wanted uint8 `b t c h w` in 0..255"
            )
    if truth.shape != imagined.shape:
        raise ValueError(
            f"truth is {tuple(truth.shape)}, compared with {tuple(imagined.shape)}; wanted the same frames: cut the "
            "longer one, or resize"
        )
