"""Foretells video as latents that lose their noise, by Stable Video Diffusion's network told a frame and a sentence.

What is read of it is a whole film (``sample``) or, in one pass, what the network sees on its way up (``features``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ideomotor.diffusion.edm import denoised, karras, log_normal, scaling
from ideomotor.diffusion.sigma_samplers import Denoise, euler
from ideomotor.layers.text_tokens import TextTokens
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig, TimeIds
from ideomotor.predictors.svd_unet import Tap, attending, joined, read_unet, svd_unet, way_up
from ideomotor.types import Clip, Losses


class Noising(NamedTuple):
    """All draws of one training step."""

    sigma: Float[Tensor, " b"]
    noise: Float[Tensor, "b t z h w"]
    told: Bool[Tensor, " b"]
    """False where the sentence is withheld."""
    seen: Bool[Tensor, " b"]
    """False where the first frame is withheld."""
    strength: Float[Tensor, " b"] | None = None
    """Of the noise on the first frame; None without augmentation."""
    first: Float[Tensor, "b z h w"] | None = None
    """That noise, of unit variance."""


class LatentDiffusion(nn.Module):
    """Latents outside are unscaled, as the autoencoder gives and wants them; of those inside only the first frame is.

    That frame enters as further channels of every frame, the sentence by cross-attention. Weights of diffusers'
    network lie under ``unet``. Source: stage 1 of VPP (2412.14803); Stable Video Diffusion (2311.15127).
    """

    def __init__(self, config: LatentDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = svd_unet(config.unet)
        self.text = TextTokens(config.text)

    def load_diffusers(self, folder: str | Path) -> None:
        """Takes the network's weights from a folder that diffusers saved.

        Raises:
            ValueError: the folder's network is of another size, or lacks weights.
        """
        config, state = read_unet(folder)
        if config != self.config.unet:
            raise ValueError(f"{folder} holds a network of {config}; this one was built with {self.config.unet}")
        wanted = set(self.unet.state_dict())
        if wanted != set(state):
            odd = sorted(wanted ^ set(state))
            raise ValueError(f"{folder} does not fit: {len(odd)} weights missing or unknown, such as {odd[0]}")
        self.unet.load_state_dict(state)

    def denoise(
        self,
        noised: Float[Tensor, "b t z h w"],
        sigma: Float[Tensor, " b"],
        first: Float[Tensor, "b z h w"],
        text: Float[Tensor, "b n d"],
        time_ids: Float[Tensor, "b 3"],
    ) -> Float[Tensor, "b t z h w"]:
        """Returns the clean scaled latents foretold.

        Args:
            noised: scaled latents and noise of standard deviation ``sigma``.
            sigma: noise level of each film.
            first: latent of the first frame, unscaled; zeros where it is withheld.
            text: what ``self.text`` gives; zeros where it is withheld.
            time_ids: see ``time_ids``.
        """

        def network(scaled: Tensor, c_noise: Tensor) -> Tensor:
            x, text_ = self._inputs(scaled, first, text)
            with attending(x):  # what foretells v is -F
                return -self.unet(x, c_noise, text_, time_ids, return_dict=False)[0].float()

        if self.config.foretells == "change":
            factors = scaling(sigma, 1.0)
            still = first[:, None].float() * self.config.latent_scale
            return still + network(factors.over(noised).c_in * noised, factors.c_noise)
        return denoised(network, noised, sigma, 1.0)

    def noising(self, latents: Float[Tensor, "b t z h w"], generator: torch.Generator | None = None) -> Noising:
        """Returns the draws of a training step."""
        config, b = self.config, len(latents)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=latents.device)

        def kept(dropout: float) -> Tensor:
            return torch.rand(b, generator=generator, device=latents.device) >= dropout

        sigma = log_normal(normal(b), config.sigma_mean, config.sigma_std)
        draws = Noising(sigma, normal(*latents.shape), kept(config.text_dropout), kept(config.image_dropout))
        if config.augmentation is None:
            return draws
        strength = log_normal(normal(b), *config.augmentation)
        return draws._replace(strength=strength, first=normal(*latents[:, 0].shape))

    def loss(
        self,
        latents: Float[Tensor, "b t z h w"],
        first: Float[Tensor, "b z h w"],
        text: Float[Tensor, "b n width"],
        noising: Noising | None = None,
    ) -> Losses:
        """Returns the weighted squared error of what is foretold of noised films, their first frames included.

        Args:
            latents: of whole films, unscaled.
            first: of the frame seen, unscaled.
            text: vectors of each sentence.
            noising: the draws; made here by default.
        """
        draws = self.noising(latents) if noising is None else noising
        return Losses(total=self.film_losses(latents, first, text, draws).mean())

    def film_losses(
        self,
        latents: Float[Tensor, "b t z h w"],
        first: Float[Tensor, "b z h w"],
        text: Float[Tensor, "b n width"],
        draws: Noising,
    ) -> Float[Tensor, " b"]:
        """Returns the loss of each film under given draws; see ``loss``, which is their mean."""
        x0 = latents.float() * self.config.latent_scale
        ids = self.time_ids(self.config.ids, len(x0))
        if draws.strength is not None and draws.first is not None:
            first = self._augmented(first, draws.first, draws.strength)
            ids = torch.cat([ids[:, :2], draws.strength[:, None]], 1)
        first = first * draws.seen[:, None, None, None]
        told = self.text(text) * draws.told[:, None, None]
        noised = x0 + draws.sigma[:, None, None, None, None] * draws.noise
        error = (self.denoise(noised, draws.sigma, first, told, ids) - x0).square().mean((1, 2, 3, 4))  # b
        weight = scaling(draws.sigma, 1.0).weight
        return weight.clamp(max=math.inf if self.config.weight_max is None else self.config.weight_max) * error

    @torch.no_grad()
    def sample(
        self,
        first: Float[Tensor, "b z h w"],
        text: Float[Tensor, "b n width"],
        steps: int = 30,
        guidance: float = 3.0,
        generator: torch.Generator | None = None,
        *,
        noise: Float[Tensor, "b t z h w"] | None = None,
        told: Bool[Tensor, " b"] | None = None,
        sampler: Callable[[Denoise, Tensor, Tensor], Tensor] = euler,
    ) -> Float[Tensor, "b t z h w"]:
        """Returns films as unscaled latents.

        Args:
            first: latent of the frame seen, unscaled.
            text: vectors of each sentence.
            steps: noise levels, from ``sigma_max`` down (Karras).
            guidance: how much what the sentence changes is enlarged at the last frame; it grows evenly from 1 at the
                first. 1 is none, and costs half.
            generator: of the noise.
            noise: to begin with, in place of drawn noise; of as many frames as are wanted.
            told: False where the sentence is withheld, as in training; it never is by default.
            sampler: of ``diffusion.sigma_samplers``.
        """
        config = self.config
        spoken = self.text(text) if told is None else self.text(text) * told[:, None, None]
        noise = self._noise(first, generator) if noise is None else noise
        ids = self.time_ids(config.sampling_ids or config.ids, len(first))
        if config.augmentation is not None and ids[0, 2] > 0:
            first = self._augmented(first, _normal(first, generator), ids[:, 2])
        ramp = torch.linspace(1, guidance, noise.shape[1], device=first.device)[:, None, None, None]
        blank = torch.zeros_like(first) if config.blank_negative else first

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if guidance == 1:
                return self.denoise(x, sigma, first, spoken, ids)
            both = torch.cat([torch.zeros_like(spoken), spoken])
            without, within = self.denoise(
                x.repeat(2, 1, 1, 1, 1), sigma.repeat(2), torch.cat([blank, first]), both, ids.repeat(2, 1)
            ).chunk(2)
            return without + ramp * (within - without)

        sigmas = karras(steps, config.sigma_min, config.sigma_max)
        return sampler(denoise, _level(noise, config.sigma_max), sigmas) / config.latent_scale

    def features(
        self,
        first: Float[Tensor, "b views z h w"],
        text: Float[Tensor, "b n width"],
        sigma: float = 700.0,
        layers: Sequence[Tap] = (0, 1),
        generator: torch.Generator | None = None,
        *,
        noise: Float[Tensor, "_ _ t z h w"] | None = None,
        steps: int = 1,
        schedule: int = 20,
    ) -> Float[Tensor, "b t n d"]:
        """Returns what the network sees of each frame to come on its way up from noise; all views in one batch.

        The maps of all ``layers`` are enlarged to the largest and joined on channels; tokens are row-major, one view
        after the other. Nothing behind the last layer is computed. Gradients flow where they are wanted.

        Args:
            first: latent of each view's frame, unscaled.
            text: vectors of each sentence.
            sigma: noise level that the network is told. The input is noise of the variance of training at any level;
                700 is published, about 28 is the highest 5 % of training.
            layers: up-blocks, or layers within them, see ``Tap``.
            generator: of the noise; fresh noise at each call makes features differ, so give one to repeat.
            noise: in place of drawn noise; axes of length 1 are shared by all samples or views.
            steps: pass that is read; those before it take Euler steps without guidance.
            schedule: Karras levels from ``sigma`` down, of which ``steps`` are walked.
        """
        config, (b, views) = self.config, first.shape[:2]
        if not 1 <= steps <= schedule:
            raise ValueError(f"steps is {steps}; wanted 1 to {schedule}, the length of the schedule")
        for tap in layers:
            config.unet.shape(tap, 1, 1)
        flat = first.flatten(0, 1)
        if noise is None:
            noise = self._noise(flat, generator)
        else:
            noise = noise.expand(b, views, *noise.shape[2:]).flatten(0, 1)
        told = self.text(text).repeat_interleave(views, 0)
        ids = self.time_ids(config.feature_ids or config.ids, b * views)
        sigmas = karras(schedule, min(config.sigma_min, sigma), sigma)[:steps]
        x = _level(noise, sigma)
        if steps > 1:
            x = euler(lambda x, level: self.denoise(x, level, flat, told, ids), x, sigmas)
        now = sigmas[-1].to(x.device).expand(len(x))
        factors = scaling(now, 1.0)
        scaled, told = self._inputs(factors.over(x).c_in * x, flat, told)
        with attending(scaled):
            found = joined(way_up(self.unet, scaled, factors.c_noise, told, ids, layers))
        return rearrange(found, "(b view) t d h w -> b t (view h w) d", view=views)

    def feature_shape(self, height: int, width: int, layers: Sequence[Tap] = (0, 1), views: int = 1) -> tuple[int, int]:
        """Returns tokens of a frame and their width, for ``features`` of latent frames of that size."""
        shapes = [self.config.unet.shape(tap, height, width) for tap in layers]
        return views * max(rows * columns for _, rows, columns in shapes), sum(channels for channels, _, _ in shapes)

    def time_ids(self, ids: TimeIds, b: int) -> Float[Tensor, "b 3"]:
        """Returns the same time ids for each film."""
        device = next(self.unet.parameters()).device
        return torch.tensor([[ids.fps, ids.motion, ids.noise]], device=device).repeat(b, 1)

    def _inputs(self, scaled: Tensor, first: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gets, in the precision of its weights: first frame beside each noised one, and text."""
        dtype = next(self.unet.parameters()).dtype
        beside = first[:, None].expand(-1, scaled.shape[1], -1, -1, -1)
        return torch.cat([scaled, beside.to(scaled)], 2).to(dtype), text.to(dtype)

    def _noise(self, first: Tensor, generator: torch.Generator | None) -> Tensor:
        return _normal(first[:, None].expand(-1, self.config.frames, -1, -1, -1), generator)

    def _augmented(self, first: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        return first + strength[:, None, None, None] / self.config.latent_scale * noise


class VideoDenoising(nn.Module):
    """Clip of latents -> noised latents -> the clean ones; each camera's film is a sample of its own."""

    def __init__(
        self,
        predictor: LatentDiffusion,
        text: Callable[[Sequence[str]], Float[Tensor, "b n width"]],
        recompute: bool = False,
    ) -> None:
        """``recompute`` computes activations twice instead of keeping them: less memory, about a third more time."""
        super().__init__()
        self.predictor, self.text = predictor, text
        if recompute:
            unet: Any = predictor.unet
            unet.enable_gradient_checkpointing()

    def forward(self, clip: Clip) -> Losses:
        """Returns the denoising loss of all cameras' films.

        Raises:
            ValueError: the clip holds no latents, or films of another length than the predictor's.
        """
        if not clip.latents:
            raise ValueError("a clip without latents came: encode its frames, or read them from a cache of latents")
        for camera, film in clip.latents.items():
            if film.shape[1] != self.predictor.config.frames:
                raise ValueError(
                    f"camera {camera!r} has {film.shape[1]} latent frames; the predictor foretells "
                    f"{self.predictor.config.frames}, the first included: window the data so"
                )
        films = torch.cat(list(clip.latents.values()))
        text = self.text(clip.text).to(films.device).repeat(len(clip.latents), 1, 1)
        return self.predictor.loss(films, films[:, 0], text)


def _level(noise: Tensor, sigma: float) -> Tensor:
    """Noise in place of noised latents of that level: it has their variance."""
    return noise * (sigma**2 + 1) ** 0.5


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like.device)
