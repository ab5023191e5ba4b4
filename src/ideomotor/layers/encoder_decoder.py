"""An encoder of what is seen, and a decoder of what is to be told, whose blocks a condition modulates.

The decoder's keys and values of what the encoder gave are computed once, for any number of denoising steps.
"""

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.attention import KeyValue
from ideomotor.layers.linear import Linear

Context = tuple[KeyValue, ...]


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """Sizes of an encoder and a decoder; the defaults are VPP's.

    Attributes:
        causal_context: position i of the decoder reads tokens 0..i of the context only. The published code reuses its
            causal mask there, so that ten actions see ten of 225 tokens.
    """

    width: int = 384
    encoder_layers: int = 4
    decoder_layers: int = 4
    heads: int = 8
    expansion: int = 4
    attention_dropout: float = 0.3
    residual_dropout: float = 0.1
    feed_forward_dropout: float = 0.05
    causal_context: bool = False

    def __post_init__(self) -> None:
        counts = (self.encoder_layers, self.decoder_layers, self.heads, self.expansion)
        if min(counts) < 1 or self.width < 1 or self.width % self.heads or self.width % 2:
            raise ValueError(
                f"encoder_layers {self.encoder_layers}, decoder_layers {self.decoder_layers}, heads {self.heads} and "
                f"expansion {self.expansion} must be at least 1, width {self.width} even and a multiple of heads"
            )
        for dropout in (self.attention_dropout, self.residual_dropout, self.feed_forward_dropout):
            if not 0 <= dropout < 1:
                raise ValueError(f"a dropout is {dropout}; wanted a share in [0, 1)")


class Encoder(nn.Module):
    """Blocks in which every token sees every other, and a last norm. No token knows its place."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Returns the encoded tokens."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Blocks in which a position sees itself, those before it, and the context; and a last norm."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def context(self, encoded: Float[Tensor, "b m d"]) -> Context:
        """Returns what the blocks read of ``encoded``, one entry a block."""
        return tuple(cast(DecoderBlock, block).context.key_value(encoded) for block in self.blocks)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b 1 d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        """Returns the decoded positions."""
        for block, entry in zip(self.blocks, context, strict=True):
            x = block(x, condition, entry)
        return self.norm(x)


class ContextAttention(nn.Module):
    """Multi-head attention to given keys and values; dropout on what is looked at and on what comes out."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query = Linear(config.width, config.width)
        self.keys_values = Linear(config.width, 2 * config.width)
        self.out = Linear(config.width, config.width, bias=False)
        self.drop = nn.Dropout(config.residual_dropout)

    def key_value(self, context: Float[Tensor, "b m d"]) -> KeyValue:
        """Returns what is to be read."""
        return KeyValue(*rearrange(self.keys_values(context), "b m (two h d) -> two b h m d", two=2, h=self.heads))

    def forward(self, x: Float[Tensor, "b n d"], entry: KeyValue, *, causal: bool = False) -> Float[Tensor, "b n d"]:
        """Returns what each position reads; with ``causal`` position i reads the first i + 1 alone."""
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.heads)
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, entry.key, entry.value, dropout_p=dropout, is_causal=causal)
        return self.drop(self.out(rearrange(read, "b h n d -> b n (h d)")))


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, bias=False)
        self.attention = ContextAttention(config)
        self.norm_feed_forward = nn.LayerNorm(config.width, bias=False)
        self.feed_forward = _feed_forward(config)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Returns the block's new values."""
        normed = self.norm_attention(x)
        x = x + self.attention(normed, self.attention.key_value(normed))
        return x + self.feed_forward(self.norm_feed_forward(x))


class DecoderBlock(nn.Module):
    """Causal attention, attention to the context, feed-forward; the condition shifts, scales and gates all but context.

    The scale is the factor itself, not what is added to 1: at the start, where the modulation is small, a block passes
    on little but what it reads of the context (published so).
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.causal_context = config.causal_context
        self.modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.attention = ContextAttention(config)
        self.norm_context = nn.LayerNorm(width)
        self.context = ContextAttention(config)
        self.norm_feed_forward = nn.LayerNorm(width, bias=False)
        self.feed_forward = _feed_forward(config)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b 1 d"], context: KeyValue
    ) -> Float[Tensor, "b n d"]:
        """Returns the block's new values."""
        shift, scale, gate, shift_last, scale_last, gate_last = self.modulation(condition).chunk(6, -1)
        normed = self.norm_attention(x) * scale + shift
        x = x + gate * self.attention(normed, self.attention.key_value(normed), causal=True)
        x = x + self.context(self.norm_context(x), context, causal=self.causal_context)
        return x + gate_last * self.feed_forward(self.norm_feed_forward(x) * scale_last + shift_last)


def _feed_forward(config: EncoderDecoderConfig) -> nn.Sequential:
    inner = config.expansion * config.width
    return nn.Sequential(
        Linear(config.width, inner, bias=False),
        nn.GELU(),
        Linear(inner, config.width, bias=False),
        nn.Dropout(config.feed_forward_dropout),
    )
