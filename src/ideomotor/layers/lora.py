"""Fine-tuning by few weights: beside each linear map a narrow pair of maps, which can be merged into it afterwards."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.linear import rows


class LoRALinear(nn.Module):
    """A frozen linear map, and what is learned beside it: ``scale * up(down(x))``, nothing at the start.

    Source: LoRA (2106.09685). Maps that are joined here (query, key and value; gate and up) share one ``down``.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b out"]:
        """Returns the mapped vectors."""
        return self.base(x) + self.scale * (x @ self.down.t()) @ self.up.t()

    def rows(self, x: Float[Tensor, "*b d"], first: int, last: int) -> Float[Tensor, "*b out"]:
        """Returns outputs ``first`` to ``last`` (without it), at the cost of these alone."""
        return rows(self.base, x, first, last) + self.scale * (x @ self.down.t()) @ self.up[first:last].t()

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns the plain map that does the same; it is the base, changed."""
        self.base.weight += self.scale * self.up @ self.down
        return self.base


def add_lora(module: nn.Module, rank: int = 8, alpha: float = 32.0) -> None:
    """Freezes the module's weights and gives every linear map in it a pair of its own, in place.

    The defaults are those of the published iVideoGPT. Add it to the part that shall hold still (``predictor.trunk``):
    what lies outside trains on as it did.

    Raises:
        ValueError: the rank is below 1, or there is no linear map to add it to.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; wanted 1 or more")
    module.requires_grad_(False)
    found = [(part, name, child) for part in module.modules() for name, child in part.named_children()
             if isinstance(child, nn.Linear)]  # fmt: skip
    for part, name, child in found:
        part.register_module(name, LoRALinear(child, rank, alpha))
    if not found:
        raise ValueError(f"{type(module).__name__} has no linear map to add LoRA to: give the part that holds them")


def merge_lora(module: nn.Module) -> None:
    """Merges every pair into its map, in place; names and shapes are those of before, and every weight trains again.

    Raises:
        ValueError: there is no pair.
    """
    found = [(part, name, child) for part in module.modules() for name, child in part.named_children()
             if isinstance(child, LoRALinear)]  # fmt: skip
    for part, name, child in found:
        part.register_module(name, child.merged())
    if not found:
        raise ValueError(f"{type(module).__name__} has no LoRA to merge")
    module.requires_grad_(True)
