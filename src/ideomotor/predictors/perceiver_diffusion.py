"""Foretells video tokens as VPDD's published code does: a Perceiver, one of two networks that undo one diffusion.

The sequence is [step | text | observed latent frame | noised future latent frame]; 2048 latents read it, think, and the
places of the future read them. It is called at every step of the chain with the tokens as they stand then.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ideomotor.layers.linear import Linear
from ideomotor.layers.perceiver import LatentAttention, LatentBlock
from ideomotor.layers.step_text import StepTextEmbedding, two_layers


@dataclass(frozen=True, kw_only=True)
class PerceiverDiffusionPredictorConfig:
    """Sizes of the published video model; the defaults have 9,210,368 parameters.

    Attributes:
        codes: codes of the tokenizer; the ids above them (actions, [MASK]) are read as zero vectors.
        code_width: width of a code vector.
        grid: rows and columns of a latent frame.
        blocks: self-attention blocks of the latents (the published argument is twice that number).
        places: rows of the table of places; the first 2 + twice the grid are used.
    """

    codes: int = 2048
    code_width: int = 256
    grid: tuple[int, int] = (24, 24)
    width: int = 256
    head_width: int = 32
    latents: int = 2048
    blocks: int = 6
    text_width: int = 1024
    places: int = 4610
    dropout: float = 0.1

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.grid[0] * self.grid[1]


class Observed(NamedTuple):
    """What stays the same through all steps of a decision."""

    history: Float[Tensor, "b n d"]
    text: Float[Tensor, "b d"]


class PerceiverDiffusionPredictor(nn.Module):
    """Source: p_theta1 of VPDD (2402.14407), as published; its numbers are pinned by recorded ones.

    Outputs are computed for the future's places only; the published code computes, and drops, the others.
    """

    codes: Tensor

    def __init__(self, config: PerceiverDiffusionPredictorConfig) -> None:
        super().__init__()
        self.config = config
        width, head_width, dropout = config.width, config.head_width, config.dropout
        self.register_buffer("codes", torch.zeros(config.codes, config.code_width))  # frozen: the tokenizer's
        self.history = nn.Sequential(
            nn.LayerNorm(config.code_width), *two_layers(config.code_width, 2 * config.code_width, width)
        )
        self.future = Linear(config.code_width, width)
        self.embedding = StepTextEmbedding(width, config.text_width, config.places)
        self.latents = nn.Parameter(torch.randn(config.latents, width))
        self.read = LatentBlock(width, head_width, dropout, cross=True)
        self.think = nn.ModuleList(LatentBlock(width, head_width, dropout) for _ in range(config.blocks))
        self.answer = LatentAttention(width, head_width, cross=True)
        self.head = Linear(width, config.codes)

    def borrow_codes(self, codes: Float[Tensor, "k d"]) -> None:
        """Copies the tokenizer's code vectors, which this network reads and never trains.

        Raises:
            ValueError: there are more or fewer of them, or they are of another width.
        """
        if codes.shape != self.codes.shape:
            raise ValueError(
                f"the tokenizer has {len(codes)} codes of width {codes.shape[-1]}, the predictor was built for "
                f"{self.config.codes} of width {self.config.code_width}: use the tokenizer it was trained with"
            )
        self.codes.copy_(codes.detach())

    def observe(self, history: Int[Tensor, "b n"], text: Float[Tensor, "b text"]) -> Observed:
        """Returns the embedded observation and sentence, good for all steps of the chain."""
        if history.shape[1] != self.config.tokens:
            raise ValueError(
                f"the predictor was built for latent frames of {self.config.tokens} tokens and got "
                f"{history.shape[1]}: use the tokenizer it was trained with"
            )
        return Observed(self.history(self._vectors(history)), self.embedding.text(text))

    def features(self, xt: Int[Tensor, "b n"], step: Int[Tensor, " b"], seen: Observed) -> Float[Tensor, "b n d"]:
        """Returns what an action model reads: one vector a place of the future, given its noised tokens."""
        tokens = torch.cat([seen.history, self.future(self._vectors(xt))], 1)
        inputs = self.embedding(tokens, seen.text, step)  # b (2 + 2n) d
        latents = self.read(self.latents.expand(len(xt), -1, -1), inputs)
        for block in self.think:
            latents = block(latents)
        return self.answer(inputs[:, -xt.shape[1] :], latents)

    def logits(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k"]:
        """Returns logits over the tokenizer's codes."""
        return self.head(features)

    def _vectors(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n code"]:
        vectors = F.embedding(ids.clamp(max=self.config.codes - 1), self.codes)
        return vectors.masked_fill((ids >= self.config.codes)[..., None], 0.0)
