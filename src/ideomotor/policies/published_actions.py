"""Actions to tokens as the VPDD release makes them, for its weights and for comparison.

QuantileBins is better to begin with: it gives repeated values a bin of their own and fits data of any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ideomotor.policies.actions import QuantileBins, refuse_unfit
from ideomotor.policies.rotations import rotation_ids, rotations_of

# What Meta-World's scripted policies give the gripper, as float32.
GRIPPER_EFFORTS = (-1.0, 0.0, 0.1, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0)
WORKSPACE = ((-0.3, -0.5, 0.6), (0.7, 0.5, 1.6))  # RLBench's table: least and greatest x, y, z in metres


class SampleBins(nn.Module):
    """Each dimension becomes one of ``bins`` ids; edges are every so-many-th recorded value, and the greatest.

    Where a value repeats, edges repeat, and only the last of them is used. Ids decode to the middle between edges.
    Edges keep ``dtype``, and values are compared in it.
    """

    edges: Tensor

    def __init__(self, bins: int, dimensions: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.bins, self.dimensions = bins, dimensions
        self.register_buffer("edges", torch.zeros(bins + 1, dimensions, dtype=dtype))

    def fit(self, values: Float[Tensor, "n d"]) -> "SampleBins":
        """Learns the edges from recorded values.

        Raises:
            ValueError: another width, values that are not finite, or a number of them that does not give ``bins`` bins
                (the release goes on, and fails at the greatest value).
        """
        if values.ndim != 2 or values.shape[1] != self.dimensions or not values.isfinite().all():
            raise ValueError(
                f"values of shape {tuple(values.shape)} came; wanted rows of {self.dimensions} finite values"
            )
        edges = sample_edges(values, self.bins)
        if len(edges) != self.bins + 1:
            fitting = (math.ceil(len(values) / self.bins) - 1) * self.bins
            way = f"use {fitting} of them" if fitting else f"use at least {self.bins}"
            raise ValueError(f"{len(values)} values make {len(edges) - 1} bins and not {self.bins}: {way}")
        self.edges.copy_(edges)
        return self

    def encode(self, values: Float[Tensor, "*b d"]) -> Int[Tensor, "*b d"]:
        """Returns bin ids; values beyond the recorded range fall into the outermost bins."""
        return bin_ids(values.to(self.edges.dtype), self.edges, self.bins)

    def decode(self, ids: Int[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Returns the middle of each bin."""
        _check_ids(ids, self.bins)
        middles = (self.edges[1:] + self.edges[:-1]) / 2
        return torch.stack([middles[ids[..., d], d] for d in range(self.dimensions)], -1)


