"""What people have in folders: found, read, and left out with a reason where it is broken."""

import csv
import json
import random
import zipfile
from collections import Counter

import av
import numpy as np
import pytest
import torch

from ideomotor.data.cache import cached
from ideomotor.data.formats import FORMATS, annotated_json, folder, npz, open_dataset
from ideomotor.data.formats.checks import files_below, fingerprint, in_threads
from ideomotor.data.formats.latent_files import stated_vae
from ideomotor.data.inspection import inspect
from ideomotor.data.signals import read_actions, read_proprio, read_rewards
from ideomotor.data.video import count_decodable, write_video
from ideomotor.types import Frames, Latents


def pictures(count, size=(16, 24), base=30):
    t, c, h, w = np.ogrid[:count, :3, : size[0], : size[1]]
    return (base + 6 * t + 2 * h + w + 10 * c).astype(np.uint8)


def video(path, count=6, fps=10.0, size=(16, 24)):
    return write_video(path, torch.from_numpy(pictures(count, size)), fps)


def ids(dataset):
    return [episode.id for episode in dataset.episodes]


def reasons(dataset):
    return {entry.path: entry.reason for entry in dataset.quarantined}


# Finding the reader.


def test_the_layout_is_recognised(tmp_path):
    video(tmp_path / "videos" / "v.mp4")
    np.savez(tmp_path / "npz.npz", image=pictures(3).transpose(0, 2, 3, 1))
    assert open_dataset(tmp_path).format == "folder"  # an npz beside videos is somebody's features
    assert open_dataset(str(tmp_path / "videos" / "v.mp4")).format == "folder"
    assert open_dataset(tmp_path / "npz.npz").format == "npz"
    assert open_dataset(tmp_path, format="npz").format == "npz"
    (tmp_path / "annotation" / "val").mkdir(parents=True)
    (tmp_path / "annotation" / "val" / "0.json").write_text('{"videos": [{"video_path": "videos/v.mp4"}]}')
    assert open_dataset(tmp_path).format == "annotated_json"
    assert open_dataset(tmp_path, format="folder").format == "folder"


def test_a_data_set_inside_a_folder_of_videos_is_pointed_out(tmp_path):
    """Its videos are read, its actions and texts are not, and that must not pass in silence."""
    video(tmp_path / "loose.mp4")
    annotated(tmp_path / "robot", 0)
    data = open_dataset(tmp_path)
    assert data.format == "folder" and len(data.episodes) == 3
    assert reasons(data) == {
        "robot": "is a data set of its own (annotated_json), read here as loose files: "
        "open it by itself for all it holds"
    }
    assert not open_dataset(tmp_path, format="folder").quarantined  # asked for by name


def test_unknown_formats_and_empty_folders_say_what_was_wanted(tmp_path):
    with pytest.raises(ValueError, match=r"there is no format 'foldr'; did you mean 'folder'\? \(formats: lerobot, "):
        open_dataset(tmp_path, format="foldr")
    with pytest.raises(ValueError, match=r"no format 'xyzzy' \(formats"):
        open_dataset(tmp_path, format="xyzzy")
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        open_dataset(tmp_path / "none")
    with pytest.raises(ValueError, match="which holds no file") as caught:
        open_dataset(tmp_path)
    assert all(name in str(caught.value) for name in FORMATS)
    for name in ("a.txt", "b.txt", "c.png"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"which holds 2 \.txt, 1 \.png"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"which holds one file of type \.png"):
        open_dataset(tmp_path / "c.png")


def test_nothing_readable_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video\n")
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'folder', but none of its 2 .*a\.mp4: holds text.*b\.mp4: is empty"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_is_not_there(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset(tmp_path, format=name)
    assert str(tmp_path) in str(caught.value)


# Folders of video.


