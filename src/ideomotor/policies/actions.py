"""Actions to tokens and back, by bins that hold equally many recorded actions; states to a scale; chunks to one."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BEYOND = 1e30  # an edge that no action reaches; infinity would turn into NaN in an average of weights


class QuantileBins(nn.Module):
    """Each dimension of an action becomes one of ``bins`` ids; edges are quantiles, centres are the bins' own means.

    Where one value fills many quantiles (a gripper is mostly open or shut) the repeated edges collapse, so that value
    gets a bin to itself and comes back exactly; fewer ids than ``bins`` then occur.
    """

    edges: Tensor
    centres: Tensor

    def __init__(self, bins: int, dimensions: int) -> None:
        super().__init__()
        self.bins, self.dimensions = bins, dimensions
        self.register_buffer("edges", torch.full((dimensions, bins - 1), BEYOND))  # inner edges, ascending
        self.register_buffer("centres", torch.zeros(dimensions, bins))

    def fit(self, actions: Float[Tensor, "n action"]) -> "QuantileBins":
        """Learns edges and centres from recorded actions.

        Raises:
            ValueError: no actions, another width, or values that are not finite or too great for bins (1e30).
        """
        if actions.ndim != 2 or actions.shape[1] != self.dimensions or not len(actions):
            raise ValueError(
                f"actions of shape {tuple(actions.shape)} came; wanted at least one row of {self.dimensions} values"
            )
        sound = (actions.abs() < BEYOND).all(1)  # nan is not
        if not sound.all():
            row = int((~sound).nonzero()[0])
            raise ValueError(
                f"action {row} holds a value that is not finite, or {BEYOND:g} and more ({actions[row].tolist()}): "
                "drop that episode"
            )
        for dimension, values in enumerate(actions.double().T):
            edges, centres = _quantile_edges(values, self.bins)
            self.edges[dimension] = edges.float()
            self.centres[dimension] = centres.float()
        return self

    def encode(self, actions: Float[Tensor, "*b action"]) -> Int[Tensor, "*b action"]:
        """Returns bin ids; values beyond the recorded range fall into the outermost bins.

        Raises:
            ValueError: another width, or values that are not finite.
        """
        refuse_unfit(actions, self.dimensions)
        columns = [
            torch.bucketize(actions[..., d].contiguous(), self.edges[d], right=True) for d in range(self.dimensions)
        ]
        return torch.stack(columns, -1)

    def decode(self, ids: Int[Tensor, "*b action"]) -> Float[Tensor, "*b action"]:
        """Returns the centre of each bin."""
        return torch.stack([self.centres[d][ids[..., d]] for d in range(self.dimensions)], -1)


class Standardized(nn.Module):
    """Values less the recorded mean, in recorded standard deviations; what hardly varied stays in its own units.

    The hundredth at either end counts as the value that it begins at, so that a glitch of a sensor sets no scale.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("deviation", torch.ones(dimensions))

    def fit(self, values: Float[Tensor, "n d"]) -> "Standardized":
        """Learns mean and deviation from recorded values."""
        ordered = values.double().sort(0).values
        last = len(values) - 1
        inner = ordered.clamp(ordered[last // 100], ordered[last - last // 100])
        self.mean.copy_(inner.mean(0))
        deviation = inner.std(0, correction=0)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        return self

    def forward(self, values: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Returns the standardized values."""
        return (values - self.mean) / self.deviation


class PercentileScale(nn.Module):
    """Values scaled so that their recorded 1st and 99th percentile become -1 and 1, and clipped there; and back.

    What never varied becomes -1, and comes back as it was recorded. Kept and computed in float64; what comes out is of
    the type that went in.

    Source: VPP (arXiv 2412.14803), the data loader of its release for own robots, epsilon included.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("low", -torch.ones(dimensions, dtype=torch.float64))
        self.register_buffer("high", torch.ones(dimensions, dtype=torch.float64))

    def fit(self, values: Float[Tensor, "n d"]) -> "PercentileScale":
        """Learns both percentiles from recorded values, linear between neighbours."""
        low, high = np.percentile(values.double().cpu().numpy(), (1, 99), axis=0)
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))
        return self

    def forward(self, values: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Returns the scaled values, in [-1, 1]."""
        scaled = 2 * (values.double() - self.low) / (self.high - self.low + 1e-8) - 1
        return scaled.clamp(-1, 1).to(values.dtype)

    def inverse(self, scaled: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Returns values in the units of the recording; what lies beyond [-1, 1] is not clipped."""
        return ((scaled.double() + 1) / 2 * (self.high - self.low) + self.low).to(scaled.dtype)


def refuse_unfit(actions: Float[Tensor, "*b action"], dimensions: int) -> None:
    """Refuses actions that would get ids without a meaning.

    Raises:
        ValueError: they are of another width, or not finite.
    """
    if actions.shape[-1] != dimensions:
        raise ValueError(
            f"actions of width {actions.shape[-1]} came; these bins are for width {dimensions}: give actions of the "
            "robot that they were fitted to"
        )
    finite = actions.isfinite().all(-1)
    if not finite.all():
        place = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"the action at {place} is {actions[tuple(place)].tolist()}; wanted finite numbers: leave that recording "
            "out"
        )


class TemporalEnsemble:
    """Averages, for each coming step, what a slot's newest chunk and its earlier ones foretold for it.

    A slot is whatever acts by itself: one of many worlds, or a robot's session. What chunk ``i`` says, 0 the oldest
    that reaches the step, weighs ``exp(-decay * i)``: 0 weighs all alike, more trusts the older ones, less than 0 the
    newer ones. Every dimension is averaged, also one that knows two values only, such as a gripper: where chunks
    disagree it gets one in between, as in ACT.

    Source: ACT (Zhao et al. 2023, 2304.13705), algorithm 2. There one action is carried out before looking again; here
    any number, and steps that no earlier chunk reaches are the newest chunk's alone.
    """

    def __init__(self, decay: float) -> None:
        """Raises ValueError where ``decay`` is not finite."""
        if not math.isfinite(decay):
            raise ValueError(f"decay is {decay}; wanted a finite number, e.g. 0.01")
        self.decay = decay
        # By slot, what is left of its chunks, oldest first.
        self._ahead: dict[int, list[Float[Tensor, "steps action"]]] = {}

    def blend(
        self, slots: Sequence[int], chunks: Float[Tensor, "b chunk action"], executed: int
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the chunks averaged with what is left of the slots' earlier ones, and remembers them.

        Args:
            slots: whose the chunks are; the others are left as they are.
            chunks: as the policy foretold them, the first action for the present step.
            executed: how many actions these slots have carried out since they were last here; without meaning for a
                slot that is new or was forgotten.

        Raises:
            ValueError: not one chunk a slot, a slot twice, or ``executed`` below 0.
        """
        if len(chunks) != len(slots) or len(set(slots)) < len(slots) or executed < 0:
            raise ValueError(
                f"slots {list(slots)}, {len(chunks)} chunks, {executed} actions executed; wanted one chunk a slot, no "
                "slot twice, and at least 0 actions"
            )
        blended = []
        for slot, chunk in zip(slots, chunks.clone(), strict=True):
            left = [earlier[executed:] for earlier in self._ahead.get(slot, []) if len(earlier) > executed]
            self._ahead[slot] = [*left, chunk]
            blended.append(_average(self._ahead[slot], self.decay))
        return torch.stack(blended) if blended else chunks

    def forget(self, slots: Iterable[int]) -> None:
        """Drops the earlier chunks of slots whose episode is over, or begins."""
        for slot in slots:
            self._ahead.pop(slot, None)


def _average(chunks: Sequence[Float[Tensor, "steps action"]], decay: float) -> Float[Tensor, "chunk action"]:
    """The weighted mean of each step of the last chunk, over all chunks that reach it; all begin at the same step."""
    newest = chunks[-1]
    said = newest.new_zeros(len(chunks), *newest.shape)
    log_weights = torch.full(said.shape[:2], -torch.inf, device=said.device)
    for i, chunk in enumerate(chunks):
        said[i, : len(chunk)] = chunk
        log_weights[i, : len(chunk)] = -decay * i
    # Which chunk is number 0 does not matter: the weights are normalised.
    return (log_weights.softmax(0).to(said)[..., None] * said).sum(0)


def _quantile_edges(values: Float[Tensor, " n"], bins: int) -> tuple[Float[Tensor, " edges"], Float[Tensor, " bins"]]:
    ordered = values.sort().values
    picks = (torch.arange(1, bins) * len(ordered)) // bins
    inner, times = ordered[picks].unique(return_counts=True)
    # A value that fills several quantiles frees their edges: one of them closes its bin, just above it.
    heavy = inner[(times > 1) | (inner == ordered[0])]
    above = torch.searchsorted(ordered, heavy, right=True)
    inner = torch.cat([inner, ordered[above[above < len(ordered)]]]).unique()
    inner = inner[inner > ordered[0]]  # an edge at the minimum would leave an empty first bin
    edges = torch.full((bins - 1,), BEYOND, dtype=values.dtype)
    edges[: len(inner)] = inner
    ids = torch.bucketize(values.float(), edges.float(), right=True)
    count = torch.zeros(bins, dtype=values.dtype).index_add_(0, ids, torch.ones_like(values))
    total = torch.zeros(bins, dtype=values.dtype).index_add_(0, ids, values)
    centres = torch.where(count > 0, total / count.clamp(min=1), ordered[-1])
    return edges, centres
