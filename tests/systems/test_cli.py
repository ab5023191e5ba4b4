"""The commands: each teaches, each finds what is misspelt, and the stages of VPDD run one after the other."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("gymnasium", reason="the metaworld extra is not installed")

from ideomotor import cli
from ideomotor.cli import collect as cli_collect
from ideomotor.cli import data as cli_data
from ideomotor.cli import study as cli_study
from ideomotor.cli import vpdd as cli_vpdd
from ideomotor.data.video import VideoFrames, probe
from ideomotor.evaluation.episodes import EpisodeResult, append, read_log
from ideomotor.evaluation.statistics import wilson
from ideomotor.systems import collection, imagination, stages, vpdd_stages
from ideomotor.systems.collection import CollectionConfig, collect
from ideomotor.systems.quickstart import QuickstartConfig, claim
from ideomotor.systems.sources import read_facts
from ideomotor.systems.stages import domain_of
from ideomotor.systems.vpdd import PRESETS
from ideomotor.systems.vpdd_imagine import imagine
from ideomotor.systems.vpdd_stages import evaluate, load_agent
from ideomotor.training.run import Run

TINY = ("--preset", "tiny")
STAGES = {
    "tokenizer": ("--tokenizer-stage.steps", 4),
    "pretrain": ("--pretrain-stage.steps", 4),
    "finetune": ("--finetune-stage.steps", 4, "--policy.action-width", 2),
}


def ideomotor(*words: object) -> int:
    """Runs a command in this process and returns its exit status."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        return end.code or 0
    return 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, lines
    return lines[0]


class Here:
    """Stands in for a worker process: what is tested here is what commands do, not processes."""

    def __init__(self, make, *, name, timeout):
        self.connection, self._desk = self, make()

    def send(self, message):
        self._message = message

    def receive(self):
        return self._desk.answer(self._message)

    def end(self):
        self._desk.close()

    def join(self):
        pass


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy collection (demonstrations, video) and the three stages trained on it, by commands."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "Worker", Here)
        patch.setattr(collection.connection, "wait", lambda pipes, timeout: pipes[:1])
        counts = {"demonstrations": 3, "expert": 2, "noisy": 1, "failed": 1}
        collect(CollectionConfig(out=home / "data", world="toy", tasks=("red", "blue"), size=32, **counts))
    for name in STAGES:
        assert stage(home, name, home / name) == 0
    return home


def stage(home: Path, name: str, out: Path, *more: object) -> int:
    """Runs a stage on the toy collection, from the stages before."""
    data = home / "data" / ("demonstrations" if name == "finetune" else "video")
    words = [*TINY, *STAGES[name], "--data", data, "--out", out, "--cache", home / "cache"]
    if name == "pretrain" and "--tokenizer-from" not in more:
        words += ["--tokenizer-from", home / "tokenizer"]
    if name == "finetune" and "--predictor-from" not in more and "--policy.features" not in more:
        words += ["--predictor-from", home / "pretrain"]
    return ideomotor("vpdd", name, *words, *more)


# --- help, and what is misspelt ---------------------------------------------------------------------------------------

