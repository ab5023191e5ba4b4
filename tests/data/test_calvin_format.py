"""CALVIN's layout: what annotations say of frames, what is damaged, and that no pickle runs."""

import os
import pickle

import numpy as np
import pytest
import torch

from ideomotor.data.acting_windows import ActingWindow
from ideomotor.data.formats import calvin, open_dataset
from ideomotor.data.formats.plain_pickle import StoredArray, load_object
from ideomotor.data.inspection import inspect
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.data.windows import WindowIndex
from ideomotor.types import Frames

FIRST = 358482


def frame(number, size=8):
    """A made-up frame of which every number can be told from the frame's own."""
    rng = np.random.default_rng(number)
    return {
        "actions": np.full(7, number / 1e6),
        "rel_actions": np.r_[np.full(6, (number - FIRST) / 100), 1.0],
        "robot_obs": np.arange(15) + (number - FIRST) / 1000,
        "scene_obs": np.zeros(24),
        "rgb_static": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
        "rgb_tactile": np.zeros((4, 4, 6), np.uint8),
        "depth_static": np.zeros((size, size), np.float32),
    }


def split(folder, numbers, segments=(), scenes=None):
    """Writes frames, and annotations as the data set's own tools do."""
    folder.mkdir(parents=True)
    for number in numbers:
        np.savez_compressed(folder / f"episode_{number:07d}.npz", **frame(number))
    np.save(folder / "ep_start_end_ids.npy", np.array([[numbers[0], numbers[-1]]]))
    np.save(folder / "ep_lens.npy", np.array([len(numbers)]))
    if segments:
        (folder / "lang_annotations").mkdir()
        annotations = {
            "language": {
                "ann": [text for _, _, text in segments],
                "task": ["open_drawer" for _ in segments],
                "emb": np.zeros((len(segments), 1, 384), np.float32),
            },
            "info": {"episodes": [], "indx": [(np.int64(start), np.int64(end)) for start, end, _ in segments]},
        }
        np.save(folder / "lang_annotations" / "auto_lang_ann.npy", annotations)
    if scenes:
        np.save(folder / "scene_info.npy", scenes)
    return folder


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "task_ABC_D"
    segments = [(FIRST, FIRST + 5, "open the drawer"), (FIRST + 3, FIRST + 9, "push the red block to the left")]
    scenes = {"calvin_scene_B": [FIRST - 9, FIRST + 2], "calvin_scene_A": [FIRST + 3, FIRST + 50]}
    split(root / "training", range(FIRST, FIRST + 10), segments, scenes)
    split(root / "validation", range(6), [(0, 4, "turn on the led")])
    return root


def reasons(dataset):
    return {entry.path: entry.reason for entry in dataset.quarantined}


def test_annotations_become_episodes(data):
    found = open_dataset(data)
    assert found.format == "calvin" and found.name == "task_ABC_D" and not found.quarantined
    assert [(episode.id, episode.text, episode.length) for episode in found.episodes] == [
        ("training/B/00000-0358482", "open the drawer", 5),
        ("training/A/00001-0358485", "push the red block to the left", 6),
        ("validation/00000-0000000", "turn on the led", 4),
    ]
    episode = found.episodes[1]
    static, gripper = episode.frames["rgb_static"], episode.frames["rgb_gripper"]
    assert isinstance(static, Frames) and static.shape == (6, 3, 8, 8) and gripper.shape == (6, 3, 4, 4)
    wanted = [torch.from_numpy(frame(FIRST + 3 + i)["rgb_static"]).movedim(-1, 0) for i in (5, 0, 5)]
    assert static.read([5, 0, 5]).equal(torch.stack(wanted))
    assert gripper.read([1], size=(2, 2)).shape == (1, 3, 2, 2) and static.read([]).shape == (0, 3, 8, 8)
    actions, states = read_actions(episode), read_proprio(episode)
    assert actions.shape == (6, 7) and actions[:, 0] == pytest.approx([0.03, 0.04, 0.05, 0.06, 0.07, 0.08])
    assert states.shape == (6, 15) and states[2] == pytest.approx(np.arange(15) + 0.005)
    with pytest.raises(IndexError, match=r"frame 6 of .*episode_0358485\.npz: it has 0\.\.5"):
        static.read([6])


def test_a_single_split_and_absolute_actions(data):
    found = open_dataset(data / "training")
    assert found.episodes[0].id == "training/B/00000-0358482"
    absolute = calvin.read(data / "training", actions="actions")
    assert read_actions(absolute.episodes[0])[2, 0] == pytest.approx((FIRST + 2) / 1e6)
    assert absolute.fingerprint != found.fingerprint


