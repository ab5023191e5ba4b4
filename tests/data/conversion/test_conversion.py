"""Published layouts, written here by their own libraries or by hand, and read back as npz episodes."""

import io
import sys

import numpy as np
import pytest
import torch
from tfrecord_writing import encoded, write_records

from ideomotor.cli import main
from ideomotor.data.conversion import bair, rlds, robonet, vp2
from ideomotor.data.conversion.writing import Recording, write_recordings
from ideomotor.data.formats import open_dataset
from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.data.video import encode_bytes


def pictures(count, size=16, base=0):
    t, h, w, c = np.ogrid[:count, :size, :size, :3]
    return ((base + 9 * t + 5 * h + 3 * w + 40 * c) % 256).astype(np.uint8)


def compressed(picture, kind, **options):
    image = pytest.importorskip("PIL.Image", reason="an independent encoder of pictures")
    file = io.BytesIO()
    image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


# BAIR.


def bair_files(root, size=16, steps=3):
    for split, first, count in (("train", 0, 2), ("train", 256, 1), ("test", 0, 1)):
        made = []
        for number in range(count):
            features = {}
            for step in range(steps):
                features[f"{step}/image_main/encoded"] = [pictures(steps, size, first + number)[step].tobytes()]
                features[f"{step}/image_aux1/encoded"] = [pictures(steps, size, 100 + number)[step].tobytes()]
                features[f"{step}/action"] = [float(step), 0.25, -1.0, float(number)]
                features[f"{step}/endeffector_pos"] = [0.5, float(step), 0.0]
            made.append(encoded(features))
        write_records(root / split / f"traj_{first}_to_{first + 255}.tfrecords", made)
    return root


def test_bair(tmp_path):
    source, out = bair_files(tmp_path / "source"), tmp_path / "out"
    done = write_recordings(bair.recordings(source), out)
    assert (done.written, done.kept, done.left_out) == (4, 0, ())
    episodes = {episode.id: episode for episode in open_dataset(out).episodes}
    assert set(episodes) == {"train/traj_00000", "train/traj_00001", "train/traj_00256", "test/traj_00000"}
    first, later = episodes["train/traj_00001"], episodes["train/traj_00256"]
    assert np.array_equal(first.frames["image"].read([0, 1, 2]).numpy(), pictures(3, 16, 1).transpose(0, 3, 1, 2))
    assert np.array_equal(first.frames["aux1_image"].read([2]).numpy()[0], pictures(3, 16, 101)[2].transpose(2, 0, 1))
    assert np.array_equal(later.frames["image"].read([0]).numpy()[0], pictures(3, 16, 256)[0].transpose(2, 0, 1))
    assert read_actions(first).tolist() == [[step, 0.25, -1.0, 1.0] for step in range(3)]
    assert read_proprio(first)[:, 1].tolist() == [0, 1, 2]
    assert np.load(out / "train/traj_00001.npz")["image"].dtype == np.uint8


def test_a_stopped_conversion_goes_on_and_damage_is_named(tmp_path):
    source, out = bair_files(tmp_path / "source"), tmp_path / "out"
    assert write_recordings(bair.recordings(source), out, limit=2).written == 2
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    file = source / "train" / "traj_256_to_511.tfrecords"
    damaged = bytearray(file.read_bytes())
    damaged[500] ^= 1
    file.write_bytes(damaged)
    done = write_recordings(bair.recordings(source), out)
    assert (done.written, done.kept) == (1, 2)
    (left_out,) = done.left_out
    assert left_out.path == "train/traj_00256" and "check sum" in left_out.reason
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(out.rglob("*.part"))