def test_a_folder_of_video(tmp_path):
    video(tmp_path / "b" / "one.mp4", count=5, fps=10)
    video(tmp_path / "b" / "c" / "two.webm", count=7, fps=25, size=(18, 20))
    video(tmp_path / "THREE.MP4".replace("MP4", "mp4"), count=4, fps=10).rename(tmp_path / "THREE.MP4")
    video(tmp_path / ".hidden" / "no.mp4")
    (tmp_path / "b" / "notes.txt").write_text("not a video, and passed over")
    data = open_dataset(tmp_path)
    assert ids(data) == ["THREE.MP4", "b/c/two.webm", "b/one.mp4"] and not data.quarantined
    assert [episode.length for episode in data.episodes] == [4, 7, 5]
    assert [episode.fps for episode in data.episodes] == pytest.approx([10, 25, 10])
    assert data.episodes[1].frames["video"].shape == (7, 3, 18, 20)
    assert all(episode.read_actions is None and episode.read_proprio is None for episode in data.episodes)
    assert all(isinstance(episode.frames["video"], Frames) for episode in data.episodes)
    assert inspect(data).rates == {10.0: 2, 25.0: 1}


def test_damaged_files_are_left_out_and_the_others_read(tmp_path):
    whole = video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:-60])
    (tmp_path / "text.mp4").write_text("hello\n")
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    data = open_dataset(tmp_path)
    assert ids(data) == ["whole.mp4"]
    found = reasons(data)
    assert set(found) == {"cut.mp4", "text.mp4", "empty.avi", "gone.mp4"}
    assert "cut short" in found["cut.mp4"] and "text, not video" in found["text.mp4"]
    assert "is empty" in found["empty.avi"] and "cannot be opened" in found["gone.mp4"]


def test_captions_are_found_by_name_with_or_without_suffix(tmp_path):
    for name in ("a.mp4", "b.mp4", "sub/c.webm", "sub/d.mp4", "e.mp4"):
        video(tmp_path / name, count=2)
    lines = [{"file": "a.mp4", "text": "lift it"}, {"file_name": "b", "caption": "turn — it"}]
    (tmp_path / "captions.jsonl").write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    with (tmp_path / "sub" / "captions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["video", "text"], ["c.webm", "push, then pull"], ["d.mp4", "drop it"]])
    data = open_dataset(tmp_path)
    texts = {episode.id: episode.text for episode in data.episodes}
    assert texts == {
        "a.mp4": "lift it",
        "b.mp4": "turn — it",
        "sub/c.webm": "push, then pull",
        "sub/d.mp4": "drop it",
        "e.mp4": "",
    }
    assert not data.quarantined


def test_a_caption_may_run_over_lines(tmp_path):
    for name in ("a", "b"):
        video(tmp_path / f"{name}.mp4", count=2)
    (tmp_path / "captions.csv").write_text('file,text\r\na.mp4,"lift it,\nthen put it down"\r\n')
    line = json.dumps({"file": "b", "text": "turn it\u2028twice"}, ensure_ascii=False)
    (tmp_path / "captions.jsonl").write_text(f"{line}\r\n", encoding="utf-8")
    data = open_dataset(tmp_path)
    assert [episode.text for episode in data.episodes] == ["lift it,\nthen put it down", "turn it\u2028twice"]
    assert not data.quarantined


def test_a_quote_that_never_ends_is_listed(tmp_path):
    video(tmp_path / "a.mp4", count=2)
    (tmp_path / "captions.csv").write_text('file,text\na.mp4,lift\nb.mp4,"' + "x" * 140_000)
    data = open_dataset(tmp_path)
    assert data.episodes[0].text == "lift"
    assert "is no CSV from here on" in reasons(data)["captions.csv, line 2"]


def test_captions_that_say_nothing_are_listed(tmp_path):
    video(tmp_path / "a.mp4", count=2)
    (tmp_path / "captions.jsonl").write_text(
        '{"file": "none.mp4", "text": "x"}\n{"file": "a.mp4"}\nnot json\n"words"\n{"path": "a.mp4", "text": "lift"}\n'
    )
    (tmp_path / "captions.csv").write_bytes(b"file,text\na.mp4,\xff\xfe\n")
    data = open_dataset(tmp_path)
    assert data.episodes[0].text == "lift"
    found = reasons(data)
    assert "no such video" in found["captions.jsonl, line 1"]
    assert "wanted one of file" in found["captions.jsonl, line 2"]
    assert "is no JSON" in found["captions.jsonl, line 3"]
    assert "wanted one of file" in found["captions.jsonl, line 4"]
    assert "UTF-8" in found["captions.csv, line 1"]
    assert len(found) == 5


def test_the_fingerprint_follows_the_files(tmp_path):
    file = video(tmp_path / "a.mp4", count=2)
    first = open_dataset(tmp_path).fingerprint
    assert open_dataset(tmp_path).fingerprint == first
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "text": "lift"}\n')
    second = open_dataset(tmp_path).fingerprint
    file.rename(tmp_path / "b.mp4")
    assert len({first, second, open_dataset(tmp_path).fingerprint}) == 3
    assert fingerprint(tmp_path, [tmp_path / "b.mp4"], "1") != fingerprint(tmp_path, [tmp_path / "b.mp4"], "2")


