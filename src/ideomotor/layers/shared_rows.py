"""Tables whose rows have features in common: what is learned of one row is learned of those that are like it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SharedRows(nn.Module):
    """A table's rows as a vector of their own each, plus the sum of the vectors of their features."""

    features: Tensor

    def __init__(self, features: Float[Tensor, "rows features"], width: int, std: float) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.shared = nn.Parameter(std * torch.randn(features.shape[1], width))

    def forward(self, own: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Returns the whole rows."""
        return own + self.features.to(own.dtype) @ self.shared


def share_rows(
    table: nn.Embedding | nn.Linear, features: Float[Tensor, "rows features"], std: float, own_std: float
) -> None:
    """Begins a table anew, in place, with what its rows share drawn with deviation ``std`` a feature and what is their
    own with ``own_std``; both are trained.

    Raises:
        ValueError: there are more or fewer rows than features are given for.
    """
    rows, width = table.weight.shape
    if len(features) != rows:
        raise ValueError(f"features of {len(features)} rows came for a table of {rows}")
    nn.init.normal_(table.weight, std=own_std)
    parametrize.register_parametrization(table, "weight", SharedRows(features, width, std))


def merge_rows(table: nn.Embedding | nn.Linear) -> None:
    """Makes the table a plain one again, in place, with the rows it has come to."""
    parametrize.remove_parametrizations(table, "weight", leave_parametrized=True)
