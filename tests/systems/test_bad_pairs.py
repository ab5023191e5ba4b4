"""What does not belong together, in both forms of VPDD, by the commands: one clear line, and nothing is lost."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")

from ideomotor import cli
from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.systems import vpdd_published_stages, vpdd_stages
from ideomotor.systems.inpainting import actions_given_video, future_given_actions
from ideomotor.systems.vpdd_published_config import PRESETS
from ideomotor.types import Clip

FORMS = {"tiny": vpdd_stages, "published-tiny": vpdd_published_stages}


def ideomotor(*words: object) -> int:
    """Runs a command in this process and returns its exit status."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        return end.code or 0
    return 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr().err
    (line,) = [line for line in shown.splitlines() if line.startswith("error:")]
    assert "Traceback" not in shown
    return line


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def recording(path: Path, frames: int = 12, width: int = 2, value: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    actions = np.random.default_rng(sum(path.name.encode())).uniform(-1, 1, (frames, width)).astype(np.float32)
    if value is not None:
        actions[5, 1] = value
    images = synthetic_disc(0, 3).render(np.arange(frames, dtype=float), (32, 32))
    np.savez(path, image=images.permute(0, 2, 3, 1).numpy(), action=actions)


def stage(home: Path, preset: str, name: str, out: Path, *more: object) -> int:
    words = ["--preset", preset, "--policy.action-width", 2, f"--{name}-stage.steps", 2, "--out", out]
    words += ["--data", home / ("shown" if name == "finetune" else "video"), "--cache", home / "cache"]
    earlier = {"pretrain": ("tokenizer-from", "tokenizer"), "finetune": ("predictor-from", "pretrain")}
    if name in earlier:
        words += [f"--{earlier[name][0]}", home / preset / earlier[name][1]]
    return ideomotor("vpdd", name, *words, *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, the stages of both forms trained on it, and another tokenizer and predictor of the same settings."""
    home = tmp_path_factory.mktemp("home")
    for number in range(4):
        video = synthetic_disc(0, number).render(np.arange(12, dtype=float), (32, 32))
        write_video(home / f"video/{number}.mp4", video, fps=10)
        recording(home / f"shown/{number}.npz")
    for preset in FORMS:
        for name in ("tokenizer", "pretrain", "finetune"):
            assert stage(home, preset, name, home / preset / name) == 0
        other = home / preset / "other"
        assert stage(home, preset, "tokenizer", other / "tokenizer", "--seed", 1) == 0
        words = ("--seed", 1, "--tokenizer-from", other / "tokenizer")
        assert stage(home, preset, "pretrain", other / "pretrain", *words) == 0
    return home


def mixed(home: Path, preset: str, name: str, part: str, out: Path) -> Path:
    """A copy of a stage's folder with one model of the other run in it."""
    shutil.copytree(home / preset / name, out)
    shutil.rmtree(out / part)
    shutil.copytree(home / preset / "other/pretrain" / part, out / part)
    return out


@pytest.mark.parametrize("preset", FORMS)
def test_a_tokenizer_of_another_run_is_refused_by_its_fingerprint(
    home: Path, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mixed(home, preset, "pretrain", "tokenizer", tmp_path / "mixed")
    before = digest(folder)
    assert stage(home, preset, "finetune", tmp_path / "out", "--predictor-from", folder) == 2
    line = said(capsys)
    assert (
        "the predictor in" in line and "learned with the tokenizer" in line and "Put the tokenizer of the same" in line
    )
    if preset == "tiny":
        words = ("--input", home / "video/0.mp4", "--out", tmp_path / "x.mp4")
        assert ideomotor("imagine", folder, *words) == 2
        assert "they do not belong together" in said(capsys)
    assert digest(folder) == before and {path.name for path in tmp_path.iterdir()} == {"mixed"}


@pytest.mark.parametrize("preset", FORMS)
def test_a_policy_wants_the_predictor_that_it_learned_with(
    home: Path, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FORMS[preset].load_agent(home / preset / "finetune") is not None
    swapped = mixed(home, preset, "finetune", "predictor", tmp_path / "swapped")
    shutil.rmtree(swapped / "tokenizer")
    shutil.copytree(home / preset / "other/tokenizer/tokenizer", swapped / "tokenizer")  # the pair itself is sound
    alone = tmp_path / "alone"
    shutil.copytree(home / preset / "finetune", alone)
    shutil.rmtree(alone / "predictor")
    for folder, words in ((swapped, "learned with the tokenizer"), (alone, "and beside it lies none")):
        before = digest(folder)
        tried = ("--world", "toy", "--tasks", "red", "--episodes", 1, "--workers", 0, "--camera", "main")
        assert ideomotor("vpdd", "evaluate", folder, *tried) == 2
        line = said(capsys)
        assert "the policy in" in line and words in line
        assert digest(folder) == before


def test_bins_of_another_policy_are_refused(home: Path, tmp_path: Path) -> None:
    recording(tmp_path / "shown/a.npz", frames=30)
    data = ("--data", tmp_path / "shown")
    assert stage(home, "published-tiny", "finetune", tmp_path / "out", *data) == 0
    shutil.rmtree(tmp_path / "out/bins")
    shutil.copytree(home / "published-tiny/finetune/bins", tmp_path / "out/bins")
    with pytest.raises(ValueError, match=r"learned with the bins .* they do not belong together"):
        vpdd_published_stages.load_agent(tmp_path / "out")


BAD_DATA: dict[str, tuple[str, Callable[[Path], None], tuple[object, ...], str]] = {
    "camera": ("pretrain", lambda path: None, ("--cameras", "wrist"), "it has 'video': name with --cameras"),
    "camera of the first": ("tokenizer", lambda path: None, ("--cameras", "wrist"), "has no camera 'wrist'"),
    "one video": (
        "tokenizer", lambda path: write_video(path / "data/a.mp4", torch.zeros(9, 3, 32, 32).byte(), fps=10), (),
        "a split needs at least 2: record more, or hold out none (--validation 0)",
    ),
    "encoder": ("pretrain", lambda path: None, ("--text", "nowhere"), "nowhere holds no CLIP model"),
    "width": ("finetune", lambda path: recording(path / "data/a.npz", width=3), (), "set --policy.action-width 3"),
    "too great": (
        "finetune", lambda path: recording(path / "data/a.npz", value=1e35), (), "is not finite, or 1e+30 and more",
    ),
    # Shorter than the stride, or than a chunk: what is told first is told.
    "short": ("finetune", lambda path: recording(path / "data/a.npz", frames=3), (), "has 3"),
}  # fmt: skip


@pytest.mark.parametrize("preset", FORMS)
@pytest.mark.parametrize("kind", BAD_DATA)
def test_what_cannot_be_learned_from_is_told_before_fresh_throws_anything_away(
    home: Path, preset: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, make, more, words = BAD_DATA[kind]
    make(tmp_path)
    if (tmp_path / "data").is_dir():
        more = (*more, "--data", tmp_path / "data")
    out = tmp_path / "out"
    assert stage(home, preset, name, out, *more) == 2
    assert words in said(capsys) and not out.exists()
    shutil.copytree(home / preset / name, out)
    before = digest(out)
    assert stage(home, preset, name, out, "--fresh", *more) == 2
    assert words in said(capsys) and digest(out) == before


@pytest.mark.parametrize("preset", FORMS)
def test_a_stage_never_overwrites_what_it_reads(
    home: Path, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / preset / "tokenizer", tmp_path / "same")
    for name, path, more in (
        ("tokenizer", home / "video", ()),
        ("pretrain", tmp_path / "same", ("--tokenizer-from", tmp_path / "same", "--fresh")),
    ):
        before = digest(path)
        assert stage(home, preset, name, path, *more) == 2
        assert "which this stage reads from and would overwrite: choose another --out" in said(capsys)
        assert digest(path) == before


@pytest.mark.parametrize("preset", FORMS)
def test_a_short_demonstration_and_a_glitch_are_left_out_by_name(
    home: Path, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "shown", tmp_path / "shown")
    recording(tmp_path / "shown/short.npz", frames=3)
    recording(tmp_path / "shown/glitch.npz", value=1e6)
    capsys.readouterr()
    assert stage(home, preset, "finetune", tmp_path / "out", "--data", tmp_path / "shown") == 0
    shown = capsys.readouterr().err
    assert "left out of shown: short: has 3 frames, a chunk is" in shown
    assert "left out of shown: glitch: row 5 of the actions holds 1e+06, and 95 of 100 values lie within" in shown
    agent = FORMS[preset].load_agent(tmp_path / "out")
    frames = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
    assert agent.act(Clip(frames={"main": frames}, text=("",))).abs().max() <= 1


@pytest.mark.parametrize("preset", FORMS)
def test_another_context_than_was_trained_is_refused(home: Path, preset: str) -> None:
    agent = FORMS[preset].load_agent(home / preset / "finetune")
    for count in (1, 3, 5, 8):
        context = Clip(frames={"main": torch.zeros(1, count, 3, 32, 32, dtype=torch.uint8)}, text=("",))
        with pytest.raises(
            ValueError, match=f"shows {count} frames; the policy was trained on a context of 4, . apart"
        ):
            agent.act(context)
        if preset == "tiny":
            with pytest.raises(ValueError, match="trained on a context of 4"):
                actions_given_video(agent, context, torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8))
            with pytest.raises(ValueError, match="trained on a context of 4"):
                future_given_actions(agent, context, torch.zeros(1, 8, 2))


def test_bins_of_the_release_take_the_actions_of_meta_world_alone() -> None:
    config = PRESETS["published"]()
    actions = torch.rand(96, 4) * 2 - 1
    actions[:, 3] = 1
    vpdd_published_stages.fitted_bins(config, actions)
    for value in (1.5, float("nan"), float("inf")):
        actions[17, 2] = value
        with pytest.raises(ValueError, match=r"row 17 of the demonstrations' 96 actions is .*\[-1, 1\]: scale or clip"):
            vpdd_published_stages.fitted_bins(config, actions)
    quantile = replace(config, bins="quantile")
    vpdd_published_stages.fitted_bins(quantile, actions.nan_to_num(posinf=7.0))
