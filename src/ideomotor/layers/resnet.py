"""The blocks of image autoencoders: convolutions between group norms, attention within a map and to other maps.

Every norm's epsilon is the published one (1e-6 along the trunk, 1e-5 around cross-attention): weights trained with one
do not run with the other.

Source: Esser et al. 2021 (VQGAN, arXiv 2012.09841); cross-attention: Wu et al. 2024 (iVideoGPT, arXiv 2405.15223).
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, bfloat16, cat, is_grad_enabled, nn, stack, zeros

from ideomotor.layers.attention import KeyValue

_MOST_SCORES = 2**26
"""Scores that plain attention may hold at once: 128 MB."""


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; added to the input, which a 1x1 convolution brings to the new width."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Returns the refined map."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Downsample(nn.Module):
    """Half the resolution by a 3x3 convolution; zeros are added at the right and the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c rows columns"]:
        """Returns the coarser map."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: every place four times, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c rows columns"]:
        """Returns the finer map."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class FoldedUpsample(nn.Module):
    """An ``Upsample`` that is not trained any more, at half the cost: the fine map is never made.

    A place of the fine map sees 2x2 different places of the coarse one through its 3x3 weights; which of them are
    summed depends on the place's parity only, so four 2x2 convolutions give the four places of each coarse one.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        folded = upsample.conv.weight.detach()
        for axis in (2, 4):  # each turns (..., 3, ...) into (parity, ..., 2, ...)
            first, second, third = folded.split(1, axis)
            even, odd = cat([first, second + third], axis), cat([first + second, third], axis)
            folded = stack([even, odd])
        assert upsample.conv.bias is not None
        self.register_buffer("weight", rearrange(folded, "column row d c y x -> (row column d) c y x"))
        self.register_buffer("bias", upsample.conv.bias.detach().repeat(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c rows columns"]:
        """Returns the finer map, channels last in memory."""
        coarse = F.conv2d(x, self.weight, self.bias, padding=1)  # one place more than the map on each axis
        parts = rearrange(coarse, "b (row column d) h w -> b h w row column d", row=2, column=2)
        rows, columns = x.shape[2:]
        fine = x.new_empty(len(x), rows, 2, columns, 2, parts.shape[-1])
        for row in (0, 1):
            for column in (0, 1):
                fine[:, :, row, :, column] = parts[:, row : row + rows, column : column + columns, row, column]
        return rearrange(fine, "b h row w column d -> b d (h row) (w column)")


class MapAttention(nn.Module):
    """Attention of every place of a map to all others, one head of full width; added to the input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns the refined map."""
        places = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        attended = _attended(self.query(places), self.key(places), self.value(places))
        return x + rearrange(self.out(attended), "b 1 (h w) c -> b c h w", h=x.shape[2])


class CrossAttention(nn.Module):
    """Attention of a frame's map to the maps of all context frames, then SiLU on the sum of both.

    The context's side depends on the context alone: ``remember`` computes it once, whatever is asked of it later.

    Args:
        width: channels of both maps.
        size: rows (and columns) of both maps.
        context: number of context frames.
        heads: of the attention.
        groups: of the norms. The context frames of a sample share one norm's statistics.
        dropout: of attention weights and of what is added.
    """

    def __init__(self, width: int, size: int, context: int, heads: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.context, self.heads, self.dropout = context, heads, dropout
        self.query_norm = nn.GroupNorm(groups, width)
        self.context_norm = nn.GroupNorm(groups, width)
        self.query_positions = nn.Parameter(zeros(size * size, width))
        self.context_positions = nn.Parameter(zeros(context * size * size, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def remember(self, maps: Float[Tensor, "frames d h w"]) -> KeyValue:
        """Returns keys and values of the context; ``maps`` are the samples' frames, oldest first."""
        maps = rearrange(maps, "(b c) d h w -> b d (c h) w", c=self.context)
        places = rearrange(self.context_norm(maps), "b d h w -> b (h w) d") + self.context_positions
        width = places.shape[-1]
        both = F.linear(places, self.qkv.weight[width:], self.qkv.bias[width:])
        key, value = rearrange(both, "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return KeyValue(key, value)

    def forward(self, x: Float[Tensor, "frames d h w"], context: KeyValue) -> Float[Tensor, "frames d h w"]:
        """Returns the refined maps; ``x`` holds the same number of frames for every sample of the context."""
        samples, width, rows = len(context.key), x.shape[1], x.shape[2]
        places = rearrange(self.query_norm(x), "frames d h w -> frames (h w) d") + self.query_positions
        query = F.linear(places, self.qkv.weight[:width], self.qkv.bias[:width])
        query = rearrange(query, "(b f) n (h d) -> b h (f n) d", b=samples, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        attended = _attended(query, context.key, context.value, dropout)
        attended = self.out(rearrange(attended, "b h (f n) d -> (b f) n (h d)", f=len(x) // samples))
        attended = F.dropout(attended, self.dropout, self.training)
        return F.silu(x + rearrange(attended, "frames (h w) d -> frames d h w", h=rows))


def _attended(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h m d"],
    value: Float[Tensor, "b h m d"],
    dropout: float = 0.0,
) -> Float[Tensor, "b h n d"]:
    """Attention; in bf16 on a CPU by plain products, which take a third of the time of torch's own (Zen 5)."""
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    plain = query.device.type == "cpu" and query.dtype == bfloat16 and not (dropout or is_grad_enabled())
    if not plain or scores > _MOST_SCORES:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1) @ value
