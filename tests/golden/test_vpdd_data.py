"""Numbers of the published VPDD code around the networks: actions, keyframes, windows, pictures, prompts, text."""

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.policies import published_actions as actions
from ideomotor.policies.rotations import euler_degrees, rotation_ids, rotations_of

pytestmark = pytest.mark.golden


def close(got, wanted, atol):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0.0)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpdd"


@pytest.fixture(scope="module")
def recorded(folder):
    return load_file(folder / "action_tokenizer.safetensors")


def test_metaworld_actions(recorded):
    tokenizer = actions.MetaWorldBins(48).fit(recorded["meta.actions"])
    assert tokenizer.motion.edges.equal(recorded["meta.edges"])
    ids = tokenizer.encode(recorded["meta.actions"])
    assert ids[:, :3].equal(recorded["meta.bin_ids"])
    assert ids[:, 3:].equal(recorded["meta.gripper_ids"])
    decoded = tokenizer.decode(ids)
    close(decoded[:, :3], recorded["meta.decoded_xyz"], 1e-6)
    assert decoded[:, 3].equal(recorded["meta.actions"][:, 3])
    probed = tokenizer.motion.encode(recorded["meta.probe"])
    assert probed.equal(recorded["meta.probe_bin_ids"])
    close(tokenizer.motion.decode(probed), recorded["meta.probe_decoded"], 1e-6)
    close(tokenizer.motion.decode(torch.arange(48)[:, None].expand(-1, 3)), recorded["meta.decode_table"], 1e-6)


def test_gripper_efforts(recorded):
    assert torch.tensor(actions.GRIPPER_EFFORTS).equal(recorded["gripper_values"].float())
    for unknown in (torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.2])):
        with pytest.raises(ValueError, match="gripper effort"):
            actions.gripper_ids(unknown)


def test_too_few_edges_are_refused(recorded):
    data = recorded["short.data"]
    edges = actions.sample_edges(data, 48)
    assert edges.equal(recorded["short.edges"])
    assert actions.bin_ids(data, edges, 48).equal(recorded["short.bin_ids"])
    bins = actions.SampleBins(48, 2, torch.float64)
    with pytest.raises(ValueError, match="1009 values make 46 bins and not 48: use 1008 of them"):
        bins.fit(data)
    assert bins.fit(data[:1008]).encode(data).max() == 47


def test_pose_bins(recorded):
    positions = recorded["pose.positions"]
    tokenizer = actions.PoseBins(360).fit(positions)
    close(actions.normalised(positions, actions.WORKSPACE), recorded["pose.normalised"], 1e-12)
    close(tokenizer.positions.edges, recorded["pose.edges"], 1e-12)
    rest = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(len(positions), -1)
    ids = tokenizer.encode(torch.cat([positions, rest], 1))
    assert ids[:, :3].equal(recorded["pose.bin_ids"])
    assert ids[:, 3:].unique(dim=0).tolist() == [[180, 180, 180, 1]]
    poses = tokenizer.decode(ids)
    close(poses[:, :3], recorded["pose.decoded"], 1e-12)
    close(poses[:, 3:], rest, 1e-12)
    table = tokenizer.positions.decode(torch.arange(360)[:, None].expand(-1, 3))
    close(table, recorded["pose.decode_table_normalised"], 1e-12)


def test_rotations(recorded):
    quaternions = recorded["rot.quaternion_xyzw"]
    raw = recorded["rot.quaternion_xyzw_raw"]
    close(raw / raw.norm(dim=1, keepdim=True), quaternions, 1e-12)
    close(euler_degrees(quaternions), recorded["rot.euler_degrees_plus_180"], 1e-9)
    for resolution in (1, 2):
        ids = recorded[f"rot.euler_ids_{resolution}deg"]
        assert rotation_ids(quaternions, resolution).equal(ids)
        assert rotation_ids(raw, resolution).equal(ids)
    decoded = rotations_of(recorded["rot.euler_ids_1deg"])
    close(decoded, recorded["rot.decoded_quaternion_xyzw"], 1e-12)


def test_voxels(recorded):
    index = actions.voxel_index(recorded["voxel.points"])
    assert index.equal(recorded["voxel.index_256"])
    close(actions.voxel_corner(index), recorded["voxel.point_back"], 1e-12)
