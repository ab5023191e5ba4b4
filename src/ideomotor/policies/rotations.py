"""Rotations: quaternions to Euler angles about fixed axes, to whole degrees and ids, and back; one relative to another.

Float64 throughout.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def euler_degrees(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3"]:
    """Returns degrees in 0..360 of the turns about the fixed x, y and z axis, in this order; 180 is no turn.

    ``quaternions`` are (x, y, z, w) of any length but 0. Where the second turn is a quarter (the gimbal locks), only
    the sum or difference of the others is determined; the third is 180 there.

    Source: Bernardes and Viollet 2022, doi.org/10.1371/journal.pone.0276302; near the lock it is exact where the
    arcsine formula is not.
    """
    x, y, z, w = quaternions.double().unbind(-1)
    a, b, c, d = w - y, x + z, y + w, z - x
    second = 2 * torch.atan2(torch.hypot(c, d), torch.hypot(a, b))  # 0..pi, half of it is no turn
    half_sum, half_difference = torch.atan2(b, a), torch.atan2(d, c)
    first, third = half_sum - half_difference, half_sum + half_difference
    tiny = 1e-7
    low, high = second.abs() <= tiny, (second - torch.pi).abs() <= tiny
    first = torch.where(low, 2 * half_sum, torch.where(high, -2 * half_difference, first))
    third = torch.where(low | high, 0.0, third)
    angles = torch.stack([first, second - torch.pi / 2, third], -1)
    angles = torch.where(angles < -torch.pi, angles + 2 * torch.pi, angles)
    angles = torch.where(angles > torch.pi, angles - 2 * torch.pi, angles)
    return angles.rad2deg() + 180


def quaternions_of(degrees: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4"]:
    """Returns the unit quaternions (x, y, z, w) of angles as ``euler_degrees`` gives them."""
    half = (degrees.double() - 180).deg2rad() / 2
    (cx, cy, cz), (sx, sy, sz) = half.cos().unbind(-1), half.sin().unbind(-1)
    x = sx * cy * cz - cx * sy * sz
    y = cx * sy * cz + sx * cy * sz
    z = cx * cy * sz - sx * sy * cz
    w = cx * cy * cz + sx * sy * sz
    return torch.stack([x, y, z, w], -1)


def rotation_ids(quaternions: Float[Tensor, "*b 4"], resolution: int = 1) -> Int[Tensor, "*b 3"]:
    """Returns Euler angles in steps of ``resolution`` degrees, halves rounded to even; a full turn is 0 again."""
    return (euler_degrees(quaternions) / resolution).round().long() % (360 // resolution)


def rotations_of(ids: Int[Tensor, "*b 3"], resolution: int = 1) -> Float[Tensor, "*b 4"]:
    """Returns the quaternions (x, y, z, w) that ids of ``rotation_ids`` stand for."""
    return quaternions_of(ids.double() * resolution)


def euler_of(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3"]:
    """Returns radians in -pi..pi of the turns about the fixed x, y and z axis, in this order: roll, pitch, yaw."""
    return (euler_degrees(quaternions) - 180).deg2rad()


def quaternions_of_euler(radians: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4"]:
    """Returns the unit quaternions (x, y, z, w) of roll, pitch and yaw."""
    return quaternions_of(radians.double().rad2deg() + 180)


def product(first: Float[Tensor, "*b 4"], second: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Returns the turn ``second`` and, after it, ``first``, as matrices multiply: (x, y, z, w)."""
    first, second = first.double(), second.double()
    a, b = first[..., :3], second[..., :3]
    v, w = first[..., 3:], second[..., 3:]
    axis = v * b + w * a + torch.linalg.cross(a, b)
    return torch.cat([axis, v * w - (a * b).sum(-1, keepdim=True)], -1)


def inverse(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Returns the turns back, of unit quaternions (x, y, z, w)."""
    return quaternions.double() * torch.tensor([-1.0, -1.0, -1.0, 1.0], dtype=torch.float64, device=quaternions.device)


def turned(quaternions: Float[Tensor, "*b 4"], vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Returns the vectors turned by unit quaternions (x, y, z, w)."""
    still = torch.cat([vectors.double(), torch.zeros_like(vectors[..., :1], dtype=torch.float64)], -1)
    return product(product(quaternions, still), inverse(quaternions))[..., :3]


def same_side(quaternions: Float[Tensor, "*b 4"], side: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Returns each quaternion or its negative, which is the same turn: the one that is nearer to ``side``."""
    away = (quaternions.double() * side.double()).sum(-1, keepdim=True) < 0
    return torch.where(away, -quaternions, quaternions)


def average(quaternions: Float[Tensor, "n 4"]) -> Float[Tensor, " 4"]:
    """Returns the unit quaternion that is nearest to all of them, whatever their signs; its largest part is positive.

    Source: Markley et al. 2007, Averaging Quaternions: the main axis of the sum of q times q transposed.
    """
    q = quaternions.double()
    axis = torch.linalg.eigh(q.T @ q).eigenvectors[:, -1]
    return axis * axis[axis.abs().argmax()].sign()


def units(quaternions: Float[Tensor, "*b 4"], what: str, tolerance: float = 0.01) -> Float[Tensor, "*b 4"]:
    """Returns the quaternions at length 1, as float64.

    Raises:
        ValueError: one is further from length 1 than rounding explains; it is named after ``what`` it is of.
    """
    lengths = quaternions.double().norm(dim=-1, keepdim=True)
    odd = ((lengths - 1).abs() > tolerance)[..., 0]  # nan has been refused before
    if odd.any():
        place = tuple(odd.nonzero()[0].tolist())
        raise ValueError(
            f"the quaternion of {what} at {list(place)} is {quaternions[place].tolist()}, of length "
            f"{lengths[place].item():.4g}; wanted unit quaternions (x, y, z, w): check which columns they are in, and "
            "repair the recording or leave it out"
        )
    return quaternions.double() / lengths
