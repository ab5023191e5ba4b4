"""Teleoperation recordings, written here in the layouts of VPP's robot and of ALOHA, made to episodes and learned."""

import io
import json
import tracemalloc

import numpy as np
import pytest

from ideomotor.cli import main
from ideomotor.data.conversion.teleop import NOTE, Teleop, note, recordings
from ideomotor.data.conversion.writing import write_recordings
from ideomotor.data.formats import open_dataset
from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.files import sole_writer

h5py = pytest.importorskip("h5py", reason="the convert extra is not installed")

CAMERAS = ("cam_high", "cam_left", "cam_right")
LAID_OUT = np.r_[0:7, 14:26, 7:14, 26:38]  # of poses beside hands: right arm, right hand, left arm, left hand


def pictures(rows, height=24, width=32, base=0):
    t, h, w, c = np.ogrid[:rows, :height, :width, :3]
    return ((base + 3 * t + 5 * h + 2 * w + 60 * c) % 200).astype(np.uint8)


def packed(frames, kind="PNG", **options):
    """As OpenCV packs an array that is RGB: red and blue stand swapped in the file."""
    image = pytest.importorskip("PIL.Image", reason="an independent encoder of pictures")
    found = []
    for frame in frames:
        file = io.BytesIO()
        image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(file, kind, **options)
        found.append(file.getvalue())
    return found


def padded(rows):
    longest = max(map(len, rows)) + 7
    return np.stack([np.frombuffer(row.ljust(longest, b"\0"), np.uint8) for row in rows])


def two_arms(rows, seed=0):
    """Poses and hands as recorded, and commands a little ahead of them in the layout of the commands."""
    generator = np.random.default_rng(seed)
    pose, hands = 0.01 * generator.normal(size=(2, rows, 24)).cumsum(1)
    pose = pose[:, :14]
    for arm in (3, 10):
        pose[:, arm : arm + 4] += np.eye(4)[3]
        pose[:, arm : arm + 4] /= np.linalg.norm(pose[:, arm : arm + 4], axis=1, keepdims=True)
    state = np.concatenate([pose, hands], axis=1)[:, LAID_OUT]
    return pose, hands, np.concatenate([state[1:], state[-1:]])


