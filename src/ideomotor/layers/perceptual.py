"""Perceptual distance between images: differences of normalized features, of VGG16 (LPIPS) or of MobileNetV2.

No package at hand ships the weights of LPIPS: they are the user's files. Those of MobileNetV2 are in a package. With
neither, losses go on without this term.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ideomotor.layers.mobilenet import MobileNetTrunk

_CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG16, between poolings; features are taken at the end of each group
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for [-1, 1]


class PerceptualDistance(nn.Module):
    """The distance of images, layer by layer: features made unit length at every place, squared difference, heads.

    Its weights are never trained: they want no gradient.

    Source: Zhang et al. 2018 (LPIPS, arXiv 1801.03924), equation 1.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)) -> None:
        super().__init__()
        self.groups, self.heads, before = nn.ModuleList(), nn.ParameterList(), 3
        for count, width in zip(_CONVOLUTIONS, widths, strict=True):
            self.groups.append(nn.Sequential(*_group(before, width, count)))
            self.heads.append(nn.Parameter(torch.ones(width)))
            before = width
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        self.requires_grad_(False)

    def forward(self, first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Returns the distance of each pair; pixels in [0, 1], which may be left."""
        x = (torch.cat([first, second]) * 2 - 1 - self.shift) / self.scale
        total = x.new_zeros(len(first))
        for group, head in zip(self.groups, self.heads, strict=True):
            x = group(x)
            one, other = _unit(x.float()).chunk(2)
            total = total + torch.einsum("n c h w, c -> n h w", (one - other).square(), head.float()).mean((1, 2))
        return total


class MobileNetDistance(nn.Module):
    """The same on the stages of a trained MobileNetV2, all channels alike: for training, where LPIPS is not at hand.

    Its figures are not LPIPS and compare with nothing but themselves. The weights want no gradient.
    """

    taps = (1, 3, 6, 13, 17)
    """Layers of the trunk after which the resolution changes, and the last."""

    def __init__(self, trunk: MobileNetTrunk) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MobileNetDistance:
        """Changes nothing: its norms stay as they were trained."""
        return self

    def forward(self, first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Returns the distance of each pair, in 0..4; pixels in [0, 1], which may be left."""
        x = (torch.cat([first, second]) - self.trunk.mean) / self.trunk.deviation
        total = x.new_zeros(len(first))
        for i, layer in enumerate(self.trunk.features):
            x = layer(x)
            if i in self.taps:
                one, other = _unit(x.float()).chunk(2)
                total = total + (one - other).square().sum(1).mean((1, 2))
        return total / len(self.taps)


def perceptual_from_state(state: Mapping[str, Tensor]) -> PerceptualDistance:
    """Returns the distance with weights under any of the usual names.

    ``net.slice{k}.{i}`` (as in LPIPS packages) or ``features.{i}`` (as in torchvision) for the convolutions, and
    ``lin{k}.model.1.weight`` for the heads. Other entries of a classifier are not looked at.

    Raises:
        ValueError: weights are missing or do not fit; the message lists them.
    """
    convolutions = {}
    for name, value in state.items():
        if match := re.fullmatch(r"(?:net\.slice\d\.|features\.)(\d+)\.(weight|bias)", name):
            convolutions[int(match[1]), match[2]] = value
    places = [i for i, part in sorted(convolutions) if part == "weight"]
    heads = [state.get(f"lin{i}.model.1.weight") for i in range(len(_CONVOLUTIONS))]
    if len(places) != sum(_CONVOLUTIONS) or any((i, "bias") not in convolutions for i in places) or None in heads:
        missing = [f"lin{i}.model.1.weight" for i, head in enumerate(heads) if head is None]
        raise ValueError(
            f"not the weights of LPIPS with VGG16: {len(places)} convolutions (wanted {sum(_CONVOLUTIONS)}, named "
            f"net.slice1.0.weight ... or features.0.weight ...), heads missing: {', '.join(missing) or 'none'}. "
            "Give the file of the network and that of the heads together"
        )
    found = [head for head in heads if head is not None]
    one, two, three, four, five = (head.shape[1] for head in found)
    distance = PerceptualDistance((one, two, three, four, five))
    with torch.no_grad():
        ours = [part for part in distance.groups.modules() if isinstance(part, nn.Conv2d)]
        for place, convolution in zip(places, ours, strict=True):
            convolution.weight.copy_(convolutions[place, "weight"])
            assert convolution.bias is not None
            convolution.bias.copy_(convolutions[place, "bias"])
        for weights, head in zip(distance.heads, found, strict=True):
            weights.copy_(head.flatten())
    return distance.eval()


def load_perceptual(*files: Path) -> tuple[PerceptualDistance | None, str]:
    """Returns the distance from the user's files, and a line that says what is used; without files, None.

    Args:
        files: one with all weights, or that of the network and that of the heads; safetensors, or torch's own format,
            of which tensors alone are read.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: weights are missing or do not fit.
    """
    if not files:
        return None, (
            "no perceptual loss: it needs the weights of LPIPS (VGG16 and its linear heads), which no package ships. "
            "Give your files, or a MobileNetDistance; with pixel losses alone pictures are softer"
        )
    state: dict[str, Tensor] = {}
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file} is not a file: give the weights of VGG16 and of the LPIPS heads")
        state |= _read(Path(file))
    return perceptual_from_state(state), f"perceptual loss: LPIPS (VGG16) from {', '.join(str(f) for f in files)}"


def _read(file: Path) -> dict[str, Tensor]:
    try:
        is_safe = file.suffix == ".safetensors"
        held = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(
            f"{file} holds no weights, or more than tensors ({reason}): give those of VGG16 and of the LPIPS heads"
        ) from error
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{file} holds a {type(held).__name__}; wanted a mapping of names to tensors")
    return held


def _group(before: int, width: int, count: int) -> list[nn.Module]:
    """Convolutions of one resolution, the first behind a pooling (but for the frames themselves)."""
    parts: list[nn.Module] = [] if before == 3 else [nn.MaxPool2d(2)]
    for i in range(count):
        parts += [nn.Conv2d(width if i else before, width, 3, padding=1), nn.ReLU()]
    return parts


def _unit(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    length = x.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()  # the root of 0 has no gradient
    return x / (length + 1e-10)
