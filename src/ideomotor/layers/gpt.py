"""A GPT-2 trunk without places of its own: causal, pre-norm, Mish."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.linear import Linear


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a causal trunk; ``dropout`` acts on the input, on attention weights and on what blocks add."""

    width: int = 256
    layers: int = 6
    heads: int = 2
    inner: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width % self.heads:
            raise ValueError(
                f"layers {self.layers} must be at least 1, and width {self.width} a multiple of heads {self.heads}"
            )


class CausalAttention(nn.Module):
    """Multi-head attention of each position to itself and to the earlier ones."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "b n d"], last: int) -> Float[Tensor, "b last d"]:
        """Returns what the ``last`` positions read."""
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        count = x.shape[1]
        mask = None if last == count else torch.ones(last, count, dtype=torch.bool, device=x.device).tril(count - last)
        read = F.scaled_dot_product_attention(
            query[:, :, -last:],
            key,
            value,
            mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        return self.out(rearrange(read, "b h n d -> b n (h d)"))


class CausalBlock(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = CausalAttention(config)
        self.feed_forward = nn.Sequential(
            Linear(config.width, config.inner), nn.Mish(), Linear(config.inner, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b n d"], last: int) -> Float[Tensor, "b last d"]:
        """Returns the new values of the ``last`` positions."""
        kept = x[:, -last:] + self.dropout(self.attention(self.norm_attention(x), last))
        return kept + self.dropout(self.feed_forward(self.norm_feed_forward(kept)))


class GPT(nn.Module):
    """A stack of causal blocks and a last norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Float[Tensor, "b n d"], last: int) -> Float[Tensor, "b last d"]:
        """Returns the features of the ``last`` positions; the last block works for no others."""
        count, x = x.shape[1], self.dropout(x)
        for place, block in enumerate(self.blocks, start=1):
            x = block(x, last if place == len(self.blocks) else count)
        return self.norm(x)