def test_links_that_lead_round_in_circles_end(tmp_path):
    video(tmp_path / "deep" / "a.mp4", count=2)
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    files, unlisted = files_below(tmp_path, (".mp4",))
    assert [file.name for file in files] == ["a.mp4"] and not unlisted


# Episodes in npz files.


def bair(path, count=5, **changes):
    """Pictures as int64, channels last, two cameras, float64 actions."""
    image = pictures(count).transpose(0, 2, 3, 1).astype(np.int64)
    arrays = {"image": image, "aux1_image": image[:, ::-1], "action": np.arange(count * 4.0).reshape(count, 4)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return path


def replay(path, count=6, **changes):
    """The last three pictures stacked, and the action that led to them."""
    frames = pictures(count)
    past = [frames[np.maximum(np.arange(count) - lag, 0)] for lag in (2, 1, 0)]
    action = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    action[0] = 0
    arrays = {"observation": np.concatenate(past, 1), "action": action, "reward": np.zeros((count, 1), np.float32)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **(arrays | changes))
    return path


def test_pictures_of_int64_with_two_cameras(tmp_path):
    bair(tmp_path / "train" / "0.npz")
    (episode,) = open_dataset(tmp_path).episodes
    assert (episode.id, episode.text, episode.length, episode.fps) == ("train/0", "", 5, npz.FPS)
    assert set(episode.frames) == {"image", "aux1_image"}
    frames = episode.frames["image"].read([4, 0, 4])
    assert frames.dtype == torch.uint8
    assert np.array_equal(frames.numpy(), pictures(5)[[4, 0, 4]])
    assert np.array_equal(episode.frames["aux1_image"].read([1]).numpy(), pictures(5)[[1], :, ::-1])
    assert np.array_equal(read_actions(episode), np.arange(20).reshape(5, 4))
    assert read_proprio(episode) is None
    small = episode.frames["image"].read([2], size=(8, 12)).float()
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(torch.tensor(pictures(5)[[2]]).float(), 2), atol=0.51)
    assert episode.frames["image"].read([2], size=(32, 20)).shape == (1, 3, 32, 20)
    for wrong in (5, -1):
        with pytest.raises(IndexError, match=r"0\.\.4"):
            episode.frames["image"].read([wrong])


def test_stacked_pictures_and_actions_that_led_to_them(tmp_path):
    path = replay(tmp_path / "door-lock" / "x_100.npz", state=np.ones((6, 2), np.float32))
    (episode,) = open_dataset(tmp_path).episodes
    assert (episode.id, episode.text) == ("door-lock/x_100", "door lock")
    assert episode.frames["observation"].shape == (6, 3, 16, 24)
    assert np.array_equal(episode.frames["observation"].read(range(6)).numpy(), pictures(6))
    actions, recorded = read_actions(episode), np.load(path)["action"]
    assert np.array_equal(actions[:5], recorded[1:]) and np.array_equal(actions[5], recorded[5])
    assert np.array_equal(read_proprio(episode), np.ones((6, 2)))
    assert read_rewards(episode).tolist() == [0] * 6
    assert npz.read(tmp_path, fps=80).episodes[0].fps == 80
    assert npz.read(tmp_path, fps=80).fingerprint != npz.read(tmp_path).fingerprint


def test_a_row_of_actions_less_than_frames_is_filled_with_zeros(tmp_path):
    """RoboNet's layout; a replay, whose rows are shifted, must have them all."""
    bair(tmp_path / "a.npz", action=np.ones((4, 4)))
    replay(tmp_path / "b.npz", action=np.zeros((5, 4), np.float32))
    data = open_dataset(tmp_path)
    assert ids(data) == ["a"] and "wanted 6 rows" in data.quarantined[0].reason
    assert read_actions(data.episodes[0])[:, 0].tolist() == [1, 1, 1, 1, 0]


