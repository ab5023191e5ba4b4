"""Rotations against matrices."""

import math

import pytest
import torch

from ideomotor.policies.rotations import (
    average,
    euler_of,
    inverse,
    product,
    quaternions_of_euler,
    same_side,
    turned,
    units,
)


def random_turns(generator, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, 4, generator=generator, dtype=torch.float64), dim=-1)


def matrix(roll, pitch, yaw):
    """Returns the turns about the fixed x, y and z axis, in this order."""
    (cx, cy, cz), (sx, sy, sz) = ([f(a) for a in (roll, pitch, yaw)] for f in (math.cos, math.sin))
    x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], dtype=torch.float64)
    y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], dtype=torch.float64)
    z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]], dtype=torch.float64)
    return z @ y @ x


def test_turning_is_what_the_matrix_does(generator):
    angles = torch.tensor([[0.3, -0.8, 2.5], [3.1, 0.0, -0.1], [-2.0, 1.5, 0.4]], dtype=torch.float64)
    vectors = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    wanted = torch.stack([matrix(*row) @ vector for row, vector in zip(angles.tolist(), vectors, strict=True)])
    turns = quaternions_of_euler(angles)
    torch.testing.assert_close(turned(turns, vectors), wanted)
    torch.testing.assert_close(euler_of(turns), angles)
    torch.testing.assert_close(turned(inverse(turns), wanted), vectors)
    other = random_turns(generator, 3)
    torch.testing.assert_close(turned(product(turns, other), vectors), turned(turns, turned(other, vectors)))
    together = turned(turns[:1, None], vectors.expand(1, 3, 3))  # one turn of many vectors
    torch.testing.assert_close(together[0], vectors @ matrix(*angles[0].tolist()).T)


def test_the_average_knows_no_signs(generator):
    centre = torch.tensor([0.0, -0.8, 0.1, 0.59], dtype=torch.float64)
    near = torch.nn.functional.normalize(centre + 0.05 * torch.randn(500, 4, generator=generator).double(), dim=-1)
    signs = torch.where(torch.rand(500, 1, generator=generator) < 0.5, -1.0, 1.0)
    found = average(near * signs)
    assert found.norm() == pytest.approx(1) and found[1] > 0  # its largest part is positive
    torch.testing.assert_close(found, -torch.nn.functional.normalize(centre, dim=0), atol=0.02, rtol=0.0)
    assert same_side(near * signs, found).equal(same_side(near, found))
    assert (same_side(near * signs, found) @ found > 0).all()


def test_what_is_no_rotation_is_named():
    turns = torch.tensor([[[0.0, 0.0, 0.0, 1.004], [0.0, 0.6, 0.8, 0.0]], [[1.0, 0.0, 0.0, 0.0], [0.4, 0.1, 0.0, 0.3]]])
    assert units(turns[:, 0], "the hand").norm(dim=-1).sub(1).abs().max() < 1e-12  # rounding is mended
    with pytest.raises(
        ValueError, match=r"the quaternion of the hand at \[1, 1\] is .*, of length 0\.5099; wanted unit"
    ):
        units(turns, "the hand")
