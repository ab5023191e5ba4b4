"""Linear maps with 8-bit weights, for networks that are stepped one position at a time: they wait for memory only."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.linear import Linear

_FEW = 32
"""Rows up to which the 8-bit product is the quicker one; above, the weights are first made bf16 (Zen 5, one thread)."""


class Int8Linear(nn.Module):
    """A linear map without bias whose weights are whole numbers in -127..127 times one bf16 scale an output.

    It computes in bf16, never trains, and takes a quarter of the bytes of float32.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.bias is not None:
            raise ValueError("an 8-bit linear map has no bias; keep this one as it is")
        full = linear.weight.detach().float()
        scale = (full.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        self.register_buffer("weight", (full / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b out"]:
        """Returns the mapped vectors, in bf16."""
        return self.rows(x, 0, len(self.weight))

    def rows(self, x: Float[Tensor, "*b d"], first: int, last: int) -> Float[Tensor, "*b out"]:
        """Returns outputs ``first`` to ``last`` (without it), at the cost of these alone."""
        weight, scale, flat = self.weight[first:last], self.scale[first:last], x.flatten(0, -2)
        if len(flat) <= _FEW and _packed(x):
            out = torch._weight_int8pack_mm(flat.contiguous(), weight, scale)
        else:
            out = F.linear(flat, weight.to(torch.bfloat16) * scale[:, None])
        return out.unflatten(0, x.shape[:-1])


def _packed(x: Tensor) -> bool:
    """Whether torch's 8-bit product can be used: it reads 16 weights at a time, past the end of any other width."""
    return x.device.type == "cpu" and x.shape[-1] % 16 == 0 and hasattr(torch, "_weight_int8pack_mm")  # private


def to_int8(module: nn.Module) -> None:
    """Gives every ``Linear`` in the module 8-bit weights, in place, and makes all other weights bf16.

    Such a module is for use only: it has no weights left to train, and is made anew from a saved one, not saved.
    """
    for name, child in module.named_children():
        if isinstance(child, Linear):
            module.register_module(name, Int8Linear(child))
        else:
            to_int8(child)
    for weight in module.parameters(recurse=False):
        weight.data = weight.data.bfloat16()
