"""VPP's quickstart on the toy world, tiny: every stage, the page, a kill in the middle of a stage, other settings."""

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
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import ideomotor, said

from ideomotor.systems.vpp_quickstart import model_of, quickstart
from ideomotor.systems.vpp_quickstart_report import STAGES, VPPQuickstart, report_of

OPTIONS = ["--world", "toy", "--tasks", "red", "blue", "--preset", "tiny", "--demonstrations", "3"]
OPTIONS += ["--episodes", "2", "--clips", "4", "--sampling-steps", "2", "--workers", "1"]
TRAINED = {"vae": "vae", "video": "predictor", "policy": "policy", "control": "policy"}


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ideomotor", "vpp", "quickstart", *OPTIONS, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> str:
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output.decode()
    return output.decode()


def weights(out: Path) -> dict[str, bytes]:
    return {stage: (out / stage / model / "model.safetensors").read_bytes() for stage, model in TRAINED.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody disturbed, and what it said."""
    out = tmp_path_factory.mktemp("vpp-whole") / "run"
    return out, finish(start(out))


def test_it_leaves_a_page_and_the_figures(whole: tuple[Path, str]) -> None:
    out, output = whole
    report = json.loads((out / "report.json").read_text())
    assert report["missing"] == [] and [stage["name"] for stage in report["stages"]] == list(STAGES)
    for arm in ("pretrained", "control"):
        assert {row["episodes"] for row in report["arms"][arm]["tasks"].values()} == {2}
    assert report["comparison"]["paired_episodes"] == 4
    assert report["imagination"]["clips"] == 4 and report["imagination"]["moving_psnr"] > 0
    gate = json.loads((out / "gate/gate.json").read_text())
    assert report["protocol"]["gate of stage 1 (gate/gate.html)"] == gate["verdict"]
    assert (out / "gate/gate.html").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert page.count("data:video/mp4") >= 3 and "ideomotor vpp quickstart --out" in page
    assert f"report: {out / 'report.html'}" in output.replace("\n", "")


def test_one_future_is_the_one_that_the_gate_scored(whole: tuple[Path, str]) -> None:
    """The pooled figure of the page lies between the gate's worst and best step."""
    gate = json.loads((whole[0] / "gate/gate.json").read_text())
    steps = [row["value"] for row in gate["moving_psnr"]["one future"]]
    still = [row["value"] for row in gate["moving_psnr"]["last frame repeated"]]
    pooled = json.loads((whole[0] / "gate/imagination.json").read_text())
    assert min(steps) - 1e-6 <= pooled["moving_psnr"] <= max(steps) + 1e-6
    assert min(still) - 1e-6 <= pooled["repeat_last_moving_psnr"] <= max(still) + 1e-6


def test_the_control_never_saw_the_video_model(whole: tuple[Path, str]) -> None:
    assert not (whole[0] / "control/predictor").exists() and not (whole[0] / "control/vae").exists()


def test_killed_it_goes_on_and_ends_at_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stage in ("data", "video", "policy"):
        process = start(out)
        deadline = time.monotonic() + 600
        while process.poll() is None and not (out / stage).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert "done already" in finish(start(out))
    assert weights(out) == weights(whole[0])
    ours, theirs = (json.loads((run / "gate/imagination.json").read_text()) for run in (out, whole[0]))
    assert ours == theirs


def test_a_second_call_trains_nothing_and_another_is_refused(
    whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(whole[0])
    words = ["vpp", "quickstart", *OPTIONS, "--out", whole[0]]
    assert ideomotor(*words) == 0 and weights(whole[0]) == before
    capsys.readouterr()
    assert ideomotor(*words, "--seed", 1) != 0
    assert "other settings (quickstart.seed: 0 -> 1" in said(capsys)


def test_a_damaged_note_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no quickstart"):
        report_of(tmp_path)
    (tmp_path / "quickstart.json").write_text("{}")
    with pytest.raises(ValueError, match=r"quickstart\.json cannot be read"):
        report_of(tmp_path)


def test_what_is_mistyped_claims_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drawer-opn"):
        quickstart(VPPQuickstart(tasks=("drawer-opn",), preset="tiny"), tmp_path / "run")
    with pytest.raises(ValueError, match="workers is 0"):
        quickstart(VPPQuickstart(preset="tiny"), tmp_path / "run", workers=0)
    for wrong in ({"preset": "svd"}, {"preset": "no"}, {"episodes": 21}, {"clips": 0}, {"tasks": ("a", "a")}):
        with pytest.raises(ValueError):
            VPPQuickstart(**wrong)
    assert not (tmp_path / "run").exists()


def test_a_budget_scales_the_steps() -> None:
    whole, half = (model_of(VPPQuickstart(budget_minutes=minutes)) for minutes in (40, 20))
    assert half.video_stage.steps * 2 == whole.video_stage.steps
    assert half.policy_stage.steps * 2 == whole.policy_stage.steps and half.vae_stage == whole.vae_stage