def test_windows_of_the_release(data):
    """Its loader starts windows at frames start..end - 21 of an annotation, here with 3 in place of 21."""
    index = WindowIndex(open_dataset(data / "training"), ActingWindow(chunk=4, remain=3))
    assert [index.locate(window) for window in range(len(index))] == [
        (0, 0),
        (0, 1),
        (0, 2),
        *((1, n) for n in range(4)),
    ]
    clip = ClipLoader([Source(index.dataset, 1.0, index.config, {"main": "rgb_static"})], 4, seed=0, prefetch=0).batch(
        0
    )
    assert clip.frames["main"].shape == (4, 1, 3, 8, 8) and clip.actions.shape == (4, 4, 7)
    assert clip.proprio.shape == (4, 15) and set(clip.text) <= {"open the drawer", "push the red block to the left"}
    steps = clip.actions[:, :, 0] - 10 * (clip.proprio[:, :1])  # both say the frame
    assert steps[clip.action_mask].allclose(
        torch.tensor([0.0, 0.01, 0.02, 0.03]).expand(4, 4)[clip.action_mask], atol=1e-5
    )
    with pytest.raises(ValueError, match="gives a window: they have 5 to 6 frames, too many or too few"):
        WindowIndex(index.dataset, ActingWindow(remain=7))
    with pytest.raises(ValueError, match="acting window has chunk=0"):
        ActingWindow(chunk=0)


def test_play_without_sentences_is_whole(tmp_path):
    found = open_dataset(split(tmp_path / "play", range(4)))
    assert [(e.id, e.length, e.text) for e in found.episodes] == [("play/00000-0000000", 4, "")]  # the last frame too


def test_pairs_may_be_an_array(data):
    file = data / "training" / "lang_annotations" / "auto_lang_ann.npy"
    said = {"language": {"ann": ["a"]}, "info": {"indx": np.array([[FIRST, FIRST + 2]])}}
    np.save(file, said)
    assert [episode.length for episode in open_dataset(data / "training").episodes] == [2]


def test_damage_is_left_out_by_name(data):
    training = data / "training"
    (training / "episode_0358490.npz").unlink()
    found = open_dataset(data)
    assert len(found.episodes) == 2
    assert reasons(found) == {"training/A/00001-0358485": "lacks 1 of its 6 frames, first episode_0358490.npz"}
    whole = (training / "episode_0358484.npz").read_bytes()
    for broken in (whole[:-30], b"", b"hello", whole[:200] + whole[260:], whole + b"x" * 30):
        (training / "episode_0358484.npz").write_bytes(broken)
        assert (
            "1 of 5 frames that are no whole npz file, first episode_0358484.npz"
            in (reasons(open_dataset(data))["training/B/00000-0358482"])
        )
    (training / "episode_0358484.npz").write_bytes(whole)
    np.savez_compressed(training / "episode_0358482.npz", rel_actions=np.zeros(7))
    assert "holds no pictures: wanted rgb_static or" in reasons(open_dataset(data))["training/B/00000-0358482"]


def test_damage_inside_a_file_is_found_when_it_is_read(data):
    file = data / "training" / "episode_0358483.npz"
    raw = bytearray(file.read_bytes())
    raw[60:200] = bytes(140)
    file.write_bytes(raw)
    other = frame(FIRST + 2) | {"rel_actions": np.zeros(6), "rgb_static": np.zeros((4, 8, 3), np.uint8)}
    np.savez_compressed(data / "training" / "episode_0358484.npz", **other)
    np.savez_compressed(data / "validation" / "episode_0000001.npz", **frame(1) | {"rel_actions": np.full(7, np.nan)})
    found = open_dataset(data)
    assert len(found.episodes) == 3
    with pytest.raises(ValueError, match=r"episode_0358483\.npz is damaged"):
        read_actions(found.episodes[0])
    with pytest.raises(ValueError, match=r"episode_0358484\.npz has rgb_static \(4, 8, 3\).*wanted \(8, 8, 3\), uint8"):
        found.episodes[0].frames["rgb_static"].read([2])
    assert any("episode_0358483" in line for line in inspect(found).problems)
    with pytest.raises(ValueError, match="not finite in 1 of 4 frames, first in frame 1"):
        read_actions(found.episodes[2])
    np.savez_compressed(file, **frame(FIRST + 1))
    with pytest.raises(ValueError, match=r"episode_0358484\.npz has rel_actions of shape \(6,\).*wanted 7 numbers"):
        read_actions(open_dataset(data).episodes[0])
    file.unlink()
    with pytest.raises(ValueError, match="not there any more"):
        found.episodes[0].frames["rgb_static"].read([1])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"language": {"ann": ["a", "b"]}, "info": {"indx": [(FIRST, FIRST + 2)]}}, "2 sentences for 1 stretches"),
        ({"language": {"ann": [3]}, "info": {"indx": [(FIRST, FIRST + 2)]}}, "a sentence that is 3"),
        ({"language": {"ann": ["a"]}, "info": {"indx": [(FIRST, 0.5)]}}, "not all are pairs of whole numbers"),
        ({"language": {"ann": ["a"]}, "info": {"indx": 7}}, "wanted language.ann and info.indx"),
        ({"language": {}}, "wanted language.ann and info.indx"),
        ([1, 2], r"wanted a lone object"),
    ],
)
def test_odd_annotations(data, said, reason):
    np.save(data / "training" / "lang_annotations" / "auto_lang_ann.npy", said)
    found = open_dataset(data)
    assert [episode.id for episode in found.episodes] == ["validation/00000-0000000"]
    assert reason in reasons(found)["training"]