def test_rewards_are_what_the_action_at_the_frame_brought(tmp_path):
    """Beside an observation they came with the frame, so they belong to the action before it."""
    came = np.arange(6, dtype=np.float64)
    replay(tmp_path / "a.npz", reward=came[:, None])
    replay(tmp_path / "b.npz", reward=came)
    replay(tmp_path / "g.npz", reward=came > 3)
    bair(tmp_path / "c.npz", reward=came[:5])
    bair(tmp_path / "d.npz", reward=came[:4, None])
    bair(tmp_path / "e.npz")
    bair(tmp_path / "f.npz", reward=np.zeros((5, 2)))
    data = open_dataset(tmp_path)
    found = {episode.id: read_rewards(episode).tolist() for episode in data.episodes if episode.read_rewards}
    moved = [1, 2, 3, 4, 5, 5]
    assert found == {"a": moved, "b": moved, "c": [0, 1, 2, 3, 4], "d": [0, 1, 2, 3, 0], "g": [0, 0, 0, 1, 1, 1]}
    assert "rewards of width 2" in reasons(data)["f.npz"]
    with pytest.raises(ValueError, match="'e' has no rewards"):
        read_rewards(data.episodes[4])


def test_a_text_in_the_file_is_the_instruction(tmp_path):
    bair(tmp_path / "train" / "a.npz", text=np.array("push the block"))
    bair(tmp_path / "door-lock" / "b.npz", text=np.array(["no", "lone", "string"]))
    assert {episode.id: episode.text for episode in open_dataset(tmp_path).episodes} == {
        "train/a": "push the block",
        "door-lock/b": "door lock",
    }


def _rows(value):
    rows = np.arange(20.0).reshape(5, 4)
    rows[2, 1] = value
    return rows


