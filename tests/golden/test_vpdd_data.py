"""Numbers of the published VPDD code around the networks: actions, keyframes, windows, pictures, prompts, text."""

import json

import numpy as np
import pytest
import recipe
import torch
from safetensors.torch import load_file

from ideomotor.data.distant_windows import DistantWindow, one_of_each_task
from ideomotor.data.keyframes import keyframes, next_keyframes
from ideomotor.data.transforms import bilinear, center_crop, covering_size, resize_and_crop
from ideomotor.interop.clip_text import clip_text_config, clip_text_from_published
from ideomotor.policies import published_actions as actions
from ideomotor.policies.rotations import euler_degrees, rotation_ids, rotations_of
from ideomotor.systems import vpdd_prompts

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


def test_keyframes(folder):
    episodes = json.loads((folder / "keyframes.json").read_text())["episodes"]
    data = {name: value.numpy() for name, value in load_file(folder / "keyframes.safetensors").items()}
    for name, wanted in episodes.items():
        found = keyframes(data[f"{name}.gripper_open"], data[f"{name}.joint_velocities"])
        assert found == wanted["keyframes"] == data[f"{name}.keyframes"].tolist(), name


def test_metaworld_windows(folder):
    recorded = json.loads((folder / "training_windows.json").read_text())["metaworld_finetune"]
    window, length = DistantWindow(frames=1, ahead=20, chunk=4), recorded["episode_length"]
    for item in recorded["items"]:
        start, first = item["start"], np.array(item["first_task_actions"][0])
        assert window.frame_indices(start, length).tolist() == [item["history_step"], item["target_step"]]
        assert one_of_each_task(item["episode"])[:5] == item["episodes_of_first_five_rows"]
        assert len(one_of_each_task(item["episode"])) == item["shapes"]["actions"][0]
        steps = np.arange(length)[:, None]
        actions = np.hstack([steps, np.full_like(steps, first[1]), 29 - steps, np.full_like(steps, first[3])])
        chunk, _ = window.actions(actions.astype(float), start)
        assert chunk.tolist() == item["first_task_actions"]


def test_rlbench_windows(folder):
    recorded = json.loads((folder / "training_windows.json").read_text())["rlbench_finetune"]
    window = DistantWindow(frames=1, ahead=20)
    for item in recorded["items"]:
        indices = window.frame_indices(item["start"], recorded["episode_length"])
        assert indices.tolist() == [item["history_step"], item["target_step"]]
        rows, mask = next_keyframes(recorded["keyframes"], item["start"], 4)
        assert np.where(mask, rows, 0).tolist() == item["keyframe_rows_used"]
        assert np.where(mask, 600 + rows, 0).tolist() == item["last_component"]


@pytest.mark.parametrize(("name", "enlarged", "size"), [("tall", 1, 16), ("wide", 1, 16), ("square260", 5, 96)])
def test_pictures(folder, name, enlarged, size):
    data = load_file(folder / "preprocess.safetensors")
    stored = data[f"{name}_uint8" if enlarged == 1 else f"{name}_uint8_52px"].movedim(-1, 1)
    video = stored.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    covering = covering_size(tuple(video.shape[-2:]), (size, size))
    wanted = data[f"{name}_out_{size}"].transpose(0, 1)  # t c h w
    got = center_crop(bilinear(video, covering), (size, size)) / 255 - 0.5
    close(got[: len(wanted)], wanted, 1e-5)
    rounded = resize_and_crop(video, (size, size), smooth=False).float() / 255 - 0.5
    close(rounded[: len(wanted)], wanted, 0.5 / 255 + 1e-6)


def test_prompts(folder):
    recorded = json.loads((folder / "language_prompts.json").read_text())
    rows = [*recorded["metaworld"], recorded["human_video_default"]]
    assert {f"{task}-v2": text for task, text in vpdd_prompts.METAWORLD.items()} == {
        row["task"]: row["prompt"] for row in recorded["metaworld"]
    }
    assert list(vpdd_prompts.METAWORLD) == [row["task"].removesuffix("-v2") for row in recorded["metaworld"]]
    assert rows[-1]["prompt"] == vpdd_prompts.HUMAN_VIDEO
    for row in rows:
        padding = [recorded["padding_id"]] * (recorded["context_length"] - len(row["token_ids"]))
        assert vpdd_prompts.token_ids(row["prompt"]).tolist() == row["token_ids"] + padding
    assert list(vpdd_prompts.RLBENCH_TASKS) == recorded["rlbench_tasks_pretraining"]
    assert recorded["rlbench_character_limit"] == vpdd_prompts.RLBENCH_CHARACTERS
    with pytest.raises(ValueError, match="no sentence of the VPDD release"):
        vpdd_prompts.token_ids("open the pod bay doors")


def test_text_features(folder):
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    recorded = json.loads((folder / "clip_text_tiny.json").read_text())
    data = load_file(folder / "clip_text_tiny.safetensors")
    state = recipe.weights(recorded["weights"])
    settings = clip_text_config(state) | {"num_attention_heads": recorded["config"]["heads"]}
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings)).eval()
    ours = clip_text_from_published(state)
    natural = {name: value for name, value in model.state_dict().items() if name.endswith("position_ids")}
    model.load_state_dict(ours | natural)
    prompts = [*vpdd_prompts.METAWORLD.values(), vpdd_prompts.HUMAN_VIDEO]
    ids = torch.stack([vpdd_prompts.token_ids(prompts[row]) for row in recorded["prompt_rows"]])
    assert ids.equal(data["token_ids"])
    with torch.no_grad():
        out = model(input_ids=ids)
    features = out.text_embeds
    close(features, data["features"], 1e-4)
    close(features.norm(dim=1), torch.tensor(recorded["feature_norms"]), 1e-4)
    close(out.last_hidden_state[:, :12], data["token_embeddings_first_12"], 1e-4)  # every position's state
