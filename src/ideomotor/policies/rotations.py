"""Rotations as whole degrees: quaternions to Euler angles about fixed axes, to ids, and back. Float64 throughout."""

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
