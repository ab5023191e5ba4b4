"""The denoising film: futures as they come about, pass by pass, what is not known yet as grey blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from torch import Tensor

from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.panels import Kind, framed, hatched, side_by_side
from ideomotor.tokenizers.vqvae3d import VQVAE3D


@torch.inference_mode()
def denoising_film(
    tokenizer: VQVAE3D,
    predictor: DiscreteDiffusionPredictor,
    passes: Sequence[Int[Tensor, "samples latent n"]],
    context: UInt8[Tensor, "t c h w"],
    truth: UInt8[Tensor, "u c h w"],
    futures: UInt8[Tensor, "samples u c h w"],
) -> UInt8[Tensor, "frames c row_h row_w"]:
    """Returns a film, truth on the left: the context, then each pass as one run through its horizon, then all at once.

    Args:
        tokenizer: draws tokens.
        predictor: that foretold them.
        passes: all tokens before each pass, as ``imagine`` shows them to its ``watch``.
        context: what was seen.
        truth: what then happened.
        futures: what ``imagine`` returned; each round's passes end on its part of it, and the film on all of it.
    """
    latents, per_latent = predictor.config.latents, tokenizer.frames_per_latent
    horizon = latents * per_latent

    def row(
        left: UInt8[Tensor, "t c h w"], right: UInt8[Tensor, "samples t c h w"], kind: Kind | None = None
    ) -> Tensor:
        shown = [framed(left, kind or "truth"), *(framed(video, kind or "imagined") for video in right)]
        return side_by_side(shown)

    parts = [row(context, context.expand(len(futures), -1, -1, -1, -1), "seen")]
    for number, tokens in enumerate(passes):
        first = (tokens.shape[1] - latents - predictor.config.context_latents) * per_latent
        span = slice(first, first + horizon)
        parts.append(row(truth[span], _as_known(tokenizer, predictor, tokens)))
        if number + 1 == len(passes) or passes[number + 1].shape != tokens.shape:  # the round's last
            parts.append(row(truth[span], futures[:, span]))
    return torch.cat([*parts, row(truth, futures)])


def _as_known(
    tokenizer: VQVAE3D, predictor: DiscreteDiffusionPredictor, tokens: Int[Tensor, "samples latent n"]
) -> UInt8[Tensor, "samples t c h w"]:
    """Draws the round's horizon; beneath the grey stand the tokens before it, so that what is known looks natural."""
    latents, grid = predictor.config.latents, predictor.config.grid
    before, xt = tokens[:, -latents - 1, None], tokens[:, -latents:]
    unknown = xt == predictor.future.mask_id  # samples latent n
    videos = tokenizer.decode(torch.where(unknown, before, xt), grid).cpu()
    places = rearrange(unknown.cpu(), "samples latent (h w) -> samples latent h w", h=grid[0])
    return torch.stack([hatched(video, where) for video, where in zip(videos, places, strict=True)])
