"""A linear map that is quick on CPUs whose matrix library is not made for them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear``; where no gradient is wanted, in float32 on a CPU, it is computed by oneDNN in place of MKL.

    MKL leaves half of an AMD core unused: 2048 x 256 by 256 x 1024 takes 11.2 ms with it and 5.1 ms with oneDNN (Zen 5,
    one thread). Both are float32 throughout; sums differ in the last bits.
    """

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b out"]:
        """Returns the mapped vectors."""
        return _mapped(x, self.weight, self.bias)

    def rows(self, x: Float[Tensor, "*b d"], first: int, last: int) -> Float[Tensor, "*b out"]:
        """Returns outputs ``first`` to ``last`` (without it), at the cost of these alone."""
        return rows(self, x, first, last)


def rows(linear: nn.Linear, x: Float[Tensor, "*b d"], first: int, last: int) -> Float[Tensor, "*b out"]:
    """Returns outputs ``first`` to ``last`` (without it) of any linear map, at the cost of these alone."""
    return _mapped(x, linear.weight[first:last], None if linear.bias is None else linear.bias[first:last])


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _quick(x) and _quick(weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _quick(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private: without it, only slower
    )
