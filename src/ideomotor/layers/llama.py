"""A causal trunk of the LLaMA type: pre-norm by root mean square, rotary positions, gated feed-forward, no biases."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ideomotor.layers.linear import Linear


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of the trunk.

    Attributes:
        inner: width inside the feed-forward parts.
        positions: longest sequence that it is trained for.
        dropout: on attention weights, while training; never where a cache is used.
        rotary_base: the slowest rotation turns once in about 2 pi times so many positions.
        norm_epsilon: added under the root of the norms.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 1024
    dropout: float = 0.0
    rotary_base: float = 10000.0
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.inner, self.positions) < 1 or self.width % (2 * self.heads):
            raise ValueError(
                f"layers {self.layers}, heads {self.heads}, inner {self.inner} and positions {self.positions} must be "
                f"at least 1, and width {self.width} an even multiple of heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; wanted a share in [0, 1)")


class KeyValueCache:
    """Keys and values of all layers, in tensors allocated once and filled from the front."""

    def __init__(
        self,
        key: Float[Tensor, "layers b heads capacity d"],
        value: Float[Tensor, "layers b heads capacity d"],
        filled: int = 0,
    ) -> None:
        self.key, self.value, self.filled = key, value, filled

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.key.shape[3]

    def put(
        self, layer: int, key: Float[Tensor, "b heads n d"], value: Float[Tensor, "b heads n d"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Writes behind what is filled, and returns the layer's keys and values up to there (views)."""
        end = self.filled + key.shape[2]
        self.key[layer, :, :, self.filled : end] = key
        self.value[layer, :, :, self.filled : end] = value
        return self.key[layer, :, :, :end], self.value[layer, :, :, :end]

    def select(self, rows: Tensor) -> "KeyValueCache":
        """Returns a copy that holds those samples, in that order; a sample may come several times."""
        copies = []
        for entries in (self.key, self.value):
            layers, _, *rest = entries.shape
            copy = entries.new_empty(layers, len(rows), *rest)
            copy[:, :, :, : self.filled] = entries[:, rows, :, : self.filled]
            copies.append(copy)
        return KeyValueCache(copies[0], copies[1], self.filled)


class RotaryAttention(nn.Module):
    """Multi-head attention of each position to itself and to the earlier ones."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = Linear(config.width, 3 * config.width, bias=False)
        self.out = Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        turns: Float[Tensor, "two n half"],
        last: int,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Float[Tensor, "b last d"]:
        """Returns what the ``last`` positions read."""
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        query, key = _turned(query[:, :, -last:], turns[:, -last:]), _turned(key, turns)
        if cache is not None:
            key, value = cache.put(layer, key, value)
        total = key.shape[2]
        read = F.scaled_dot_product_attention(
            query.to(key.dtype),
            key,
            value,
            _mask(last, total, x.device),
            dropout_p=self.dropout if self.training and cache is None else 0.0,
            is_causal=last == total > 1,
        )
        return self.out(rearrange(read, "b h n d -> b n (h d)").to(x.dtype))


class GatedFeedForward(nn.Module):
    """Two layers, the inner one gated (SwiGLU)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.inner, bias=False)
        self.down = Linear(config.inner, config.width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Returns what is added to each position."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class LlamaBlock(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.width, config.norm_epsilon)
        self.norm_feed_forward = nn.RMSNorm(config.width, config.norm_epsilon)
        self.attention, self.feed_forward = RotaryAttention(config), GatedFeedForward(config)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        turns: Float[Tensor, "two n half"],
        last: int,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Float[Tensor, "b last d"]:
        """Returns the new values of the ``last`` positions."""
        kept = x[:, -last:] + self.attention(self.norm_attention(x), turns, last, cache, layer)
        return kept + self.feed_forward(self.norm_feed_forward(kept))


class Llama(nn.Module):
    """Source: LLaMA (2302.13971), as iVideoGPT (2405.15223) uses it; its numbers are pinned by recorded ones.

    Attributes:
        recompute: in training, keep what enters each block alone and compute the rest anew in the backward pass: same
            numbers, less memory, about a third more time.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_epsilon)

    def forward(
        self, x: Float[Tensor, "b n d"], cache: KeyValueCache | None = None, last: int | None = None
    ) -> Float[Tensor, "b last d"]:
        """Returns the features of the ``last`` positions (all by default); the last block works for no others.

        Args:
            x: what enters at positions that follow those in ``cache``.
            cache: what came before; the new positions are added to it in place.
            last: positions whose features are wanted.
        """
        count, start = x.shape[1], 0 if cache is None else cache.filled
        room = self.config.positions if cache is None else cache.capacity
        if start + count > room:
            raise ValueError(f"{count} positions came behind {start}, and there is room for {room} in all")
        turns = self._turns(start, count, x.device)
        recompute = self.recompute and self.training and cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            wanted = last if last is not None and layer == len(self.blocks) - 1 else count
            if recompute:
                x = checkpoint(block, x, turns, wanted, None, layer, use_reentrant=False)
            else:
                x = block(x, turns, wanted, cache, layer)
        if cache is not None:
            cache.filled += count
        return self.norm(x)

    def empty_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """Returns room for so many samples and positions."""
        config, device = self.config, self.norm.weight.device
        # On a CPU one query reads bf16 keys three times slower than float32 ones (torch 2.13, 600 positions).
        dtype = torch.float32 if device.type == "cpu" else self.norm.weight.dtype
        shape = (config.layers, batch, config.heads, capacity, config.width // config.heads)
        with torch.inference_mode(False):  # a tensor born in inference mode could not be written to outside of it
            key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        return KeyValueCache(key, value)

    def _turns(self, start: int, count: int, device: torch.device) -> Float[Tensor, "two n half"]:
        """Cosines and sines, always float32: bf16 cannot tell position 1000 from 1001."""
        width = self.config.width // self.config.heads
        speeds = 1.0 / self.config.rotary_base ** (torch.arange(0, width, 2, device=device).float() / width)
        angles = torch.arange(start, start + count, device=device).float()[:, None] * speeds
        return torch.stack([angles.cos(), angles.sin()])


def _turned(x: Float[Tensor, "b h n d"], turns: Float[Tensor, "two n half"]) -> Float[Tensor, "b h n d"]:
    first, second = x.chunk(2, -1)
    cos, sin = turns
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _mask(last: int, total: int, device: torch.device) -> Bool[Tensor, "last total"] | None:
    """Which positions the last ones see; None where it is all of them, or all up to their own from the first on."""
    if last in (1, total):
        return None
    return torch.ones(last, total, dtype=torch.bool, device=device).tril(total - last)
