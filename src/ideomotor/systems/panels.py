"""Pictures of imagination: panels side by side in frames of colour, an error as heat, unknown tokens as grey blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Kind = Literal["seen", "truth", "imagined", "error"]
FRAME: dict[Kind, tuple[int, int, int]] = {  # border colours, RGB
    "seen": (60, 120, 220),
    "truth": (60, 160, 80),
    "imagined": (225, 140, 30),
    "error": (190, 50, 150),
}
HOTTEST = 128  # a difference of half the range or more is white: a disc that is missed altogether, on any ground
_HEAT = ((0, 0, 0), (150, 10, 40), (245, 120, 20), (255, 235, 120), (255, 255, 255))  # RGB, evenly spaced
_HATCH = (104, 148, 64)  # greys of a block that is not known: its two stripes and its edge


def enlarged(video: UInt8[Tensor, "t c h w"], times: int = 2) -> UInt8[Tensor, "t c more_h more_w"]:
    """Returns the video with every pixel ``times`` as wide and high."""
    return video.repeat_interleave(times, -1).repeat_interleave(times, -2)


def framed(video: UInt8[Tensor, "t c h w"], kind: Kind) -> UInt8[Tensor, "t c more_h more_w"]:
    """Returns the video twice as large, in a frame of the kind's colour."""
    large = enlarged(video)
    colour = torch.tensor(FRAME[kind], dtype=torch.uint8)[:, None, None]
    picture = colour.expand(len(large), -1, large.shape[-2] + 8, large.shape[-1] + 8).clone()
    picture[:, :, 4:-4, 4:-4] = large
    return picture


def side_by_side(panels: Sequence[UInt8[Tensor, "t c h w"]]) -> UInt8[Tensor, "t c h row"]:
    """Returns the panels as one video, the first on the left."""
    return rearrange(torch.stack(list(panels)), "panels t c h w -> t c h (panels w)")


def comparison(
    context: UInt8[Tensor, "t c h w"], truth: UInt8[Tensor, "u c h w"], futures: UInt8[Tensor, "samples u c h w"]
) -> UInt8[Tensor, "frames c more_h more_w"]:
    """Returns truth, imagined futures, and the first one's error; while the context plays, all show it, as seen."""
    after = [framed(truth, "truth"), *(framed(future, "imagined") for future in futures)]
    after.append(framed(heat(truth, futures[0]), "error"))
    return side_by_side([torch.cat([framed(context, "seen"), panel]) for panel in after])


def truth_above(
    context: UInt8[Tensor, "t c h w"],
    truth: UInt8[Tensor, "u c h w"] | None,
    futures: UInt8[Tensor, "samples u c h w"],
) -> UInt8[Tensor, "frames c more_h more_w"]:
    """Returns imagined futures side by side, what happened above each of them; None where nobody knows that.

    While the context plays, all panels show it, as seen.
    """
    seen = framed(context, "seen")
    rows = [side_by_side([torch.cat([seen, framed(future, "imagined")]) for future in futures])]
    if truth is not None:
        rows.insert(0, side_by_side([torch.cat([seen, framed(truth, "truth")])] * len(futures)))
    return torch.cat(rows, -2)


def heat(one: UInt8[Tensor, "t c h w"], other: UInt8[Tensor, "t c h w"]) -> UInt8[Tensor, "t c h w"]:
    """Returns the absolute difference as a heat picture: black is none, over red and yellow to white (``HOTTEST``).

    Of a pixel's colours the one that differs most counts, as in the moving-pixel error.
    """
    difference = (one.int() - other.int()).abs().amax(1) / HOTTEST  # t h w
    place: Float[Tensor, "t h w"] = difference.clamp(max=1) * (len(_HEAT) - 1)
    ramp = torch.tensor(_HEAT, dtype=torch.float32)
    low = place.long().clamp(max=len(_HEAT) - 2)
    part = (place - low)[..., None]
    return (ramp[low] * (1 - part) + ramp[low + 1] * part).round().to(torch.uint8).movedim(-1, 1)


def hatched(video: UInt8[Tensor, "t c h w"], unknown: Bool[Tensor, "latent rows columns"]) -> UInt8[Tensor, "t c h w"]:
    """Returns the video with grey hatched blocks where a token is not known yet."""
    frames, _, height, width = video.shape
    latents, rows, columns = unknown.shape
    block_h, block_w = height // rows, width // columns
    y, x = torch.arange(height)[:, None], torch.arange(width)
    stripe, gap, edge = _HATCH
    grey = torch.where((x + y) % 4 < 2, stripe, gap)
    grey = torch.where((y % block_h == 0) | (x % block_w == 0), edge, grey).to(torch.uint8)  # h w
    where = unknown.repeat_interleave(frames // latents, 0)
    where = where.repeat_interleave(block_h, 1).repeat_interleave(block_w, 2)[:, None]  # t 1 h w
    return torch.where(where, grey, video)
