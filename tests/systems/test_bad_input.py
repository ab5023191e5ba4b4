"""Bad input, through the commands: a clear line, or an entry among what was left out, and nothing half written."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")

import av
import pyarrow as pa
import pyarrow.parquet as pq

from ideomotor import cli
from ideomotor.data.formats.lerobot_writer import LeRobotWriter
from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.systems import collection
from ideomotor.systems.collection import CollectionConfig, collect
from ideomotor.systems.quickstart import QuickstartConfig, claim
from ideomotor.systems.vpdd import PRESETS

STEPS = {
    "tokenizer": ("--tokenizer-stage.steps", 2),
    "pretrain": ("--pretrain-stage.steps", 2),
    "finetune": ("--finetune-stage.steps", 2, "--policy.action-width", 2),
}


def ideomotor(*words: object) -> int:
    """Runs a command in this process and returns its exit status; what is no clear error comes through."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        return end.code or 0
    return 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in shown, shown
    return lines[0]


def pictures(frames: int = 16, height: int = 32, width: int = 32, seed: int = 0):
    return synthetic_disc(0, seed).render(np.arange(frames, dtype=float), (height, width))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- what people's folders hold ---------------------------------------------------------------------------------------


def good(path: Path) -> None:
    write_video(path, pictures(seed=sum(path.name.encode())), fps=10)


