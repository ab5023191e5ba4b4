"""The examples run to their end in seconds, a second time too, and show what their first lines promise."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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
    assert len(SCRIPTS) == 7 and all(f'run("{path.stem}"' in here for path in SCRIPTS)


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


def test_a_robots_loop(tmp_path: Path) -> None:
    for module in ("av", "pyarrow", "websockets", "msgpack", "prometheus_client"):
        pytest.importorskip(module)
    from ideomotor.data.formats import open_dataset

    said = run("robot_loop", tmp_path / "out", folder=tmp_path)
    assert "of 20 Hz over 60 steps" in said and "the fake robot came to" in said
    (recorded,) = (tmp_path / "out").iterdir()
    (episode,) = open_dataset(recorded).episodes
    actions = episode.read_actions()
    assert 30 < episode.length <= 60 and np.abs(np.diff(actions, axis=0)).max() <= 0.2 + 1e-6
    assert (np.diff(actions, axis=0) * [1, -1] > -0.01).all() and np.abs(actions[-1] - [1, -1]).max() < 0.1
    run("robot_loop", tmp_path / "out", folder=tmp_path)
    assert len(list((tmp_path / "out").iterdir())) == 2


class Replayed:
    """What Meta-World's scripted expert did in this very episode, from the step on that a request names."""

    max_batch = 1

    def __init__(self, task: str, goal: int) -> None:
        from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv

        world, self.plan, done = MetaWorldEnv(MetaWorldConfig(task=task)), [], False
        world.reset(options={"goal": goal})
        while not done:
            self.plan.append(world.expert_action())
            _, success, truncated, _ = world.advance(self.plan[-1])
            done = success or truncated
        world.close()
        seen = {"images": {"view": {"height": 96, "width": 96}}, "context": 1, "stride": 1}
        done = {"chunk": 12, "execute": 6, "width": 4, "rate_hz": None}
        self.metadata = {"ideomotor": {"kind": "policy", "system": "replay", "observation": seen, "actions": done}}
        self.shown = []

    def session(self) -> None:
        return None

    def prepare(self, session, message):
        if message["ideomotor"].get("op") == "reset":
            return None
        self.shown.append(message)
        return message["ideomotor"]["step"]

    def infer(self, batch):
        return [{"actions": np.resize(self.plan[step : step + 12], (12, 4))} for step in batch]


@pytest.mark.sim
def test_driving_meta_world_through_a_socket(tmp_path: Path) -> None:
    for module in ("metaworld", "websockets", "msgpack", "prometheus_client"):
        pytest.importorskip(module)
    from ideomotor.serving.server import Server, ServerConfig, running

    policy = Replayed("drawer-open", 30)
    with running(Server(policy, ServerConfig(port=0))) as url:
        said = run("drive_metaworld", url, "drawer-open", folder=tmp_path)
    assert re.search(rf"open the drawer, goal 30: done after {len(policy.plan)} steps, \d+ answers of ", said)
    assert [message["images"]["view"].shape for message in policy.shown[:2]] == [(96, 96, 3)] * 2
    assert policy.shown[0]["prompt"] == "open the drawer" and policy.shown[0]["state"].shape == (4,)
