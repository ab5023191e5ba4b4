"""Vocabularies of several modalities, and how much noise the steps of a mask-and-replace diffusion add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Groups of classes, one after another, and a shared mask as the last id."""

    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups {self.groups}: wanted the number of classes of each group, e.g. (2048, 48)")

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first id of each group."""
        return tuple(sum(self.groups[:index]) for index in range(len(self.groups)))

    @property
    def mask_id(self) -> int:
        """The id of the mask, which is also the number of ordinary classes."""
        return sum(self.groups)

    @property
    def size(self) -> int:
        """Number of ids, the mask's included."""
        return self.mask_id + 1

    def class_groups(self) -> Int[Tensor, " k"]:
        """Returns the group of each ordinary class."""
        return torch.arange(len(self.groups)).repeat_interleave(torch.tensor(self.groups))

    def layout(self, lengths: Sequence[int]) -> Int[Tensor, " n"]:
        """Returns the group of each position, ``lengths[g]`` of them for group ``g``, one group after another."""
        return torch.arange(len(self.groups)).repeat_interleave(torch.tensor(lengths))

    def join(self, parts: Sequence[Float[Tensor, "b _ _"]]) -> Float[Tensor, "b n k"]:
        """Returns logits over the whole vocabulary from one tensor a group; -inf for the classes of other groups."""
        joined = parts[0].new_full((len(parts[0]), sum(part.shape[1] for part in parts), self.mask_id), -torch.inf)
        row = 0
        for offset, part in zip(self.offsets, parts, strict=True):
            joined[:, row : row + part.shape[1], offset : offset + part.shape[2]] = part
            row += part.shape[1]
        return joined


@dataclass(frozen=True, eq=False)
class Schedule:
    """Logarithms of the noise, float64: one step's, and (``_bar``) from clean tokens to after the step.

    ``alpha`` keeps, ``beta`` is the chance of each class of a group to be drawn as a replacement, ``gamma`` masks. The
    ``_bar`` arrays have one entry more at their end: no noise at all, which index -1, the step before the first, reads.
    """

    log_alpha: Float[Tensor, " steps"]
    log_beta: Float[Tensor, "steps groups"]
    log_gamma: Float[Tensor, " steps"]
    log_one_minus_gamma: Float[Tensor, " steps"]
    log_alpha_bar: Float[Tensor, " steps+1"]
    log_beta_bar: Float[Tensor, "steps+1 groups"]
    log_gamma_bar: Float[Tensor, " steps+1"]
    log_one_minus_gamma_bar: Float[Tensor, " steps+1"]

    @property
    def steps(self) -> int:
        """Number of noise steps."""
        return len(self.log_alpha)

    @cached_property
    def replaces(self) -> bool:
        """Whether a token can become another one at all; otherwise what is not masked is known to be clean."""
        return bool(self.log_beta_bar.isfinite().any())

    def to(self, device: torch.device | str) -> Schedule:
        """Returns the schedule on ``device``."""
        return Schedule(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def linear_schedule(
    vocabulary: Vocabulary,
    steps: int = 100,
    alpha_bar: tuple[float, float] = (0.99999, 9e-6),
    gamma_bar: tuple[float, float] = (9e-6, 0.99999),
) -> Schedule:
    """Returns a schedule linear in both cumulative chances; their sum's distance from 1 is the replacement mass.

    The defaults are the published ones: a mass of 1e-6 at every step.
    """
    kept = torch.linspace(*alpha_bar, steps, dtype=torch.float64)
    unmasked = 1 - torch.linspace(*gamma_bar, steps, dtype=torch.float64)
    return _schedule(vocabulary, unmasked, kept / unmasked)


def hybrid_schedule(
    vocabulary: Vocabulary, steps: int = 100, replace: float = 0.0, gamma_bar: tuple[float, float] = (9e-6, 0.99999)
) -> Schedule:
    """Returns a schedule whose masked share grows linearly, with real replacement.

    Args:
        vocabulary: groups of classes.
        steps: number of noise steps.
        replace: share of all positions that hold a drawn class halfway, where half is masked; in [0, 0.5). 0 masks
            only, 0.1 to 0.2 is usual (GIDD, arXiv 2503.04482).
        gamma_bar: masked share after the first and after the last step.
    """
    if not 0 <= replace < 0.5:
        raise ValueError(f"replace {replace}: halfway half of the positions are masked, so it must lie in [0, 0.5)")
    unmasked = 1 - torch.linspace(*gamma_bar, steps, dtype=torch.float64)
    odds = replace / (0.5 - replace)  # of a drawn class against the clean one, halfway
    return _schedule(vocabulary, unmasked, 1 / (1 + odds * ((1 - unmasked) / unmasked).sqrt()))


def _schedule(vocabulary: Vocabulary, unmasked: Float[Tensor, " t"], clean: Float[Tensor, " t"]) -> Schedule:
    """Returns the schedule that leaves a share ``unmasked`` without mask, and of that a share ``clean`` unreplaced."""
    clean = torch.where(clean > 1 - 1e-12, 1.0, clean)  # rounding must not turn masking alone into replacement
    for share in (unmasked, clean):
        if not (share > 0).all() or not (share <= 1).all() or not (share.diff() <= 0).all() or unmasked[0] == 1:
            raise ValueError(
                "no Markov chain has this schedule: the unmasked share, and the clean share of the unmasked, must fall "
                f"from at most 1 and stay above 0; one goes from {share[0]:.6g} to {share[-1]:.6g}"
            )
    one = torch.ones(1, dtype=torch.float64)
    stay = unmasked / torch.cat([one, unmasked[:-1]])
    intact = clean / torch.cat([one, clean[:-1]])
    unmasked, clean = torch.cat([unmasked, one]), torch.cat([clean, one])
    classes = torch.tensor(vocabulary.groups, dtype=torch.float64)
    return Schedule(
        log_alpha=(stay * intact).log(),
        log_beta=(stay * (1 - intact))[:, None].div(classes).log(),
        log_gamma=(1 - stay).log(),
        log_one_minus_gamma=stay.log(),
        log_alpha_bar=(unmasked * clean).log(),
        log_beta_bar=(unmasked * (1 - clean))[:, None].div(classes).log(),
        log_gamma_bar=(1 - unmasked).log(),
        log_one_minus_gamma_bar=unmasked.log(),
    )
