"""Numbers of the published iVideoGPT data loader: which frames make a segment, and what the named mixes hold."""

import json

import numpy as np
import pytest

from ideomotor.data.mixes import MIXES, SOMETHING
from ideomotor.data.segments import SegmentWindow

pytestmark = pytest.mark.golden

MODES = {
    "default": "in_order",
    "default_with_actions": "in_order",
    "goal": "goal",
    "random_selection": "random_selection",
    "random_selection_with_actions": "random_selection",
    "random_shuffle": "random_shuffle",
}


def fixture(shared, name):
    return json.loads((shared / "golden" / "ivideogpt" / "fixtures" / f"{name}.json").read_text())


def window_of(item):
    mode = MODES[item["mode"]]
    return SegmentWindow(
        frames=item["segment_length"],
        context=item["context_length"],
        stride=item["stepsize"],
        mode=mode,
        span=item["segment_horizon"] if mode.startswith("random") else None,
    )


def test_training_segments(shared):
    items = fixture(shared, "data_windows")["training"]
    assert {item["mode"] for item in items} == set(MODES)
    for item in items:
        window, length, start = window_of(item), item["episode_length"], item["start"]
        assert window.anchors(length) == item["start_drawn_below"], item
        if window.span is None:
            assert window.frame_indices(start, length).tolist() == item["frames"], item
        if "action_rows" in item:
            rows = item["action_rows"]
            recorded = np.arange(float(length))[:, None]
            draws = [0] if window.span is None else range(50)
            got = [window.actions(recorded, start, draw)[0][:, 0].tolist() for draw in draws]
            assert (rows in got) if window.span is None else all(row[:2] == rows[:2] for row in got), item


def test_what_the_release_drew_can_be_drawn_and_nothing_else(shared):
    """Its draws are among ours, and ours keep to the pattern that its draws show."""
    for item in fixture(shared, "data_windows")["training"]:
        window, length, start = window_of(item), item["episode_length"], item["start"]
        if window.span is None:
            continue
        ours = np.array([window.frame_indices(start, length, draw) for draw in range(400)])
        wanted, context = np.array(item["frames"]), window.context
        if item["mode"] == "random_shuffle":
            pool = sorted(np.minimum(start + window.stride_in(length) * np.arange(window.span), length - 1).tolist())
            assert set(wanted.tolist()) <= set(ours.ravel().tolist()) == set(pool), item
            assert all(pool.count(frame) >= row.tolist().count(frame) for row in ours[:50] for frame in row), item
        else:
            assert (ours[:, :context] == wanted[:context]).all(), item
            assert (np.diff(ours[:, context:], axis=1) > 0).all(), item
            reached = set(ours[:, context:].ravel().tolist())
            stride = window.stride_in(length)
            beyond = min(start + stride * window.span, length)
            assert set(wanted[context:].tolist()) <= reached == set(range(start + stride * context, beyond)), item


def test_evaluation_segments(shared):
    for item in fixture(shared, "data_windows")["evaluation"]:
        robodesk = item["dataset"].startswith("vp2")  # from a random start; the others from the first frame
        window = SegmentWindow(frames=item["segment_length"], mode="in_order" if robodesk else "first")
        start = item["frames"][0] if robodesk else 0
        assert 0 <= start < window.anchors(item["episode_length"])
        assert window.frame_indices(start, item["episode_length"]).tolist() == item["frames"], item


def test_goal_order(shared):
    recorded = fixture(shared, "data_windows")["predict_goal_order"]
    window = SegmentWindow(frames=recorded["frames"] + 1, mode="goal")
    order = window.frame_indices(0, recorded["frames"])[: recorded["frames"]]
    assert order.tolist() == recorded["order"]


def test_named_mixes(shared):
    recorded = fixture(shared, "named_mixes")
    ours = {name: [[share.dataset, share.weight] for share in shares] for name, shares in MIXES.items()}
    assert ours == recorded["mixes"]
    for share in {share.dataset: share for shares in MIXES.values() for share in shares}.values():
        if share.dataset != SOMETHING:
            assert share.stride == recorded["frame_step"][share.dataset], share
            assert share.camera == recorded["image_key"][share.dataset], share
