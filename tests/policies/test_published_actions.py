"""Tokenizers of the release: round trips, and what they refuse."""

import pytest
import torch

from ideomotor.policies.published_actions import (
    GRIPPER_EFFORTS,
    WORKSPACE,
    MetaWorldBins,
    PoseBins,
    SampleBins,
    bin_ids,
    sample_edges,
    unnormalised,
    voxel_corner,
    voxel_index,
)
from ideomotor.policies.rotations import euler_degrees, quaternions_of, rotation_ids, rotations_of


def matrices(quaternions):
    """Returns rotation matrices: column k is axis k, turned by v -> q v q*."""
    axis, w = quaternions[..., None, :3], quaternions[..., None, 3:]
    unit = torch.eye(3, dtype=torch.float64).expand(*quaternions.shape[:-1], 3, 3)
    turned = torch.cross(axis.expand_as(unit), unit, dim=-1)
    return (unit + 2 * w * turned + 2 * torch.cross(axis.expand_as(unit), turned, dim=-1)).mT


def test_euler_angles_are_turns_about_fixed_axes(generator):
    degrees = 360 * torch.rand(200, 3, generator=generator, dtype=torch.float64)
    degrees[:6, 1] = torch.tensor([90.0, 270.0, 90.0, 270.0, 180.0, 0.0])  # gimbal lock, both ways
    x, y, z = (quaternions_of(torch.where(torch.arange(3) == axis, degrees, 180.0)) for axis in range(3))
    wanted = matrices(z) @ matrices(y) @ matrices(x)
    torch.testing.assert_close(matrices(quaternions_of(degrees)), wanted)
    again = quaternions_of(euler_degrees(quaternions_of(degrees)))
    torch.testing.assert_close(matrices(again), wanted, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("resolution", [1, 2])
def test_rotation_ids_come_back(resolution):
    count = 360 // resolution
    ids = torch.cartesian_prod(
        torch.arange(0, count, 7), torch.arange(90 // resolution + 1, 270 // resolution), torch.arange(0, count, 11)
    )
    assert rotation_ids(rotations_of(ids, resolution), resolution).equal(ids)


def test_bins_against_counting(generator):
    values = torch.randn(96, 2, generator=generator)
    bins = SampleBins(8, 2).fit(values)
    probe = torch.cat([values, bins.edges, torch.tensor([[-9.0, 9.0]])])
    for d in range(2):
        counted = [max(0, min(7, sum(bool(edge <= value) for edge in bins.edges[:, d]) - 1)) for value in probe[:, d]]
        assert bins.encode(probe)[:, d].tolist() == counted
    error = (bins.decode(bins.encode(values)) - values).abs()
    assert (error <= (bins.edges[1:] - bins.edges[:-1]).amax(0) / 2 + 1e-6).all()


def test_numbers_of_values():
    assert len(sample_edges(torch.arange(10.0)[:, None], 5)) == 6
    with pytest.raises(ValueError, match="11 values make 4 bins and not 5: use 10 of them"):
        SampleBins(5, 1).fit(torch.arange(11.0)[:, None])
    with pytest.raises(ValueError, match="3 values make 3 bins and not 5: use at least 5"):
        SampleBins(5, 1).fit(torch.arange(3.0)[:, None])
    with pytest.raises(ValueError, match="finite"):
        SampleBins(1, 1).fit(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match=r"bins are 0\.\.4"):
        SampleBins(5, 1).decode(torch.tensor([[5]]))
    assert bin_ids(torch.tensor([[4.0]]), torch.tensor([[0.0], [4.0]]), 5).item() == 4  # the release's greatest value


def test_metaworld_round_trip(generator):
    actions = torch.rand(96, 4, generator=generator) * 2 - 1
    actions[:, 3] = torch.tensor(GRIPPER_EFFORTS)[torch.randint(10, (96,), generator=generator)]
    tokenizer = MetaWorldBins(16).fit(actions)
    again = MetaWorldBins(16)
    again.load_state_dict(tokenizer.state_dict())
    ids = again.encode(actions.view(8, 12, 4))
    decoded = again.decode(ids).view(96, 4)
    assert decoded[:, 3].equal(actions[:, 3])
    assert (decoded - actions).abs().max() < 0.15
    with pytest.raises(ValueError, match=r"gripper ids 2\.\.12 came; only 0\.\.9"):
        tokenizer.decode(torch.tensor([[0, 0, 0, 2], [0, 0, 0, 12]]))
    with pytest.raises(ValueError, match=r"gripper effort 0\.25"):
        tokenizer.encode(torch.tensor([0.0, 0.0, 0.0, 0.25]))


def test_pose_round_trip(generator):
    places = unnormalised(torch.rand(720, 3, generator=generator) * 2 - 1, WORKSPACE)
    rotations = torch.randn(720, 4, generator=generator, dtype=torch.float64)
    poses = torch.cat([places, rotations / rotations.norm(dim=1, keepdim=True), (places[:, :1] > 0).double()], 1)
    tokenizer = PoseBins(360).fit(poses)
    decoded = tokenizer.decode(tokenizer.encode(poses))
    assert (decoded[:, :3] - places).abs().max() < 0.02
    assert decoded[:, 7].equal(poses[:, 7])
    angle = 2 * (decoded[:, 3:7] * poses[:, 3:7]).sum(1).abs().clamp(max=1).acos().rad2deg()
    assert angle.max() < 1.5  # three roundings of at most half a degree


def test_voxels(generator):
    points = unnormalised(torch.rand(50, 3, generator=generator) * 2 - 1, WORKSPACE)
    corner = voxel_corner(voxel_index(points))
    assert ((points - corner) >= 0).all() and ((points - corner) < 1 / 256 + 1e-9).all()
    assert voxel_index(torch.tensor([[-9.0, 9.0, 1.1]])).tolist() == [[0, 255, 128]]