def vpp_file(path, rows=23, text=(b"hand over the block",), cameras=CAMERAS, pack=False, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pose, hands, action = two_arms(rows)
    with h5py.File(path, "w") as file:
        file["observations/arm_end_pose"], file["observations/hand_qpos"] = pose, hands
        for name, width in (("arm_qpos", 14), ("waist_qpos", 2), ("neck_qpos", 2)):
            file[f"observations/{name}"] = np.zeros((rows, width))
        file["action"] = action
        if text:
            file["text"] = np.array(text)
        file.attrs["compress"] = pack
        for number, name in enumerate(cameras):
            frames = pictures(rows, *size, base=40 * number)
            file[f"observations/images/{name}"] = padded(packed(frames)) if pack else frames
    return pose, hands, action


def aloha_file(path, rows=20, **images):
    path.parent.mkdir(parents=True, exist_ok=True)
    joints = np.random.default_rng(1).normal(size=(rows, 14))
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["observations/qpos"], file["observations/qvel"] = joints, np.zeros((rows, 14))
        file["action"] = joints + 0.1
        for name, value in (images or {"top": pictures(rows)}).items():
            file[f"observations/images/{name}"] = value
    return joints


def convert(source, out, **options):
    chosen = Teleop(**options)
    return write_recordings(recordings(source, chosen), out)


def left_out(source, out, **options):
    return {entry.path: entry.reason for entry in convert(source, out, **options).left_out}


@pytest.mark.parametrize("pack", [False, True])
def test_recordings_of_two_arms(tmp_path, pack):
    pose, hands, action = vpp_file(tmp_path / "in" / "day" / "episode_0.hdf5", pack=pack)
    assert convert(tmp_path / "in", tmp_path / "out").written == 1
    (episode,) = open_dataset(tmp_path / "out").episodes
    assert (episode.id, episode.text, episode.length) == ("day/episode_0", "hand over the block", 5)
    assert set(episode.frames) == set(CAMERAS) and episode.recording == ""
    for number, name in enumerate(CAMERAS):
        wanted = pictures(23, base=40 * number)[::5].transpose(0, 3, 1, 2)
        assert np.array_equal(episode.frames[name].read(range(5)).numpy(), wanted)
    state = read_proprio(episode)
    assert state.shape == (5, 38)
    assert np.array_equal(state[:, :7], pose[::5, :7].astype(np.float32))
    assert np.array_equal(state[:, 7:19], hands[::5, :12].astype(np.float32))
    assert np.array_equal(state[:, 19:26], pose[::5, 7:].astype(np.float32))
    assert np.array_equal(state[:, 26:], hands[::5, 12:].astype(np.float32))
    assert np.array_equal(read_actions(episode), action[::5].astype(np.float32))


def test_recordings_of_aloha(tmp_path):
    rows = [np.frombuffer(row, np.uint8) for row in packed(pictures(20), "JPEG", quality=95, subsampling=0)]
    ragged = np.empty(20, dtype=object)
    ragged[:] = rows
    joints = aloha_file(tmp_path / "in" / "a.h5", top=pictures(20), wrist=padded([row.tobytes() for row in rows]))
    with h5py.File(tmp_path / "in" / "a.h5", "a") as file:
        kept = file.create_dataset("observations/images/low", (20,), h5py.vlen_dtype(np.uint8))
        for number, row in enumerate(rows):
            kept[number] = row
        file["observations/images/depth"] = np.zeros((20, 24, 32), np.uint16)
        file["observations/arm_end_pose"] = np.zeros((20, 14))  # without hands it is not VPP's robot
    assert convert(tmp_path / "in", tmp_path / "out", every=4, text="pick it up").written == 1
    (episode,) = open_dataset(tmp_path / "out").episodes
    assert set(episode.frames) == {"top", "wrist", "low"} and episode.text == "pick it up"
    assert np.array_equal(read_proprio(episode), joints[::4].astype(np.float32))
    assert np.allclose(read_actions(episode), joints[::4] + 0.1)
    shown = {name: frames.read(range(5)).numpy().astype(int) for name, frames in episode.frames.items()}
    assert np.abs(shown["wrist"] - shown["top"]).mean() < 3 and np.array_equal(shown["wrist"], shown["low"])


def test_colours_and_size(tmp_path):
    vpp_file(tmp_path / "in" / "a.hdf5", pack=True, size=(48, 64))
    vpp_file(tmp_path / "in" / "b.hdf5", size=(48, 64))
    for order in ("rgb", "bgr"):
        convert(tmp_path / "in", tmp_path / order, colors=order, size=24)
    for name in "ab":
        right, turned = (np.load(tmp_path / order / f"{name}.npz")["cam_left"] for order in ("rgb", "bgr"))
        blocks = pictures(23, 48, 64, base=40)[::5].reshape(5, 24, 2, 32, 2, 3).astype(float).mean((2, 4))
        assert np.abs(right - blocks).max() <= 0.5 and np.array_equal(right, turned[..., ::-1])
    convert(tmp_path / "in", tmp_path / "whole", size=0)
    assert np.load(tmp_path / "whole" / "a.npz")["cam_high"].shape == (5, 48, 64, 3)


def test_phases_are_episodes_of_one_recording(tmp_path):
    for number in range(4):
        vpp_file(tmp_path / "in" / f"{number}.hdf5", rows=13)
    assert convert(tmp_path / "in", tmp_path / "out", phases=5).written == 20
    data = open_dataset(tmp_path / "out")
    assert [e.length for e in data.episodes[:5]] == [3, 3, 3, 2, 2]
    assert [e.id for e in data.episodes[:6]] == [f"0_phase{phase}" for phase in range(5)] + ["1_phase0"]
    assert {e.recording for e in data.episodes} == set("0123")
    action = two_arms(13)[2]
    assert np.array_equal(read_actions(data.episodes[3]), action[3::5].astype(np.float32))
    wanted = pictures(13)[3::5].transpose(0, 3, 1, 2)
    assert np.array_equal(data.episodes[3].frames["cam_high"].read([0, 1]).numpy(), wanted)
    for wrong in ({"phases": 6}, {"phases": 0}, {"every": 0}, {"size": -1}):
        with pytest.raises(ValueError, match="wanted 1 or more"):
            Teleop(**wrong)


def test_the_recorded_sentence_is_kept_and_one_is_asked_for_where_there_is_none(tmp_path):
    vpp_file(tmp_path / "in" / "said.hdf5", text=(b"fold the towel", b"something else"))
    vpp_file(tmp_path / "in" / "silent.hdf5", text=())
    vpp_file(tmp_path / "in" / "blank.hdf5", text=(b" ",))
    vpp_file(tmp_path / "in" / "alone.hdf5", text=())
    with h5py.File(tmp_path / "in" / "alone.hdf5", "a") as file:
        file["language_raw"] = "wipe the table"
    found = left_out(tmp_path / "in", tmp_path / "out")
    assert set(found) == {"silent", "blank"} and all("give one with --text" in reason for reason in found.values())
    assert convert(tmp_path / "in", tmp_path / "out", text="stack the cups").written == 2
    texts = {episode.id: episode.text for episode in open_dataset(tmp_path / "out").episodes}
    assert texts == {
        "said": "fold the towel", "alone": "wipe the table", "silent": "stack the cups", "blank": "stack the cups"
    }  # fmt: skip


def damaged(path, frame, kind):
    vpp_file(path, pack=True)
    with h5py.File(path, "a") as file:
        rows = file["observations/images/cam_left"]
        if kind == "cut":
            rows[frame, rows.shape[1] // 2 :] = 0
        else:
            rows[frame] = 0


def edited(path, name, value=None):
    vpp_file(path)
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


def test_what_cannot_be_used_is_named_with_the_way_out(tmp_path):
    here = tmp_path / "in"
    vpp_file(here / "a.hdf5")
    (here / "cut.hdf5").write_bytes((here / "a.hdf5").read_bytes()[:9000])
    (here / "text.hdf5").write_text("no HDF5")
    (here / "._a.hdf5").write_bytes(b"of a file manager")
    vpp_file(here / "blind.hdf5", cameras=CAMERAS[:2])
    vpp_file(here / "short.hdf5", rows=5)
    damaged(here / "half.hdf5", 10, "cut")
    damaged(here / "empty.hdf5", 5, "gone")
    damaged(here / "unseen.hdf5", 6, "cut")  # no fifth frame
    edited(here / "uneven.hdf5", "observations/images/cam_left", pictures(20))
    edited(here / "joints.hdf5", "observations/arm_end_pose")
    edited(here / "handless.hdf5", "observations/hand_qpos")
    edited(here / "still.hdf5", "action")
    edited(here / "narrow.hdf5", "action", np.zeros((23, 26)))
    edited(here / "complex.hdf5", "action", np.full((23, 38), 1j))
    edited(here / "words.hdf5", "action", np.full((23, 38), b"a"))
    edited(here / "nothing.hdf5", "observations/images/cam_left", np.zeros((23, 0, 0, 3), np.uint8))
    edited(here / "nan.hdf5", "action", np.full((23, 38), np.nan))
    edited(here / "grey.hdf5", "observations/images/cam_left", np.zeros((23, 24, 32), np.uint8))
    found = left_out(here, tmp_path / "out")
    for name, reason in {
        "cut": "cut short or damaged",
        "text": "no recording in HDF5",
        "blind": "has no camera 'cam_right' among observations/images; it has cam_high, cam_left: name with --cameras",
        "short": "has 5 rows, of which every 5th from row 0 on leaves 1; wanted at least 2: take a smaller --every",
        "half": "row 10 of cam_left holds a damaged picture",
        "empty": "row 5 of cam_left holds no JPEG or PNG picture",
        "uneven": "23 of cam_high, 20 of cam_left, 23 of cam_right",
        "joints": "holds action, observations, text, arm_qpos, hand_qpos, images, neck_qpos, waist_qpos; wanted action",
        "handless": "wanted action, and observations/arm_end_pose with observations/hand_qpos",
        "still": "holds observations, text",
        "narrow": "has action of shape (23, 26); wanted (t, 38)",
        "complex": "has action as complex128 (23, 38); wanted a row of numbers each",
        "words": "has action as |S1 (23, 38); wanted a row of numbers each",
        "nothing": "has pictures of cam_left as uint8 (23, 0, 0, 3)",
        "nan": "has action that are not finite numbers",
        "grey": "has pictures of cam_left as uint8 (23, 24, 32)",
    }.items():
        assert reason in found.pop(name), name
    assert not found
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npz", "unseen.npz"]


def test_a_recording_laid_out_otherwise_does_not_end_the_conversion(tmp_path):
    for number, (name, value) in enumerate(
        {
            "observations": np.zeros(3),
            "observations/images": np.zeros(3),
            "observations/images/cam_left": {"more": 1.0},
            "observations/hand_qpos": {"more": 1.0},
            "action": b"text",
            "text": {"more": 1.0},
        }.items()
    ):
        path = tmp_path / "in" / f"{number}.hdf5"
        vpp_file(path)
        with h5py.File(path, "a") as file:
            del file[name]
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                file[f"{name}/{key}".rstrip("/")] = item
    vpp_file(tmp_path / "in" / "whole.hdf5")
    found = recordings(tmp_path / "in", Teleop(), CAMERAS)
    done = write_recordings(found, tmp_path / "out")
    assert done.written == 1 and [entry.path for entry in done.left_out] == list("012345")


def test_every_cut_of_a_file_is_left_out_or_read_whole(tmp_path):
    vpp_file(tmp_path / "whole.hdf5", rows=11, size=(4, 4))
    data = (tmp_path / "whole.hdf5").read_bytes()
    (tmp_path / "in").mkdir()
    lengths = range(0, len(data), max(len(data) // 60, 1))
    for length in lengths:
        (tmp_path / "in" / f"{length}.hdf5").write_bytes(data[:length])
    found = convert(tmp_path / "in", tmp_path / "out")
    assert len(found.left_out) == len(lengths) and not list((tmp_path / "out").rglob("*.npz"))


def test_full_pictures_are_never_all_in_memory(tmp_path):
    """HDF5 and the decoder take memory of their own, which is not counted; ours must not grow with the pictures."""
    aloha_file(tmp_path / "in" / "a.hdf5", rows=60, top=pictures(60, 240, 320))
    tracemalloc.start()
    convert(tmp_path / "in", tmp_path / "out", every=1, size=24, text="go")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 240 * 320 * 3 / 4


def test_a_stopped_conversion_goes_on_with_the_same_options(tmp_path, capsys):
    for number in range(3):
        vpp_file(tmp_path / "in" / f"{number}.hdf5")
    words = ["data", "convert", "teleop", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    main([*words, "--limit", "1"])
    before = (tmp_path / "out" / "0.npz").stat().st_mtime_ns
    (tmp_path / "out" / ".1.npz.0.part").write_bytes(b"of a kill")
    main([*words, "--text", "other"])
    assert "2 episodes written" in (shown := capsys.readouterr().out) and "colours were taken as rgb" in shown
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["0.npz", "1.npz", "2.npz", NOTE]
    assert (tmp_path / "out" / "0.npz").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"there -> now\): every 5 -> 2; cameras \['cam_high', .*\] -> \['cam_high'\]"):
        note(tmp_path / "out", Teleop(every=2), ["cam_high"])
    (tmp_path / "out" / NOTE).write_text("{")
    with pytest.raises(ValueError, match="give another OUT"):
        note(tmp_path / "out", Teleop())


def test_a_second_conversion_into_the_same_folder_is_refused_while_the_first_is_at_work(tmp_path, capsys):
    vpp_file(tmp_path / "in" / "a.hdf5")
    out = tmp_path / "out"
    out.mkdir()
    (draft := out / ".a.npz.0.part").write_bytes(b"of the first")
    words = ["data", "convert", "teleop", str(tmp_path / "in"), "--out", str(out)]
    with sole_writer(out):
        with pytest.raises(SystemExit):
            main([*words, "--every", "2"])
        assert f"adds to {out}: wait for its end" in capsys.readouterr().err
        assert draft.exists() and not (out / NOTE).exists()
    main(words)
    assert not draft.exists() and len(open_dataset(out).episodes) == 1


def test_what_came_to_nothing_binds_no_later_run(tmp_path):
    vpp_file(tmp_path / "in" / "a.hdf5")
    words = ["data", "convert", "teleop", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*words, "--cameras", "cam_hihg"])
    main([*words, "--cameras", "cam_high"])
    assert set(np.load(tmp_path / "out" / "a.npz")) >= {"cam_high"}


def test_cameras_that_were_chosen_are_told(tmp_path, capsys):
    vpp_file(tmp_path / "in" / "a.hdf5")
    with h5py.File(tmp_path / "in" / "a.hdf5", "a") as file:
        del file["observations/images/cam_high"]
        file["observations/images/cam_high"] = np.zeros((23, 24, 32, 4), np.uint8)
    main(["data", "convert", "teleop", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    told = "cameras as in a.hdf5: cam_left, cam_right; passed over there: cam_high (uint8 (23, 24, 32, 4))"
    assert told in capsys.readouterr().out


def test_the_command_refuses_before_it_writes(tmp_path, capsys):
    vpp_file(tmp_path / "in" / "a.hdf5")
    (tmp_path / "none").mkdir()
    for name in ("a.h5", "a.hdf5"):
        vpp_file(tmp_path / "twins" / name)
    for words, said in (
        (["teleop", tmp_path / "none"], "holds no .hdf5 or .h5 file"),
        (["robonet", tmp_path / "in", "--every", "2"], "--every is for teleop; robonet takes none"),
        (["vp2", tmp_path / "in", "--size", "0"], "--size is for teleop; vp2 takes none"),
        (["teleop", tmp_path / "in", "--test", tmp_path], "--test is for robonet; teleop takes none"),
        (["teleop", tmp_path / "in", "--phases", "9"], "phases 9"),
        (["teleop", tmp_path / "in", "--colors", "gbr"], "gbr"),
        (["teleop", tmp_path / "in", "--text", " "], "--text is blank"),
        (["teleop", tmp_path / "in", "--limit", "0"], "--limit is 0; wanted 1 or more"),
        (["teleop", tmp_path / "twins"], "two recordings in"),
    ):
        with pytest.raises(SystemExit):
            main(["data", "convert", *map(str, words), "--out", str(tmp_path / "out")])
        assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert not (tmp_path / "out").exists()


def test_from_recordings_to_a_policy_of_three_views(tmp_path, capsys):
    """The whole way, as docs/systems/vpp.md says it."""
    pytest.importorskip("diffusers", reason="the svd extra is not installed")
    for number in range(4):
        vpp_file(tmp_path / "in" / f"episode_{number}.hdf5", rows=61, pack=number < 2)
    out = tmp_path / "out"
    main(["data", "convert", "teleop", str(tmp_path / "in"), "--out", str(out), "--phases", "2"])
    main(["data", "inspect", str(out), "--deep"])
    assert "8 episodes" in (shown := capsys.readouterr().out) and "cam_right" in shown and "38" in shown
    home = tmp_path / "runs"
    words = ["--preset", "tiny", "--cache", str(home / "cache"), "--data", str(out), "--validation", "0.25"]
    views = ["--views", "3", "--cameras", ",".join(CAMERAS)]
    for name, more in (
        ("vae", []), ("video", ["--vae-from", str(home / "vae")]),
        ("policy", ["--video-from", str(home / "video"), "--robot", "bimanual"]),
    ):  # fmt: skip
        main(["vpp", name, *words, *views, *more, f"--{name}-stage.steps", "1", "--out", str(home / name)])
    (facts,) = json.loads((home / "policy" / "data.json").read_text())["datasets"]
    held = facts["held_out"]
    assert len(held) == 2 and held[0][:-1] == held[1][:-1]  # both phases of one recording
    from ideomotor.systems.vpp_stages import load_models

    policy = load_models(home / "policy").policy
    assert policy is not None and (policy.config.action_width, policy.config.proprio_width) == (38, 38)
