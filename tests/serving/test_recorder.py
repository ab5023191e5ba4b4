"""What is recorded is read back by the house's own reader, and a kill between episodes loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ideomotor.serving.recorder import Recorder

pytest.importorskip("av")
pytest.importorskip("pyarrow")


def record(recorder: Recorder, number: int, length: int = 5) -> None:
    recorder.begin(f"task {number}")
    for step in range(length):
        frame = np.full((16, 20, 3), 40 * number + 10, np.uint8)
        recorder.step({"main": frame}, np.array([number, step]), np.array([step, 0.5, -1]))


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    from ideomotor.data.formats import open_dataset

    with Recorder(tmp_path / "seen", fps=20, action_names=("x", "y"), robot_type="made up") as recorder:
        for number in range(3):
            record(recorder, number, length=4 + number)
            assert recorder.steps == 4 + number
            assert recorder.end("success" if number else "") == number and recorder.stored == number + 1
        record(recorder, 4)
        recorder.drop()
        record(recorder, 3)  # ended by finalize
    dataset = open_dataset(tmp_path / "seen")
    assert dataset.format == "lerobot" and dataset.quarantined == ()
    assert [episode.length for episode in dataset.episodes] == [4, 5, 6, 5]
    assert [episode.text for episode in dataset.episodes] == ["task 0", "task 1", "task 2", "task 3"]
    assert [episode.outcome for episode in dataset.episodes] == ["", "success", "success", ""]
    for number, episode in enumerate(dataset.episodes):
        assert episode.fps == 20
        assert np.array_equal(episode.read_actions(), [[number, step] for step in range(episode.length)])
        assert np.array_equal(episode.read_proprio(), [[step, 0.5, -1] for step in range(episode.length)])
        frames = episode.frames["main"].read(range(episode.length)).numpy()
        assert frames.shape[1:] == (3, 16, 20) and np.abs(frames.astype(int) - 40 * number - 10).max() <= 3


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_recorder import record
from ideomotor.serving.recorder import Recorder

recorder = Recorder({path!r}, fps=10)
for number in range(2):
    record(recorder, number)
    recorder.end()
record(recorder, 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_the_episode_under_way_and_no_other(tmp_path: Path) -> None:
    from ideomotor.data.formats import open_dataset

    path = tmp_path / "seen"
    code = KILLED.format(here=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == -signal.SIGKILL and not path.exists()
    with pytest.raises(FileExistsError, match="resume=True"):
        Recorder(path, fps=10)
    with pytest.raises(ValueError, match="10 steps a second"):
        Recorder(path, fps=20, resume=True)
    with Recorder(path, fps=10, resume=True) as recorder:
        assert recorder.stored == 2
        record(recorder, 2)
    assert [episode.text for episode in open_dataset(path).episodes] == ["task 0", "task 1", "task 2"]
    with pytest.raises(FileExistsError, match="another place"):
        Recorder(path, fps=10, resume=True)


def test_a_kill_before_the_settings_were_written_loses_nothing_either(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    (tmp_path / ".seen.partial" / "episodes").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="resume=True"):
        Recorder(path, fps=10)
    with Recorder(path, fps=10, resume=True) as recorder:
        assert recorder.stored == 0
        record(recorder, 0)
    assert path.is_dir()


@pytest.mark.parametrize(
    "frame", [np.zeros((16, 20), np.uint8), np.zeros((16, 20, 3)), np.zeros((3, 16, 20), np.uint8)]
)
def test_a_frame_that_cannot_be_stored_is_refused_at_its_step(tmp_path: Path, frame: np.ndarray) -> None:
    """And not when the episode ends, which would then be lost."""
    recorder = Recorder(tmp_path / "seen", fps=10)
    recorder.begin("task")
    with pytest.raises(ValueError, match=r"camera 'main' .*wanted uint8 \(h, w, 3\)"):
        recorder.step({"main": frame}, np.zeros(2))
    record_anew = np.zeros((16, 20, 3), np.uint8)
    recorder.step({"main": record_anew}, np.zeros(2))
    assert recorder.end() == 0


def test_an_error_keeps_what_led_to_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="robot"), Recorder(tmp_path / "seen", fps=10) as recorder:
        record(recorder, 0)
        raise RuntimeError("the robot stopped")
    again = Recorder(tmp_path / "seen", fps=10, resume=True)
    assert again.stored == 1
    assert again.finalize() == tmp_path / "seen"


def test_what_cannot_be_recorded_is_refused_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "seen", fps=10)
    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="begin"):
        recorder.step({"main": frame}, np.zeros(2))
    with pytest.raises(ValueError, match="no step was recorded"):
        recorder.end()
    recorder.begin("a")
    with pytest.raises(ValueError, match="under way"):
        recorder.begin("b")
    with pytest.raises(ValueError, match="must be even"):
        recorder.step({"main": frame[:15]}, np.zeros(2))
    with pytest.raises(ValueError, match=r"action is .*nan"):
        recorder.step({"main": frame}, np.array([0, np.nan]))
    recorder.step({"main": frame}, np.zeros(2))
    with pytest.raises(ValueError, match="those before it"):
        recorder.step({"main": frame}, np.zeros(3))
    with pytest.raises(ValueError, match="those before it"):
        recorder.step({"main": frame, "hand": frame}, np.zeros(2))
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recorder(tmp_path / "other", fps=10).finalize()
