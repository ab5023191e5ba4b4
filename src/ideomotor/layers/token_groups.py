"""Several tokens at one position of a transformer: one embedding in, one set of logits a token out.

A video's 2 x 2 neighbouring tokens, or the dimensions of one action, share a position. The sequence becomes that many
times shorter, while masking and sampling still go token by token.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


class TokenGroups(nn.Module):
    """Embeds groups of tokens and reads groups of logits."""

    def __init__(self, group: int, vocab: int, width: int) -> None:
        """``group`` tokens a position, each in ``0..vocab`` where ``vocab`` itself is [MASK]."""
        super().__init__()
        self.group, self.vocab = group, vocab
        self.embedding = nn.Embedding(group * (vocab + 1), width)
        self.head = nn.Linear(width, group * vocab)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.head.weight)  # starts at the uniform distribution
        nn.init.zeros_(self.head.bias)

    @property
    def mask_id(self) -> int:
        """The id that stands for "not known yet"."""
        return self.vocab

    def embed(self, tokens: Int[Tensor, "b n group"]) -> Float[Tensor, "b n d"]:
        """Returns one vector a position: the sum over its tokens, each place with a table of its own."""
        # Counted on the device: a list of numbers would be copied there, and a copy waits for all work before it.
        tables = torch.arange(self.group, device=tokens.device) * (self.vocab + 1)
        return self.embedding(tokens + tables).sum(2)

    def logits(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b n group vocab"]:
        """Returns the logits of every token of every position; [MASK] is not among the classes."""
        return rearrange(self.head(features), "b n (group vocab) -> b n group vocab", group=self.group)
