"""Features of many foretold frames to a few tokens: queries of each frame read it, then one another over time."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ideomotor.layers.attention import Attention
from ideomotor.layers.linear import Linear
from ideomotor.types import LATER


@dataclass(frozen=True, kw_only=True)
class VideoFormerConfig:
    """Sizes of a Video Former; the defaults are the published ones for CALVIN.

    Attributes:
        kind: "3d" reads within frames and over time, "2d" within frames only, "linear" maps each token alone and keeps
            them all.
        feature_width: of a foretold token.
        width: of a token that is handed on.
        frames: foretold frames at most.
        queries: tokens that each frame is read into.
        head_width: of each of ``heads`` heads that read a frame; over time, ``width`` is shared among them.
        temporal_norm: normalises before attention over time, as before all else (the published one does not).
        places: tokens of a frame, of all views, each of which is told where it stands by a vector that is learned; 0
            tells none, as published: a frame is a set of tokens then.
    """

    kind: Literal["3d", "2d", "linear"] = "3d"
    feature_width: int = 2560
    width: int = 384
    frames: int = 16
    queries: int = 14
    layers: int = 6
    heads: int = 8
    head_width: int = 64
    expansion: int = 4
    temporal_norm: bool = False
    places: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        sizes = (self.feature_width, self.width, self.frames, self.queries, self.layers, self.heads, self.head_width)
        if (
            self.kind not in ("3d", "2d", "linear")
            or min(*sizes, self.expansion) < 1
            or self.width % self.heads
            or self.places < 0
        ):
            raise ValueError(
                f"kind {self.kind!r} must be 3d, 2d or linear; feature_width {self.feature_width}, frames "
                f"{self.frames}, queries {self.queries}, layers {self.layers}, heads {self.heads}, head_width "
                f"{self.head_width} and expansion {self.expansion} at least 1, width {self.width} a multiple of heads, "
                f"places {self.places} at least 0"
            )


class VideoFormer(nn.Module):
    """Source: VPP (2412.14803), section 3.2, by its published code; frames are read as in Flamingo (2204.14198).

    Tokens of several views stand side by side in a frame; there may be any number of them.
    """

    def __init__(self, config: VideoFormerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.places = nn.Parameter(torch.zeros(config.places, width)) if config.places else None
        if config.kind == "linear":
            self.embed: nn.Module = Linear(config.feature_width, width)
            return
        self.embed = nn.Sequential(Linear(config.feature_width, 2 * width), nn.GELU(), Linear(2 * width, width))
        self.queries = nn.Parameter(torch.randn(config.frames, config.queries, width))
        self.time = nn.Parameter(torch.randn(config.frames, 1, width))
        self.layers = nn.ModuleList(FormerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        features: Float[Tensor, "b t n d"],
        known: Bool[Tensor, "b t"] | None = None,
        extra: Float[Tensor, "b m width"] | None = None,
    ) -> Float[Tensor, "b tokens width"]:
        """Returns ``queries`` tokens a frame, frame by frame (with "linear" as many as came).

        Args:
            features: of at most ``frames`` frames; fewer are the first ones.
            known: frames that are not are read too, but without being told their time (the published code's mask).
            extra: tokens of ``width`` that every frame is given to read beside its own.
        """
        config = self.config
        if features.shape[1] > config.frames or features.shape[3] != config.feature_width:
            raise ValueError(
                f"features of {features.shape[1]} frames and width {features.shape[3]} came; this Video Former reads "
                f"up to {config.frames} frames of width {config.feature_width}: foretell fewer, or train one for these"
            )
        if config.places and features.shape[2] != config.places:
            raise ValueError(
                f"frames of {features.shape[2]} tokens came; this Video Former knows {config.places} places: give it "
                "what it was trained with, or train one for these (--former.places)"
            )
        tokens = self.embed(features)
        if self.places is not None:
            tokens = tokens + self.places
        if config.kind == "linear":
            return rearrange(tokens, "b t n width -> b (t n) width")
        batch, frames = tokens.shape[:2]
        if extra is not None:
            tokens = torch.cat([tokens, repeat(extra, "b m width -> b t m width", t=frames)], 2)
        time = self.time[:frames].expand(batch, -1, -1, -1)  # b t 1 width
        tokens = tokens + (time if known is None else time * known[:, :, None, None])
        tokens = rearrange(tokens, "b t n width -> (b t) n width")
        x = repeat(self.queries[:frames], "t q width -> (b t) q width", b=batch)
        for layer in self.layers:
            x = layer(x, tokens, frames)
        return rearrange(self.norm(x), "(b t) q width -> b (t q) width", t=frames)


class FormerLayer(nn.Module):
    """Each query reads its frame, then (3d) the same query of all frames, then is refined; each is added."""

    def __init__(self, config: VideoFormerConfig) -> None:
        super().__init__()
        width = config.width
        self.read = FrameReading(width, config.heads, config.head_width)
        self.time = Attention(width, config.heads) if config.kind == "3d" else None
        self.norm_time = nn.LayerNorm(width) if config.kind == "3d" and config.temporal_norm else nn.Identity()
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            Linear(width, config.expansion * width, bias=False),
            nn.GELU(),
            Linear(config.expansion * width, width, bias=False),
        )

    def forward(
        self, x: Float[Tensor, "bt q d"], tokens: Float[Tensor, "bt n d"], frames: int
    ) -> Float[Tensor, "bt q d"]:
        """Returns the queries' new values."""
        x = x + self.read(x, tokens)
        if self.time is not None:
            rows = rearrange(x, "(b t) q d -> (b q) t d", t=frames)
            rows = rows + self.time(self.norm_time(rows))[0]
            x = rearrange(rows, "(b q) t d -> (b t) q d", q=x.shape[1])
        return x + self.feed_forward(x)


class FrameReading(nn.Module):
    """Multi-head attention of queries to a frame's tokens and to one another; both sides are normalised first."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_tokens, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = Linear(width, heads * head_width, bias=False)
        self.key_value = Linear(width, 2 * heads * head_width, bias=False)
        self.out = Linear(heads * head_width, width, bias=False)

    def forward(self, x: Float[Tensor, "bt q d"], tokens: Float[Tensor, "bt n d"]) -> Float[Tensor, "bt q d"]:
        """Returns what each query reads; nothing is added."""
        normed = self.norm_queries(x)
        read = self.key_value(torch.cat([self.norm_tokens(tokens), normed], 1))
        key, value = rearrange(read, "bt n (two h d) -> two bt h n d", two=2, h=self.heads)
        query = rearrange(self.query(normed), "bt q (h d) -> bt h q d", h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(query, key, value), "bt h q d -> bt q (h d)"))
