"""Facts of the published VPP data pipeline: which frames make a clip, what its annotations look like."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ideomotor.data.formats import open_dataset
from ideomotor.data.formats.latent_files import SCALE
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mix_files import find_mix, read_mix
from ideomotor.data.mixture import Source
from ideomotor.data.sampling import StridedWindow
from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.data.video import write_video
from ideomotor.data.windows import read_frames

pytestmark = pytest.mark.golden

STRIDED = StridedWindow(frames=16, stride=2, start_step=2)
POLICIES = {  # what the release decides by the name of a path, said outright
    **{part.name: part.sampling.window for part in read_mix(find_mix("published"))},
    "xhand": STRIDED,
    "xhand_1125_pour": STRIDED,
    "xbot": STRIDED,
    "cloth": StridedWindow(frames=16, stride=5, start_step=5),
}


def recorded(shared, name):
    return json.loads((shared / "golden" / "vpp" / f"{name}.json").read_text())


def windows(policy, length):
    policy = policy.window(1.0) if isinstance(policy, StridedWindow) else policy
    anchors = range(0, policy.anchors(length) * policy.every, policy.every)
    return [policy.frame_indices(anchor, length).tolist() for anchor in anchors]


def test_video_windows(shared):
    items = recorded(shared, "dataset_windows")["video"]
    assert {item["path_contains"] for item in items} == POLICIES.keys()
    for item in items:
        annotation = item["annotation"]
        length = annotation["state"]["length"] if "state" in annotation else annotation["video_length"]
        ours = windows(POLICIES[item["path_contains"]], length)
        assert len(ours) == item["n_samples"], item
        listed = ours if item["frame_ids_listed"] == "all" else [*ours[:3], ours[-1]]
        assert listed == item["frame_ids"], item


def test_policy_windows(shared):
    for item in recorded(shared, "dataset_windows")["policy"]:
        window = StridedWindow(
            frames=item["sequence_length"], stride=item["sequence_interval"], start_step=item["start_interval"]
        )
        ours = windows(window, item["video_length"])
        assert len(ours) == item["n_samples"] and ours == item["frame_ids"], item


def least(schema, rows, name=""):
    """What a schema asks for and no more; lists of any length have ``rows`` entries."""
    match schema["type"]:
        case "object":
            return {key: least(schema["properties"][key], rows - (key == "action"), key) for key in schema["required"]}
        case "array":
            count = schema.get("minItems", rows)
            entries = [least(schema["items"], rows, name) for _ in range(count)]
            for number, entry in enumerate(entries):
                if isinstance(entry, dict):  # a list of files
                    entry.update({key: f"{name}/val/0/{number}{SUFFIX[key]}" for key in entry})
            return entries
        case "number":
            return 0.25
    return rows if schema["type"] == "integer" else name


SUFFIX = {"video_path": ".mp4", "latent_video_path": ".pt"}


@pytest.mark.parametrize("whose", ["synthetic_examples", "schemas"])
def test_an_annotation_of_each_schema_is_read(shared, tmp_path, whose):
    schemas = recorded(shared, "annotation_schemas")["schemas"]
    examples = recorded(shared, "annotation_schemas")["synthetic_examples"]
    assert examples.keys() == schemas.keys() == {"bridge", "rt1", "sthv2", "xhand", "xbot"}
    if whose == "schemas":
        examples = {name: least(schema, 5) for name, schema in schemas.items()}
    for name, annotation in examples.items():
        root, described = tmp_path / name, schemas[name]["properties"]
        assert set(schemas[name]["required"]) == annotation.keys()
        states = annotation.get("state", annotation.get("states"))
        length = annotation.get("video_length") or len(states)
        (root / "annotation" / "val").mkdir(parents=True)
        (root / "annotation" / "val" / "0.json").write_text(json.dumps(annotation))
        for entry in annotation.get("videos", ()):
            write_video(root / entry["video_path"], torch.zeros(length, 3, 16, 16, dtype=torch.uint8), 5)
        scaled = torch.arange(length * 4.0).reshape(length, 4, 1, 1) * SCALE
        for entry in annotation["latent_videos"]:
            file = root / entry["latent_video_path"].replace("latent_videos/", "latent_videos_svd/")
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(scaled, file)
        dataset = open_dataset(root)
        assert dataset.format == "annotated_json" and not dataset.quarantined
        (episode,) = dataset.episodes
        assert episode.id == f"val/{annotation['episode_id']}" and episode.text == annotation["texts"][0]
        assert episode.length == length
        assert list(episode.frames) == [f"camera{number}" for number in range(len(annotation.get("videos", ())))]
        assert list(episode.latents) == [f"camera{number}" for number in range(len(annotation["latent_videos"]))]
        for latents in episode.latents.values():
            values, std = latents.read([length - 1, 0])
            assert std is None
            torch.testing.assert_close(values, scaled[[-1, 0]] / 0.18215)
        for key, count in (("videos", len(episode.frames)), ("latent_videos", len(episode.latents))):
            assert key not in described or described[key]["minItems"] == count == described[key]["maxItems"]
        actions = annotation.get("action", annotation.get("actions"))
        if actions is None:
            assert episode.read_actions is None and episode.read_proprio is None
            continue
        np.testing.assert_array_equal(read_actions(episode)[: len(actions)], np.float32(actions))
        np.testing.assert_array_equal(read_proprio(episode), np.float32(states))
        for keys, table in (
            (("action", "actions"), read_actions(episode)),
            (("state", "states"), read_proprio(episode)),
        ):
            (rows,) = (described[key]["items"] for key in keys if key in described)
            assert rows["minItems"] == table.shape[1] == rows["maxItems"]


@pytest.mark.parametrize("name", ["bridge", "rt1", "sthv2", "xhand"])
def test_real_annotations(shared, name):
    """All four kinds; the depth view of xhand, which no annotation lists, does no harm."""
    dataset = open_dataset(shared / "data" / "real" / name)
    assert dataset.episodes and not dataset.quarantined
    with_latents = {episode.id for episode in dataset.episodes if episode.latents}
    assert with_latents == ({"val/10"} if name == "bridge" else set())


def test_real_latents_become_clips_without_a_vae(shared):
    dataset = open_dataset(shared / "data" / "real" / "bridge")
    kept = tuple(episode for episode in dataset.episodes if episode.latents)
    source = Source(replace(dataset, episodes=kept), window=POLICIES["bridge"])
    clip = ClipLoader([source], 1, seed=0, actions=False, with_frames=False, latents="mean").batch(0)
    assert clip.latents["main"].shape == (1, 16, 4, 32, 32)
    assert 0.7 < clip.latents["main"].mul(SCALE).std() < 0.85  # 0.74 to 0.79 over the release's samples
    assert clip.text == ("put pot or pan from sink into drying rack",)


def test_published_latents_are_of_squeezed_frames(shared):
    """Colours follow from latents by a linear map at each place, if the frames were fitted in the same way."""
    (episode,) = (e for e in open_dataset(shared / "data" / "real" / "bridge").episodes if e.latents)
    frames = [0, 12, 23]
    latents = episode.latents["camera0"].read(frames).mean.permute(0, 2, 3, 1).reshape(-1, 4)
    known = torch.cat([latents, torch.ones(len(latents), 1)], 1)

    def explained(pictures):
        colours = pictures.float().permute(0, 2, 3, 1).reshape(-1, 3)
        rest = colours - known @ torch.linalg.lstsq(known, colours).solution
        return 1 - float((rest.var(0) / colours.var(0)).mean())

    assert explained(episode.frames["camera0"].read(frames, (32, 32))) > 0.8
    assert explained(read_frames(episode, "camera0", frames, (32, 32))) < 0.5
