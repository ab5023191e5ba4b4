"""The examples run to their end in seconds, a second time too, and show what their first lines promise."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(name: str, *arguments: object, folder: Path) -> str:
    """Runs an example as a reader would, and returns what it says."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    known = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=known)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_one_sees(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    said = text.split('"""')[1]
    assert f"python examples/{path.name}" in said and "ou see" in said.replace("you watch", "you see")


def test_all_are_here_and_run_below() -> None:
    here = Path(__file__).read_text()
    assert len(SCRIPTS) == 5 and all(f'run("{path.stem}"' in here for path in SCRIPTS)


def test_converting_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from ideomotor.data.formats import open_dataset

    said = run("convert_videos", folder=tmp_path)
    assert "3 frame rates" in said and "left out: note.mp4: holds text, not video" in said
    assert "3 episodes, 60 frames (20 to 20 each)" in said and "camera 'main': 96x96" in said
    assert list(tmp_path.iterdir()) == []
    # The same of a folder of one's own; a data set that is there is not overwritten.
    from ideomotor.data.synthetic import synthetic_dataset
    from ideomotor.data.video import write_video

    for episode in synthetic_dataset(2, length=15, actions=False).episodes:
        write_video(tmp_path / "mine" / f"{episode.id}.mp4", episode.frames["video"].read(range(15)), 5)
    run("convert_videos", tmp_path / "mine", tmp_path / "out", folder=tmp_path)
    (first, second) = open_dataset(tmp_path / "out").episodes
    assert (first.length, second.length, first.fps) == (30, 30, 10) and first.frames["main"].shape[2:] == (96, 96)


@pytest.mark.slow
def test_training_vpdd(tmp_path: Path) -> None:
    said = run("train_vpdd", tmp_path / "out", folder=tmp_path)
    assert len(re.findall(r"acted x [+-]\d.\d\d y [+-]\d.\d\d   recorded x [+-]\d.\d\d", said)) == 4
    for stage, name in (("tokenizer", "tokenizer"), ("pretrain", "predictor"), ("finetune", "policy")):
        assert (tmp_path / "out" / stage / name / "model.safetensors").is_file()
    began = time.monotonic()
    again = run("train_vpdd", tmp_path / "out", folder=tmp_path)
    lines = [line for line in said.splitlines() if line.startswith("acted")]
    assert [line for line in again.splitlines() if line.startswith("acted")] == lines
    assert "step" not in again and time.monotonic() - began < 300


@pytest.mark.slow
def test_acting_in_the_toy_world(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    said = run("act_in_toy_world", folder=tmp_path)
    assert "12 demonstrations, e.g. 'push the disc to the red goal'" in said
    assert re.search(r"red +│ 3 ", said) and re.search(r"blue +│ 3 ", said) and "95 % interval" in said
    films = tmp_path / "runs/examples/act/films"
    assert {path.name for path in films.iterdir()} == {"red-30.mp4", "blue-30.mp4"}


@pytest.mark.slow
def test_imagining_a_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from ideomotor.data.video import probe

    said = run("imagine_video", folder=tmp_path)
    room = tmp_path / "runs/examples/imagine"
    assert "PSNR" in said and "2 imagined (orange)" in said and "; 8 frames" in said
    info = probe(room / "imagined.gif")
    assert (info.frames, info.height, info.width) == (12, 72, 288)  # truth, two futures, error
    words = (room / "pretrain", room / "clip.mp4", "the blue disc moves", tmp_path / "mine.mp4")
    assert 'text: "the blue disc moves"' in run("imagine_video", *words, folder=tmp_path)
    assert probe(tmp_path / "mine.mp4").frames == 12


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    said = run("own_objective", tmp_path / "out", folder=tmp_path)
    error, spread = map(float, re.search(r"an Agent: True; mean error (\S+), of the mean (\S+)", said).groups())
    assert error < 0.8 * spread
    assert run("own_objective", tmp_path / "out", folder=tmp_path).strip() == said.strip().splitlines()[-1]
