"""Encoder and decoder of the compressive tokenizer, each in two forms: plain, for context frames, and conditional."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.attention import KeyValue
from ideomotor.layers.resnet import CrossAttention, Downsample, MapAttention, ResnetBlock, Upsample
from ideomotor.tokenizers.context_config import ContextVQGANConfig


class Encoder(nn.Module):
    """Frames to latents. The plain form also returns the maps that the conditional one attends to."""

    def __init__(self, config: ContextVQGANConfig, *, conditional: bool) -> None:
        super().__init__()
        groups, widths, self.fold = config.norm_groups, config.widths, config.fold
        self.conv_in = nn.Conv2d(3 * self.fold**2, widths[0], 3, padding=1)
        self.levels, self.cross, self.tapped = nn.ModuleList(), nn.ModuleList(), []
        before, size = widths[0], config.size // config.fold
        for i, width in enumerate(widths):
            level: list[nn.Module] = _blocks(before, width, config.blocks, groups)
            if i < len(widths) - 1:
                level.append(Downsample(width))
                size //= 2
            self.levels.append(nn.Sequential(*level))
            self.tapped.append(size <= config.attention_limit)
            if conditional and self.tapped[-1]:
                self.cross.append(_cross(config, width, size))
            before = width
        self.middle = _middle(before, groups, attention=conditional or config.middle_attention)
        self.norm_out = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, config.latent, 3, padding=1)

    def remember(self, maps: Sequence[Float[Tensor, "frames _ _ _"]]) -> tuple[KeyValue, ...]:
        """Returns what the conditional form keeps of the plain form's maps."""
        return _remembered(self.cross, maps)

    def forward(
        self, x: Float[Tensor, "frames c h w"], context: Sequence[KeyValue] = ()
    ) -> tuple[Float[Tensor, "frames d rows columns"], list[Tensor]]:
        """Returns latents, and the maps at the resolutions of the cross-attention."""
        maps: list[Tensor] = []
        x = self.conv_in(F.pixel_unshuffle(x, self.fold) if self.fold > 1 else x)
        for level, tapped in zip(self.levels, self.tapped, strict=True):
            x = level(x)
            if tapped:
                if self.cross:
                    x = self.cross[len(maps)](x, context[len(maps)])
                maps.append(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x)))), maps


class Decoder(nn.Module):
    """Latents to frames; the same two forms."""

    def __init__(self, config: ContextVQGANConfig, *, conditional: bool) -> None:
        super().__init__()
        groups, widths, self.symmetric = config.norm_groups, config.widths[::-1], config.symmetric
        self.fold = config.fold
        before, size = widths[0], config.side
        self.conv_in = nn.Conv2d(config.latent, before, 3, padding=1)
        self.middle = _middle(before, groups, attention=conditional or config.middle_attention)
        self.levels, self.upsamples, self.cross, self.tapped = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(), []
        self.tap_middle = size <= config.attention_limit
        if conditional and self.tap_middle:
            self.cross.append(_cross(config, before, size))
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.levels.append(nn.Sequential(*_blocks(before, width, config.blocks + 1, groups)))
            self.upsamples.append(nn.Identity() if last else Upsample(width))
            tapped_size = size if self.symmetric or last else 2 * size
            self.tapped.append(tapped_size <= config.attention_limit)
            if conditional and self.tapped[-1]:
                self.cross.append(_cross(config, width, tapped_size))
            before, size = width, size * 2
        self.norm_out = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, 3 * self.fold**2, 3, padding=1)

    def remember(self, maps: Sequence[Float[Tensor, "frames _ _ _"]]) -> tuple[KeyValue, ...]:
        """Returns what the conditional form keeps of the plain form's maps."""
        return _remembered(self.cross, maps)

    def forward(
        self, x: Float[Tensor, "frames d rows columns"], context: Sequence[KeyValue] = ()
    ) -> tuple[Float[Tensor, "frames c h w"], list[Tensor]]:
        """Returns pixels (not clamped), and the maps at the resolutions of the cross-attention."""
        maps: list[Tensor] = []
        x = self.middle(self.conv_in(x))
        if self.tap_middle:
            x = self._tap(x, context, maps)
        for level, upsample, tapped in zip(self.levels, self.upsamples, self.tapped, strict=True):
            x = level(x)
            if not self.symmetric:
                x = upsample(x)
            if tapped:
                x = self._tap(x, context, maps)
            if self.symmetric:
                x = upsample(x)
        pixels = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(pixels, self.fold) if self.fold > 1 else pixels, maps

    def _tap(self, x: Tensor, context: Sequence[KeyValue], maps: list[Tensor]) -> Tensor:
        if self.cross:
            x = self.cross[len(maps)](x, context[len(maps)])
        maps.append(x)
        return x


def _remembered(blocks: nn.ModuleList, maps: Sequence[Tensor]) -> tuple[KeyValue, ...]:
    memory = []
    for block, x in zip(blocks, maps, strict=True):
        assert isinstance(block, CrossAttention)
        memory.append(block.remember(x))
    return tuple(memory)


def _blocks(before: int, after: int, count: int, groups: int) -> list[nn.Module]:
    return [ResnetBlock(after if i else before, after, groups) for i in range(count)]


def _middle(width: int, groups: int, *, attention: bool) -> nn.Sequential:
    middle: nn.Module = MapAttention(width, groups) if attention else nn.Identity()
    return nn.Sequential(ResnetBlock(width, width, groups), middle, ResnetBlock(width, width, groups))


def _cross(config: ContextVQGANConfig, width: int, size: int) -> CrossAttention:
    return CrossAttention(width, size, config.context_length, config.heads, config.norm_groups, config.dropout)
