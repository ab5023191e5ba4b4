"""A pre-norm transformer that reads a sequence block by block.

Inside a block every position sees every other; a block sees all earlier blocks and none of the later ones. Blocks are
fed one call after the other, handing on the cache, so block-causality holds by construction (no mask that could be
wrong), and a prefix that does not change is computed once for any number of denoising steps, with the very same result.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.attention import Attention, KeyValue

Cache = tuple[KeyValue, ...]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a transformer trunk."""

    width: int = 256
    layers: int = 6
    heads: int = 4
    expansion: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.expansion) < 1 or self.width < 1 or self.width % self.heads:
            raise ValueError(
                f"layers {self.layers}, heads {self.heads}, expansion {self.expansion} must be at least 1, and width "
                f"{self.width} a multiple of heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; wanted a share in [0, 1)")


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, config.heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.expansion * width), nn.GELU(), nn.Linear(config.expansion * width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b n d"], past: KeyValue | None) -> tuple[Float[Tensor, "b n d"], KeyValue]:
        """Returns the block's new values and its cache entry."""
        attended, entry = self.attention(self.norm_attention(x), past)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x))), entry


class Transformer(nn.Module):
    """A stack of blocks and a last norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.apply(_init)
        for (
            name,
            weight,
        ) in self.named_parameters():  # keeps the residual stream's variance about 1 at the start (GPT-2)
            if name.endswith(("attention.out.weight", "feed_forward.2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** 0.5)

    def forward(self, x: Float[Tensor, "b n d"], past: Cache | None = None) -> tuple[Float[Tensor, "b n d"], Cache]:
        """Returns the block's features and the cache with which the next block is to be called."""
        entries = []
        for number, block in enumerate(self.blocks):
            x, entry = block(x, None if past is None else past[number])
            entries.append(entry)
        return self.norm(x), tuple(entries)


def repeat_cache(cache: Cache, times: int) -> Cache:
    """Returns the cache with each sample ``times`` times in a row."""
    return tuple(entry.repeat(times) for entry in cache)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
