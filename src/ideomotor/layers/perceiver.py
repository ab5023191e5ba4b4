"""Parts of a Perceiver: single-head attention from one set of vectors to another, and a gated feed-forward."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.linear import Linear


class LatentAttention(nn.Module):
    """One narrow head that reads ``context``; both sides are normalised first, nothing is added afterwards.

    Without a ``context`` the vectors read themselves; a module is built for one or the other.
    """

    def __init__(self, width: int, head_width: int, dropout: float = 0.0, *, cross: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if cross else None
        self.query = Linear(width, head_width, bias=False)
        self.key_value = Linear(width, 2 * head_width, bias=False)
        self.out = Linear(head_width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Returns what each vector of ``x`` reads."""
        normed = self.norm(x)
        source = normed if self.norm_context is None or context is None else self.norm_context(context)
        key, value = self.key_value(source).chunk(2, -1)
        query, key, value = self.query(normed)[:, None], key[:, None], value[:, None]  # b 1 n head
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out(read[:, 0])


class GatedFeedForward(nn.Module):
    """Norm, then GEGLU: one linear map times the GELU of another, mapped back; nothing is added afterwards.

    The two maps are separate modules, since halves of one output would be read with strides, which is slower.
    """

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value = Linear(width, expansion * width)
        self.gate = Linear(width, expansion * width)
        self.out = Linear(expansion * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Returns the refined vectors."""
        normed = self.norm(x)
        return self.out(self.value(normed) * F.gelu(self.gate(normed)))


class LatentBlock(nn.Module):
    """Vectors read a context (or themselves), then each is refined; both are added."""

    def __init__(self, width: int, head_width: int, dropout: float, *, cross: bool = False) -> None:
        super().__init__()
        self.attention = LatentAttention(width, head_width, dropout, cross=cross)
        self.feed_forward = GatedFeedForward(width)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Returns the block's new values."""
        x = x + self.attention(x, context)
        return x + self.feed_forward(x)
