"""Draws from logits: temperature, the k likeliest, the likeliest share."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one class is chosen from logits.

    Attributes:
        temperature: 0 takes the likeliest class; otherwise logits are divided by it.
        top_k: only classes at least as likely as the ``top_k``-th are drawn; 0 for all.
        top_p: only the likeliest classes that together reach this probability are drawn; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature} and top_k {self.top_k} must be finite and not below 0, top_p "
                f"{self.top_p} must lie in (0, 1]"
            )

    def choose(self, logits: Float[Tensor, "b k"], generator: torch.Generator | None = None) -> Int[Tensor, " b"]:
        """Returns one class a row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator)[:, 0]

    def probabilities(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Returns the distribution that is drawn from; needs a temperature above 0."""
        return filtered(logits.float() / self.temperature, self.top_k, self.top_p).softmax(-1)


def filtered(logits: Float[Tensor, "b k"], top_k: int = 0, top_p: float = 1.0) -> Float[Tensor, "b k"]:
    """Returns the logits with -inf for the classes left out; classes as likely as the last one kept stay too."""
    if 0 < top_k < logits.shape[-1]:
        lowest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p < 1:
        ordered = logits.sort(descending=True).values
        shares = ordered.softmax(-1)
        kept = (shares.cumsum(-1) - shares < top_p).sum(-1, keepdim=True)  # at least 1
        logits = logits.masked_fill(logits < ordered.gather(-1, kept - 1), -torch.inf)
    return logits