UNFIT = {
    "nan": ({"action": _rows(np.nan)}, "row 2 of the actions holds nan"),
    "infinite": ({"action": _rows(np.inf)}, "row 2 of the actions holds inf"),
    "beyond float32": ({"action": _rows(1e300)}, "row 2 of the actions holds inf"),
    "nan reward": ({"reward": _rows(np.nan)[:, :1] * np.nan}, "row 0 of the rewards holds nan"),
    "too few rewards": ({"reward": np.zeros(3)}, r"has rewards of shape \(3, 1\).*wanted 5 or 4 rows"),
    "nan state": ({"state": _rows(np.nan)}, "row 2 of the states holds nan"),
    "too few actions": ({"action": np.zeros((3, 4))}, r"has actions of shape \(3, 4\).*wanted 5 or 4 rows"),
    "too few states": ({"state": np.zeros((4, 4))}, r"has states of shape \(4, 4\).*wanted 5 rows"),
    "flat actions": ({"action": np.zeros(5)}, r"has actions of shape \(5,\)"),
    "words": ({"action": np.full((5, 4), "up")}, "wanted 5 or 4 rows of numbers"),
    "objects": ({"action": np.array([None] * 5)}, "pickled objects"),
    "other lengths": ({"aux1_image": np.zeros((4, 16, 24, 3), np.uint8)}, "5 frames of image, 4 frames of aux1_image"),
    "no pictures": ({"image": None, "aux1_image": None}, "holds no pictures"),
    "no frames": ({key: np.zeros((0, 16, 24, 3), np.uint8) for key in ("image", "aux1_image")}, "0 frames"),
    "floats": ({"image": np.zeros((5, 16, 24, 3), np.float32)}, "wanted uint8"),
    "too bright": ({"image": np.full((5, 16, 24, 3), 256)}, r"with values 256\.\.256"),
    "another width": ({"action": np.zeros((5, 7))}, "actions of width 7; 2 other episodes have width 4"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_episodes_are_left_out_and_the_others_read(tmp_path, case):
    changes, reason = UNFIT[case]
    for name in ("a", "c"):
        bair(tmp_path / f"{name}.npz")
    bair(tmp_path / "b.npz", **changes)
    data = open_dataset(tmp_path)
    assert ids(data) == ["a", "c"]
    (left_out,) = data.quarantined
    assert left_out.path.removesuffix(".npz") == "b"
    with pytest.raises(AssertionError, match=reason):  # pytest's own search, with its message
        raise AssertionError(left_out.reason)


def test_damaged_npz_files(tmp_path):
    whole = bair(tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    flipped = bytearray(whole)
    flipped[200:300] = bytes(100)
    (tmp_path / "flipped.npz").write_bytes(flipped)
    np.save(tmp_path / "lone.npy", np.zeros(3))
    (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    (tmp_path / "gone.npz").symlink_to(tmp_path / "nowhere")
    with zipfile.ZipFile(tmp_path / "head.npz", "w") as archive:  # of an array whose shape never ends
        archive.writestr(
            "image.npy", b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'shape': (3,".ljust(118) + bytes(9)
        )
    data = open_dataset(tmp_path)
    assert ids(data) == ["a"]
    assert set(reasons(data)) == {f"{name}.npz" for name in ("cut", "text", "empty", "flipped", "lone", "gone", "head")}
    assert all(str(tmp_path) not in reason for reason in reasons(data).values()), reasons(data)


def test_a_replay_that_begins_with_an_action_is_of_another_kind(tmp_path):
    replay(tmp_path / "a.npz")
    replay(tmp_path / "b.npz", action=np.ones((6, 4), np.float32))
    data = open_dataset(tmp_path)
    assert ids(data) == ["a"] and "wanted zeros" in data.quarantined[0].reason


def test_damage_after_opening_is_a_value_error(tmp_path):
    path = bair(tmp_path / "a.npz", image=pictures(5).transpose(0, 2, 3, 1), aux1_image=None)
    (episode,) = open_dataset(tmp_path).episodes
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match="is damaged"):
        episode.frames["image"].read([0])


# Annotations in JSON.


def annotated(root, number, count=6, **changes):
    """One recording with two cameras, T states and T - 1 actions."""
    paths = [f"videos/val/{number}/{camera}.mp4" for camera in (0, 1)]
    for path in paths:
        video(root / path, count=count)
    annotation = {
        "texts": [f"move {number}"],
        "videos": [{"video_path": path} for path in paths],
        "episode_id": str(number),
        "state": np.arange(count * 3.0).reshape(count, 3).tolist(),
        "action": np.arange((count - 1) * 2.0).reshape(count - 1, 2).tolist(),
        "video_length": count,
    }
    file = root / "annotation" / "val" / f"{number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    merged = {key: value for key, value in (annotation | changes).items() if value is not None}
    file.write_text(json.dumps(merged))
    return file


def test_annotations_with_an_action_between_frames(tmp_path):
    annotated(tmp_path, 1)
    annotated(tmp_path, 0, action=None, actions=np.ones((6, 2)).tolist(), episode_id=0, video_length=None)
    data = open_dataset(tmp_path)
    assert data.format == "annotated_json" and not data.quarantined
    assert ids(data) == ["val/0", "val/1"]
    one = data.episodes[1]
    assert (one.text, one.length, one.fps) == ("move 1", 6, pytest.approx(10))
    assert list(one.frames) == ["camera0", "camera1"] and one.frames["camera1"].shape == (6, 3, 16, 24)
    assert np.array_equal(read_actions(one), np.arange(10).reshape(5, 2)[[0, 1, 2, 3, 4, 4]])
    assert np.array_equal(read_proprio(one), np.arange(18).reshape(6, 3))
    assert np.array_equal(read_actions(data.episodes[0]), np.ones((6, 2)))


def test_actionless_annotations(tmp_path):
    annotated(tmp_path, 0, action=None, state=None, texts="push it")
    annotated(tmp_path, 1, action=None, state=None, texts=None)
    first, second = open_dataset(tmp_path).episodes
    assert (first.text, first.read_actions, first.read_proprio) == ("push it", None, None)
    assert second.text == ""


def test_a_depth_view_is_read_only_where_it_is_listed(tmp_path):
    names = [{"video_path": f"videos/val/0/{camera}.mp4"} for camera in (0, 1, 2)]
    depth = torch.from_numpy(pictures(6)[:, :1])
    write_video(tmp_path / "videos/val/0/2.mp4", depth, 10)
    annotated(tmp_path, 0)
    assert list(open_dataset(tmp_path).episodes[0].frames) == ["camera0", "camera1"]
    annotated(tmp_path, 0, videos=names)
    frames = open_dataset(tmp_path).episodes[0].frames
    assert list(frames) == ["camera0", "camera1", "camera2"]
    grey = frames["camera2"].read([3]).float()
    assert (grey - grey.mean(1, keepdim=True)).abs().max() <= 3


MISFITS = {
    "missing video": ({"videos": [{"video_path": "videos/val/none.mp4"}]}, r"names videos/val/none\.mp4, which is not"),
    "no videos": ({"videos": []}, "names no video"),
    "videos of another kind": ({"videos": ["videos/val/1/0.mp4"]}, "names no video"),
    "actions too short": ({"action": [[0, 0]] * 3}, "has 3 rows of actions for 6 frames; wanted 6 or 5"),
    "states too short": ({"state": [[0, 0]] * 5}, "has 5 rows of states for 6 frames; wanted 6"),
    "nan": ({"action": [[0.0, float("nan")]] * 5}, r"row 0 of the actions holds nan \(and 4 more rows\)"),
    "ragged": ({"action": [[0, 0]] * 4 + [[0]]}, "'action' that is no table of numbers"),
    "words": ({"action": [["left", "up"]] * 5}, "'action' that is no table of numbers"),
    "flat": ({"action": [0] * 5}, "a row a frame was wanted"),
    "announced": ({"video_length": 9}, "announces 9 frames; the video has 6"),
    "another width": ({"action": [[0, 0, 0]] * 5}, "actions of width 3; 2 other episodes have width 2"),
    "id met before": ({"episode_id": "0"}, "the id 'val/0' of another annotation"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_left_out_and_the_others_read(tmp_path, case):
    changes, reason = MISFITS[case]
    annotated(tmp_path, 0)
    annotated(tmp_path, 2)
    annotated(tmp_path, 1, **changes)
    data = open_dataset(tmp_path)
    assert ids(data) == ["val/0", "val/2"]
    (left_out,) = data.quarantined
    assert left_out.path in ("annotation/val/1.json", "val/1")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(left_out.reason)


def test_damaged_annotations_and_videos(tmp_path):
    annotated(tmp_path, 0)
    annotated(tmp_path, 1).write_text("{")
    annotated(tmp_path, 2).write_text("[1, 2]")
    annotated(tmp_path, 3)
    video(tmp_path / "videos/val/3/1.mp4", count=4)
    annotated(tmp_path, 4)
    cut = tmp_path / "videos/val/4/1.mp4"
    cut.write_bytes(cut.read_bytes()[:-40])
    data = open_dataset(tmp_path)
    assert ids(data) == ["val/0"]
    found = [reasons(data)[f"annotation/val/{number}.json"] for number in (1, 2, 3, 4)]
    wanted = ("is no JSON", "is a JSON list", "camera0 6 frames, camera1 4 frames", "names videos/val/4/1.mp4, which")
    assert all(part in text for part, text in zip(wanted, found, strict=True)), found


def latents(path, count=6, size=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = torch.arange(count * 4.0)[:, None, None].reshape(count, 4, 1, 1).expand(-1, -1, size, size)
    torch.save(values * 0.18215, path)
    return path


LISTED = [{"latent_video_path": f"latent_videos/val/0/{camera}.pt"} for camera in (0, 1)]


@pytest.mark.parametrize("folder", ["latent_videos", "latent_videos_svd"])
def test_listed_latents_are_read_where_they_lie(tmp_path, folder):
    annotated(tmp_path, 0, latent_videos=LISTED)
    before = open_dataset(tmp_path)
    assert not before.quarantined and not before.episodes[0].latents  # listed, and not passed on
    latents(tmp_path / folder / "val/0/1.pt")
    data = open_dataset(tmp_path)
    assert data.fingerprint != before.fingerprint
    found = data.episodes[0].latents
    assert list(found) == ["camera1"] and isinstance(found["camera1"], Latents)
    assert found["camera1"].shape == (6, 4, 4, 4) and found["camera1"].vae == ""
    values, std = found["camera1"].read([5, 0, 5])
    assert std is None and values[:, :, 1, 2].flatten().tolist() == pytest.approx(
        [20, 21, 22, 23, 0, 1, 2, 3, 20, 21, 22, 23]
    )
    with pytest.raises(IndexError, match=r"latents 0\.\.5"):
        found["camera1"].read([6])
    assert stated_vae(data, "svd").episodes[0].latents["camera1"].vae == "svd"
    assert inspect(data).latents == {"camera1": {"4x4x4": 1}}
    assert cached(data, tmp_path / "cache", 8).episodes[0].latents == found


def test_damaged_latents_are_named_and_the_video_is_kept(tmp_path):
    annotated(tmp_path, 0, latent_videos=LISTED)
    annotated(tmp_path, 1, videos=None, latent_videos=[{"latent_video_path": "latent_videos/val/1/0.pt"}])
    for number, cut in enumerate(
        (latents(tmp_path / "latent_videos/val/0/0.pt"), latents(tmp_path / "latent_videos/val/1/0.pt"))
    ):
        cut.write_bytes(cut.read_bytes()[: -100 - number])
    latents(tmp_path / "latent_videos/val/0/1.pt", count=5)
    data = open_dataset(tmp_path)
    assert ids(data) == ["val/0"] and not data.episodes[0].latents
    found = reasons(data)
    assert set(found) == {"latent_videos/val/0/0.pt", "latent_videos/val/0/1.pt", "annotation/val/1.json"}
    assert "0.pt is damaged or cut short" in found["latent_videos/val/0/0.pt"]
    assert found["latent_videos/val/0/1.pt"] == "holds 5 latents; the episode has 6 frames"
    assert "damaged or cut short" in found["annotation/val/1.json"]


@pytest.mark.parametrize("content", [{"a": 1}, torch.zeros(6, 4), torch.zeros(6, 4, 2, 2, dtype=torch.int64)])
def test_files_that_hold_no_latents_say_what_was_wanted(tmp_path, content):
    annotated(tmp_path, 0, latent_videos=LISTED[:1])
    path = latents(tmp_path / "latent_videos/val/0/0.pt")
    torch.save(content, path)
    (reason,) = reasons(open_dataset(tmp_path)).values()
    assert "wanted latents, a floating-point tensor (frames, channels, height, width)" in reason


def test_latents_alone_make_an_episode(tmp_path):
    """As bimanual robots are passed on: no video in the annotation, or none in the folder."""
    annotated(tmp_path, 0, latent_videos=LISTED, videos=None)
    annotated(
        tmp_path,
        1,
        latent_videos=[{"latent_video_path": "latent_videos/val/1/0.pt"}],
        videos=[{"video_path": "videos/none.mp4"}],
    )
    for path in ("0/0", "0/1", "1/0"):
        latents(tmp_path / "latent_videos_svd" / "val" / f"{path}.pt")
    data = open_dataset(tmp_path)
    assert not data.quarantined and ids(data) == ["val/0", "val/1"]
    first, second = data.episodes
    assert not first.frames and list(first.latents) == ["camera0", "camera1"] and list(second.latents) == ["camera0"]
    assert (first.length, first.fps) == (6, 10) and read_actions(first).shape == (6, 2)
    assert inspect(data).cameras == {}


def test_latents_that_are_no_numbers_or_were_exchanged_are_found_when_they_are_read(tmp_path):
    annotated(tmp_path, 0, latent_videos=LISTED[:1])
    path = latents(tmp_path / "latent_videos/val/0/0.pt")
    read = open_dataset(tmp_path).episodes[0].latents["camera0"].read
    torch.save(torch.full((6, 4, 4, 4), float("nan")), path)
    with pytest.raises(ValueError, match=r"0\.pt holds values that are no numbers"):
        read([0])
    latents(path, count=7)
    with pytest.raises(ValueError, match="was changed after it was opened"):
        read([0])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read([0])


def test_sniffing_reads_nothing_else(tmp_path):
    assert not annotated_json.sniff(tmp_path) and not npz.sniff(tmp_path) and not folder.sniff(tmp_path)


# Real recordings.


REAL = {  # lengths in the order of the ids
    "bridge": ("annotated_json", {"val/10": 24, "val/2": 40}, ["camera0"], (480, 640), 7),
    "rt1": ("annotated_json", {"val/56686": 57, "val/54526": 29}, ["camera0"], (256, 320), 7),
    "xhand": ("annotated_json", {"val/0": 136, "val/100": 70}, ["camera0", "camera1"], (256, 256), 19),
    "sthv2": (
        "annotated_json",
        {"val/1023": 47, "val/1870": 54, "val/2446": 49, "val/872": 39},
        ["camera0"],
        None,
        None,
    ),
    "npz": ("npz", {"bair_sample": 30}, ["image", "aux1_image"], (64, 64), 4),
}


@pytest.mark.parametrize("name", REAL)
def test_real_recordings(shared, name):
    layout, lengths, cameras, size, width = REAL[name]
    data = open_dataset(shared / "data" / "real" / name)
    assert (data.format, {episode.id: episode.length for episode in data.episodes}) == (layout, lengths)
    assert not data.quarantined
    for episode in data.episodes:
        assert list(episode.frames) == cameras
        assert layout == "npz" or episode.text
        for frames in episode.frames.values():
            assert frames.shape[:2] == (episode.length, 3)
            assert frames.shape[2:] == size if size else frames.shape[2] == 240
        assert (read_actions(episode).shape[1] if episode.read_actions else None) == width
        if layout != "npz":
            assert (read_proprio(episode).shape[1] if episode.read_proprio else None) == width


def test_real_frame_rates(shared):
    rates = {
        name: open_dataset(shared / "data" / "real" / name).episodes[0].fps for name in ("bridge", "xhand", "sthv2")
    }
    assert rates == pytest.approx({"bridge": 3, "xhand": 10, "sthv2": 12})


def test_real_actions_are_those_recorded(shared):
    root = shared / "data" / "real"
    bridge = {episode.id: episode for episode in open_dataset(root / "bridge").episodes}["val/2"]
    recorded = json.loads((root / "bridge/annotation/val/2.json").read_text())
    assert len(recorded["action"]) == 39
    actions = read_actions(bridge)
    assert np.array_equal(actions[:39], np.float32(recorded["action"])) and np.array_equal(actions[39], actions[38])
    assert np.array_equal(read_proprio(bridge), np.float32(recorded["state"]))
    hand = open_dataset(root / "xhand").episodes[0]
    assert np.linalg.norm(read_proprio(hand)[:, 3:7], axis=1) == pytest.approx(1, abs=1e-3)


def test_real_replays(shared):
    root = shared / "data" / "real" / "metaworld_demos"
    data = open_dataset(root)
    assert len(data.episodes) == 15 and not data.quarantined
    assert {episode.length for episode in data.episodes} == {101}
    assert {episode.text for episode in data.episodes} == {"button press topdown wall", "door lock", "plate slide"}
    episode = next(episode for episode in data.episodes if episode.text == "door lock")
    with np.load(root / f"{episode.id}.npz") as arrays:
        observation, action, reward = arrays["observation"], arrays["action"], arrays["reward"]
    assert np.array_equal(episode.frames["observation"].read([100, 7]).numpy(), observation[[100, 7], 6:])
    assert np.array_equal(read_actions(episode)[:100], action[1:])
    assert np.array_equal(read_rewards(episode)[:100], reward[1:, 0]) and reward.max() > 10
    assert max(np.abs(read_actions(e)).max() for e in data.episodes) > 10  # recorded unclipped, and given so


CLIPS = (
    "bridge/videos/val/10/rgb.mp4",
    "rt1/videos/val/6/rgb.mp4",
    "xhand/videos/val/100/2.mp4",
    "sthv2/videos/872.webm",
)


@pytest.mark.parametrize("clip", CLIPS)
def test_real_containers_are_read_frame_by_frame(shared, clip):
    path = shared / "data" / "real" / clip
    (episode,) = open_dataset(path).episodes
    frames, count = episode.frames["video"], episode.length
    everything = frames.read(range(count))
    assert count_decodable(path) == (count, "")
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            other = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            assert (everything[number].float() - other.float()).abs().mean() < 2, number
    assert number == count - 1
    for index in random.Random(0).sample(range(count), 12):
        assert torch.equal(frames.read([index])[0], everything[index]), index


def test_a_header_that_two_threads_read_at_once_is_read_again():
    tried = Counter()

    def read(item: int) -> int:
        tried[item] += 1
        if tried[item] <= item:
            raise SystemError("AST constructor recursion depth mismatch (before=45, after=32)")
        return item

    assert in_threads(read, [0, 1, 2]) == [0, 1, 2] and tried == {0: 1, 1: 2, 2: 3}
    with pytest.raises(SystemError):
        in_threads(read, [9])
