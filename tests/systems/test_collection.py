"""Collection: checked outcomes, no actions in the video, same bytes whatever the workers and interruptions."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("pyarrow")
pytest.importorskip("av")

import pyarrow.parquet as pq

from ideomotor.data.formats.lerobot import read
from ideomotor.envs.toy import ToyConfig, ToyEnv
from ideomotor.envs.world import GOALS
from ideomotor.systems import collection
from ideomotor.systems.collection import CollectionConfig, collect
from ideomotor.systems.collection_episodes import EpisodeMaker, Job
from ideomotor.systems.collection_worlds import WORLDS, make_world


def config(out: Path, **settings) -> CollectionConfig:
    small = {
        "world": "toy",
        "tasks": ("red", "blue"),
        "size": 16,
        "demonstrations": 2,
        "expert": 1,
        "noisy": 2,
        "failed": 2,
    }
    return CollectionConfig(out=out, **(small | settings))


class InProcess:
    """Stands in for a worker process where processes are not what is tested."""

    def __init__(self, make, *, name, timeout):
        self.connection, self._desk, self._message = self, make(), None

    def send(self, message):
        self._message = message

    def receive(self):
        return self._desk.answer(self._message)

    def end(self):
        self._desk.close()

    def join(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(collection, "Worker", InProcess)
    monkeypatch.setattr(
        collection.connection, "wait", lambda pipes, timeout: pipes[-1:]
    )  # last in, first out: any order


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def columns(folder: Path) -> dict[str, list]:
    return pq.read_table(folder / "data").to_pydict()


def test_what_is_collected(tmp_path, in_process):
    told = []
    made = collect(config(tmp_path / "new" / "toy"), lambda *news: told.append(news))
    assert made.episodes == {"demonstrations": 4, "video": 10} and made.missing == ()
    assert [news[0] for news in told] == list(range(1, 15)) and {news[1] for news in told} == {14}

    demonstrations, video = read(made.demonstrations), read(made.video)
    assert not demonstrations.quarantined and not video.quarantined
    assert [episode.outcome for episode in demonstrations.episodes] == ["success"] * 4
    assert [episode.text for episode in demonstrations.episodes] == ["push the disc to the red goal"] * 2 + [
        "push the disc to the blue goal"
    ] * 2
    for episode in demonstrations.episodes:
        assert episode.fps == 20
        assert episode.read_actions().shape == episode.read_proprio().shape == (episode.length, 2)
        assert episode.frames["main"].shape == (episode.length, 3, 16, 16)
    table = columns(made.video)
    assert {name.split(".")[0] for name in table} & {"action", "observation"} == set()
    assert set(table["kind"]) == {"expert", "noisy", "failed"} and set(table["world_task"]) == {"red", "blue"}
    outcomes = dict(zip(table["episode_index"], zip(table["kind"], table["outcome"], strict=True), strict=True))
    assert {kind: {o for k, o in outcomes.values() if k == kind} for kind in ("expert", "failed")} == {
        "expert": {"success"},
        "failed": {"failure"},
    }
    assert set(table["goal"]) <= set(GOALS["train"])
    assert all(episode.read_actions is None and episode.read_proprio is None for episode in video.episodes)


def test_demonstrations_replay_to_success_and_end_soon_after(tmp_path, in_process):
    made = collect(config(tmp_path, expert=0, noisy=0, failed=0, tasks=("green",), demonstrations=3))
    assert made.video is None and not (tmp_path / "video").exists()
    table = columns(made.demonstrations)
    episodes = read(made.demonstrations).episodes
    goals = [table["goal"][table["episode_index"].index(number)] for number in range(3)]
    assert len(set(goals)) == 3
    for goal, episode in zip(goals, episodes, strict=True):
        world = ToyEnv(ToyConfig(task="green", size=16))
        observation, _ = world.reset(options={"goal": goal})
        successes = []
        seen = episode.frames["main"].read(range(episode.length)).numpy().astype(int)
        for action, proprio, picture in zip(episode.read_actions(), episode.read_proprio(), seen, strict=True):
            np.testing.assert_array_equal(proprio, observation["proprio"])
            assert np.abs(observation["frames"]["main"] - picture).mean() < 12  # video is lossy at 16 px
            observation, _, success, _, _ = world.step(action)
            successes.append(success)
        assert successes.index(True) == episode.length - 6


def test_workers_and_a_kill_change_no_byte(tmp_path):
    """kill -9 in the middle of a run, then the same call with other workers, equals one uninterrupted run."""
    whole = tmp_path / "whole"
    collect(config(whole, workers=2, demonstrations=6, noisy=6))
    cut = tmp_path / "cut"
    code = (
        "from pathlib import Path\n"
        "from ideomotor.systems.collection import CollectionConfig, collect\n"
        "if __name__ == '__main__':\n"
        f"    collect(CollectionConfig(out=Path({str(cut)!r}), world='toy', tasks=('red', 'blue'), size=16,\n"
        "        demonstrations=6, expert=1, noisy=6, failed=2, workers=1), lambda *news: print(*news, flush=True))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in running.stdout:
        if line.startswith("5 "):
            break
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    stored = len(list((cut / ".demonstrations.partial" / "episodes").glob("[0-9]*")))
    assert 4 <= stored < 12 and not (cut / "demonstrations").exists()
    told = []
    made = collect(config(cut, workers=2, demonstrations=6, noisy=6), lambda *news: told.append(news))
    assert len(told) < 30 - 4 and told[-1][:2] == (30, 30)  # those on disk were not made again
    assert made.episodes == {"demonstrations": 12, "video": 18}
    assert digest(cut) == digest(whole)
    before = digest(cut)
    assert collect(config(cut, demonstrations=6, noisy=6)) == made  # nothing is left to do
    assert digest(cut) == before


def test_orphans_end_with_their_parent(tmp_path):
    code = (
        "import functools, time\n"
        "from ideomotor.envs.worker import Worker\n"
        "from ideomotor.systems.collection_episodes import EpisodeMaker\n"
        "if __name__ == '__main__':\n"
        "    worker = Worker(functools.partial(EpisodeMaker, print, 0, ()), name='x')\n"
        "    print(worker.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pid = int(running.stdout.readline())
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_episode_depends_on_its_job_alone():
    jobs = [
        Job(task="red", kind=kind, index=index, first_goal=0, folder="demonstrations", place=0)
        for kind in ("demonstration", "expert", "noisy", "failed")
        for index in range(2)
    ]

    def make(task: str) -> ToyEnv:
        return make_world("toy", {"size": 16}, task)

    forwards, backwards = EpisodeMaker(make, 3, ()), EpisodeMaker(make, 3, ())
    one = {job: forwards.answer(job) for job in jobs}
    other = {job: backwards.answer(job) for job in reversed(jobs)}
    for job in jobs:
        np.testing.assert_array_equal(one[job].frames["main"], other[job].frames["main"])
        np.testing.assert_array_equal(one[job].actions, other[job].actions)
    assert len({take.frames["main"].tobytes() for take in one.values()}) == len(jobs)
    again = EpisodeMaker(make, 4, ()).answer(jobs[4])
    assert again.actions.tobytes() != one[jobs[4]].actions.tobytes()
    for take in one.values():
        assert np.abs(take.actions).max() <= 1 and take.actions.dtype == np.float32


class Hopeless(ToyEnv):
    """A world whose expert never succeeds at one goal, or at any."""

    hopeless = range(50)

    def expert_action(self):
        return np.zeros(2, np.float32) if self._goal in self.hopeless else super().expert_action()


def test_other_goals_are_tried_and_giving_up_is_reported(tmp_path, in_process, monkeypatch):
    def make(world, settings, task):
        return Hopeless(ToyConfig(task=task, **settings))

    monkeypatch.setattr(collection, "make_world", make)
    monkeypatch.setattr(Hopeless, "hopeless", range(25))
    made = collect(config(tmp_path / "some", tasks=("red",), demonstrations=6, expert=0, noisy=0, failed=0))
    table = columns(made.demonstrations)
    assert made.episodes["demonstrations"] == 6 and min(table["goal"]) >= 25 and max(table["attempt"]) > 0

    monkeypatch.setattr(Hopeless, "hopeless", range(50))
    out = tmp_path / "none"
    asked = config(out, tasks=("red",), demonstrations=0, expert=1, noisy=1, failed=0)
    made = collect(asked)
    assert made.missing == ("video: red expert 0: none of 10 goals gave one",) and made.episodes["video"] == 1
    assert collect(asked).missing == made.missing  # noted for later
    with pytest.raises(RuntimeError, match=r"not one episode of .*demonstrations.*none of 10 goals"):
        collect(config(tmp_path / "nothing", tasks=("red",), demonstrations=1, expert=0, noisy=0, failed=0))


def test_error_in_an_episode_arrives_with_task_kind_and_seed(tmp_path, in_process, monkeypatch):
    def make(world, settings, task):
        raise OSError("no such simulator")

    monkeypatch.setattr(collection, "make_world", make)
    with pytest.raises(RuntimeError, match=r"task red, demonstration 1, seed 9.*no such simulator"):
        collect(config(tmp_path, seed=9))


def test_other_settings_in_the_same_folder_are_refused(tmp_path, in_process):
    asked = config(tmp_path, tasks=("red",), expert=0, noisy=0, failed=0)
    collect(asked)
    with pytest.raises(ValueError, match=r"seed was 0 and is 1.*another folder"):
        collect(replace(asked, seed=1))
    noted = json.loads((tmp_path / "collection.json").read_text())
    assert noted["settings"]["tasks"] == ["red"] and noted["missing"] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ("purple",)}, "no task 'purple'"),
        ({"cameras": ("side",)}, "main, close"),
        ({"tasks": ()}, "at least one task"),
        ({"noisy": -1}, "noisy=-1"),
        ({"workers": 0}, "workers=0"),
        ({"size": 15}, "even"),
        ({"demonstrations": 0, "expert": 0, "noisy": 0, "failed": 0}, "nothing to collect"),
        ({"world": "metaworld", "tasks": ("door-opne",)}, "did you mean 'door-open'"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        collect(config(tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_all_stands_for_every_task(tmp_path, in_process):
    made = collect(
        config(tmp_path, tasks=("all",), demonstrations=1, expert=0, noisy=0, failed=0, cameras=("close", "main"))
    )
    assert made.episodes["demonstrations"] == 3
    assert set(read(made.demonstrations).episodes[0].frames) == {"close", "main"}


@pytest.mark.sim
def test_meta_world_is_collected_in_its_own_units(tmp_path):
    pytest.importorskip("metaworld")
    from ideomotor.envs.metaworld import MetaWorldEnv

    made = collect(
        CollectionConfig(
            out=tmp_path,
            tasks=("button-press-topdown",),
            demonstrations=1,
            expert=0,
            noisy=0,
            failed=2,
            size=32,
            workers=1,
        )
    )
    (episode,) = read(made.demonstrations).episodes
    assert episode.text == "press the button from the top" and list(episode.frames) == ["corner2"]
    assert episode.fps == WORLDS["metaworld"].fps == MetaWorldEnv.metadata["render_fps"] == 80
    assert episode.read_actions().shape == (episode.length, 4) and np.abs(episode.read_actions()).max() <= 1
    assert [e.outcome for e in read(made.video).episodes] == ["failure", "failure"]
