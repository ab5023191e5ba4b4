"""The GPU lane: in small it runs here, stopped and taken up again it ends alike, and in full it fits its machine."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
AGAIN = 75


@pytest.fixture
def lane(monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.syspath_prepend(str(GPU.parent))
    monkeypatch.syspath_prepend(str(GPU))
    import mt50_lane

    return mt50_lane


def begin(out: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "OUT"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(GPU / "mt50.py"), "--tiny", "--out", str(out), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def rows(out: Path) -> list[dict]:
    return json.loads((out / "out" / "mt50.json").read_text())["rows"]


def outcome(out: Path) -> tuple[dict[str, bytes], list[tuple]]:
    """The weights that came back, and how the trials went."""
    weights = {path.name: path.read_bytes() for path in (out / "out").glob("*.safetensors")}
    tried = map(json.loads, (out / "rollouts.jsonl").read_text().splitlines())
    return weights, sorted(
        (row["task"], row["goal"], row["success"], row["steps"], row["total_reward"]) for row in tried
    )


def within(process: subprocess.Popen[bytes], event: Callable[[], bool]) -> None:
    while process.poll() is None and not event():
        time.sleep(0.02)


@pytest.mark.slow
def test_stopped_by_its_clock_and_by_others_it_ends_alike(tmp_path: Path):
    pytest.importorskip("av"), pytest.importorskip("gymnasium")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert begin(straight, "--world", "toy").wait() == 0

    assert begin(broken, "--world", "toy", "--minutes", "0.1").wait() == AGAIN, "six seconds cannot be enough"
    assert begin(broken, "--world", "toy", "--minutes", "0.3").wait() in (AGAIN, 0)
    assert len(rows(broken)) <= 8
    process = begin(broken, "--world", "toy")
    within(process, (broken / "rollouts.jsonl").exists)
    process.send_signal(signal.SIGTERM)  # it may come while Python still imports, before anything can catch it
    assert process.wait() in (AGAIN, 0, -signal.SIGTERM)
    assert begin(broken, "--world", "toy").wait() == 0

    assert outcome(broken) == outcome(straight) and len(outcome(straight)[1]) == 4
    report = {row["what"]: row for row in rows(broken)}
    assert report.keys() == {row["what"] for row in rows(straight)}
    assert report["mean of 2 tasks"]["whole"] and report["task red"]["episodes"] == 2
    assert all(row["done"] for what, row in report.items() if what.startswith("stage"))
    assert report["stage finetune"]["step"] == 20 and report["stage finetune"]["loss"] > 0
    assert "unpack(THIS_FOLDER, OUT)" in json.loads((broken / "out" / "weights.json").read_text())["how"]


@pytest.mark.slow
@pytest.mark.sim
def test_tiny_runs_in_the_simulator(tmp_path: Path):
    pytest.importorskip("metaworld")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert begin(tmp_path).wait() == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Five minutes are the target; processor time is what a shared machine can promise.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 200
    assert {row["what"] for row in rows(tmp_path)} >= {"task door-close", "task handle-press", "mean of 2 tasks"}


def test_the_full_lane_is_what_was_asked_for_and_its_weights_are_few(lane, tmp_path):
    from ideomotor.envs.metaworld_tasks import instruction
    from ideomotor.layers.text import HashedWords
    from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
    from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
    from ideomotor.systems.vpdd_shards import LIMIT
    from ideomotor.tokenizers.vqvae3d import VQVAE3D

    full = lane.full()
    assert len(full.tasks) == 50 and full.demonstrations == 20 and full.episodes == 10
    assert full.model.policy.state_width == 0, "image-only"
    parts = (
        VQVAE3D(full.model.tokenizer),
        DiscreteDiffusionPredictor(full.model.predictor),
        DiscreteDiffusionPolicy(full.model.policy),
    )
    size = 2 * sum(weight.numel() for part in parts for weight in part.parameters())
    assert size < 56e6 < 4 * LIMIT, "four files of weights"
    vectors = HashedWords()([instruction(task) for task in full.tasks])
    assert (vectors @ vectors.T - 2 * vectors.new_ones(50).diag()).max() < 0.95, "no two tasks sound alike"


def test_what_is_tried_has_a_row_a_level(lane, tmp_path):
    from ideomotor.evaluation.episodes import EpisodeResult, append

    for task, won in (("reach", 1), ("door-open", 0), ("push", 1)):
        append(
            tmp_path / "rollouts.jsonl",
            EpisodeResult(
                arm="policy", task=task, seed=0, goal=30, success=bool(won), steps=9, total_reward=0.0, seconds=1.0,
                inference_cpu_seconds=0.1,
            ),
        )  # fmt: skip
    made = {row["what"]: row for row in lane.rows(lane.full(), tmp_path, lane.Notes.read(tmp_path / "notes.json"))}
    easy, hard = made["level easy, 2 of 28 tasks"], made["level hard, 1 of 11 tasks"]
    assert (easy["success"], easy["episodes"], easy["successes"]) == (0.5, 2, 1) and hard["success"] == 1.0
    assert not any(what.startswith("level middle") for what in made) and "mean of 3 tasks" in made


@pytest.mark.parametrize(
    ("rate", "left", "steps"), [(10.0, 1000.0, 1500), (1000.0, 1000.0, 6000), (0.1, 1000.0, 200), (10.0, -50.0, 200)]
)
def test_steps_follow_from_the_speed_and_the_time_left(lane, tmp_path, monkeypatch, rate, left, steps):
    ran = []

    def run(name: str, model: object, out: Path, folder: Path) -> None:
        ran.append((folder.relative_to(out).as_posix(), lane._stage(model, name).steps))
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"steps_per_second": rate / 2}) + "\n")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"steps_per_second": rate}) + "\n")

    monkeypatch.setattr(lane, "_run", run)
    notes = lane.Notes.read(tmp_path / "notes.json")
    monkeypatch.setattr(lane.time, "time", lambda: 100.0)
    lane._train("tokenizer", lane.full(), tmp_path, notes, 100.0 + left)
    assert ran == [("speed/tokenizer", 100), ("tokenizer", steps)]
    again = lane.Notes.read(tmp_path / "notes.json")  # a later call keeps to what was decided
    lane._train("tokenizer", lane.full(), tmp_path / "later", again, 1e9)
    assert ran[2:] == [("tokenizer", steps)]


def test_a_call_ends_before_its_time_whatever_it_does(lane, monkeypatch):
    import _calls

    from ideomotor.training.run import Stopped

    ended: list[int] = []
    monkeypatch.setattr(_calls.os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(_calls, "_BEGAN", time.monotonic())
    with pytest.raises(Stopped), _calls.ended_in_time(0.01):
        time.sleep(5)
    assert time.monotonic() - _calls._BEGAN < 3 and not ended
    monkeypatch.setattr(_calls, "_BEGAN", time.monotonic())
    with _calls.ended_in_time(0.01):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as deaf as a call into C that does not return
        while not ended and time.monotonic() - _calls._BEGAN < 5:
            time.sleep(0.05)
    assert ended == [AGAIN]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_missing_is_named(lane, tmp_path, monkeypatch, capsys):
    import _calls
    import mt50
    import torch

    monkeypatch.setattr(sys, "argv", ["mt50.py", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not mt50.missing("metaworld"):
        with pytest.raises(SystemExit):
            mt50.main()
        assert "torch sees no GPU" in capsys.readouterr().err
    monkeypatch.setattr(_calls.importlib.util, "find_spec", lambda name: None if name == "av" else name)
    assert mt50.missing("toy") == ['av: pip install "ideomotor[video]"']
    with pytest.raises(SystemExit):
        mt50.main()
    assert "packages are missing on this machine:\n  av:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
