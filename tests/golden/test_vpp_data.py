"""Facts of the published VPP data pipeline: which frames make a clip, what its annotations look like."""

import json

import pytest

from ideomotor.data.sampling import StridedWindow
from ideomotor.data.whole_clips import WholeClip

pytestmark = pytest.mark.golden

WHOLE = WholeClip(frames=16, longest=100)
STRIDED = StridedWindow(frames=16, stride=2, start_step=2).window(1.0)
POLICIES = {  # what the release decides by the name of a path, said outright
    "bridge": WHOLE,
    "rt1": WHOLE,
    "sthv2": WHOLE,
    "calvin": STRIDED,
    "xhand": STRIDED,
    "xhand_1125_pour": STRIDED,
    "xbot": STRIDED,
    "cloth": StridedWindow(frames=16, stride=5, start_step=5).window(1.0),
}


def recorded(shared, name):
    return json.loads((shared / "golden" / "vpp" / f"{name}.json").read_text())


def windows(policy, length):
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
        ).window(1.0)
        ours = windows(window, item["video_length"])
        assert len(ours) == item["n_samples"] and ours == item["frame_ids"], item