def test_an_annotation_of_no_frames(data):
    said = {"language": {"ann": ["a", "b"]}, "info": {"indx": [(FIRST + 2, FIRST + 2), (FIRST, FIRST + 2)]}}
    np.save(data / "training" / "lang_annotations" / "auto_lang_ann.npy", said)
    found = open_dataset(data / "training")
    assert len(found.episodes) == 1 and "is of no frames" in reasons(found)["training/B/00000-0358484"]


class Runs:
    """What it leaves behind is made when it is unpickled by anything that runs pickles."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_a_pickle_runs(data, tmp_path):
    mark = tmp_path / "ran"
    file = data / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(file, {"language": {"ann": ["a"]}, "info": {"indx": [(FIRST, FIRST + 2)]}, "more": Runs(f"touch {mark}")})
    found = open_dataset(data)
    assert not mark.exists() and "names posix.system, which is neither" in reasons(found)["training"]
    np.load(file, allow_pickle=True)  # the file itself is loaded as meant
    assert mark.exists()


def stream(head, body):
    """An npy file of a lone object, and whatever stands in for its pickle."""
    return b"\x93NUMPY\x01\x00v\x00" + head.ljust(117) + b"\n" + body


OBJECT = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"


@pytest.mark.parametrize(
    "body",
    [
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"cnumpy\nload\n(X\x01\x00\x00\x00xtR.",
        b"cnumpy.core.multiarray\nfromfile\n(X\x01\x00\x00\x00xtR.",
        b"cnumpy\nndarray\n(K\x03tR.",  # stands for a word only, which cannot be called
        b"cnumpy\ndtype\nN}X\x08\x00\x00\x00__code__K\x01s\x86b.",
        b"cnumpy.core.multiarray\nscalar\n(K\x01K\x02tR.",
        b"(i__main__\nRuns\n.",
        b"Pname\n.",
        b"\x82\x01.",  # an instruction that looks up what somebody registered
        b"Nr\xff\xff\xff\xff.",  # would ask for 64 GB
        b"\x96\xff\xff\xff\xff\x00\x00\x00\x00.",
        b"\x96\x01\x00\x00\x00\x00\x00\x00\x00x.",  # harmless, and yet no instruction that plain data need
        b"]" * 10,
        pickle.dumps([1, 2])[:-3],
        b"",
    ],
)
def test_streams_that_are_refused(tmp_path, body):
    file = tmp_path / "a.npy"
    file.write_bytes(stream(OBJECT, body))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read as plain data"):
        load_object(file)


@pytest.mark.parametrize(
    "head", [b"{'descr': '|O'", b"{'descr': '<f4', 'shape': ()}", b"{'shape': ()}", b"[1", b"(" * 99]
)
def test_heads_that_are_refused(tmp_path, head):
    file = tmp_path / "a.npy"
    file.write_bytes(stream(head, pickle.dumps(1)))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read as plain data"):
        load_object(file)
    file.write_bytes(stream(OBJECT, pickle.dumps(1)))
    assert load_object(file) == 1


def test_plain_objects_come_back(tmp_path):
    said = {
        "a": [1, 2.5, "x", None, True, (np.int32(-4), np.float64(0.25))],
        "b": np.arange(6, dtype=">i2").reshape(2, 3),
    }
    np.save(tmp_path / "a.npy", said | {"c": np.asfortranarray(said["b"]), "d": np.zeros((0, 2))})
    found = load_object(tmp_path / "a.npy")
    assert found["a"] == [1, 2.5, "x", None, True, (-4, 0.25)]
    assert isinstance(found["b"], StoredArray) and (found["b"].values == said["b"]).all()
    assert (found["c"].values == said["b"]).all() and found["d"].values.shape == (0, 2)
    np.save(tmp_path / "b.npy", {"a": np.array(["x", "y"], dtype=object)})
    with pytest.raises(ValueError, match="wanted numbers"):
        _ = load_object(tmp_path / "b.npy")["a"].values
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(ValueError, match="wanted a lone object"):
        load_object(tmp_path / "c.npy")
