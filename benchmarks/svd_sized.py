"""VPP's networks at full size with random weights, and the forward pass of diffusers alone that they are held against.

What a pass costs depends on sizes alone, so one random block, repeated, fills all weights: seconds in place of minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ideomotor.layers.text_tokens import ClipTokens
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig
from ideomotor.predictors.svd_unet import joined

SENTENCE = "push the sliding door to the left side"
_WORDS, _END, _START = 49408, 49407, 49406  # of every published CLIP
_BLOCK = 2**20 + 7  # no multiple of any width, so that no two rows of a weight are alike


def filled(make: Callable[[], nn.Module]) -> Any:
    """Returns the module with its weights filled from one random block, scaled to keep variance; norms pass all on."""
    with torch.device("meta"):
        module = make()
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    block = torch.rand(_BLOCK, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            flat = weight.view(-1)
            for start in range(0, flat.numel(), _BLOCK):
                piece = flat[start : start + _BLOCK]
                torch.mul(block[: len(piece)], (3 / weight[0].numel()) ** 0.5, out=piece)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return module


def sized(config: LatentDiffusionConfig) -> LatentDiffusion:
    """Returns the predictor in float32."""
    predictor: LatentDiffusion = filled(lambda: LatentDiffusion(config))
    return predictor


def reduced(predictor: LatentDiffusion, dtype: torch.dtype) -> LatentDiffusion:
    """Returns a copy with such weights, made one weight after the other, so that no third copy is ever in memory."""
    with torch.device("meta"):
        copy = LatentDiffusion(predictor.config)
    state = {name: value.to(dtype) for name, value in predictor.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy.eval().requires_grad_(False)


class Spelling:
    """A tokenizer without files: ids of no meaning, one a word, between CLIP's start and end."""

    def __call__(self, sentence: str, **_: object) -> dict[str, list[int]]:
        """Returns the ids of the sentence."""
        return {"input_ids": [_START, *(1000 + 37 * len(word) for word in sentence.split()), _END]}


def text_tower(tiny: bool) -> ClipTokens:
    """Returns CLIP's text tower in the size of ViT-B/32, or a small one as wide, behind the memory for sentences."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"num_hidden_layers": 1, "intermediate_size": 64} if tiny else {}
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=_WORDS, eos_token_id=_END, **sizes))
    return ClipTokens(Spelling(), model.eval(), _END)


def ids_of(tokens: ClipTokens) -> tuple[Int[Tensor, "1 n"], Int[Tensor, "1 n"]]:
    """Returns ids and mask of the sentence, as the tower is to be asked anew."""
    ids = tokens.ids(SENTENCE)
    spare = tokens.tokens - len(ids)
    return torch.tensor([ids + [_END] * spare]), torch.tensor([[1] * len(ids) + [0] * spare])


@contextmanager
def listening(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what the blocks give while inside."""
    heard: list[Tensor] = []

    def hear(module: nn.Module, inputs: object, output: Tensor) -> None:
        heard.append(output)

    hooks = [block.register_forward_hook(hear) for block in blocks]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def plain_features(
    unet: nn.Module,
    text: Float[Tensor, "1 n half"],
    latents: Float[Tensor, "view z h w"],
    noise: Float[Tensor, "1 t z h w"],
    taps: Sequence[int],
    sigma: float = 700.0,
    fps: float = 7.0,
) -> Float[Tensor, "view t n d"]:
    """Returns what hooks on the up-blocks hear while diffusers' whole network runs once, all given views in one batch.

    Written from the published description, without our predictor, so that the two can be compared.
    """
    net: Any = unet
    weight = next(unet.parameters())
    views, frames = len(latents), noise.shape[1]
    beside = latents[:, None].expand(-1, frames, -1, -1, -1)
    x = torch.cat([noise.expand(views, -1, -1, -1, -1), beside], 2).to(weight)
    told = torch.cat([text, text], -1).expand(views, -1, -1).to(weight)
    ids = torch.tensor([[fps, 127.0, 0.0]], device=weight.device).expand(views, -1)
    with listening([net.up_blocks[tap] for tap in taps]) as heard:
        net(x, torch.tensor(math.log(sigma) / 4, device=weight.device), told, ids, return_dict=False)
    maps = joined([found.unflatten(0, (views, frames)) for found in heard])
    return maps.flatten(3).transpose(2, 3)


def published_sizes(tiny: bool, frames: int) -> LatentDiffusionConfig:
    """Returns the predictor's sizes; ``tiny`` keeps the shape of the network alone."""
    if not tiny:
        return LatentDiffusionConfig(frames=frames)
    from ideomotor.predictors.svd_unet import SVDUNetConfig

    unet = SVDUNetConfig(widths=(32, 32, 64, 64), heads=(1, 1, 2, 2), layers=1, time_width=8)
    return LatentDiffusionConfig(unet=unet, frames=frames)