def test_a_kill_while_writing_leaves_no_half_episode(tmp_path, monkeypatch):
    def dies(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", dies)
    with pytest.raises(KeyboardInterrupt):
        write_recordings([Recording("a", lambda: {"image": pictures(2)})], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_sound_pictures_are_written(tmp_path):
    wide = pictures(2).astype(np.int64)
    found = [
        Recording("wide", lambda: {"image": wide}),
        Recording("uneven", lambda: {"image": pictures(2), "other": pictures(3)}),
        Recording("none", lambda: {"action": np.zeros((2, 4))}),
    ]
    done = write_recordings(found, tmp_path)
    assert [entry.path for entry in done.left_out] == ["wide", "uneven", "none"] and done.written == 0
    with pytest.raises(ValueError, match=r"two recordings would be written as a\.npz"):
        write_recordings([Recording("a", lambda: {"image": pictures(2)})] * 2, tmp_path)
    with pytest.raises(ValueError, match="no recording was found"):
        write_recordings([], tmp_path)


# Open X-Embodiment.


def episode(steps=3, kind="PNG", **changes):
    shown = pictures(steps, 24)
    return encoded(
        {
            "steps/observation/image": [compressed(picture, kind, **changes) for picture in shown],
            "steps/observation/wrist": [compressed(picture[:, ::-1], "PNG") for picture in shown],
            "steps/observation/depth": [compressed(picture[..., 0], "PNG") for picture in shown],
            "steps/observation/state": [float(number) for number in range(2 * steps)],
            "steps/action/world_vector": [float(number) for number in range(3 * steps)],
            "steps/action/open_gripper": [step % 2 for step in range(steps)],
            "steps/language_instruction": [b"pick up the sponge"] * steps,
            "steps/is_first": [1] + [0] * (steps - 1),
        }
    )


def test_oxe(tmp_path):
    source, out = tmp_path / "some_robot" / "0.1.0", tmp_path / "out"
    for number in (0, 1):
        write_records(source / f"some_robot-train.tfrecord-0000{number}-of-00002", [episode(3), episode(2 + number)])
    write_records(source / "some_robot-test.tfrecord-00000-of-00001", [episode(4)])
    done = write_recordings(rlds.recordings(source.parent), out)
    assert done.written == 5 and not done.left_out
    data = open_dataset(out)
    assert [(e.id, e.length) for e in data.episodes] == [
        ("test_eps_00000000", 4),
        *((f"train_eps_{number:08d}", length) for number, length in enumerate((3, 2, 3, 3))),
    ]
    first = data.episodes[1]
    assert set(first.frames) == {"image", "wrist"} and first.text == "pick up the sponge"
    assert np.array_equal(first.frames["image"].read(range(3)).numpy(), pictures(3, 24).transpose(0, 3, 1, 2))
    # The parts of an action stand in the order of their names.
    assert read_actions(first).tolist() == [[0, 0, 1, 2], [1, 3, 4, 5], [0, 6, 7, 8]]
    with np.load(out / "train_eps_00000000.npz", allow_pickle=False) as arrays:
        assert arrays["action_parts"].tolist() == ["open_gripper:1", "world_vector:3"]
    assert read_proprio(first).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_oxe_jpeg_is_decoded_as_other_decoders_do(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_records(tmp_path / "x-train.tfrecord-00000-of-00001", [episode(2, "JPEG", quality=95, subsampling=0)])
    (recording,) = rlds.recordings(tmp_path, ["image"])
    arrays = recording.arrays()
    data = compressed(pictures(2, 24)[1], "JPEG", quality=95, subsampling=0)
    wanted = np.asarray(image.open(io.BytesIO(data)).convert("RGB"))
    assert set(arrays) == {"image", "action", "action_parts", "state", "text"}
    assert np.abs(arrays["image"][1].astype(int) - wanted).max() <= 4  # decoders round their transform differently


def test_oxe_text_as_character_codes():
    codes = [ord(letter) for letter in "push it"]
    found = rlds._text({"steps/observation/instruction": np.array((codes + [0] * (512 - len(codes))) * 2)})
    assert str(found["text"]) == "push it"


def test_oxe_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="give a version folder"):
        list(rlds.recordings(tmp_path))
    write_records(tmp_path / "a" / "x-train.tfrecord-00000-of-00002", [episode(2)])
    with pytest.raises(ValueError, match="1 of the 2 files of split 'train'"):
        list(rlds.recordings(tmp_path))
    (tmp_path / "a" / "x-train.tfrecord-00001-of-00002").write_bytes(b"")
    done = write_recordings(rlds.recordings(tmp_path, ["front"]), tmp_path / "out")
    assert "has no camera 'front'; it has image, wrist" in done.left_out[0].reason
    write_records(tmp_path / "b" / "y-train.tfrecord-00000-of-00001", [episode(2)])
    with pytest.raises(ValueError, match="holds 2 data sets"):
        list(rlds.recordings(tmp_path))


# RoboNet and VP2.


def robonet_file(path, width, encoding="jpg", order="RGB", primitives="", count=5):
    h5py = pytest.importorskip("h5py", reason="the convert extra is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = pictures(count, 32)
    with h5py.File(path, "w") as file:
        file["policy/actions"] = np.arange((count - 1) * width, dtype=np.float64).reshape(count - 1, width)
        state = np.zeros((count, 5))
        state[:, -1] = [0.0, 0.1, 0.9, 0.2, 0.8][:count]
        file["env/state"] = state
        file["env/high_bound"], file["env/low_bound"] = np.ones((1, 5)), np.zeros((1, 5))
        file["env"].attrs["cam_encoding"], file["env"].attrs["n_cams"] = encoding, 1
        file.create_group("metadata").attrs["primitives"] = primitives
        ordered = shown if order == "RGB" else shown[..., ::-1]
        if encoding == "jpg":
            for number, picture in enumerate(ordered):
                data = compressed(np.ascontiguousarray(picture), "JPEG", quality=100, subsampling=0)
                file[f"env/cam0_video/frame{number}"] = np.frombuffer(data, np.uint8)
                file[f"env/cam0_video/frame{number}"].attrs["image_format"] = order
        else:
            video = torch.from_numpy(ordered.copy()).permute(0, 3, 1, 2)
            file["env/cam0_video/frames"] = np.frombuffer(encode_bytes(video, 10.0), np.uint8)
            file["env/cam0_video/frames"].attrs["image_format"] = order
    return shown


@pytest.mark.parametrize(("encoding", "order"), [("jpg", "RGB"), ("jpg", "BGR"), ("mp4", "RGB")])
def test_robonet(tmp_path, encoding, order):
    shown = robonet_file(tmp_path / "in" / "sawyer_traj1.hdf5", 5, encoding, order)
    robonet_file(tmp_path / "in" / "sawyer_traj2.hdf5", 5, encoding, order)
    assert write_recordings(robonet.recordings(tmp_path / "in", ["sawyer_traj2.hdf5"]), tmp_path / "out").written == 2
    test, train = open_dataset(tmp_path / "out").episodes
    assert (test.id, train.id) == ("test/sawyer_traj2", "train/sawyer_traj1")
    got = train.frames["image"].read(range(5)).numpy().astype(int)
    assert np.abs(got - shown.transpose(0, 3, 1, 2)).mean() < (2 if encoding == "jpg" else 25)  # mp4 halves colour
    assert read_actions(train).tolist() == [*np.arange(20.0).reshape(4, 5).tolist(), [0.0] * 5]


def test_robonet_actions_are_brought_to_width_5(tmp_path):
    for width, primitives in ((3, ""), (4, ""), (4, "autograsp"), (7, "")):
        path = tmp_path / f"{width}{primitives}" / "a.hdf5"
        robonet_file(path, width, primitives=primitives)
        (recording,) = robonet.recordings(path.parent)
        actions = recording.arrays()["action"]
        assert actions.shape == (4, 5) and actions.dtype == np.float32
        assert np.array_equal(actions[:, : min(width, 5)], np.arange(4.0 * width).reshape(4, width)[:, :5])
        if primitives:
            assert actions[:, 4].tolist() == [0, 1, 0, 1]  # above or below the middle at the *next* state
        elif width < 5:
            assert not actions[:, width:].any()


def test_vp2(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the convert extra is not installed")
    for name, camera in (("push_red/noise_0.1.hdf5", "camera_image"), ("push_red/noise_0.2.hdf5", "camera_image"),
                         ("suite.hdf5", "agentview_shift_2_image")):  # fmt: skip
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(tmp_path / "in" / name, "w") as file:
            file["mask/train"], file["mask/valid"] = np.array([b"demo_0", b"demo_12"]), np.array([b"demo_3"])
            for number in (0, 12, 3):
                file[f"data/demo_{number}/actions"] = np.full((4, 5), number, np.float64)
                file[f"data/demo_{number}/obs/{camera}"] = pictures(4, 16, number)
    assert write_recordings(vp2.recordings(tmp_path / "in"), tmp_path / "out").written == 9
    data = open_dataset(tmp_path / "out")
    assert [e.id for e in data.episodes if e.id.startswith("push_red/train")] == [
        f"push_red/train_noise{noise}/train_eps_demo_000{number}" for noise in (1, 2) for number in ("00", "12")
    ]
    (held_out,) = [e for e in data.episodes if e.id == "validation/validation_eps_demo_00003"]
    assert np.array_equal(held_out.frames["image"].read([1])[0].numpy(), pictures(4, 16, 3)[1].transpose(2, 0, 1))
    assert read_actions(held_out).tolist() == [[3.0] * 5] * 4 and held_out.text == ""
    done = write_recordings(vp2.recordings(tmp_path / "in", "left"), tmp_path / "other")
    assert len(done.left_out) == 9 and "has no camera left; it has" in done.left_out[0].reason


def test_damaged_hdf5_is_left_out(tmp_path):
    robonet_file(tmp_path / "in" / "a.hdf5", 5)
    whole = (tmp_path / "in" / "a.hdf5").read_bytes()
    (tmp_path / "in" / "b.hdf5").write_bytes(whole[: len(whole) // 2])
    done = write_recordings(robonet.recordings(tmp_path / "in"), tmp_path / "out")
    assert done.written == 1 and done.left_out[0].path == "train/b"


OTHERWISE = {
    "policy/actions": {"policy/actions/more": 1.0},  # a group where numbers were
    "policy/actions ": {"policy/actions": np.zeros(4)},
    "policy/actions  ": {"policy/actions": np.zeros((4, 0))},
    "env/state": {"env/state": 3.0},
    "env/cam0_video/frame1": {"env/cam0_video/frame1": b"text"},
    "env/low_bound": {"env/low_bound": np.zeros(0)},
}


@pytest.mark.parametrize("gone", OTHERWISE)
def test_a_trajectory_laid_out_otherwise_does_not_end_the_conversion(tmp_path, gone):
    h5py = pytest.importorskip("h5py", reason="the convert extra is not installed")
    for name in "ab":
        robonet_file(tmp_path / "in" / f"{name}.hdf5", 4, primitives="autograsp")
    with h5py.File(tmp_path / "in" / "a.hdf5", "a") as file:
        del file[gone.strip()]
        for name, value in OTHERWISE[gone].items():
            file[name] = value
    done = write_recordings(robonet.recordings(tmp_path / "in"), tmp_path / "out")
    assert done.written == 1 and [entry.path for entry in done.left_out] == ["train/a"]


def test_demonstrations_of_vp2_laid_out_otherwise_are_left_out(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the convert extra is not installed")
    path = tmp_path / "in" / "a.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        names = [b"demo_0", b"demo_1", b"demo_2", b"demo_3", b"demo_4"]
        file["mask/train"], file["mask/valid"] = np.array(names), np.array([], "S6")
        for number in range(5):
            file[f"data/demo_{number}/actions"] = np.full((4, 5), np.nan if number == 3 else 0.0)
            file[f"data/demo_{number}/obs/camera_image"] = pictures(4)
        del file["data/demo_1/obs/camera_image"], file["data/demo_2/obs"], file["data/demo_4/actions"]
        file["data/demo_1/obs/camera_image/more"], file["data/demo_2/obs"] = 1.0, np.zeros(3)
        file["data/demo_4/actions"] = np.zeros((2, 5))
    done = write_recordings(vp2.recordings(path.parent), tmp_path / "out")
    assert done.written == 1 and len(done.left_out) == 4
    assert "not finite" in done.left_out[2].reason and "shape (2, 5) for 4 frames" in done.left_out[3].reason
    with h5py.File(path, "a") as file:
        del file["mask/train"]
        file["mask/train"] = np.arange(3)
    with pytest.raises(ValueError, match="no file of demonstrations"):
        list(vp2.recordings(path.parent))


def test_a_name_that_leads_out_of_the_folder_is_refused_and_leavings_of_a_kill_are_cleared(tmp_path):
    for name in ("../a", "b/../../a", "/a"):
        with pytest.raises(ValueError, match="lies outside of"):
            write_recordings([Recording(name, lambda: {"image": pictures(2)})], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".a.npz.0123.part").write_bytes(b"half")
    assert write_recordings([Recording("a", lambda: {"image": pictures(2)})], tmp_path / "out").written == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.npz"]


def test_the_command(tmp_path, capsys):
    source, out = bair_files(tmp_path / "source"), tmp_path / "out"
    main(["data", "convert", "bair", str(source), "--out", str(out), "--limit", "3"])
    assert "3 episodes written" in capsys.readouterr().out and len(list(out.rglob("*.npz"))) == 3
    for words, said in (
        (["bair", str(source), "--cameras", "image"], "--cameras is for oxe and vp2"),
        (["oxe", str(source)], "give a version folder"),
        (["vp2", str(tmp_path / "nowhere")], "is no folder"),
    ):
        with pytest.raises(SystemExit):
            main(["data", "convert", *words, "--out", str(out)])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("source", [robonet, vp2])
def test_a_missing_extra_names_itself(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"ideomotor\[convert\]\""):
        next(source.recordings(tmp_path))
