"""A diffusion step and a sentence, put before a sequence of tokens and multiplied into every one of them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ideomotor.layers.linear import Linear


def two_layers(before: int, hidden: int, after: int) -> nn.Sequential:
    """Returns linear, Mish, linear: the small network that VPDD's published code uses wherever it needs one."""
    return nn.Sequential(Linear(before, hidden), nn.Mish(), Linear(hidden, after))


def sinusoid(step: Int[Tensor, " b"] | Float[Tensor, " b"], width: int) -> Float[Tensor, "b d"]:
    """Returns sines, then cosines, of a step or noise level at ``width / 2`` frequencies from 1 down to 1/10000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=step.device) * (-math.log(10000) / (half - 1)))
    angles = step.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class StepTextEmbedding(nn.Module):
    """[step | text | tokens], all multiplied by the text and by the step, plus a learned place, normalised.

    Source: the published code of VPDD (2402.14407), both networks. Text and step are factors *and* tokens there.
    """

    def __init__(self, width: int, text_width: int, places: int) -> None:
        super().__init__()
        self.width = width
        self.step = two_layers(width, 4 * width, width)
        self.text = nn.Sequential(nn.LayerNorm(text_width), *two_layers(text_width, width, width))
        self.places = nn.Parameter(torch.zeros(places, width))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "b n d"], text: Float[Tensor, "b d"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b m d"]:
        """Returns the sequence, two longer than ``tokens``; ``text`` went through ``self.text`` already, once."""
        count = tokens.shape[1] + 2
        if count > len(self.places):
            raise ValueError(
                f"{tokens.shape[1]} tokens came; there are places for {len(self.places) - 2}: give more places"
            )
        time = self.step(sinusoid(step, self.width))[:, None]  # b 1 d
        sentence = text[:, None]
        sequence = torch.cat([time, sentence, tokens], 1)  # b m d
        return self.norm(sequence * sentence * time + self.places[:count])
