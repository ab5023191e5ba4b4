"""Frames to latents and back by one fixed linear map a patch of pixels, fitted in seconds and without a gradient.

Where two cores must do everything, this beats an autoencoder that learned for minutes: see ``docs/log.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PatchPCAConfig:
    """Sizes of the map.

    Attributes:
        patch: height and width of a patch in pixels; each becomes one place of a latent.
        channels: of a latent: the principal components of patches that are kept.
        whiten: how far channels are brought to the same variance: component i is divided by its deviation to this
            power. 0 leaves brightness ten times larger than details, 1 makes all alike.
        scale: latents times this have about unit variance; None until it is measured.
    """

    patch: int = 8
    channels: int = 24
    whiten: float = 0.5
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.patch < 1 or not 1 <= self.channels <= 3 * self.patch**2 or not 0 <= self.whiten <= 1:
            raise ValueError(
                f"patch {self.patch}, channels {self.channels}, whiten {self.whiten}: wanted a patch of at least 1, "
                f"channels in 1..{3 * self.patch**2} (its values) and whiten in 0..1"
            )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be above 0, or None where it is not measured yet")

    @property
    def factor(self) -> int:
        """How many pixels in height, and in width, one place of a latent stands for."""
        return self.patch


class PatchPCA(nn.Module):
    """The verbs of ``SVDVAE`` over principal components of patches; latents are certain (their deviation is zero).

    Attributes:
        mean: patch that latents of zero stand for.
        into: patch less mean -> latent.
        back: latent -> patch less mean.
    """

    mean: Float[Tensor, " values"]
    into: Float[Tensor, "values z"]
    back: Float[Tensor, "z values"]

    def __init__(self, config: PatchPCAConfig) -> None:
        super().__init__()
        self.config = config
        values = 3 * config.patch**2
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("into", torch.zeros(values, config.channels))
        self.register_buffer("back", torch.zeros(config.channels, values))

    @property
    def scale(self) -> float:
        """What latents are multiplied by to have about unit variance.

        Raises:
            ValueError: the map was not fitted.
        """
        if self.config.scale is None:
            raise ValueError("this map of patches was not fitted: call fit with some videos")
        return self.config.scale

    @torch.no_grad()
    def fit(self, videos: Iterable[UInt8[Tensor, "b t c h w"]]) -> None:
        """Takes the principal components of these videos' patches, and measures the scale.

        Raises:
            ValueError: the patches vary in fewer directions than there are channels, or there are none.
        """
        values, count = len(self.mean), 0
        total = torch.zeros(values, dtype=torch.float64)
        squares = torch.zeros(values, values, dtype=torch.float64)
        for frames in videos:
            patches = self._patches(frames).flatten(0, -2).double().cpu()
            count, total, squares = count + len(patches), total + patches.sum(0), squares + patches.T @ patches
        mean = total / max(1, count)
        variances, basis = torch.linalg.eigh(squares / max(1, count) - mean[:, None] * mean)
        kept = range(values - 1, values - 1 - self.config.channels, -1)
        variances, basis = variances[list(kept)], basis[:, list(kept)]
        if not count or variances[-1] < 1e-9:
            raise ValueError(
                f"{count} patches vary in fewer than {self.config.channels} directions: give more videos, or take "
                "fewer channels"
            )
        largest = basis.abs().argmax(0)
        basis = basis * basis[largest, range(self.config.channels)].sign()  # which way a component points is no luck
        spread = variances ** (self.config.whiten / 2)
        for name, value in (("mean", mean), ("into", basis / spread), ("back", basis.T * spread[:, None])):
            getattr(self, name).copy_(value)
        self.config = replace(self.config, scale=float((variances / spread**2).mean() ** -0.5))

    @torch.no_grad()
    def moments(
        self, frames: UInt8[Tensor, "b t c h w"]
    ) -> tuple[Float[Tensor, "b t z h w"], Float[Tensor, "b t z h w"]]:
        """Returns mean and deviation of each frame's latent, not scaled; height and width shrink by the factor."""
        with torch.autocast(frames.device.type, enabled=False):
            latents = rearrange((self._patches(frames) - self.mean) @ self.into, "b t h w z -> b t z h w")
        return latents, torch.zeros_like(latents)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b t z h w"]) -> UInt8[Tensor, "b t c h w"]:
        """Returns the frames of latents that are not scaled."""
        with torch.autocast(latents.device.type, enabled=False):
            patches = rearrange(latents.float(), "b t z h w -> b t h w z") @ self.back + self.mean
        pixels = rearrange(patches, "b t h w (c p q) -> b t c (h p) (w q)", c=3, p=self.config.patch)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _patches(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t row column values"]:
        height, width, patch = *frames.shape[-2:], self.config.patch
        if height % patch or width % patch:
            raise ValueError(
                f"frames of {height}x{width} do not divide into patches of {patch}x{patch}: resize them to multiples"
            )
        pixels = frames.float() / 127.5 - 1
        return rearrange(pixels, "b t c (h p) (w q) -> b t h w (c p q)", p=patch, q=patch)
