"""VPP from a collected play table to five tasks in a row at it: two cameras, every stage, the page, and resumption."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")
pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

from test_bad_pairs import ideomotor, said

from ideomotor.data.formats import lerobot
from ideomotor.data.transforms import resize_and_crop
from ideomotor.evaluation.calvin_protocol import evaluation_sequences
from ideomotor.systems import table_trials, vpp_tables
from ideomotor.systems.table_trials import Seated, TableTrial, run_in_a_row
from ideomotor.systems.trials import View
from ideomotor.systems.vpp import Foresight, Looking
from ideomotor.systems.vpp_agent import acting_by
from ideomotor.systems.vpp_presets import looking_with, tiny
from ideomotor.systems.vpp_stages import load_agent
from ideomotor.systems.vpp_trials import name_of
from ideomotor.types import Clip

pytestmark = pytest.mark.sim
TWO = ("--preset", "tiny", "--views", 2, "--policy.action-width", 7)


def stage(home: Path, name: str, out: Path, *more: object) -> int:
    data = home / "data" / ("demonstrations" if name == "policy" else "video")
    earlier = {"vae": (), "video": ("--vae-from", home / "vae"), "policy": ("--video-from", home / "video")}[name]
    words = ["--data", data, "--cache", home / "cache", "--validation", 0, *earlier]
    return ideomotor("vpp", name, *TWO, *words, "--out", out, *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations and two videos of a short task, and the three stages trained on them."""
    home = tmp_path_factory.mktemp("tables")
    few = ("--tasks", "turn_on_led", "--demonstrations", 2, "--video", 2, "--workers", 0)
    assert ideomotor("collect", "play_table", "--out", home / "data", *few) == 0
    for name in ("vae", "video", "policy"):
        assert stage(home, name, home / name) == 0
    return home


def tried(home: Path, out: Path, *more: object) -> int:
    words = ("--world", "play_table", "--sequences", 2, "--steps", 5, "--films", 1, "--workers", 0)
    return ideomotor("vpp", "evaluate", home / "policy", *words, "--out", out, *more)


