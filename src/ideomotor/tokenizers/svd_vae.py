"""The VAE of Stable Video Diffusion: frames to latents one by one, and back a few frames together.

The network is diffusers' (extra ``svd``); here are its borders, its precision, and a way to train a small one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ideomotor.extras import require
from ideomotor.files import read_settings
from ideomotor.types import Clip, Losses

_GROUPS = 32  # channels a norm in diffusers' blocks
_CLASS = "AutoencoderKLTemporalDecoder"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")


@dataclass(frozen=True, kw_only=True)
class SVDVAEConfig:
    """Sizes of the VAE; the defaults are the published ones (97,742,847 parameters).

    Attributes:
        widths: channels at each resolution, from the finest on; each after the first halves height and width.
        blocks: residual blocks a resolution.
        channels: of a latent.
        scale: latents times this have about unit variance; None until it is measured (``SVDVAE.measure_scale``).
        together: frames decoded in one piece; those of a piece see each other.
        force_upcast: never compute in float16, whose range the published weights leave.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    channels: int = 4
    scale: float | None = 0.18215
    together: int = 7
    force_upcast: bool = True

    def __post_init__(self) -> None:
        if not self.widths or any(width < 1 or width % _GROUPS for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of {_GROUPS}, which are normed together")
        if min(self.blocks, self.channels, self.together) < 1:
            raise ValueError(
                f"blocks={self.blocks}, channels={self.channels}, together={self.together}: each must be at least 1"
            )
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}; it must be above 0, or None where it is not measured yet")

    @property
    def factor(self) -> int:
        """How many pixels in height, and in width, one place of a latent stands for."""
        return 2 ** (len(self.widths) - 1)


def svd() -> SVDVAEConfig:
    """Returns the published sizes; the weights come with ``load_diffusers``."""
    return SVDVAEConfig()


def small() -> SVDVAEConfig:
    """Returns sizes that a CPU trains from nothing in minutes: 405,946 parameters, the same factor of 8."""
    return SVDVAEConfig(widths=(32, 32, 32, 32), blocks=1, scale=None, together=16)


