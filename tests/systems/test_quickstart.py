"""The whole way on the toy world: every stage, the page, and kills in the middle of each stage."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gymnasium", reason="the metaworld extra is not installed")
pytest.importorskip("av", reason="the video extra is not installed")

from ideomotor.systems.stages import domain_of

pytestmark = pytest.mark.slow

# Twice the steps of the tiny preset, so that a stage lasts long enough to be caught in its middle.
OPTIONS = ["--world", "toy", "--tasks", "red", "blue", "--preset", "tiny"]
OPTIONS += ["--demonstrations", "3", "--episodes", "3", "--budget-minutes", "50"]
TRAINED = {
    "tokenizer": "tokenizer",
    "pretrain": "predictor",
    "finetune": "policy",
    "control": "policy",
}
PATIENCE = 600  # seconds; machines that run tests can be very busy


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ideomotor", "quickstart", *OPTIONS, "--out", str(out), "--workers", "1", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> str:
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output.decode()
    return output.decode()


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(out: Path) -> dict[str, str]:
    files = {stage: out / stage / model / "model.safetensors" for stage, model in TRAINED.items()}
    return {stage: hashlib.sha256(path.read_bytes()).hexdigest() for stage, path in files.items()}


def rollouts(out: Path, arm: str) -> list[dict]:
    return [json.loads(line) for line in (out / f"rollouts-{arm}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody disturbed, and what it said."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, finish(start(out))


def test_it_leaves_a_page_and_the_figures(whole: tuple[Path, str]) -> None:
    out, said = whole
    assert "report.html" in said
    figures = json.loads((out / "report.json").read_text())
    for arm in ("pretrained", "control"):
        assert set(figures["arms"][arm]["tasks"]) == {"red", "blue"}
        for row in figures["arms"][arm]["tasks"].values():
            low, high = row["interval"]
            assert row["episodes"] == 3 and 0 <= row["successes"] <= 3 and low <= row["successes"] / 3 <= high
        assert 0 <= figures["arms"][arm]["mean_success"] <= 1
        assert {(row["task"], row["goal"]) for row in rollouts(out, arm)} == {
            (task, goal) for task in ("red", "blue") for goal in (30, 31, 32)
        }
    assert {"moving_psnr", "repeat_last_moving_psnr"} <= set(figures["imagination"])
    names = ["collect", "tokenizer", "pretrain", "finetune", "evaluate", "imagine", "control", "evaluate-control"]
    assert [stage["name"] for stage in figures["stages"]] == names
    assert all(stage["seconds"] > 0 and stage["peak_rss_bytes"] > 1e7 for stage in figures["stages"])
    assert figures["missing"] == [] and figures["protocol"]["simulator"] == "toy"
    page = (out / "report.html").read_text()
    assert page.count("<video") >= 3 and "http://" not in page.replace("http://www.w3.org", "")


def test_the_control_has_neither_tokenizer_nor_predictor(whole: tuple[Path, str]) -> None:
    out, _ = whole
    assert {path.parent.name for path in (out / "control").glob("*/model.safetensors")} == {"policy"}
    for stage in TRAINED:
        assert domain_of(out / stage) == "simulated"
    models = {path.parent.name for path in (out / "finetune").glob("*/model.safetensors")}
    assert models == {"tokenizer", "predictor", "policy"}
    config = {
        arm: json.loads((out / arm / "policy/config.json").read_text())["config"] for arm in ("control", "finetune")
    }
    assert {name for name in config["control"] if config["control"][name] != config["finetune"][name]} == {"features"}


def test_a_second_call_does_nothing_again(whole: tuple[Path, str]) -> None:
    out, _ = whole
    before = weights(out), [(out / f"rollouts-{arm}.jsonl").read_bytes() for arm in ("pretrained", "control")]
    assert finish(start(out)).count("done already") == 8
    assert before == (weights(out), [(out / f"rollouts-{arm}.jsonl").read_bytes() for arm in ("pretrained", "control")])


def test_other_settings_are_refused(whole: tuple[Path, str]) -> None:
    process = start(whole[0], "--seed", "1")
    said = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 2 and "seed: 0 -> 1" in said and "--out" in said and "Traceback" not in said


# A file that appears when a stage has done part of its work, and how long it may work on from then.
MIDDLES = {
    "collect": ("data/.video.partial/episodes/000001", 0.0),
    "tokenizer": ("tokenizer/state/latest", 0.0),
    "pretrain": ("pretrain/state/latest", 0.0),
    "finetune": ("finetune/state/latest", 0.0),
    "evaluate": ("evaluate/run.json", 0.5),
    "imagine": ("imagine/run.json", 0.1),
    "control": ("control/state/latest", 0.0),
    "evaluate-control": ("evaluate-control/run.json", 0.5),
}


def caught(out: Path, stages: set[str], process: subprocess.Popen[bytes]) -> bool:
    """Waits until one of the stages is in its middle; False where the command ends before."""
    seen: dict[str, float] = {}
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        assert time.monotonic() < deadline, f"none of {sorted(stages)} began"
        for stage in stages:
            mark, delay = MIDDLES[stage]
            if (out / mark).exists() and time.monotonic() >= seen.setdefault(stage, time.monotonic()) + delay:
                return True
        time.sleep(0.002)
    return False


def under_way(out: Path) -> set[str]:
    return {s for s, (mark, _) in MIDDLES.items() if (out / mark).exists() and not (out / s / "done.json").exists()}


def children(out: Path) -> list[int]:
    """Processes that name the run's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words:
            found.append(int(folder.name))
    return found


def kill(process: subprocess.Popen[bytes], out: Path, alone: bool) -> None:
    """SIGKILL to all processes of the command; or to the first alone, and then the others must end by themselves."""
    if not alone:
        os.killpg(process.pid, signal.SIGKILL)
        return
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while children(out):
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("the control outlived the command: the next start would find its folder locked")
        time.sleep(0.02)


def test_killed_in_every_stage_it_ends_at_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    """SIGKILL in the middle of each stage, then the same command; bit for bit the same."""
    out = tmp_path / "run"
    left, kills = set(MIDDLES), 0
    while left:
        process = start(out)
        unfinished = {stage for stage in left if not (out / stage / "done.json").exists()}
        if caught(out, unfinished, process):
            kill(process, out, alone=kills % 2 == 1)
            kills += 1
        said = process.communicate()[0].decode()
        assert process.returncode in (0, -signal.SIGKILL), said
        left -= under_way(out)
        if process.returncode == 0:
            break
    assert len(left) <= 1, f"too few stages were caught in their middle: not {sorted(left)}"  # one may be missed
    finish(start(out))
    assert kills >= 6 and digest(out / "data") == digest(whole[0] / "data")
    assert weights(out) == weights(whole[0])
    for arm in ("pretrained", "control"):
        rows = rollouts(out, arm)
        assert len({(row["task"], row["goal"]) for row in rows}) == len(rows) == 2 * 3
    imagined = [json.loads((run / "imagine/imagination.json").read_text()) for run in (out, whole[0])]
    assert imagined[0] == imagined[1]
    assert json.loads((out / "report.json").read_text())["missing"] == []