def truncated(path: Path) -> None:
    write_video(path, pictures(), fps=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def garbled(path: Path) -> None:
    """Whole by its header, damaged in the middle: found only when it is decoded."""
    noise = torch.randint(256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    write_video(path, noise, fps=10, keyframe_every=2)
    data = bytearray(path.read_bytes())
    half = (data.index(b"mdat") + len(data)) // 2
    data[half : half + 2000] = bytes(2000)
    path.write_bytes(data)


def text(path: Path) -> None:
    path.write_text("this is a note, not a video\n" * 20)


def empty(path: Path) -> None:
    path.touch()


def no_frame(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        output.start_encoding()


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "is cut short"),
    "text": (text, "holds text, not video"),
    "empty": (empty, "is empty (0 bytes)"),
    "no_frame": (no_frame, "holds no"),
    "sound": (sound, "holds no video, only audio"),
}


def recording(path: Path, width: int = 2, broken: bool = False, frames: int = 12) -> None:
    """A demonstration as an npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    actions = rng.normal(size=(frames, width)).astype(np.float32)
    if broken:
        actions[5, 1] = np.nan
    np.savez(path, image=pictures(frames, seed=3).permute(0, 2, 3, 1).numpy(), action=actions)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound videos and demonstrations, and the stages trained on them."""
    home = tmp_path_factory.mktemp("home")
    for name in "abcd":
        good(home / "video" / f"{name}.mp4")
        recording(home / "shown" / f"{name}.npz")
    for name in STEPS:
        assert stage(home, name, home / name) == 0
    return home


def stage(home: Path, name: str, out: Path, *more: object) -> int:
    """Runs a stage on sound data, where ``more`` does not say otherwise."""
    words: list[object] = ["--preset", "tiny", *STEPS[name], "--out", out, "--cache", home / "cache"]
    words += ["--data", home / ("shown" if name == "finetune" else "video")]
    if name != "tokenizer":
        words += {
            "pretrain": ["--tokenizer-from", home / "tokenizer"],
            "finetune": ["--predictor-from", home / "pretrain"],
        }[name]
    return ideomotor("vpdd", name, *words, *more)


# --- video ------------------------------------------------------------------------------------------------------------


def test_damaged_videos_are_left_out_by_name_and_the_run_goes_on(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(home / "video", folder)
    for name, (make, _) in BAD.items():
        make(folder / f"{name}.mp4")
    garbled(folder / "garbled.mp4")
    before = digest(folder)
    capsys.readouterr()
    assert stage(home, "tokenizer", tmp_path / "out", "--data", folder) == 0
    shown = capsys.readouterr().err
    for name, (_, reason) in BAD.items():
        assert f"left out of mixed: {name}.mp4: {reason}" in shown
    assert "left out of mixed: garbled.mp4: VideoError: " in shown and "does not decode" in shown
    assert (tmp_path / "out/tokenizer/model.safetensors").is_file()
    assert digest(folder) == before


def test_many_damaged_videos_are_counted(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(home / "video", folder)
    for number in range(13):
        text(folder / f"{number:02}.mp4")
    assert stage(home, "tokenizer", tmp_path / "out", "--data", folder) == 0
    shown = capsys.readouterr().err
    assert shown.count("holds text") == 10
    assert f"left out of mixed: 3 more (ideomotor data inspect {folder})" in shown.replace("\n", " ")


def test_inspect_says_what_is_wrong_with_each(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(home / "video", folder)
    for name, (make, _) in BAD.items():
        make(folder / f"{name}.mp4")
    garbled(folder / "garbled.mp4")
    write_video(folder / "quick.mp4", pictures(seed=6), fps=25)
    write_video(folder / "odd.gif", pictures(height=33, width=47), fps=10)
    assert ideomotor("data", "inspect", folder, "--deep", "--json", tmp_path / "found.json") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, (_, reason) in BAD.items():
        assert f"{name}.mp4" in shown and reason in shown
    assert "garbled.mp4" in shown  # found by --deep alone
    assert "warning: 2 frame rates" in shown and "10 frames/s (6), 25 frames/s (1)" in shown
    assert "garbled.mp4" in (tmp_path / "found.json").read_text()


@pytest.mark.parametrize("kind", BAD)
def test_imagine_from_a_damaged_file(home: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = BAD[kind]
    make(tmp_path / "clip.mp4")
    assert ideomotor("imagine", home / "pretrain", "--input", tmp_path / "clip.mp4", "--out", tmp_path / "x.mp4") == 2
    assert f"{tmp_path / 'clip.mp4'} cannot be read: {reason}" in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_odd_sizes_and_two_frame_rates_are_taken(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    write_video(folder / "wide.gif", pictures(height=33, width=47), fps=10)
    write_video(folder / "high.webm", pictures(height=71, width=31), fps=30)
    write_video(folder / "even.mp4", pictures(height=64, width=36), fps=7.5)
    write_video(folder / "small.webm", pictures(height=9, width=7), fps=25)
    assert stage(home, "tokenizer", tmp_path / "out", "--data", folder) == 0
    assert "left out" not in capsys.readouterr().err
    for clip in folder.iterdir():
        assert ideomotor("imagine", home / "pretrain", "--input", clip, "--out", tmp_path / "x.mp4") == 0


def test_a_video_shorter_than_a_window_is_taken(home: Path, tmp_path: Path) -> None:
    for name, frames in (("one", 1), ("six", 6)):  # eight, 4 apart, reach over 29
        write_video(tmp_path / "short" / f"{name}.mp4", pictures(frames), fps=10)
    assert stage(home, "tokenizer", tmp_path / "out", "--data", tmp_path / "short") == 0


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        ((), "no data set was found in .*which holds no file. Wanted one of: lerobot"),
        (("notes.txt", "table.csv"), r"which holds (1 \.txt, 1 \.csv|1 \.csv, 1 \.txt)\. Wanted"),
        (("a.mp4", "b.mp4"), r"none of its 2 recordings can be read \(a.mp4: holds text, not video"),
    ],
    ids=["empty", "other files", "all bad"],
)
def test_a_folder_without_a_recording(
    home: Path, tmp_path: Path, fill: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in fill:
        text(folder / name)
    for verb in (
        lambda: stage(home, "tokenizer", tmp_path / "out", "--data", folder),
        lambda: ideomotor("imagine", home / "pretrain", "--input", folder, "--out", tmp_path / "x.mp4"),
    ):
        assert verb() == 2
        line = said(capsys)
        assert re.search(words, line), line
    assert not (tmp_path / "x.mp4").exists() and not list(tmp_path.glob("out/*/model.safetensors"))
    assert {path.name for path in folder.iterdir()} == set(fill)


def test_one_recording_cannot_be_split(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good(tmp_path / "one" / "a.mp4")
    assert stage(home, "tokenizer", tmp_path / "a", "--data", tmp_path / "one") == 2
    assert "has 1 episodes; a split needs at least 2" in said(capsys)
    assert stage(home, "tokenizer", tmp_path / "b", "--data", tmp_path / "one", "--validation", 0) == 0


# --- demonstrations ---------------------------------------------------------------------------------------------------


def test_demonstrations_with_nan_or_another_width_are_left_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shown"
    shutil.copytree(home / "shown", folder)
    recording(folder / "broken.npz", broken=True)
    recording(folder / "wide.npz", width=7)
    text(folder / "note.npz")
    before = digest(folder)
    capsys.readouterr()
    assert stage(home, "finetune", tmp_path / "out", "--data", folder) == 0
    shown = capsys.readouterr().err
    assert "left out of shown: broken.npz: row 5 of the actions holds nan" in shown
    assert "left out of shown: wide: has actions of width 7; 4 other episodes have width 2" in shown
    assert "left out of shown: note.npz: is cut short, damaged or no npz file" in shown
    assert digest(folder) == before and (tmp_path / "out/policy/model.safetensors").is_file()


def test_nan_in_a_lerobot_data_set(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = LeRobotWriter(tmp_path / "shown", fps=10, cameras={"main": (32, 32)}, action_names=("x", "y"))
    for number in range(4):
        actions = np.random.default_rng(number).normal(size=(12, 2)).astype(np.float32)
        writer.add_episode({"main": pictures(12, seed=number).numpy()}, actions, text="push")
    writer.finalize()
    (path,) = (tmp_path / "shown/data").rglob("*.parquet")
    table = pq.read_table(path)
    actions = table.column("action").to_pylist()
    actions[14][0] = float("nan")
    place = table.schema.get_field_index("action")
    column = pa.array(actions, table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), column), path)
    capsys.readouterr()
    assert stage(home, "finetune", tmp_path / "out", "--data", tmp_path / "shown") == 0
    assert "left out of shown: " in (shown := capsys.readouterr().err) and "action" in shown
    # A version that is not read is an error with the way out.
    info = tmp_path / "shown/meta/info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v2.1"'))
    assert stage(home, "finetune", tmp_path / "old", "--data", tmp_path / "shown") == 2
    assert "is a LeRobotDataset of version v2.1; v3.0 is read here: convert it" in said(capsys)


def test_a_robot_of_another_width_than_the_policy(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, "finetune", tmp_path / "out", "--policy.action-width", 4) == 2
    assert "--policy.action-width 2" in said(capsys)


def test_two_robots_of_different_width(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording(tmp_path / "wide/a.npz", width=7)
    recording(tmp_path / "wide/b.npz", width=7)
    assert stage(home, "finetune", tmp_path / "out", "--data", home / "shown", tmp_path / "wide") == 2
    line = said(capsys)
    assert "width 7" in line and "width 2" in line and "wide" in line


def test_a_camera_that_is_not_there(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(home, "finetune", tmp_path / "out", "--cameras", "wrist") == 2
    assert "has no camera 'wrist'; it has 'image'" in said(capsys)


# --- disks ------------------------------------------------------------------------------------------------------------


class Disk:
    """A small disk of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(self.path)], capture_output=True)
        if done.returncode != 0:
            pytest.skip("no disk may be mounted here (only root may, and not in every container)")

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self) -> None:
        """Leaves not a byte."""
        with (self.path / "filler").open("ab") as file:
            while True:
                try:
                    os.write(file.fileno(), bytes(4096))
                except OSError:
                    return


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    made = Disk(path)
    made.mount("size=8m")
    yield made
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("name", STEPS)
def test_a_full_disk_in_a_stage_and_then_room(
    home: Path, disk: Disk, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk.path / "out"
    disk.change("size=60k")
    assert stage(home, name, out) == 2
    line = said(capsys)
    assert "No space left on device" in line and "free some space and run the same command again" in line
    assert str(out) in line
    assert not list(out.glob("*/model.safetensors")) and not (out / "done.json").exists()
    disk.change("size=8m")
    assert stage(home, name, out) == 0
    for path in (home / name).glob("*/model.safetensors"):
        assert (out / path.relative_to(home / name)).read_bytes() == path.read_bytes()
    assert not list(out.rglob(".*.new*"))


def test_a_full_disk_while_frames_are_cached(home: Path, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    disk.change("size=100k")
    cache = disk.path / "cache"
    assert stage(home, "tokenizer", disk.path.parent / "out", "--cache", cache) == 2
    line = said(capsys)
    assert "the frame cache of 'video'" in line and "free some space" in line
    assert not [path for path in cache.glob("frames-*") if not path.name.endswith(".partial")]
    disk.change("size=8m")
    assert stage(home, "tokenizer", disk.path.parent / "out", "--cache", cache) == 0


def test_a_full_disk_keeps_the_old_video_and_page(home: Path, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("imagine", home / "pretrain", "--input", home / "video/a.mp4", "--out", disk.path / "x.mp4")
    assert ideomotor(*words) == 0
    claim(QuickstartConfig(world="toy", tasks=("red",), preset="tiny"), PRESETS["tiny"](), disk.path / "run", "")
    assert ideomotor("report", disk.path / "run") == 0
    before = digest(disk.path)
    disk.fill()
    capsys.readouterr()
    for command in ((*words, "--seed", 1, "--samples", 2), ("report", disk.path / "run")):
        assert ideomotor(*command) == 2
        assert "No space left on device" in said(capsys)
    (disk.path / "filler").unlink()
    assert digest(disk.path) == before


def test_a_full_disk_while_collecting(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium")

    class Here:
        def __init__(self, make, *, name, timeout):
            self.connection, self._desk = self, make()

        def send(self, message):
            self._message = message

        def receive(self):
            return self._desk.answer(self._message)

        def end(self):
            self._desk.close()

        def join(self):
            pass

    monkeypatch.setattr(collection, "Worker", Here)
    monkeypatch.setattr(collection.connection, "wait", lambda pipes, timeout: pipes[:1])

    def gather(out: Path) -> None:
        counts = {"demonstrations": 3, "expert": 1, "noisy": 0, "failed": 0}
        collect(CollectionConfig(out=out, world="toy", tasks=("red",), size=16, workers=1, **counts))

    disk.change("size=40k")
    with pytest.raises(OSError, match="No space left on device"):
        gather(disk.path / "data")
    assert not (disk.path / "data/demonstrations").exists()
    disk.change("size=8m")
    gather(disk.path / "data")
    gather(tmp_path / "straight")
    assert digest(disk.path / "data") == digest(tmp_path / "straight")


def test_a_file_that_may_not_grow(home: Path, tmp_path: Path) -> None:
    """A full disk for those who are not root: the kernel refuses what goes past 40 kB in a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    data = ("--data", home / "video", "--cache", home / "cache", "--out", tmp_path / "out")
    words = ["vpdd", "tokenizer", "--preset", "tiny", *STEPS["tokenizer"], *data]
    command = [sys.executable, "-m", "ideomotor", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.strip())
    assert line.startswith("error:") and "cannot write" in line and "What was saved before is intact" in line
    assert not list((tmp_path / "out").glob("*/model.safetensors"))
    assert ideomotor(*words) == 0


def places(tmp_path: Path) -> dict[str, Path]:
    """Where nobody can write."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked").mkdir(mode=0o555)
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file/sub",
        "the kernel's": Path("/proc/ideomotor"),
        "locked": tmp_path / "locked/sub",
    }


@pytest.mark.parametrize("place", ["a file", "below a file", "the kernel's", "locked"])
def test_folders_that_cannot_be_written(
    home: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == "locked" and os.geteuid() == 0:
        pytest.skip("root writes where others may not; a read-only disk stands for it below")
    out = places(tmp_path)[place]
    commands = {
        "stage": lambda: stage(home, "tokenizer", out),
        "cache": lambda: stage(home, "tokenizer", tmp_path / "out", "--cache", out),
        "quickstart": lambda: ideomotor("quickstart", "--world", "toy", "--preset", "tiny", "--out", out),
        "collect": lambda: ideomotor("collect", "metaworld", "--tasks", "reach", "--out", out),
        "imagine": lambda: ideomotor(
            "imagine", home / "pretrain", "--input", home / "video/a.mp4", "--out", out / "x.mp4"
        ),
    }
    capsys.readouterr()
    for name, command in commands.items():
        assert command() == 2, name
        assert str(out) in said(capsys), name
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.glob("out/*/model.safetensors"))


@pytest.mark.parametrize("command", ["cache", "quickstart", "imagine"])
def test_a_file_in_place_of_a_folder_says_what_to_do(
    home: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = places(tmp_path)["a file"]
    if command == "cache":
        assert stage(home, "tokenizer", tmp_path / "out", "--cache", out) == 2
    elif command == "quickstart":
        assert ideomotor("quickstart", "--world", "toy", "--preset", "tiny", "--out", out) == 2
    else:
        words = ("--input", home / "video/a.mp4", "--out", out / "x.mp4")
        assert ideomotor("imagine", home / "pretrain", *words) == 2
    line = said(capsys)
    assert "Errno" not in line and ("choose another" in line or "give another" in line)


def test_a_read_only_folder(home: Path, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    out = disk.path / "out"
    assert stage(home, "tokenizer", out) == 0
    before = digest(out)
    disk.change("ro")
    capsys.readouterr()
    assert stage(home, "tokenizer", disk.path / "other") == 2
    line = said(capsys)
    assert "Read-only file system" in line and "choose another --out, or make it writable" in line
    assert stage(home, "tokenizer", disk.path.parent / "x", "--cache", disk.path / "cache") == 2
    assert "Read-only file system" in said(capsys)
    words = ("--input", home / "video/a.mp4", "--out", disk.path / "x.mp4")
    assert ideomotor("imagine", home / "pretrain", *words) == 2
    assert "Read-only file system" in said(capsys)
    # What lies there can still be used.
    assert stage(home, "pretrain", disk.path.parent / "next", "--tokenizer-from", out) == 0
    assert digest(out) == before


# --- what other versions wrote ----------------------------------------------------------------------------------------


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def old(home: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the stages, to be spoilt."""
    return lambda name: Path(shutil.copytree(home / name, tmp_path / f"old-{name}"))


def readers(home: Path, name: str, folder: Path, out: Path) -> dict[str, Callable[[], int]]:
    """The commands that read what a stage has left."""
    clip = ("--input", home / "video/a.mp4", "--out", out / "x.mp4")
    return {
        "tokenizer": {"pretrain": lambda: stage(home, "pretrain", out, "--tokenizer-from", folder)},
        "pretrain": {
            "finetune": lambda: stage(home, "finetune", out, "--predictor-from", folder),
            "imagine": lambda: ideomotor("imagine", folder, *clip),
        },
        "finetune": {
            "evaluate": lambda: ideomotor("vpdd", "evaluate", folder, "--workers", 0),
            "imagine": lambda: ideomotor("imagine", folder, *clip),
        },
    }[name]


@pytest.mark.parametrize("name", STEPS)
def test_a_model_of_another_version(
    home: Path, tmp_path: Path, old: Callable[[str], Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gymnasium")
    folder = old(name)
    for config in folder.glob("*/config.json"):
        edit(config, format=9, ideomotor="7.3")
    for verb, command in readers(home, name, folder, tmp_path / "out").items():
        capsys.readouterr()
        assert command() == 2, verb
        line = said(capsys)
        assert "written by ideomotor 7.3 in format 9" in line and "install ideomotor 7.3" in line
    assert not list((tmp_path / "out").glob("*/model.safetensors")) and not (tmp_path / "out/x.mp4").exists()


def test_a_config_of_another_version(
    home: Path, tmp_path: Path, old: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = old("tokenizer")
    edit(folder / "vpdd.json", colour="blue")
    assert stage(home, "pretrain", tmp_path / "out", "--tokenizer-from", folder) == 2
    assert "config does not fit VPDD: unknown 'colour'. It was written by other code" in said(capsys)


@pytest.mark.parametrize("damage", ["cut", "edited"])
def test_damaged_weights(
    home: Path, tmp_path: Path, old: Callable[[str], Path], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = old("tokenizer") / "tokenizer/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data if damage == "edited" else data[:1000])
    assert stage(home, "pretrain", tmp_path / "out", "--tokenizer-from", tmp_path / "old-tokenizer") == 2
    assert ("fingerprint" if damage == "edited" else "is damaged or missing") in said(capsys)


@pytest.mark.parametrize(
    "file",
    [
        "run.json",
        "vpdd.json",
    ],
)
def test_damaged_notes_are_named(
    home: Path, tmp_path: Path, old: Callable[[str], Path], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = old("tokenizer")
    (folder / file).write_text('{"si')
    if file == "run.json":
        assert stage(home, "tokenizer", folder) == 2
    else:
        assert stage(home, "pretrain", tmp_path / "out", "--tokenizer-from", folder) == 2
    assert file in said(capsys)


def test_a_training_state_of_another_version(
    home: Path, old: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = old("tokenizer")
    (folder / "done.json").unlink()
    (state,) = (folder / "state").glob("*/state.json")
    edit(state, format=9, ideomotor="7.3")
    before = digest(folder)
    assert stage(home, "tokenizer", folder) == 2
    assert "written by ideomotor 7.3 in format 9" in said(capsys)
    assert {name: value for name, value in digest(folder).items() if name != "lock"} == {
        name: value for name, value in before.items() if name != "lock"
    }


def test_a_damaged_cache_says_how_to_mend_it(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(home, "tokenizer", tmp_path / "a", "--cache", tmp_path / "cache") == 0
    (frames,) = (tmp_path / "cache").glob("frames-*/frames.npy")
    frames.write_bytes(frames.read_bytes()[:5000])
    capsys.readouterr()
    assert stage(home, "tokenizer", tmp_path / "b", "--cache", tmp_path / "cache") == 2
    assert "delete the folder, and it is built again" in said(capsys)
    shutil.rmtree(frames.parent)
    assert stage(home, "tokenizer", tmp_path / "b", "--cache", tmp_path / "cache") == 0
    (frames.parent / "index.json").write_text('{"kind"')
    assert stage(home, "tokenizer", tmp_path / "c", "--cache", tmp_path / "cache") == 2
    assert f"{frames.parent / 'index.json'} is damaged" in said(capsys)


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(report: cli.Report) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Report, "run", interrupted)
    assert ideomotor("report") == 130
    assert capsys.readouterr().err == "stopped; what was finished stays\n"


def test_a_full_disk_is_told_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    why = "the cache needs 2 MB and 1 MB is free: free some space"

    def full(report: cli.Report) -> None:
        raise OSError(errno.ENOSPC, why)

    monkeypatch.setattr(cli.Report, "run", full)
    assert ideomotor("report") == 2 and said(capsys) == f"error: {why}"
