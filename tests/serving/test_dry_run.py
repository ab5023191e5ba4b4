"""A dry run tells how far a policy is from what was recorded: on one whose errors are known."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ideomotor.cli import main
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.serving.client import Client
from ideomotor.serving.dry_run import drawing, dry_run, matched_cameras
from ideomotor.serving.server import Server, ServerConfig, running

for module in ("websockets", "msgpack", "prometheus_client", "av", "pyarrow"):
    pytest.importorskip(module)

CHUNK, EXECUTE, SIZE = 6, 4, 32


class Knowing:
    """A policy that reads the right actions from a list, and is off by a tenth in dimension 0, by nothing in 1."""

    max_batch = 4

    def __init__(self, episodes, camera: str = "view", state: int = 0) -> None:
        self.episodes, self.number, self.shown = [episode.read_actions() for episode in episodes], -1, []
        images = {camera: {"height": SIZE, "width": SIZE, "dtype": "uint8", "recorded_as": None}}
        seen = {"images": images, "context": 2, "stride": 3, "state": state, "state_needed": state > 0, "prompt": True}
        done = {"chunk": CHUNK, "execute": EXECUTE, "width": 2, "rate_hz": None}
        about = {"version": 1, "kind": "policy", "system": "knowing", "observation": seen, "actions": done}
        self.metadata = {"ideomotor": about | {"extensions": []}}

    def session(self):
        self.number += 1
        return self.number

    def prepare(self, session, message):
        self.shown.append((session, message["ideomotor"]["step"], message["images"], message["prompt"]))
        return session, message["ideomotor"]["step"]

    def infer(self, batch):
        replies = []
        for session, step in batch:
            rows = np.minimum(step + np.arange(CHUNK), len(self.episodes[session]) - 1)
            replies.append({"actions": self.episodes[session][rows].astype(np.float32) + np.float32([0.1, 0])})
        return replies

    def imagine(self, prepared):
        raise ValueError


@pytest.fixture
def dataset():
    return synthetic_dataset(3, length=14, size=SIZE, seed=1)


@pytest.mark.parametrize(
    ("about", "says"), [({}, "announces nothing"), ({"ideomotor": {"kind": "world"}}, "no policy")]
)
def test_what_is_no_policy_of_ours_is_told(dataset, about, says) -> None:
    class Foreign:
        metadata = about

    with pytest.raises(ValueError, match=says):
        dry_run(Foreign(), dataset)


def test_the_errors_of_a_policy_whose_errors_are_known(dataset) -> None:
    policy = Knowing(dataset.episodes)
    with running(Server(policy, ServerConfig(port=0))) as url, Client(url) as client:
        found = dry_run(client, dataset, episodes=2)
    assert (found.system, found.episodes, found.compared, found.requests) == ("knowing", 2, 28, 8)
    first, second = found.dimensions
    assert first.mean == pytest.approx(0.1, abs=1e-5) and first.worst == pytest.approx(0.1, abs=1e-5)
    assert second.worst == 0
    recorded = np.concatenate([episode.read_actions() for episode in dataset.episodes[:2]])
    assert [entry.spread for entry in found.dimensions] == pytest.approx(recorded.std(0).tolist(), abs=1e-6)
    assert set(found.latency_ms) == {"round trip", "network", "queue", "infer"}
    assert 0 < found.latency_ms["round trip"]["p50"] <= found.latency_ms["round trip"]["max"]
    # It saw what the robot saw: two frames, three apart, the first again where there is none before.
    for number, step, images, prompt in policy.shown:
        episode = dataset.episodes[number]
        frames = episode.frames["video"].read([max(0, step - 3), step]).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(images["view"], frames) and prompt == episode.text
    assert [step for _, step, _, _ in policy.shown] == [0, 4, 8, 12] * 2
    assert np.array_equal(found.recorded, dataset.episodes[0].read_actions())
    picture = ElementTree.fromstring(drawing(found))
    assert len(picture.findall(".//{*}path")) == 4 and picture.tag.endswith("svg")


def test_cameras_are_told_known_or_the_only_one() -> None:
    (episode,) = synthetic_dataset(1, length=4, size=SIZE).episodes
    two = synthetic_dataset(1, length=4, size=SIZE).episodes[0]
    object.__setattr__(two, "frames", {"left": episode.frames["video"], "right": episode.frames["video"]})

    def metadata(**names):
        return {"ideomotor": {"observation": {"images": {name: {"recorded_as": as_} for name, as_ in names.items()}}}}

    assert matched_cameras(metadata(view=None), episode, {}) == {"view": "video"}
    assert matched_cameras(metadata(view="right"), two, {}) == {"view": "right"}
    assert matched_cameras(metadata(view="right"), two, {"view": "left"}) == {"view": "left"}
    assert matched_cameras(metadata(right=None, left=None), two, {}) == {"right": "right", "left": "left"}
    with pytest.raises(ValueError, match=r"The data have left, right: --cameras view=ONE_OF_THEM"):
        matched_cameras(metadata(view=None), two, {})
    with pytest.raises(ValueError, match="view=top"):
        matched_cameras(metadata(view=None), two, {"view": "top"})
    with pytest.raises(ValueError, match="which camera is the policy's 'b'"):
        matched_cameras(metadata(a=None, b=None), episode, {})


def test_data_that_do_not_fit(dataset) -> None:
    policy = Knowing(dataset.episodes, state=3)
    with running(Server(policy, ServerConfig(port=0))) as url, Client(url) as client:
        with pytest.raises(ValueError, match="reads the robot's state"):
            dry_run(client, replace(dataset, episodes=(replace(dataset.episodes[0], read_proprio=None),)))
        with pytest.raises(ValueError, match="no episodes"):
            dry_run(client, dataset, episodes=0)


def test_the_command_prints_and_writes(dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ideomotor.data.formats import open_dataset
    from ideomotor.serving.recorder import Recorder

    with Recorder(tmp_path / "data", fps=5) as recorder:
        for episode in dataset.episodes:
            recorder.begin(episode.text)
            frames = episode.frames["video"].read(range(episode.length)).permute(0, 2, 3, 1).numpy()
            for frame, action in zip(frames, episode.read_actions(), strict=True):
                recorder.step({"main": frame}, action)
            recorder.end()
    policy = Knowing(open_dataset(tmp_path / "data").episodes)
    with running(Server(policy, ServerConfig(port=0))) as url:
        main(["dry_run", url, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--episodes", "2"])
        said = capsys.readouterr().out
        assert "28 actions of 2 episodes" in said and "round trip: p50" in said and "0.1" in said
        figures = json.loads((tmp_path / "out/dry_run.json").read_text())
        assert figures["dimensions"][0]["mean"] == pytest.approx(0.1, abs=1e-4) and "recorded" not in figures
        ElementTree.parse(tmp_path / "out/dry_run.svg")
        for words, wanted in ((["--cameras", "main"], "view=corner2"), (["--episodes", "0"], "at least 1")):
            with pytest.raises(SystemExit):
                main(["dry_run", url, "--data", str(tmp_path / "data"), *words])
            assert wanted in capsys.readouterr().err