class SVDVAE(nn.Module):
    """Frames to the mean and deviation of their latents, and latents to frames. Latents here are never scaled.

    Attributes:
        net: diffusers' ``AutoencoderKLTemporalDecoder``, whose names the weights keep.

    Source:
        Blattmann et al. 2023 (Stable Video Diffusion, arXiv 2311.15127); the encoder is that of Rombach et al. 2022
        (arXiv 2112.10752).
    """

    def __init__(self, config: SVDVAEConfig) -> None:
        """Builds the network.

        Raises:
            ModuleNotFoundError: diffusers is not installed; the message says how it comes.
        """
        super().__init__()
        self.config = config
        self.net = require("diffusers", "svd").AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * len(config.widths),
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            latent_channels=config.channels,
            force_upcast=config.force_upcast,
        )
        if config.blocks == 1:  # diffusers' decoder then goes past its middle attention, and where several processes
            self.net.decoder.mid_block.attentions.requires_grad_(False)  # train, whatever trains must have a gradient

    @property
    def scale(self) -> float:
        """What latents are multiplied by to have about unit variance.

        Raises:
            ValueError: it was not measured.
        """
        if self.config.scale is None:
            raise ValueError(
                "the scale of this VAE's latents was not measured: call measure_scale when it is trained, and save it "
                "with its config"
            )
        return self.config.scale

    @torch.no_grad()
    def moments(
        self, frames: UInt8[Tensor, "b t c h w"]
    ) -> tuple[Float[Tensor, "b t z h w"], Float[Tensor, "b t z h w"]]:
        """Returns mean and deviation of each frame's latent, not scaled; height and width shrink by the factor."""
        mean, std = self.encode(_scaled(rearrange(frames, "b t c h w -> (b t) c h w")))
        return mean.unflatten(0, frames.shape[:2]), std.unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b t z h w"]) -> UInt8[Tensor, "b t c h w"]:
        """Returns the frames of latents that are not scaled, ``together`` frames in one piece."""
        pieces = [self.paint(piece) for piece in latents.split(self.config.together, dim=1)]
        return ((torch.cat(pieces, dim=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def encode(self, pixels: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n z h w"], Float[Tensor, "n z h w"]]:
        """Returns mean and deviation of the latents of pictures in -1..1, in float32, with gradients.

        Raises:
            ValueError: height or width is no multiple of the factor.
        """
        height, width = pixels.shape[-2:]
        if height % self.config.factor or width % self.config.factor:
            raise ValueError(
                f"frames of {height}x{width} do not divide into cells of {self.config.factor}x{self.config.factor}: "
                "resize them to multiples"
            )
        with self._precise() as dtype:
            posterior = self.net.encode(pixels.to(dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def paint(self, latents: Float[Tensor, "b t z h w"]) -> Float[Tensor, "b t c h w"]:
        """Returns pixels, about in -1..1, of latents that are decoded in one piece, in float32, with gradients."""
        b, t = latents.shape[:2]
        with self._precise() as dtype:
            pixels = self.net.decode(latents.flatten(0, 1).to(dtype), num_frames=t).sample
        return pixels.float().unflatten(0, (b, t))

    @torch.no_grad()
    def measure_scale(self, videos: Iterable[UInt8[Tensor, "b t c h w"]]) -> float:
        """Returns one over the deviation of the latents of these videos, and keeps it in ``config.scale``.

        Raises:
            ValueError: there is no video, or all latents are the same.
        """
        count, total, squares = 0, 0.0, 0.0
        for frames in videos:
            mean, std = (part.double() for part in self.moments(frames))
            count += mean.numel()
            total += float(mean.sum())
            squares += float((mean.square() + std.square()).sum())
        variance = squares / count - (total / count) ** 2 if count else 0.0
        if not 0 < variance < math.inf:
            raise ValueError(
                f"{count} values of latents have variance {variance:g}: give some videos, and a VAE that is trained"
            )
        self.config = replace(self.config, scale=variance**-0.5)
        return self.scale

    @contextmanager
    def _precise(self) -> Iterator[torch.dtype]:
        """Gives the type to compute in; under ``force_upcast`` no autocast lowers it."""
        weight = self.net.quant_conv.weight
        if self.config.force_upcast and weight.dtype == torch.float16:
            raise TypeError(
                "the weights of this VAE were turned into float16, whose range they leave (pictures come out black): "
                "keep them in float32 or bfloat16, or set force_upcast=False"
            )
        enabled = torch.is_autocast_enabled(weight.device.type) and not self.config.force_upcast
        with torch.autocast(weight.device.type, enabled=enabled):
            yield weight.dtype


class VAEReconstruction(nn.Module):
    """Clip -> sampled latents -> the same clip: absolute error in -1..1, and a small pull of the latents to N(0, 1).

    Args:
        vae: the VAE that learns.
        kl_weight: of the divergence, averaged over the latents' values.
    """

    def __init__(self, vae: SVDVAE, kl_weight: float = 1e-4) -> None:
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    def forward(self, clip: Clip) -> Losses:
        """Returns the loss over every camera of the clip; the noise is torch's own."""
        frames = torch.cat(list(clip.frames.values()))
        pixels = _scaled(frames)
        mean, std = self.vae.encode(pixels.flatten(0, 1))
        latents = mean + std * torch.randn_like(mean)
        error = self.vae.paint(latents.unflatten(0, frames.shape[:2])) - pixels
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        reconstruction = error.abs().mean()
        terms = {
            "reconstruction": reconstruction.detach(),
            "kl": kl.detach(),
            "psnr": -10 * (error.detach().square().mean() / 4).log10(),
        }
        return Losses(total=reconstruction + self.kl_weight * kl, terms=terms)


def load_diffusers(folder: Path) -> SVDVAE:
    """Returns a published VAE in float32, from its own folder or from that of a whole pipeline. Nothing is downloaded.

    Raises:
        FileNotFoundError: there is no config.json, or no weights in safetensors.
        ValueError: it is another model, or the weights do not fit or are damaged.
    """
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: give a diffusers pipeline, or the vae folder in it")
    described = _described(folder / "config.json")
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(_WEIGHTS)}: pickled weights are not read")
    vae = SVDVAE(
        replace(
            svd(),
            widths=tuple(described["block_out_channels"]),
            blocks=described["layers_per_block"],
            channels=described["latent_channels"],
            scale=described["scaling_factor"],
            force_upcast=bool(described.get("force_upcast", True)),
        )
    )
    try:
        vae.net.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {weights} are damaged or do not fit its config: {error}") from error
    return vae.eval()


def _described(path: Path) -> dict[str, Any]:
    """What a published VAE's config says; all that is asked of it is there."""
    described = read_settings(path)
    if described.get("_class_name") != _CLASS:
        raise ValueError(
            f"{path.parent} holds a {described.get('_class_name')}; wanted an {_CLASS}, the VAE of SVD: give its folder"
        )
    missing = {"block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"} - set(described)
    if missing:
        raise ValueError(f"{path} does not say {', '.join(sorted(missing))}: it was damaged or edited, copy it anew")
    return described


def _scaled(frames: UInt8[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    return frames.float() / 127.5 - 1
