"""Imagining: frames and a sentence in, video out, one horizon after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ideomotor.diffusion.samplers import Order
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.vpdd import VPDD, decode, encode
from ideomotor.tokenizers.vqvae3d import VQVAE3D


@torch.inference_mode()
def imagine(
    config: VPDD,
    tokenizer: VQVAE3D,
    predictor: DiscreteDiffusionPredictor,
    frames: UInt8[Tensor, "b t c h w"],
    text: Float[Tensor, "b d"],
    rounds: int = 1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    domain: Int[Tensor, " b"] | None = None,
    steps: int | None = None,
    order: Order = "confidence",
    guidance: float = 1.0,
    watch: Callable[[Int[Tensor, "b latent n"]], None] | None = None,
) -> UInt8[Tensor, "b t c h w"]:
    """Returns imagined frames after the given context frames; each further round goes on from the last one's tokens.

    Args:
        config: of the models; names the passes and the precision.
        tokenizer: between frames and tokens.
        predictor: what imagines.
        frames: the context, views one above the other; earlier ones than the predictor looks at are left out.
        text: what shall happen.
        rounds: horizons, one after the other.
        temperature: of the draws, 0 for the likeliest.
        generator: of the draws.
        domain: what the video is of, one id a sample; None for unknown.
        steps: passes a round; ``config.imagine_steps`` by default.
        order: in which tokens are set; see ``parallel_decode``.
        guidance: how far the sentence pushes; see the predictor's ``sample``.
        watch: shown all tokens before each pass, for a film: those seen, those of earlier rounds, and those of this
            round, [MASK] where unknown.
    """
    tokenizer.eval(), predictor.eval()
    latents = predictor.config.context_latents
    device = next(predictor.parameters()).device
    with config.pretrain_stage.optim.autocast(device):
        views = predictor.config.views
        tokens = encode(tokenizer, frames[:, -latents * tokenizer.frames_per_latent :].to(device), views)
        text = text.to(device)

        def show(xt: Int[Tensor, "b latent n"]) -> None:
            assert watch is not None
            watch(torch.cat([tokens, xt], 1))

        for _ in range(rounds):
            future = predictor.sample(
                tokens[:, -latents:], text, steps or config.imagine_steps, temperature, generator,
                domain=domain, order=order, guidance=guidance, watch=None if watch is None else show,
            )  # fmt: skip
            tokens = torch.cat([tokens, future], 1)
        return decode(tokenizer, tokens[:, latents:], predictor.config.grid, views).cpu()
