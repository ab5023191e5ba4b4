"""A scale on which large and small numbers of both signs are alike."""

from jaxtyping import Float
from torch import Tensor


def symlog(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns sign(x) log(1 + |x|). Source: DreamerV3 (2301.04104), equation 1."""
    return x.sign() * x.abs().log1p()


def symexp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns what ``symlog`` came from."""
    return x.sign() * x.abs().expm1()
