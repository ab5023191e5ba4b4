"""Weights and inputs of the golden files that are given by a rule (weights_recipe.json) instead of being stored."""

import math
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor


def tensor(name: str, shape: Iterable[int], base: float = 0.0, scale: float = 1.0) -> Tensor:
    """Returns the float32 tensor that the rule gives for that name."""
    shape = tuple(shape)
    integers = torch.from_numpy(hashed(name, math.prod(shape)))
    return (base + scale * integers.double() / 128).float().reshape(shape)


def weights(entries: Iterable[Mapping]) -> dict[str, Tensor]:
    """Returns the tensors of a JSON file's ``weights`` list (name, shape, base, scale) by name."""
    return {e["name"]: tensor(e["name"], e["shape"], e["base"], e["scale"]) for e in entries}


def hashed(name: str, count: int) -> np.ndarray:
    """Returns ``count`` integers from -128 to 127."""
    x = np.arange(1, count + 1, dtype=np.uint32)  # products wrap at 2^32, which is the rule
    x = x * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return ((x ^ (x >> np.uint32(16))) >> np.uint32(24)).astype(np.int16) - np.int16(128)
