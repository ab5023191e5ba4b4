"""Many tokens of a picture to a few."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class SpatialReadout(nn.Module):
    """Reads a grid of ``count`` tokens into a few, by one linear map over all places.

    The camera stands still, so *where* something is tells more than *that* it is there, and a linear map over places
    keeps that at a fraction of attention's cost; each token is first squeezed to ``squeeze`` numbers.
    """

    def __init__(self, count: int, width: int, squeeze: int, tokens: int, out: int) -> None:
        super().__init__()
        self.count, self.tokens = count, tokens
        self.squeeze = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, squeeze))
        self.read = nn.Linear(count * squeeze, tokens * out)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b tokens out"]:
        """Returns the few."""
        return rearrange(self.read(self.squeeze(x).flatten(1)), "b (tokens out) -> b tokens out", tokens=self.tokens)