class MetaWorldBins(nn.Module):
    """Actions (dx, dy, dz, gripper effort): three SampleBins, and the effort's place among ten known values.

    The gripper's ids use only the first ten of ``bins``; a policy must not be asked for others.
    """

    dimensions = 4

    def __init__(self, bins: int = 48) -> None:
        super().__init__()
        self.bins = bins
        self.motion = SampleBins(bins, 3)

    def fit(self, actions: Float[Tensor, "n 4"]) -> "MetaWorldBins":
        """Learns the edges of the first three dimensions.

        Raises:
            ValueError: as SampleBins; or a gripper effort that is not among the known.
        """
        gripper_ids(actions[..., 3])
        self.motion.fit(actions[..., :3])
        return self

    def encode(self, actions: Float[Tensor, "*b 4"]) -> Int[Tensor, "*b 4"]:
        """Returns ids.

        Raises:
            ValueError: a gripper effort that is not among the known.
        """
        return torch.cat([self.motion.encode(actions[..., :3]), gripper_ids(actions[..., 3])[..., None]], -1)

    def decode(self, ids: Int[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
        """Returns actions.

        Raises:
            ValueError: a gripper id that stands for nothing.
        """
        gripper = ids[..., 3]
        if (gripper >= len(GRIPPER_EFFORTS)).any() or (gripper < 0).any():
            raise ValueError(
                f"gripper ids {gripper.min().item()}..{gripper.max().item()} came; only 0..{len(GRIPPER_EFFORTS) - 1} "
                "stand for an effort: let the policy choose among these"
            )
        efforts = torch.tensor(GRIPPER_EFFORTS, device=ids.device)[gripper]
        return torch.cat([self.motion.decode(ids[..., :3]), efforts[..., None]], -1)


@dataclass(frozen=True, kw_only=True)
class ActionBinsConfig:
    """Which bins an action's numbers become.

    Attributes:
        kind: "release" for MetaWorldBins (actions of width 4), "quantile" for QuantileBins (any width).
        classes: bins of each dimension.
        width: dimensions of an action.
    """

    kind: Literal["release", "quantile"] = "release"
    classes: int = 48
    width: int = 4

    def __post_init__(self) -> None:
        if self.kind == "release" and (self.width != MetaWorldBins.dimensions or self.classes < len(GRIPPER_EFFORTS)):
            raise ValueError(
                f"bins of the release are for actions of width 4 and at least {len(GRIPPER_EFFORTS)} classes; got "
                f"width {self.width} and {self.classes} classes: take quantile bins"
            )


class ActionBins(nn.Module):
    """MetaWorldBins or QuantileBins, as a config says, so that they can be saved beside a policy."""

    def __init__(self, config: ActionBinsConfig) -> None:
        super().__init__()
        self.config = config
        self.bins: MetaWorldBins | QuantileBins = (
            MetaWorldBins(config.classes) if config.kind == "release" else QuantileBins(config.classes, config.width)
        )

    @property
    def barred(self) -> Bool[Tensor, "action k"]:
        """The ids of each dimension that stand for no value; a policy must not be asked for them."""
        barred = torch.zeros(self.config.width, self.config.classes, dtype=torch.bool)
        if self.config.kind == "release":
            barred[3, len(GRIPPER_EFFORTS) :] = True
        return barred

    def fit(self, actions: Float[Tensor, "n action"]) -> "ActionBins":
        """Learns the edges from recorded actions; the release's leave out the last few, where that makes its bins even.

        Raises:
            ValueError: too few actions, another width, values that are not finite, or an unknown gripper effort.
        """
        if self.config.kind == "release":
            step, bins = math.ceil(len(actions) / self.config.classes), self.config.classes
            if step > 1 and math.ceil(len(actions) / step) != bins:
                actions = actions[: (step - 1) * bins]
        self.bins.fit(actions)
        return self

    def encode(self, actions: Float[Tensor, "*b action"]) -> Int[Tensor, "*b action"]:
        """Returns ids.

        Raises:
            ValueError: another width, values that are not finite, or an unknown gripper effort.
        """
        refuse_unfit(actions, self.config.width)
        return self.bins.encode(actions)

    def decode(self, ids: Int[Tensor, "*b action"]) -> Float[Tensor, "*b action"]:
        """Returns actions."""
        return self.bins.decode(ids)


class PoseBins(nn.Module):
    """Gripper poses (x, y, z in metres, quaternion x, y, z, w, open 0 or 1) to seven ids and back.

    Positions are scaled by the workspace to [-1, 1] and put into SampleBins; rotations become whole Euler degrees.
    """

    dimensions = 7

    def __init__(self, bins: int = 360, workspace: Sequence[Sequence[float]] = WORKSPACE) -> None:
        super().__init__()
        self.bins, self.workspace = bins, workspace
        self.positions = SampleBins(bins, 3, torch.float64)

    def fit(self, poses: Float[Tensor, "n pose"]) -> "PoseBins":
        """Learns the positions' edges; only the first three columns count."""
        self.positions.fit(normalised(poses[..., :3], self.workspace))
        return self

    def encode(self, poses: Float[Tensor, "*b 8"]) -> Int[Tensor, "*b 7"]:
        """Returns ids of position, Euler degrees and gripper."""
        places = self.positions.encode(normalised(poses[..., :3], self.workspace))
        return torch.cat([places, rotation_ids(poses[..., 3:7]), poses[..., 7:].round().long()], -1)

    def decode(self, ids: Int[Tensor, "*b 7"]) -> Float[Tensor, "*b 8"]:
        """Returns poses, as float64."""
        places = unnormalised(self.positions.decode(ids[..., :3]), self.workspace)
        return torch.cat([places, rotations_of(ids[..., 3:6]), ids[..., 6:].double()], -1)


def sample_edges(values: Float[Tensor, "n d"], bins: int) -> Float[Tensor, "edges d"]:
    """Returns every ceil(n / bins)-th value of each dimension in rising order, and the greatest."""
    ordered = values.sort(0).values
    return torch.cat([ordered[:: math.ceil(len(values) / bins)], ordered[-1:]])


def bin_ids(values: Float[Tensor, "*b d"], edges: Float[Tensor, "edges d"], bins: int) -> Int[Tensor, "*b d"]:
    """Returns the last edge that is not greater than each value, in ``0..bins-1``; from the greatest on, ``bins-1``."""
    columns = []
    for d, edge in enumerate(edges.T.contiguous()):
        value = values[..., d].contiguous()
        last = torch.searchsorted(edge, value, right=True) - 1
        columns.append(torch.where(value >= edge[-1], bins - 1, last.clamp(0, bins - 1)))
    return torch.stack(columns, -1)


def gripper_ids(efforts: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Returns each effort's place among GRIPPER_EFFORTS, by equality to the bit of float32.

    Raises:
        ValueError: an effort is none of them (0.1 in float64 is not 0.1 in float32).
    """
    known = torch.tensor(GRIPPER_EFFORTS, device=efforts.device).double()
    same = efforts.double()[..., None] == known
    if not same.any(-1).all():
        unknown = efforts[~same.any(-1)].flatten()[0].item()
        raise ValueError(
            f"gripper effort {unknown!r} is none of {GRIPPER_EFFORTS} in float32: give float32 actions of the scripted "
            "policies, or use QuantileBins"
        )
    return same.int().argmax(-1)


def normalised(positions: Float[Tensor, "*b 3"], workspace: Sequence[Sequence[float]]) -> Float[Tensor, "*b 3"]:
    """Returns positions scaled so that the workspace is [-1, 1], as float64."""
    low, high = _bounds(positions, workspace)
    return 2 * (positions.double() - low) / (high - low) - 1


def unnormalised(scaled: Float[Tensor, "*b 3"], workspace: Sequence[Sequence[float]]) -> Float[Tensor, "*b 3"]:
    """Returns the positions that ``normalised`` came from."""
    low, high = _bounds(scaled, workspace)
    return (scaled.double() + 1) / 2 * (high - low) + low


def voxel_index(
    positions: Float[Tensor, "*b 3"], workspace: Sequence[Sequence[float]] = WORKSPACE, size: int = 256
) -> Int[Tensor, "*b 3"]:
    """Returns the cell of a ``size``-cubed grid over the workspace; outside it, the nearest."""
    low, edge = _cells(positions, workspace, size)
    return ((positions.double() - low) / edge).floor().long().clamp(0, size - 1)


def voxel_corner(
    index: Int[Tensor, "*b 3"], workspace: Sequence[Sequence[float]] = WORKSPACE, size: int = 256
) -> Float[Tensor, "*b 3"]:
    """Returns the least corner of a cell, in metres."""
    low, edge = _cells(index, workspace, size)
    return low + index.double() * edge


def _bounds(like: Tensor, workspace: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(workspace, dtype=torch.float64, device=like.device)
    return low, high


def _cells(like: Tensor, workspace: Sequence[Sequence[float]], size: int) -> tuple[Tensor, Tensor]:
    low, high = _bounds(like, workspace)
    return low, (high - low) / size + 1e-12  # the release's guard against a division by zero


def _check_ids(ids: Tensor, bins: int) -> None:
    if ids.numel() and (ids.min() < 0 or ids.max() >= bins):
        raise ValueError(f"ids {ids.min().item()}..{ids.max().item()} came; the bins are 0..{bins - 1}")