def rows(out: Path) -> list[dict[str, object]]:
    kept = ("sequence", "state", "tasks", "solved", "steps", "arm")
    logged = [json.loads(line) for line in (out / "sequences.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in kept} for row in logged]


def seen(count: int, views: int = 2) -> Clip:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = ("main", "view1")[:views]
    return Clip(frames={name: frames.roll(n, -1) for n, name in enumerate(names)}, text=("open the drawer",) * count)


def test_what_is_collected_has_actions_or_is_video_alone(home: Path) -> None:
    shown, video = (lerobot.read(home / "data" / name) for name in ("demonstrations", "video"))
    assert len(shown.episodes) == len(video.episodes) == 2
    for episode in (*shown.episodes, *video.episodes):
        assert set(episode.frames) == {"rgb_static", "rgb_gripper"} and episode.text
    assert all(e.read_actions is not None and e.outcome == "success" for e in shown.episodes)
    assert all(e.read_actions is None and e.read_proprio is None for e in video.episodes)
    assert [e.length for e in shown.episodes] != [e.length for e in video.episodes]


def test_both_cameras_are_learned_from_and_looked_through(home: Path) -> None:
    for name in ("vae", "video", "policy"):
        (facts,) = json.loads((home / name / "data.json").read_text())["datasets"]
        assert facts["camera"] == "rgb_static,rgb_gripper", name
    agent, both = load_agent(home / "policy"), seen(1)
    chunk = agent.act(both)
    assert chunk.shape == (1, 4, 7) and chunk.isfinite().all()
    for name in both.frames:
        dark = replace(both, frames={**both.frames, name: torch.zeros_like(both.frames[name])})
        assert not torch.equal(agent.act(dark), chunk), name
    assert Looking(replace(tiny(), views=2, eyes="pixels"))(torch.cat([*both.frames.values()], -2), None).ndim == 3


def test_features_of_both_cameras_made_once_train_the_same_policy(home: Path, tmp_path: Path) -> None:
    before = set((home / "cache").glob("features-*"))
    assert stage(home, "policy", tmp_path / "fast", "--cache-features") == 0
    assert len(set((home / "cache").glob("features-*")) - before) == 2
    live, cached = (load_agent(folder).act(seen(2)) for folder in (home / "policy", tmp_path / "fast"))
    torch.testing.assert_close(cached, live, atol=1e-2, rtol=1e-2)


def test_five_in_a_row_leave_tables_films_and_a_page(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tried(home, tmp_path) == 0
    told = capsys.readouterr().out
    assert "mean length" in told and "report.html" in told
    assert [(row["sequence"], row["state"]) for row in rows(tmp_path)] == [
        (sequence.number, sequence.state) for sequence in evaluation_sequences()[:2]
    ]
    assert all(row["steps"][-1] == 5 or row["solved"] == 5 for row in rows(tmp_path))  # type: ignore[index]
    (results,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert results["sequences"] == 2 and set(results["chain_sr"]) == set("12345")
    assert len(list(csv.DictReader((tmp_path / "in_a_row.csv").open()))) == 5
    page = (tmp_path / "report.html").read_text()
    assert page.count("<video") == 1 and "our own play table" in page and "not finished" not in page
    assert f"--sequences 2 --steps 5 --films 1 --workers 0 {home / 'policy'}" in page


def test_killed_and_taken_up_again_it_is_the_same_table(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tried(home, whole) == 0
    kept = (whole / "sequences.jsonl").read_bytes()
    parts.mkdir()
    first, second = kept.splitlines(keepends=True)
    (parts / "sequences.jsonl").write_bytes(first + second[: len(second) // 2])  # a line torn by a kill
    (draft := parts / f".results.json.{'0a' * 16}.part").write_bytes(b"{")  # and a table
    assert tried(home, parts) == 0
    assert rows(parts) == rows(whole) and not draft.exists()
    for name in ("in_a_row.csv", "tasks.csv", "results.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    monkeypatch.setattr(table_trials, "SubtaskVector", None)  # all is finished: no table is made
    assert tried(home, whole) == 0 and (whole / "sequences.jsonl").read_bytes() == kept


def test_noise_belongs_to_the_task_and_not_to_who_stands_beside(home: Path) -> None:
    agent = load_agent(home / "policy")
    agent.config = replace(agent.config, foresight=Foresight(seed=None))
    agent.foreseeing.config = agent.config  # type: ignore[union-attr]
    seated = Seated(agent, 32, 2)
    seated.begin([0, 1], [7, 8])
    both = seated.act(seen(2), [0, 1])
    again = seated.act(seen(2), [0, 1])
    seated.begin([1], [8])
    alone = seated.act(
        replace(seen(2), frames={k: v[1:] for k, v in seen(2).frames.items()}, text=("open the drawer",)), [1]
    )
    torch.testing.assert_close(alone, both[1:], atol=1e-5, rtol=1e-4)
    assert not torch.equal(both, again)  # drawn anew at each look


def test_it_sees_what_it_learned_from(home: Path) -> None:
    """Scaled at the table as by the stages' cache of frames, from the camera's own size."""
    pictures = {
        name: torch.randint(0, 256, (1, 1, 3, side, side), dtype=torch.uint8)
        for name, side in (("main", 200), ("view1", 84))
    }
    got: list[Clip] = []

    class Watched:
        def act(self, context: Clip, generators: object = None) -> torch.Tensor:
            got.append(context)
            return torch.zeros(1, 4, 7)

    seated = Seated(Watched(), 32, 2)
    seated.begin([0], [0])
    seated.act(Clip(frames=pictures, text=("",)), [0])
    for name, video in pictures.items():
        assert torch.equal(got[0].frames[name], resize_and_crop(video, (32, 32)))


def test_chunks_of_a_task_are_blended_and_those_of_the_last_are_not() -> None:
    from ideomotor.policies.actions import TemporalEnsemble

    class Counting:
        said = 0.0

        def act(self, context: Clip, generators: object = None) -> torch.Tensor:
            self.said += 1
            return torch.full((1, 4, 7), self.said)

    seated = Seated(Counting(), 32, 2, TemporalEnsemble(0.0))
    seated.begin([0], [0])
    chunks = [seated.act(seen(1), [0])[0, :, 0].tolist() for _ in range(2)]
    assert chunks == [[1, 1, 1, 1], [1.5, 1.5, 2, 2]]
    seated.begin([0], [1])
    assert np.allclose(seated.act(seen(1), [0])[0, :, 0], 3)


def test_a_policy_can_act_by_what_it_expects(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, names = [], set()
    for temperature in (1.0, 0.5, 0.0):
        agent = acting_by(load_agent(home / "policy"), None, None, temperature)
        names.add(name_of(agent))
        act = agent.policy.act
        monkeypatch.setattr(agent.policy, "act", lambda *a, act=act, **k: given.append(k["noise"]) or act(*a, **k))
        assert agent.act(seen(2)).isfinite().all()
    assert torch.equal(given[1], given[0] / 2) and given[0].std() > 0.5 and not given[2].any()
    assert len(names) == 3  # another temperature begins rows of its own
    for out, words in ((tmp_path / "warm", ()), (tmp_path / "cold", ("--temperature", 0))):
        assert tried(home, out, *words) == 0
    assert rows(tmp_path / "warm")[0]["arm"] != rows(tmp_path / "cold")[0]["arm"]
    assert "--temperature 0.0" in (tmp_path / "cold" / "report.html").read_text()


def test_a_control_is_not_called_vpp() -> None:
    assert vpp_tables._name(tiny()) == "VPP"
    assert vpp_tables._name(looking_with(tiny(), "pixels")) == "control (pixels)"


def test_what_does_not_fit_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for words, why in [
        (("--sequences", 0), "wanted 1 to 1000 sequences"),
        (("--camera", "rgb_gripper,rgb_static"), "add --other-camera where this is meant"),
        (("--other-camera", "--camera", "rgb_static"), "looks through 2 cameras, and rgb_static were named"),
        (("--other-camera", "--camera", "left,right"), "name that many of rgb_static, rgb_gripper"),
        (("--tasks", "open_drawer"), "runs sequences of five"),
        (("--calvin", tmp_path), "give --world calvin too"),
        (("--world", "calvin", "--workers", 1, "--calvin", tmp_path), "is not a whole calvin_env"),
        (("--world", "toy", "--calvin", tmp_path), "give --world calvin too"),
        (("--execute", 9), "execute 9 must lie in 1..chunk"),
        (("--temperature", 1.5), "--temperature is 1.5; wanted from 0"),
    ]:
        assert tried(home, out, *words) == 2
        assert why in said(capsys), words
    assert not out.exists()
    with pytest.raises(ValueError, match="workers is 0"):
        TableTrial(world="calvin", workers=0)
    view = View(cameras=("main",), size=32, context=1, stride=1, execute=1, action_width=4)
    arms = replace(view, cameras=("main", "view1", "view2"), action_width=38)
    for changed, why in [
        (view, "actions of width 4"),
        (arms, "actions of width 38"),
        (replace(view, action_width=7, context=4), "sees 4 frames"),
    ]:
        with pytest.raises(ValueError, match=why):
            run_in_a_row(None, changed, TableTrial(world="play_table"), out, arm="", name="", command="")  # type: ignore[arg-type]
    assert stage(home, "policy", out, "--policy.action-width", 4) == 2
    assert "set --policy.action-width 7" in said(capsys)
    assert stage(home, "policy", out, "--cameras", "rgb_static") == 2
    assert "name that many of rgb_static, rgb_gripper by --cameras" in said(capsys)
    shutil.rmtree(out, ignore_errors=True)
