"""Self-attention whose keys and values of an earlier block may be kept."""

from typing import NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, cat, nn
from torch.nn.functional import scaled_dot_product_attention


class KeyValue(NamedTuple):
    """One layer's keys and values of everything that later positions may look at."""

    key: Float[Tensor, "b heads n d"]
    value: Float[Tensor, "b heads n d"]

    def repeat(self, times: int) -> "KeyValue":
        """Returns each sample ``times`` times in a row, so that several futures share one past."""
        return KeyValue(self.key.repeat_interleave(times, 0), self.value.repeat_interleave(times, 0))


class Attention(nn.Module):
    """Multi-head attention of a block of positions to itself and to what came before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads: choose a multiple")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], past: KeyValue | None = None
    ) -> tuple[Float[Tensor, "b n d"], KeyValue]:
        """Returns the attended block, and keys and values of the past with this block appended."""
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if past is not None:
            key, value = cat([past.key, key], 2), cat([past.value, value], 2)
        attended = scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(attended, "b h n d -> b n (h d)")), KeyValue(key, value)
