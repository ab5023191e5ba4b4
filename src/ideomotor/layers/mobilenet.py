"""MobileNetV2 up to its last narrow layer: pictures to 320 numbers a place, for weights in torchvision's names."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Widening, width, blocks, stride of the first block (table 2 of the paper)."""

BEYOND = ("features.18.", "classifier.")
"""Names of torchvision's layers behind the ones that stand here."""


class MobileNetTrunk(nn.Module):
    """Pictures to a grid of features, 32 times smaller.

    The last layer here has no activation, so its 320 channels are near a Gaussian; the 1280 behind it are cut off at 0
    and 6. Pictures are RGB in [0, 1]; they are centred and scaled inside as for ImageNet.

    Source: Sandler et al. 2018, arXiv 1801.04381.
    """

    width = 320
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, kernel=3, stride=2)]
        channels = 32
        for widening, width, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(_Block(channels, width, widening, stride if block == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 320 rows columns"]:
        """Returns the features; a map of one place from 32 pixels a side."""
        return self.features((pictures - self.mean) / self.deviation)

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Takes the weights of torchvision's ``mobilenet_v2``; the layers behind this trunk are left out."""
        self.load_state_dict({name: value for name, value in state.items() if not name.startswith(BEYOND)})


class _Block(nn.Module):
    """Widen, convolve each channel apart, narrow; the input is added where shapes allow."""

    def __init__(self, channels: int, width: int, widening: int, stride: int) -> None:
        super().__init__()
        wide = channels * widening
        layers: list[nn.Module] = [_conv(channels, wide, kernel=1)] if widening > 1 else []
        layers += [
            _conv(wide, wide, kernel=3, stride=stride, groups=wide),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == width

    def forward(self, x: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b width rows columns"]:
        return x + self.conv(x) if self.adds else self.conv(x)


def _conv(channels: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6())