VERBS: dict[str, type] = {
    "quickstart": cli.Quickstart,
    "collect metaworld": cli_collect.CollectMetaWorld,
    "collect play_table": cli_collect.CollectPlayTable,
    "data inspect": cli_data.Inspect,
    "data convert": cli_data.Convert,
    "vpdd tokenizer": cli_vpdd.VPDDTokenizer,
    "vpdd pretrain": cli_vpdd.VPDDPretrain,
    "vpdd finetune": cli_vpdd.VPDDFinetune,
    "vpdd evaluate": cli_vpdd.VPDDEvaluate,
    "imagine": cli.Imagine,
    "dry_run": cli.DryRunCommand,
    "report": cli.Report,
    "study": cli_study.StudyCommand,
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert ideomotor(*verb.split(), "--help") == 0
    shown, plain = (text := capsys.readouterr().out), " ".join(text.replace("│", " ").split())
    assert VERBS[verb].__doc__.splitlines()[0] in plain
    options = [line.strip("│ ").split() for line in shown.splitlines()]
    for field in _options(VERBS[verb]):
        if field.name != "config" and "Positional" not in str(field.type):
            name = f"--{field.name.replace('_', '-')}"
            (row,) = [n for n, words in enumerate(options) if words and words[0].rstrip(",") == name]
            # Beside the option or below it stands what it means.
            assert len(options[row]) + len(options[row + 1]) > 5, name
    if verb.startswith("vpdd ") and verb != "vpdd evaluate":
        for option in ("--predictor.trunk.layers", "--tokenizer-stage.optim.lr", "--window.stride"):
            assert option in shown
    assert "tyro" not in shown and "dummy" not in shown


def _options(command: type) -> Iterator[dataclasses.Field]:
    """Fields of a command; of a group of options without a name of its own, those of the group."""
    for field in dataclasses.fields(command):
        if field.name != "config" and dataclasses.is_dataclass(group := field.default_factory):
            yield from _options(group)
        else:
            yield field


def test_help_shows_the_numbers_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PRESETS:
        assert ideomotor("vpdd", "tokenizer", "--preset", name, "--help") == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"frames of a camera are squares of that many pixels. (default: {PRESETS[name]().size})" in shown


def test_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "ideomotor", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(verb.split()[0] in done.stdout for verb in VERBS)
    assert ideomotor() == 2
    shown = capsys.readouterr().err
    assert all(verb.split()[0] in shown for verb in VERBS)


@pytest.mark.parametrize("words", [("quickstart",), ("vpdd", "tokenizer", "--data", "x", "--out", "y")])
@pytest.mark.parametrize("spelling", [("--preset", "tniy"), ("--preset=tniy",)])
def test_an_unknown_preset(
    words: tuple[str, ...],
    spelling: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ideomotor(*words, *spelling) == 2
    line = said(capsys)
    assert line.startswith("error: there is no preset 'tniy'; did you mean 'tiny'? (presets: fast, tiny")
    assert ("published" in line) == (words[0] == "vpdd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("quickstart", "--budget-minuts", 3), "--budget-minutes"),
        (("quickstart", "--task", "reach"), "--tasks"),
        (("collect", "metaworld", "--demonstration", 3), "--demonstrations"),
        (("vpdd", "tokenizer", "--data", "x", "--out", "y", "--predictor.trunk.layer", 3), "--predictor.trunk.layers"),
        (("vpdd", "evaluate", "x", "--episode", 3), "--episodes"),
        (("imagine", "x", "--input", "y", "--round", 3), "--rounds"),
        (("quickstrat",), "quickstart"),
        (("vpdd", "fintune"), "finetune"),
    ],
)
def test_a_misspelt_option_suggests_the_right_one(
    words: tuple[object, ...],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ideomotor(*words) == 2
    assert wanted in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert ideomotor("vpdd", "pretrain", *TINY) == 2
    shown = capsys.readouterr().err
    assert all(option in shown for option in ("--data", "--out", "--tokenizer-from"))


def test_debug_shows_where_it_happened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no quickstart"):
        cli.main(["report", str(tmp_path), "--debug"])


# --- the stages, one after the other ----------------------------------------------------------------------------------


def test_each_stage_leaves_what_the_next_one_reads(home: Path) -> None:
    wanted = {"tokenizer": {"tokenizer"}, "pretrain": {"tokenizer", "predictor"}}
    wanted["finetune"] = wanted["pretrain"] | {"policy"}
    for name, models in wanted.items():
        assert {path.parent.name for path in (home / name).glob("*/model.safetensors")} == models
        assert json.loads((home / name / "done.json").read_text())["steps"] == 4
        assert json.loads((home / name / "vpdd.json").read_text())["size"] == 32
        rows = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 4


def test_the_same_command_does_nothing_twice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    for name in STAGES:
        assert stage(home, name, home / name) == 0
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    assert "step" not in capsys.readouterr().out


def test_other_settings_in_a_folder_need_fresh(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer"
    assert stage(home, "tokenizer", out, "--seed", 1) == 0
    first = load_file(out / "tokenizer/model.safetensors")
    capsys.readouterr()
    assert stage(home, "tokenizer", out, "--seed", 2, "--tokenizer-stage.batch", 4) == 2
    shown = said(capsys)
    assert "seed: 1 -> 2" in shown and "tokenizer_stage.batch: 8 -> 4" in shown and "--fresh" in shown
    assert all((load_file(out / "tokenizer/model.safetensors")[name] == value).all() for name, value in first.items())
    assert stage(home, "tokenizer", out, "--seed", 2, "--fresh") == 0
    assert any((load_file(out / "tokenizer/model.safetensors")[name] != value).any() for name, value in first.items())


def test_another_cache_folder_is_no_other_setting(home: Path, tmp_path: Path) -> None:
    assert stage(home, "tokenizer", tmp_path / "out") == 0
    assert stage(home, "tokenizer", tmp_path / "out", "--cache", tmp_path / "cache") == 0


def test_a_mixture_of_two_data_sets(home: Path, tmp_path: Path) -> None:
    data = (home / "data/video", home / "data/demonstrations")
    mixed = ("--data", *data, "--weights", 3, 1, "--strides", 4, 2, "--validation", 0)
    assert stage(home, "pretrain", tmp_path / "out", *mixed) == 0
    options = json.loads((tmp_path / "out/run.json").read_text())["config"]["data"]
    assert options["weights"] == [3, 1] and options["strides"] == [4, 2]
    assert len(list((home / "cache").glob("tokens-*"))) >= 2


def test_a_policy_without_foresight(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(home, "finetune", tmp_path / "plain", "--policy.features", 0, 0) == 0
    assert {path.parent.name for path in (tmp_path / "plain").glob("*/model.safetensors")} == {"policy"}
    capsys.readouterr()
    video = home / "data/video/videos/observation.images.main/chunk-000/file-000.mp4"
    assert ideomotor("imagine", tmp_path / "plain", "--input", video, "--out", tmp_path / "x.mp4") == 2
    assert "no predictor, so it imagines nothing" in said(capsys) and not (tmp_path / "x.mp4").exists()
    both = ("--policy.features", 0, 0, "--predictor-from", home / "pretrain")
    assert stage(home, "finetune", tmp_path / "both", *both) == 2
    assert "--predictor-from" in said(capsys)


def test_a_policy_that_is_told_the_state(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "told"
    assert stage(home, "finetune", out, "--policy.state-width", 2) == 0
    policy = load_agent(out).policy
    assert policy.state_scale.mean.abs().min() > 0 and policy.state_scale.deviation.max() < 1, "learned, in metres"
    assert len(evaluate(out, ["red"], 1, tmp_path / "log.jsonl", 0, world="toy")) == 1
    capsys.readouterr()
    assert stage(home, "finetune", tmp_path / "wide", "--policy.state-width", 3) == 2
    assert "set --policy.state-width 2" in said(capsys)


def test_stages_that_do_not_fit_one_another(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = ("--tokenizer.levels", 7, 5, 5, "--predictor.vocab", 175)
    assert stage(home, "pretrain", tmp_path / "a", *levels) == 2
    assert "levels: [5, 5, 5] -> [7, 5, 5]. Give the same --preset" in said(capsys)
    assert stage(home, "finetune", tmp_path / "b", *levels) == 2
    assert "levels: [5, 5, 5] -> [7, 5, 5]" in said(capsys)
    assert stage(home, "pretrain", tmp_path / "c", "--tokenizer-from", home / "data") == 2
    assert "holds no VPDD stage" in said(capsys)
    assert stage(home, "finetune", tmp_path / "d", "--data", home / "data/video") == 2
    assert "episodes without actions: fine-tune on demonstrations" in said(capsys)


def test_finetuning_that_forgets_an_option_of_pretraining(home: Path, tmp_path: Path) -> None:
    """``--predictor.trunk.layers`` given to pretrain only: refused, or the model can be used; never spoilt."""
    assert stage(home, "pretrain", tmp_path / "pretrain", "--predictor.trunk.layers", 1) == 0
    if stage(home, "finetune", tmp_path / "finetune", "--predictor-from", tmp_path / "pretrain") == 0:
        video = home / "data/video"
        assert ideomotor("imagine", tmp_path / "finetune", "--input", video, "--out", tmp_path / "x.mp4") == 0


def test_finetuning_on_another_window_than_pretraining_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Foresight 2 frames ahead from a predictor that learned 4 ahead: at least a word of it."""
    stage(home, "finetune", tmp_path / "out", "--window.stride", 2)
    shown = capsys.readouterr()
    assert "stride" in shown.err + shown.out


def test_a_tokenizer_in_place_of_a_predictor(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(home, "finetune", tmp_path / "a", "--predictor-from", home / "tokenizer") == 2
    assert "holds no predictor" in said(capsys)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_a_stopped_stage_does_not_go_on_with_another_tokenizer(
    home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the training on one tokenizer's tokens and half on another's is a spoilt model."""
    with monkeypatch.context() as patch:
        patch.setattr(stages, "Run", functools.partial(Run, pause_at=2))
        stage(home, name, tmp_path / "out")
    assert not (tmp_path / "out/done.json").exists()
    assert stage(home, "tokenizer", tmp_path / "tokenizer", "--seed", 7) == 0
    assert stage(home, "pretrain", tmp_path / "pretrain", "--tokenizer-from", tmp_path / "tokenizer") == 0
    option, before = {"pretrain": ("--tokenizer-from", "tokenizer"), "finetune": ("--predictor-from", "pretrain")}[name]
    assert stage(home, name, tmp_path / "out", option, tmp_path / before) == 2
    assert "other" in said(capsys)


def test_a_stopped_stage_does_not_go_on_with_other_data(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One video more in the folder, and every sample is another: the run would be neither the old nor the new."""
    video = home / "data/video/videos/observation.images.main/chunk-000/file-000.mp4"
    (tmp_path / "mine").mkdir()
    for name in "ab":
        shutil.copy(video, tmp_path / "mine" / f"{name}.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "Run", functools.partial(Run, pause_at=2))
        stage(home, "tokenizer", tmp_path / "out", "--data", tmp_path / "mine")
    shutil.copy(video, tmp_path / "mine/c.mp4")
    capsys.readouterr()
    assert stage(home, "tokenizer", tmp_path / "out", "--data", tmp_path / "mine") == 2
    assert "other" in said(capsys)


def test_a_mistyped_path_does_not_claim_the_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, "tokenizer", tmp_path / "out", "--data", home / "vidoe") == 2
    assert "there is nothing at" in said(capsys)
    assert stage(home, "tokenizer", tmp_path / "out") == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ("--tasks", "redd"),
        ("--tasks", "red", "--videos", "nowhere"),
        ("--demonstrations", 0),
    ],
)
def test_a_mistyped_task_does_not_claim_a_quickstart(tmp_path: Path, wrong: tuple[object, ...]) -> None:
    few = ("--world", "toy", *TINY, "--out", tmp_path / "run", "--demonstrations", 1, "--workers", 1)
    assert ideomotor("quickstart", *few, *wrong) == 2
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


# --- imagine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_imagine_writes_a_video(home: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / f"imagined.{suffix}"
    assert ideomotor("imagine", home / "pretrain", "--input", home / "data/video", "--out", out) == 0
    info = probe(out)
    # Truth, imagination and error side by side, twice as large and framed: 4 frames of context, 4 foretold.
    assert (info.frames, info.height, info.width) == (8, 72, 216)
    frames = VideoFrames(out).read(range(8)).float()
    blue, green, orange, magenta = frames[0, :, :, 1], frames[6, :, :, 1], frames[6, :, :, 142], frames[6, :, :, 214]
    assert blue[2].mean() > blue[0].mean() + 50 and green[1].mean() > green[0].mean() + 50
    assert orange[0].mean() > orange[2].mean() + 50
    assert min(magenta[0].mean(), magenta[2].mean()) > magenta[1].mean() + 50
    shown = capsys.readouterr().out
    assert str(out) in shown and "PSNR" in shown and 'text: "push the disc to the' in shown


def test_imagine_takes_its_options(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, out = home / "data/video", tmp_path / "x.mp4"
    options = ("--samples", 2, "--rounds", 2, "--episode", "000003", "--start", 6, "--text", "dance", "--stride", 1)
    assert ideomotor("imagine", home / "finetune", "--input", video, "--out", out, *options) == 0
    info = probe(out)
    assert (info.frames, info.height, info.width) == (12, 72, 288)
    shown = capsys.readouterr().out
    assert "8 frames, 1 apart, from frame 6 of 000003" in shown and 'text: "dance"' in shown
    first = out.read_bytes()
    assert ideomotor("imagine", home / "finetune", "--input", video, "--out", out, *options) == 0
    assert out.read_bytes() == first  # of a seed
    assert ideomotor("imagine", home / "finetune", "--input", video, "--out", out, *options, "--seed", 1) == 0
    assert out.read_bytes() != first


def test_imagine_films_the_denoising(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, film = tmp_path / "x.mp4", tmp_path / "film.mp4"
    sampling = ("--steps", 3, "--temperature", 0.5, "--order", "halton", "--guidance", 2)
    for rounds in (1, 2):
        words = ("--input", home / "data/video", "--out", out, "--film", film, "--rounds", rounds, *sampling)
        assert ideomotor("imagine", home / "pretrain", *words) == 0
        # The context; a round's 3 passes and its end, a horizon each; the whole future once more.
        info = probe(film)
        assert (info.frames, info.height, info.width) == (4 + rounds * 4 * 4 + rounds * 4, 72, 144)
        assert f"{3 * rounds} passes" in capsys.readouterr().out
        frames = VideoFrames(film).read(range(info.frames)).float()
        last = VideoFrames(out).read([3 + 4 * rounds]).float()
        assert (frames[-1, :, :, :144] - last[0, :, :, :144]).abs().mean() < 4  # it ends on what was imagined
        unknown = frames[5, :, 8:64, 80:136]  # before the first pass nothing is known: all is grey
        assert (unknown.amax(0) - unknown.amin(0)).mean() < 8


def test_imagine_a_lone_file(home: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(home / "data/video/videos/observation.images.main/chunk-000/file-000.mp4", clip)
    assert ideomotor("imagine", home / "pretrain", "--input", clip, "--out", tmp_path / "x.mp4") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--episode", "9"), "has no episode '9'; it has 8: 000000, 000001"),
        (("--start", 9999), "start is 9999; the clip has frames 0.."),
        (("--start", -1), "start is -1"),
        (("--rounds", 0), "rounds is 0"),
        (("--samples", 0), "samples is 0"),
        (("--samples", 2, "--temperature", 0), "all of them would be the same: take a temperature above 0"),
        (("--steps", 0), "steps is 0"),
        (("--temperature", -1), "temperature is -1"),
        (("--guidance", "nan"), "guidance is nan"),
        (("--film", "film.xyz"), "choose one of .mp4"),
        (("--film", "x.mp4"), "give the film a name of its own"),
        (("--out", "x.xyz"), "choose one of .mp4"),
        (("--stride", -3), "stride is -3"),
        (("--stride", 0), "stride is 0"),
    ],
)
def test_imagine_names_what_is_wrong(
    home: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = options if "--out" in options else (*options, "--out", "x.mp4")
    assert ideomotor("imagine", home / "pretrain", "--input", home / "data/video", *more) == 2
    assert words in said(capsys) and list(tmp_path.iterdir()) == []


# --- evaluate, inspect, report ----------------------------------------------------------------------------------------


def test_evaluation_resumes_from_its_log(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "rollouts.jsonl"
    rows = evaluate(home / "finetune", ["red", "blue"], 2, log, 0, world="toy")
    assert [(row.task, row.goal) for row in rows] == [("red", 30), ("red", 31), ("blue", 30), ("blue", 31)]
    assert all(0 < row.steps <= 100 and 0 <= wilson(row.success, 1).low <= 1 for row in rows)
    text = log.read_text()
    assert evaluate(home / "finetune", ["red", "blue"], 2, log, 0, world="toy") == rows and log.read_text() == text
    with pytest.raises(ValueError, match="20 held-out goals a task: take 1 to 20"):
        evaluate(home / "finetune", ["red"], 21, log, 0, world="toy")


def test_another_policy_in_the_folder_is_tried_anew(home: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "finetune", tmp_path / "finetune/rollouts.jsonl"
    shutil.copytree(home / "finetune", folder)
    before = evaluate(folder, ["red"], 2, log, 0, world="toy")
    assert stage(home, "finetune", folder, "--seed", 5, "--fresh") == 0
    after = evaluate(folder, ["red"], 2, log, 0, world="toy")
    assert [row.seconds for row in after] != [row.seconds for row in before]


def test_each_turn_of_the_dial_is_tried_anew(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "rollouts.jsonl"
    for dial in (None, "features", "none", "half", "full"):
        evaluate(home / "finetune", ["red"], 1, log, 0, world="toy", dial=dial)
    rows = read_log(log)
    plain = rows[0].arm
    assert len(plain) == 12 and [row.arm for row in rows[1:]] == [
        f"{plain}-{name}" for name in ("none", "half", "full")
    ]
    with pytest.raises(ValueError, match="dial is 'most'; wanted one of none, features, half, full"):
        evaluate(home / "finetune", ["red"], 1, log, 0, world="toy", dial="most")
    assert ideomotor("vpdd", "evaluate", home / "finetune", "--dial", "ful") == 2
    assert stage(home, "finetune", tmp_path / "blind", "--policy.features", 0, 0) == 0
    capsys.readouterr()
    assert ideomotor("vpdd", "evaluate", tmp_path / "blind", "--dial", "full") == 2
    assert "dial is full; this policy has no foresight at all: take none" in said(capsys)
    assert stage(home, "finetune", tmp_path / "bound", "--policy.foresight-dropout", 0) == 0
    capsys.readouterr()
    assert ideomotor("vpdd", "evaluate", tmp_path / "bound", "--dial", "none") == 2
    assert "never learned to act without foresight" in said(capsys)


def test_other_ways_to_use_a_chunk_are_tried_anew(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "rollouts.jsonl"
    options = ("--world", "toy", "--tasks", "red", "--episodes", 2, "--workers", 0, "--out", log)
    ways = [(), ("--ensemble", 0.01), ("--ensemble", 1), ("--execute", 1), ("--execute", 1, "--ensemble", 0.01)]
    for way in ways:
        assert ideomotor("vpdd", "evaluate", home / "finetune", *options, *way) == 0
    arms = [row.arm for row in read_log(log)]
    assert len(arms) == 2 * len(ways) and len(set(arms)) == len(ways)
    text = log.read_text()
    rest = "".join(text.splitlines(keepends=True)[:-1])  # killed before its last episode
    log.write_text(rest)
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options, *ways[-1]) == 0
    again, before = read_log(log)[-1], json.loads(text.splitlines()[-1])
    assert log.read_text().startswith(rest) and (again.arm, again.goal) == (before["arm"], before["goal"])
    assert (again.steps, again.success) == (before["steps"], before["success"])
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options, "--execute", 4) == 0  # as fine-tuned: done
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options, "--ensemble", "off") == 0  # and so is this
    assert len(read_log(log)) == len(arms)
    capsys.readouterr()
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options, "--execute", 8, "--ensemble", 0.01) == 2
    assert "so no chunks overlap: take a smaller execute" in said(capsys)
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options, "--execute", 9) == 2
    assert "execute 9 must lie in 1..chunk" in said(capsys)


def test_a_report_draws_the_dial_where_it_was_turned(tmp_path: Path) -> None:
    claim(QuickstartConfig(world="toy", tasks=("red",), preset="tiny"), PRESETS["tiny"](), tmp_path, "")

    def tried(name: str, arm: str, cpu: float, wins: int, episodes: int = 4) -> None:
        for goal in range(episodes):
            append(
                tmp_path / f"rollouts-{name}.jsonl",
                EpisodeResult(
                    arm=arm, task="red", seed=0, goal=goal, success=goal < wins, steps=10, total_reward=0.0,
                    seconds=1.0, inference_cpu_seconds=cpu / 100,
                ),
            )  # fmt: skip

    def dial() -> list[tuple[str, float, int, int]]:
        assert ideomotor("report", tmp_path) == 0
        rows = json.loads((tmp_path / "report.json").read_text())["dial"]
        return [(row["name"], round(row["cpu_ms"], 3), row["successes"], row["episodes"]) for row in rows]

    tried("pretrained", "pretrained", 4.0, 3)
    assert dial() == [] and 'id="dial"' not in (tmp_path / "report.html").read_text()
    tried("dial-full", "0" * 12 + "-full", 30.0, 1)  # a policy of earlier
    tried("dial-full", "1" * 12 + "-full", 20.0, 4)
    tried("dial-none", "1" * 12 + "-none", 2.0, 2, episodes=3)
    assert dial() == [("none", 2.0, 2, 3), ("features", 4.0, 3, 4), ("full", 20.0, 4, 4)]
    assert 'id="dial"' in (tmp_path / "report.html").read_text()
    tried("dial-features", "1" * 12, 5.0, 2)
    assert dial()[1] == ("features", 5.0, 2, 4)


def test_evaluate_wants_a_policy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ideomotor("vpdd", "evaluate", home / "pretrain") == 2
    assert "holds no policy: give the --out folder of `ideomotor vpdd finetune`" in said(capsys)


@pytest.mark.parametrize(
    ("task", "words"), [("raech", "did you mean 'reach'"), ("reach", "action")], ids=["misspelt task", "action width"]
)
def test_evaluate_says_in_one_line_what_does_not_fit(
    home: Path, task: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy acts with 2 numbers, a robot of Meta-World with 4."""
    pytest.importorskip("metaworld")
    options = ("--tasks", task, "--episodes", 1, "--workers", 1, "--out", home / "never.jsonl")
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options) == 2
    shown = capsys.readouterr().err
    (line,) = shown.strip().splitlines()
    assert line.startswith("error:") and words in line


def test_inspect_says_what_is_there(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.json"
    assert ideomotor("data", "inspect", home / "data/demonstrations", "--deep", "--json", found) == 0
    shown = capsys.readouterr().out
    assert "lerobot" in shown and "6 episodes" in shown and "camera 'main': 32x32" in shown
    assert json.loads(found.read_text())["format"] == "lerobot"
    assert ideomotor("data", "inspect", home / "data/video", "--format", "lerobott") == 2
    assert "did you mean 'lerobot'" in said(capsys)
    assert ideomotor("data", "inspect", home / "nowhere") == 2
    assert "there is nothing at" in said(capsys)


def test_report_of_a_run_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ideomotor("report", tmp_path) == 2
    assert "holds no quickstart (quickstart.json)" in said(capsys) and list(tmp_path.iterdir()) == []
    claim(QuickstartConfig(world="toy", tasks=("red",), preset="tiny"), PRESETS["tiny"](), tmp_path, "")
    assert ideomotor("report", tmp_path) == 0
    assert "report.html" in capsys.readouterr().out
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["arms"] == {} and figures["stages"] == [] and figures["missing"]


@pytest.mark.sim
@pytest.mark.slow
def test_meta_world_from_collection_to_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("metaworld")
    few = ("--demonstrations", 2, "--expert", 2, "--noisy", 1, "--failed", 0, "--size", 32, "--workers", 1)
    assert ideomotor("collect", "metaworld", "--out", tmp_path / "data", "--tasks", "reach", *few) == 0
    width = ("--policy.action-width", 4)
    assert stage(tmp_path, "tokenizer", tmp_path / "tokenizer", *width) == 0
    assert stage(tmp_path, "pretrain", tmp_path / "pretrain", *width) == 0
    assert stage(tmp_path, "finetune", tmp_path / "finetune", *width) == 0
    capsys.readouterr()
    options = ("--tasks", "reach", "--episodes", 1, "--workers", 1)
    assert ideomotor("vpdd", "evaluate", tmp_path / "finetune", *options) == 0
    assert "reach" in capsys.readouterr().out
    assert len((tmp_path / "finetune/rollouts.jsonl").read_text().splitlines()) == 1


# --- what a stage notes of its data -----------------------------------------------------------------------------------


def test_a_stage_notes_its_data_and_imagine_takes_a_held_out_clip(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(home / "data/video", mine)
    assert stage(home, "pretrain", tmp_path / "out", "--data", mine, "--strides", 2, "--validation", 0.3) == 0
    (noted,) = json.loads((tmp_path / "out/data.json").read_text())["datasets"]
    assert noted["path"] == str(mine) and noted["stride"] == 2 and noted["camera"] == "main"
    assert noted["learned"] + len(noted["held_out"]) == 8 and noted["left_out"] == []
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["VideoDenoising/validation_loss"] > 0
    capsys.readouterr()
    assert ideomotor("imagine", tmp_path / "out", "--input", mine, "--out", tmp_path / "x.mp4") == 0
    shown = capsys.readouterr().out
    assert "2 apart" in shown and f"of {noted['held_out'][0]}" in shown


def test_domains_are_noted_and_go_with_the_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (home / "data/video", home / "data/demonstrations")
    mixed = ("--data", *data, "--domains", "human", "robot")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "Run", functools.partial(Run, pause_at=2))
        stage(home, "pretrain", tmp_path / "pretrain", *mixed)
    assert stage(home, "pretrain", tmp_path / "pretrain", *mixed[:-1], "simulated") == 2
    assert "data.domains: ['human', 'robot'] -> ['human', 'simulated']" in said(capsys)
    assert stage(home, "pretrain", tmp_path / "pretrain", *mixed) == 0
    assert [facts.domain for facts in read_facts(tmp_path / "pretrain")] == ["human", "robot"]
    assert domain_of(tmp_path / "pretrain") == "unknown"  # of two
    options = ("--predictor-from", tmp_path / "pretrain", "--domains", "robot")
    assert stage(home, "finetune", tmp_path / "policy", *options) == 0
    assert load_agent(tmp_path / "policy").domain == "robot" and load_agent(home / "finetune").domain == "unknown"


def test_imagine_takes_the_domain_of_its_data(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage(home, "pretrain", tmp_path / "out", "--domains", "human") == 0
    asked: list[list[int]] = []

    def seen(*given, domain, **options):
        asked.append(domain.tolist())
        return imagine(*given, domain=domain, **options)

    monkeypatch.setattr(imagination, "imagine", seen)
    shutil.copytree(home / "data/video", tmp_path / "elsewhere")
    for source, options in (
        (home / "data/video", ()),
        (tmp_path / "elsewhere", ("--samples", 2)),
        (home / "data/video", ("--domain", "robot")),
    ):
        words = ("imagine", tmp_path / "out", "--input", source, "--out", tmp_path / "x.mp4", *options)
        assert ideomotor(*words) == 0
    assert asked == [[1], [1, 1], [2]]
    assert ideomotor(*words[:-1], "martian") == 2
    assert "there is no domain 'martian': take one of unknown, human, robot, simulated" in said(capsys)
    assert stage(home, "pretrain", tmp_path / "plain", "--predictor.domains", 0, "--domains", "human") == 0
    capsys.readouterr()
    assert ideomotor("imagine", tmp_path / "plain", *words[2:]) == 2
    assert "this model knows no domains (predictor.domains is 0): leave out --domain" in said(capsys)


def test_demonstrations_are_seen_as_the_policy_will_see(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, "finetune", tmp_path / "out", "--strides", 2) == 2
    assert "--strides is (2,), and the policy looks every 4 frames when it acts" in said(capsys)
    assert not (tmp_path / "out").exists()


def test_evaluation_looks_through_the_camera_of_fine_tuning(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    monkeypatch.setattr(vpdd_stages, "roll_out", lambda *given, **options: asked.update(options) or [])
    evaluate(home / "finetune", ("red",), 1, tmp_path / "log.jsonl", world="toy")
    assert asked["camera"] == "main"
    evaluate(home / "finetune", ("red",), 1, tmp_path / "log.jsonl", world="toy", camera="other")
    assert asked["camera"] == "other"


def test_an_inspected_folder_may_be_all_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (tmp_path / f"{number}.mp4").write_text("no video")
    assert ideomotor("data", "inspect", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "0 episodes" in shown and all(f"{number}.mp4" in shown for number in range(5))


# --- what a hostile user found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("finetune", ("--policy.noisings", 0), "noisings 0 must be at least 1"),
        ("finetune", ("--policy.bins", 1), "bins 1 at least 2"),
        ("finetune", ("--action-steps", 0), "action_steps 0"),
        ("pretrain", ("--imagine-steps", 0), "imagine_steps 0"),
        ("pretrain", ("--predictor.trunk.heads", 0), "heads 0"),
        ("pretrain", ("--predictor.text-dropout", 5), "text_dropout 5"),
        ("tokenizer", ("--shift", -1), "shift -1 at least 0"),
        ("tokenizer", ("--tokenizer.widths", 0, 0), "widths (0, 0) must be at least 1"),
        ("tokenizer", ("--tokenizer-stage.optim.lr", "nan"), "lr nan must be above 0"),
        ("tokenizer", ("--weights", "nan"), "--weights (nan,)"),
        ("tokenizer", ("--strides", 0), "--strides (0,)"),
        ("tokenizer", ("--domains", "martian"), "no domain 'martian': take one of unknown, human, robot, simulated"),
        ("tokenizer", ("--domains", "human", "robot"), "--domains has 2 values for 1 data sets: give one each"),
        ("pretrain", ("--predictor.domains", 3), "domains is 3; wanted 4"),
    ],
)
def test_numbers_that_make_no_sense_claim_no_folder(
    home: Path, tmp_path: Path, name: str, options: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, name, tmp_path / "out", *options) == 2
    shown = capsys.readouterr()
    assert words in " ".join((shown.err + shown.out).replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tasks", "plate-slide", "plate-slide"), "none twice"),
        (("--tasks", "plate-slide", "--workers", -1), "workers -1"),
    ],
)
def test_a_trial_counts_each_task_once(
    home: Path, tmp_path: Path, options: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options, "--out", tmp_path / "log.jsonl") == 2
    assert words in said(capsys)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("quickstart.json", '{"a": 1}'),
        ("quickstart.json", "{"),
        ("collect/done.json", "{}"),
        ("collect/done.json", "[]"),
        ("collect/done.json", ""),
        ("tokenizer/metrics.jsonl", '{"x/loss": 1}\n'),
        ("tokenizer/data.json", '{"version": 2}'),
        ("tokenizer/data.json", '{"datasets": [{"path": 1}]}'),
        ("imagine/imagination.json", "{}"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    tmp_path: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(QuickstartConfig(world="toy", tasks=("red",), preset="tiny"), PRESETS["tiny"](), tmp_path, "")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert ideomotor("report", tmp_path) == 2
    assert str(path) in said(capsys) and not (tmp_path / "report.html").exists()


def test_quickstart_needs_two_videos_to_hold_one_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = home / "data/video/videos/observation.images.main/chunk-000/file-000.mp4"
    few = ("--world", "toy", *TINY, "--out", tmp_path / "run", "--demonstrations", 1, "--workers", 1)
    assert ideomotor("quickstart", *few, "--videos", video) == 2
    assert "holds one readable video; wanted 2 or more" in said(capsys) and not (tmp_path / "run").exists()
    for number in ("nan", "inf"):
        assert ideomotor("quickstart", *few, "--budget-minutes", number) == 2
        assert f"budget_minutes is {number}" in said(capsys)


def test_an_error_before_training_leaves_the_folder_free(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, "finetune", tmp_path / "out", "--policy.action-width", 3) == 2
    assert "set --policy.action-width 2" in said(capsys)
    assert stage(home, "finetune", tmp_path / "out") == 0


def test_fresh_looks_at_the_data_before_it_deletes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = home / "data/video/videos/observation.images.main/chunk-000/file-000.mp4"
    (tmp_path / "mine").mkdir()
    for name in "ab":
        shutil.copy(video, tmp_path / "mine" / f"{name}.mp4")
    assert stage(home, "tokenizer", tmp_path / "out", "--data", tmp_path / "mine") == 0
    before = (tmp_path / "out/tokenizer/model.safetensors").read_bytes()
    (tmp_path / "mine/b.mp4").unlink()
    assert stage(home, "tokenizer", tmp_path / "out", "--data", tmp_path / "mine", "--fresh") == 2
    assert "a split needs at least 2" in said(capsys)
    assert (tmp_path / "out/tokenizer/model.safetensors").read_bytes() == before


def test_a_trial_of_other_settings_is_not_answered_from_the_log(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, arms = tmp_path / "policy", []
    shutil.copytree(home / "finetune", policy)
    monkeypatch.setattr(vpdd_stages, "roll_out", lambda *given, **options: arms.append(options["arm"]) or [])
    for options in ({}, {}, {"camera": "topview"}, {"look": "default"}, {"dial": "full"}):
        evaluate(policy, ("red",), 1, tmp_path / "log.jsonl", world="toy", **options)
    config = json.loads((policy / "vpdd.json").read_text())
    (policy / "vpdd.json").write_text(json.dumps(config | {"execute": 2}))
    evaluate(policy, ("red",), 1, tmp_path / "log.jsonl", world="toy")
    assert arms[0] == arms[1] and len(set(arms)) == 5


def test_imagine_does_not_write_over_what_it_reads(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(home / "data/video/videos/observation.images.main/chunk-000/file-000.mp4", clip)
    (tmp_path / "link.mp4").symlink_to(clip)
    before = clip.read_bytes()
    for out in (clip, tmp_path / "link.mp4"):
        assert ideomotor("imagine", home / "pretrain", "--input", clip, "--out", out) == 2
        assert "choose another --out" in said(capsys) and clip.read_bytes() == before
    words = ("--input", clip, "--out", tmp_path / "x.mp4", "--film", clip)
    assert ideomotor("imagine", home / "pretrain", *words) == 2
    assert "or --film" in said(capsys) and clip.read_bytes() == before and not (tmp_path / "x.mp4").exists()


def test_a_moved_run_still_knows_what_it_held_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "there/video"
    shutil.copytree(home / "data/video", mine)
    assert stage(home, "pretrain", tmp_path / "there/out", "--data", mine, "--validation", 0.3) == 0
    held = json.loads((tmp_path / "there/out/data.json").read_text())["datasets"][0]["held_out"]
    (tmp_path / "there").rename(tmp_path / "here")
    here = tmp_path / "here"
    capsys.readouterr()
    assert ideomotor("imagine", here / "out", "--input", here / "video", "--out", tmp_path / "x.mp4") == 0
    assert f"of {held[0]}" in capsys.readouterr().out
