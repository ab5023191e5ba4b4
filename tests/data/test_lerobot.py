"""LeRobotDataset v3.0: what we write, what the real lerobot wrote, and what is done about damage."""

import json
import os
import shutil
import signal
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ideomotor.data.formats import lerobot_assembly, lerobot_shards
from ideomotor.data.formats.lerobot import LeRobotWriter, read, sniff
from ideomotor.data.formats.lerobot_layout import place
from ideomotor.data.formats.lerobot_stats import column_stats, histogram, image_stats
from ideomotor.data.video import VideoFrames

FIXTURES = Path(__file__).parent / "fixtures" / "lerobot"
CAMERAS = {"front": (48, 64), "wrist": (32, 32)}
LENGTHS = (5, 4, 1, 8)
OUTCOMES = ("success", "failure", "", "success")
TEXTS = ("open the drawer", "close it", "open the drawer", "schließ es")


def pictures(episode, length, size, camera):
    """A moving gradient that tells episode, frame and camera."""
    t, c, h, w = np.ogrid[:length, :3, : size[0], : size[1]]
    return (20 + 25 * episode + 5 * t + h // 2 + w // 2 + 15 * c + 30 * camera).astype(np.uint8)


def episode(number):
    length = LENGTHS[number]
    numbers = np.random.default_rng(number).normal(size=(length, 7)).astype(np.float32)
    frames = {name: pictures(number, length, size, place) for place, (name, size) in enumerate(CAMERAS.items())}
    extra = {"seed": 100 + number, "kind": "expert" if number else "noisy", "next.reward": numbers[:, 0]}
    about = {"text": TEXTS[number], "outcome": OUTCOMES[number], "extra": extra}
    return {"frames": frames, "actions": numbers[:, :4], "states": numbers[:, 4:], **about}


def writer(path, **settings):
    names = {"action_names": ["dx", "dy", "dz", "grip"], "state_names": ["x", "y", "z"]}
    return LeRobotWriter(path, fps=10, cameras=CAMERAS, robot_type="toy", **names, **settings)


def write(path, numbers=range(4)):
    target = writer(path)
    for number in numbers:
        target.add_episode(**episode(number))
    return target.finalize()


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lerobot") / "ours")


@pytest.fixture
def copy(ours, tmp_path):
    return Path(shutil.copytree(ours, tmp_path / "copy"))


@pytest.fixture
def arm(tmp_path):
    return Path(shutil.copytree(FIXTURES / "arm", tmp_path / "arm"))


def test_what_is_written_is_read(ours):
    dataset = read(ours)
    assert sniff(ours) and not sniff(ours / "data")
    assert dataset.format == "lerobot" and not dataset.quarantined
    assert [e.id for e in dataset.episodes] == ["000000", "000001", "000002", "000003"]
    for number, found in enumerate(dataset.episodes):
        wanted = episode(number)
        assert (found.text, found.outcome, found.length) == (TEXTS[number], OUTCOMES[number], LENGTHS[number])
        assert found.fps == 10 and tuple(found.frames) == ("front", "wrist")
        np.testing.assert_array_equal(found.read_actions(), wanted["actions"])
        np.testing.assert_array_equal(found.read_proprio(), wanted["states"])


def test_joined_frames_equal_those_of_a_lone_file(ours, tmp_path):
    assert len(list((ours / "videos").rglob("*.mp4"))) == 2
    for number, found in enumerate(read(ours).episodes):
        for camera, frames in found.frames.items():
            source = episode(number)["frames"][camera]
            lone = tmp_path / f"{number}{camera}.mp4"
            lone.write_bytes(lerobot_shards.encode(source, 10, lerobot_shards.Codec()))
            alone = VideoFrames(lone).read(range(found.length))
            for order in (range(found.length), reversed(range(found.length))):
                indices = list(order)
                assert frames.read(indices).equal(alone[indices])
            assert np.abs(alone.numpy().astype(int) - source).mean() < 3


def test_same_episodes_same_bytes_in_any_order(ours, tmp_path):
    target = writer(tmp_path / "again")
    for number in (2, 0, 3, 1):
        target.add_episode(**episode(number), index=number)
    assert contents(target.finalize()) == contents(ours)


def killed(action):
    """Runs ``action`` in a process that dies by SIGKILL."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_loses_no_stored_episode(ours, tmp_path):
    path = tmp_path / "d"

    def recording():
        target = writer(path)
        target.add_episode(**episode(0))
        target.add_episode(**episode(1))
        lerobot_shards.json.dumps = die  # in the middle of storing: videos and columns are there, the facts are not
        target.add_episode(**episode(2))

    killed(recording)
    assert not path.exists()
    with pytest.raises(FileExistsError, match=r"2 episodes of an unfinished dataset.*resume=True"):
        writer(path)
    with pytest.raises(ValueError, match=r"begun with other settings: .*fps 10 \(now 20\)"):
        LeRobotWriter(path, fps=20, cameras=CAMERAS, robot_type="toy", action_names=list("abcd"), resume=True)
    target = writer(path, resume=True)
    assert target.stored == (0, 1)
    for number in (2, 3):
        target.add_episode(**episode(number))

    def finishing():
        lerobot_assembly._Assembly._write_episodes = die
        target.finalize()

    killed(finishing)
    assert not path.exists()
    target = writer(path, resume=True)
    assert target.stored == (0, 1, 2, 3)
    assert contents(target.finalize()) == contents(ours)
    assert [item.name for item in tmp_path.iterdir()] == ["d"]
    with pytest.raises(FileExistsError, match="exists already"):
        writer(path, resume=True)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    target = writer(tmp_path / "d")
    target.add_episode(**episode(0))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(lerobot_shards.np, "savez", full)
        target.add_episode(**episode(1))
    assert target.stored == (0,) and not list(target.partial.rglob("*.tmp"))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(pq, "write_table", full)
        target.finalize()
    target.add_episode(**episode(1))
    assert len(read(target.finalize()).episodes) == 2


def test_episodes_spread_over_files_and_folders(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_assembly, "MEBIBYTE", 600)
    target = writer(tmp_path / "d", chunk_size=2, data_file_mb=1, video_file_mb=3)
    for number in range(4):
        target.add_episode(**episode(number))
    root = target.finalize()
    names = [name for name in contents(root) if not name.startswith("meta")]
    assert (
        "data/chunk-001/file-000.parquet" in names and "videos/observation.images.front/chunk-001/file-000.mp4" in names
    )
    for few, many in zip(read(ours).episodes, read(root).episodes, strict=True):
        np.testing.assert_array_equal(few.read_actions(), many.read_actions())
        for camera in CAMERAS:
            assert few.frames[camera].read(range(few.length)).equal(many.frames[camera].read(range(few.length)))


def test_files_are_closed_before_their_limit():
    assert list(place([4, 4, 4, 20, 1, 1], 10, 2)) == [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1)]


def test_actionless_video(tmp_path):
    target = LeRobotWriter(tmp_path / "d", fps=30, cameras={"main": (16, 16)})
    target.add_episode({"main": pictures(0, 3, (16, 16), 0)})
    root = target.finalize()
    (found,) = read(root).episodes
    assert found.read_actions is None and found.read_proprio is None and found.outcome == "" and found.text == ""
    assert set(json.loads((root / "meta/info.json").read_text())["features"]) == {
        *("observation.images.main", "timestamp", "frame_index", "episode_index", "index", "task_index")
    }


def test_statistics_are_those_of_the_recorded_frames(ours):
    stats = json.loads((ours / "meta/stats.json").read_text())
    parts = [episode(number) for number in range(4)]
    actions = np.concatenate([part["actions"] for part in parts]).astype(np.float64)
    assert list(stats["action"]) == ["min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"]
    np.testing.assert_allclose(stats["action"]["q10"], np.quantile(actions, 0.1, axis=0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0))
    frames = np.concatenate([part["frames"]["front"] for part in parts]) / 255
    camera = stats["observation.images.front"]
    for name, wanted in (
        ("min", frames.min((0, 2, 3))),
        ("max", frames.max((0, 2, 3))),
        ("std", frames.std((0, 2, 3))),
    ):
        np.testing.assert_allclose(camera[name], wanted[:, None, None])
    np.testing.assert_allclose(camera["q99"], np.quantile(frames, 0.99, axis=(0, 2, 3))[:, None, None], atol=1 / 255)
    assert camera["count"] == [sum(LENGTHS)] and stats["next.success"]["max"] == [True] and "kind" not in stats


def test_statistics_of_one_frame():
    frame = np.full((1, 3, 2, 2), 51, np.uint8)
    stats = image_stats(histogram(frame), 1)
    assert all(value.shape == (3, 1, 1) and np.allclose(value, 0.2) for key, value in stats.items() if key[0] == "q")
    assert column_stats(np.array([3]))["q50"] == [3.0]


# --- the real lerobot's files ---


@pytest.mark.parametrize("name", ["arm", "actionless"])
def test_what_lerobot_wrote_is_read_as_lerobot_reads_it(name):
    expected = json.loads((FIXTURES / "expected.json").read_text())[name]
    dataset = read(FIXTURES / name)
    assert not dataset.quarantined and sum(e.length for e in dataset.episodes) == len(expected)
    rows = iter(expected)
    for found in dataset.episodes:
        wanted = [next(rows) for _ in range(found.length)]
        assert {row["task"] for row in wanted} == {found.text}
        for read_column, key in ((found.read_actions, "action"), (found.read_proprio, "observation.state")):
            assert (read_column is not None) == (key in wanted[0])
            if read_column is not None:
                values = np.array([row[key] for row in wanted], np.float32).reshape(found.length, -1)
                np.testing.assert_array_equal(read_column(), values)
        if name == "arm":
            assert (found.outcome == "success") == any(row["next.success"] for row in wanted)
        else:
            assert found.outcome == ""
        for camera, frames in found.frames.items():
            video = frames.read(range(found.length)).numpy().astype(float)
            t, c, h, w = video.shape
            means = video.reshape(t, c, 4, h // 4, 4, w // 4).mean((3, 5))
            every = np.array([row[f"observation.images.{camera}"] for row in wanted])
            distance = np.abs(means[:, None] - every[None]).mean((2, 3, 4))
            # lerobot's decoder rounds about one level down; the next frame is four or more levels away.
            assert distance.diagonal().max() < 2
            np.testing.assert_array_equal(distance.argmin(1), np.arange(t))


def test_our_files_have_the_columns_that_lerobot_writes(tmp_path):
    names = {"action_names": ["n0", "n1", "n2", "n3"], "state_names": ["e0", "e1", "e2"]}
    target = LeRobotWriter(tmp_path / "d", fps=10, cameras=CAMERAS, robot_type="toy", **names)
    target.add_episode(**{**episode(0), "extra": None})
    root = target.finalize()
    theirs, mine = (json.loads((folder / "meta/info.json").read_text()) for folder in (FIXTURES / "arm", root))
    assert mine["features"].pop("outcome") == {"dtype": "string", "shape": [1], "names": None}
    assert mine["features"] == theirs["features"] and list(mine) == list(theirs)
    assert {key: mine[key] for key in ("data_path", "video_path", "codebase_version")} == {
        key: theirs[key] for key in ("data_path", "video_path", "codebase_version")
    }
    for name in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        schemas = [pq.read_schema(folder / name) for folder in (FIXTURES / "arm", root)]
        types = [{field.name: field.type for field in schema} for schema in schemas]
        assert types[1].pop("outcome", pa.string()) == pa.string()
        assert types[0] == types[1]
    described = [
        json.loads(pq.read_schema(f / "data/chunk-000/file-000.parquet").metadata[b"huggingface"])
        for f in (FIXTURES / "arm", root)
    ]
    described[1]["info"]["features"].pop("outcome")
    assert described[0]["info"] == described[1]["info"]


# --- damage ---


def reasons(root):
    return {item.path.removeprefix(f"{root}/"): item.reason for item in read(root).quarantined}


def change(path, **columns):
    """Replaces columns of a parquet file by what a function makes of their values."""
    table = pq.read_table(path)
    for name, new in columns.items():
        values = new(table.column(name).to_pylist())
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("version", "said"), [("v2.1", "convert_dataset_v21_to_v30"), ("v3.1", "update"), (None, "v3.0")]
)
def test_another_version_is_refused_with_the_way_out(copy, version, said):
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": version}))
    with pytest.raises(ValueError, match=f"version {version}; v3.0 is read here.*{said}"):
        read(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"codebase_version": "v3.0"}', '{"codebase_version": "v3.0", "fps": 0}']
)
def test_a_damaged_description_is_an_error(copy, text):
    (copy / "meta/info.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot be read|version|damaged"):
        read(copy)


def test_numbers_that_are_none_put_one_episode_aside(copy):
    def spoil(rows):
        rows[6] = [0.0, float("nan"), 0.0, 0.0]
        return rows

    change(copy / "data/chunk-000/file-000.parquet", action=spoil)
    assert reasons(copy) == {"episode 1": "action at frame 1 is not a finite number"}
    assert [e.id for e in read(copy).episodes] == ["000000", "000002", "000003"]


def test_another_width_puts_one_episode_aside(copy):
    change(copy / "data/chunk-000/file-000.parquet", action=lambda rows: [*rows[:9], rows[9][:3], *rows[10:]])
    (reason,) = reasons(copy).values()
    assert "frame 0 has 3 numbers; info.json says 4" in reason
    assert [e.id for e in read(copy).episodes] == ["000000", "000001", "000003"]


def test_times_off_the_grid_put_one_episode_aside(copy):
    change(copy / "data/chunk-000/file-000.parquet", timestamp=lambda rows: [*rows[:-1], rows[-1] + 0.04])
    assert list(reasons(copy)) == ["episode 3"] and "tolerance_s" in reasons(copy)["episode 3"]
    assert not read(copy, tolerance_s=0.05).quarantined


def test_a_missing_or_cut_video_puts_its_episodes_aside(arm):
    video = arm / "videos/observation.images.wrist/chunk-000/file-001.mp4"
    video.write_bytes(video.read_bytes()[:-700])
    cut = reasons(arm)
    assert list(cut) == ["episode 2", "episode 3"] and all("file-001.mp4" in reason for reason in cut.values())
    video.unlink()
    gone = reasons(arm)
    assert set(gone.values()) == {"videos/observation.images.wrist/chunk-000/file-001.mp4 is missing"}
    assert [e.id for e in read(arm).episodes] == ["000000", "000001"]


def test_a_shorter_video_than_the_table_says(arm):
    folder = arm / "videos/observation.images.front/chunk-000"
    shutil.copy(folder / "file-000.mp4", folder / "file-001.mp4")
    (reason,) = reasons(arm).values()
    assert reason.endswith("front/chunk-000/file-001.mp4 holds 13 frames; the episode ends at frame 14")


@pytest.mark.parametrize("keep", [None, 0, 4, 300, -100])
def test_cut_or_missing_tables_are_named(arm, keep):
    for name, lost in (("data/chunk-000/file-000", 4), ("meta/episodes/chunk-000/file-000", 4), ("meta/tasks", 0)):
        path, whole = arm / f"{name}.parquet", (arm / f"{name}.parquet").read_bytes()
        path.unlink() if keep is None else path.write_bytes(whole[:keep])
        dataset = read(arm)
        assert len(dataset.episodes) == 4 - lost
        assert any(
            f"{name}.parquet" in f"{item.path} {item.reason}" or "announces 4" in item.reason
            for item in dataset.quarantined
        )
        path.write_bytes(whole)


def test_garbled_tables_never_stop_a_run(arm):
    noise = np.random.default_rng(0)
    for name in ("data/chunk-000/file-000", "meta/episodes/chunk-000/file-000", "meta/tasks"):
        path = arm / f"{name}.parquet"
        whole = path.read_bytes()
        for _ in range(40):
            garbled = bytearray(whole)
            for at in noise.integers(0, len(whole), 8):
                garbled[at] = noise.integers(0, 256)
            path.write_bytes(garbled)
            dataset = read(arm)
            assert len(dataset.episodes) == 4 or dataset.quarantined
        path.write_bytes(whole)


def test_rows_that_contradict_the_layout(copy):
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    key = "videos/observation.images.front/from_timestamp"
    change(
        path,
        **{
            "length": lambda rows: [rows[0] + 1, *rows[1:]],
            "data/file_index": lambda rows: [rows[0], 7, *rows[2:]],
            key: lambda rows: [*rows[:2], rows[2] + 0.03, float("nan")],
        },
    )
    found = reasons(copy)
    assert "5 rows" in found["episode 0"] and "file-007.parquet is missing" in found["episode 1"]
    assert "between two frames" in found["episode 2"] and "nan" in found["episode 3"]


def test_episodes_travel_to_workers_and_the_fingerprint_follows_the_files(copy):
    dataset = read(copy)
    found = ForkingPickler.loads(ForkingPickler.dumps(dataset.episodes[3]))
    np.testing.assert_array_equal(found.read_actions(), episode(3)["actions"])
    found.read_actions()[:] = 0  # the caller's copy
    np.testing.assert_array_equal(found.read_actions(), episode(3)["actions"])
    assert read(copy).fingerprint == dataset.fingerprint
    table = copy / "data/chunk-000/file-000.parquet"
    os.utime(table, ns=(1, 1))  # as copying does
    assert read(copy).fingerprint == dataset.fingerprint
    (copy / "meta/stats.json").write_text("{}")
    assert read(copy).fingerprint != dataset.fingerprint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fps": 12.5}, "12.5; the layout holds whole frames"),
        ({"cameras": {}}, "cameras is empty"),
        ({"cameras": {"main": (31, 32)}}, "must be even"),
        ({"cameras": {"a/b": (32, 32)}}, "letters"),
        ({"action_names": []}, "None says"),
        ({"chunk_size": 0}, "1 or more"),
    ],
)
def test_settings_the_layout_cannot_hold(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        LeRobotWriter(tmp_path / "d", **{"fps": 10, "cameras": {"main": (32, 32)}, **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": None}, "action is None, but the dataset was opened with names"),
        ({"actions": np.zeros((5, 3))}, r"\(5, 3\); 5 frames of 4 numbers"),
        ({"actions": np.full((5, 4), np.nan)}, "frame 0 is not a finite number"),
        ({"frames": {"front": pictures(0, 5, (48, 64), 0)}}, r"cameras \['front'\]; the dataset has"),
        (
            {"frames": {"front": pictures(0, 5, (48, 64), 0), "wrist": pictures(0, 4, (32, 32), 0)}},
            r"lengths.*\[4, 5\]",
        ),
        ({"frames": {k: np.zeros((0, 3, *size), np.uint8) for k, size in CAMERAS.items()}}, "1 or more"),
        ({"outcome": "won"}, "'won'; it can be one of"),
        ({"extra": {"task_index": 1}}, "the layout uses that name"),
        ({"extra": {"note": object()}}, "wanted one value"),
        ({"extra": {"next.reward": np.zeros(4)}}, "for each of 5"),
        ({"index": 0}, "episode 0 is on disk already"),
    ],
)
def test_an_episode_that_does_not_fit_is_not_stored(tmp_path, change, said):
    target = writer(tmp_path / "d")
    target.add_episode(**episode(0))
    with pytest.raises(ValueError, match=said):
        target.add_episode(**{**episode(0), **change})
    assert target.stored == (0,)


def test_episodes_of_different_columns_are_refused(tmp_path):
    target = writer(tmp_path / "d")
    with pytest.raises(ValueError, match="no episode"):
        target.finalize()
    target.add_episode(**episode(0))
    target.add_episode(**{**episode(1), "extra": None})
    with pytest.raises(ValueError, match="episode 1 has columns"):
        target.finalize()
    assert target.stored == (0, 1)
