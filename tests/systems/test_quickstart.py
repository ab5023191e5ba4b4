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

OPTIONS = ["--world", "toy", "--tasks", "red", "blue", "--preset", "tiny", "--demonstrations", "5", "--episodes", "3"]
TRAINED = {"tokenizer": "tokenizer", "pretrain": "predictor", "finetune": "policy", "control": "policy"}


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ideomotor", "quickstart", *OPTIONS, "--out", str(out), "--workers", "1"]
    # One thread: what is compared bit for bit must not depend on how busy the machine is.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()
    return output.decode()


def weights(out: Path) -> dict[str, str]:
    files = {stage: out / stage / model / "model.safetensors" for stage, model in TRAINED.items()}
    return {stage: hashlib.sha256(path.read_bytes()).hexdigest() for stage, path in files.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody disturbed, and what it said."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, finish(start(out))


@pytest.mark.slow
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
    assert {"moving_psnr", "repeat_last_moving_psnr"} <= set(figures["imagination"])
    assert [stage["name"] for stage in figures["stages"]][:3] == ["collect", "tokenizer", "pretrain"]
    assert all(stage["seconds"] > 0 and stage["peak_rss_bytes"] > 1e7 for stage in figures["stages"])
    assert figures["missing"] == []
    page = (out / "report.html").read_text()
    assert page.count("<video") >= 3 and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_second_call_does_nothing_again(whole: tuple[Path, str]) -> None:
    out, _ = whole
    before = weights(out), (out / "rollouts.jsonl").read_bytes()
    assert finish(start(out)).count("done already") == 8
    assert before == (weights(out), (out / "rollouts.jsonl").read_bytes())


@pytest.mark.slow
def test_other_settings_are_refused(whole: tuple[Path, str]) -> None:
    out, _ = whole
    command = [sys.executable, "-m", "ideomotor", "quickstart", *OPTIONS, "--seed", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "seed: 0 -> 1" in done.stderr and "--out" in done.stderr


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_at_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    """SIGKILL to the whole process group in the middle of each stage, then the same command; bit for bit the same."""
    out = tmp_path / "run"
    # A file that appears when the stage is under way: half of it is done, and the rest is not.
    marks = {
        "collect": out / "data" / ".video.partial",
        "tokenizer": out / "tokenizer" / "state",
        "pretrain": out / "pretrain" / "state",
        "finetune": out / "finetune" / "state",
        "evaluate": out / "rollouts.jsonl",
        "control": out / "control" / "state",
    }
    killed = []
    for stage, mark in marks.items():
        process = start(out)
        deadline = time.monotonic() + 120
        while process.poll() is None and not mark.exists():
            assert time.monotonic() < deadline, f"{stage} never began"
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            if not (out / stage / "done.json").exists():
                killed.append(stage)
        process.communicate()
    finish(start(out))
    assert len(killed) >= 4, f"too few stages were caught in the middle: {killed}"
    assert weights(out) == weights(whole[0])
    rows = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    assert len({(row["arm"], row["task"], row["goal"]) for row in rows}) == len(rows) == 2 * 2 * 3
