"""VPDD as published, from the commands: stages one after the other, resume, what is refused, imported policies."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("gymnasium", reason="the metaworld extra is not installed")

from ideomotor import cli
from ideomotor.data.cache import cached
from ideomotor.data.distant_windows import DistantWindow
from ideomotor.data.formats import open_dataset
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.token_cache import windows_key
from ideomotor.data.transforms import resize_and_crop
from ideomotor.data.windows import WindowConfig, WindowIndex
from ideomotor.layers.text import HashedWords
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy
from ideomotor.policies.published_actions import GRIPPER_EFFORTS, ActionBins, ActionBinsConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor
from ideomotor.systems import collection
from ideomotor.systems.collection import CollectionConfig, collect
from ideomotor.systems.sources import TrainingClips, tokenized
from ideomotor.systems.stages import open_run
from ideomotor.systems.vpdd import VIEW, Stage
from ideomotor.systems.vpdd_import import completed
from ideomotor.systems.vpdd_published_config import PRESETS, PublishedVPDD, plain_adam
from ideomotor.systems.vpdd_published_stages import (
    PublishedModels,
    finetune,
    load_agent,
    load_published,
    pretrain,
    text_encoder,
    train_tokenizer,
)
from ideomotor.systems.vpdd_stages import evaluate, load_models
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE
from ideomotor.training.run import Run, Stopped

TINY = ("--preset", "published-tiny", "--policy.action-width", 2)


def ideomotor(*words: object) -> int:
    """Runs a command in this process and returns its exit status."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        return end.code or 0
    return 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


class Here:
    """Stands in for a worker process."""

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
    """A folder with a toy collection and the three stages of the published form trained on it, by commands."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "Worker", Here)
        patch.setattr(collection.connection, "wait", lambda pipes, timeout: pipes[:1])
        counts = {"demonstrations": 3, "expert": 1, "noisy": 1, "failed": 1}
        collect(CollectionConfig(out=home / "data", world="toy", tasks=("red",), size=48, **counts))
    for name in ("tokenizer", "pretrain", "finetune"):
        assert stage(home, name, home / name, f"--{name}-stage.steps", 3) == 0
    return home


def stage(home: Path, name: str, out: Path, *more: object) -> int:
    data = home / "data" / ("demonstrations" if name == "finetune" else "video")
    words = [*TINY, "--data", data, "--out", out, "--cache", home / "cache"]
    earlier = {"pretrain": ("tokenizer-from", "tokenizer"), "finetune": ("predictor-from", "pretrain")}
    if name in earlier and f"--{earlier[name][0]}" not in more:
        words += [f"--{earlier[name][0]}", home / earlier[name][1]]
    return ideomotor("vpdd", name, *words, *more)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_each_stage_leaves_what_the_next_one_reads(home: Path) -> None:
    models = load_published(home / "finetune")
    assert models.config is not None and models.predictor is not None and models.bins is not None
    assert isinstance(models.policy, GPTDiffusionPolicy) and models.left_out == ()
    assert models.predictor.codes.equal(models.tokenizer.codebook.codes)
    for name in ("pretrain", "finetune"):
        ours, first = load_file(home / name / "tokenizer/model.safetensors"), load_file(
            home / "tokenizer/tokenizer/model.safetensors")  # fmt: skip
        assert all(value.equal(first[key]) for key, value in ours.items())
    assert json.loads((home / "finetune/run.json").read_text())["config"]["model"]["window"]["ahead"] == 8


def test_a_policy_is_tried_in_the_toy_world_by_the_command(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "rollouts.jsonl"
    options = ("--world", "toy", "--tasks", "red", "--episodes", 1, "--workers", 1, "--out", log)
    assert ideomotor("vpdd", "evaluate", home / "finetune", *options) == 0
    assert "red" in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == 1
    again = evaluate(home / "finetune", ["red"], 1, log, 1, world="toy")  # resumes from the log
    assert len(again) == 1 and 0 < again[0].steps <= 100
    with pytest.raises(ValueError, match="always imagines in full: leave out --dial"):
        evaluate(home / "finetune", ["red"], 1, log, 1, dial="none", world="toy")


def test_help_shows_the_fields_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PRESETS:
        assert ideomotor("vpdd", "finetune", "--preset", name, "--help") == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "--window.ahead" in shown and "--policy.trunk.layers" in shown and "--tokenizer.codes" in shown
        assert (
            f"frames are squares of that many pixels, scaled without smoothing. (default: {PRESETS[name]().size})"
            in shown
        )
        assert "{policy:" not in shown and "tyro" not in shown
    assert ideomotor("vpdd", "finetune", "--preset", "publishd") == 2
    assert "did you mean 'published'? (presets: fast, tiny, published, paper, published-tiny)" in said(capsys)
    assert ideomotor("quickstart", "--preset", "paper") == 2
    assert said(capsys) == "error: there is no preset 'paper' (presets: fast, tiny)"


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        (
            "finetune",
            ("--policy.text-width", 512),
            "gives vectors of width 384; predictor and policy expect 384 and 512",
        ),
        ("finetune", ("--window.ahead", 9), r"window.ahead: 8 -> 9. Give the same --preset"),
        ("finetune", ("--steps", 9), "steps: 4 -> 9"),
        ("finetune", ("--strides", 2), "--strides is (2,), and the policy looks every 1 frames"),
        ("pretrain", ("--tokenizer.width", 32), "tokenizer.width: 16 -> 32"),
        ("pretrain", ("--text", "nowhere"), "nowhere holds no CLIP model (config.json)"),
        (
            "finetune",
            ("--policy.action-width", 3, "--policy.places", 34),
            "have actions of width 2, the policy of 3: set",
        ),
        ("finetune", ("--bins", "release"), "are for actions of width 4"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    home: Path, name: str, more: tuple, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert stage(home, name, tmp_path / "out", *more) == 2
    assert words in said(capsys)


def test_the_two_forms_are_told_apart(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds VPDD in its published form"):
        load_models(home / "pretrain")
    (tmp_path / "vpdd.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no published VPDD \(vpdd_published.json\)"):
        load_published(tmp_path)
    with pytest.raises(ValueError, match="holds no policy: give the --out folder of `ideomotor vpdd finetune`"):
        load_agent(home / "pretrain")
    words = [*TINY, "--data", home / "data/demonstrations", "--out", tmp_path / "out"]
    assert ideomotor("vpdd", "finetune", *words) == 2
    assert "give --predictor-from" in said(capsys)
    assert ideomotor("vpdd", "pretrain", "--preset", "published", "--data", home / "data/video", "--tokenizer-from",
                     home / "tokenizer", "--out", tmp_path / "out", "--text", "hashed") == 2  # fmt: skip
    assert "RN50: 1024" in said(capsys) and not (tmp_path / "out").exists()


# --- resume -----------------------------------------------------------------------------------------------------------


def small() -> PublishedVPDD:
    config = PRESETS["published-tiny"]()
    stage = Stage(steps=4, batch=4, optim=plain_adam(1e-3, ema=0.9, accumulate=2))
    return replace(
        config,
        policy=replace(config.policy, action_width=2),
        tokenizer_stage=stage, pretrain_stage=stage, finetune_stage=stage,
    )  # fmt: skip


def train(name: str, out: Path, pause_at: int | None = None) -> dict[str, Tensor]:
    """Runs one stage on synthetic clips from untrained models, and returns every tensor that it saved."""
    config = small()
    torch.manual_seed(0)
    tokenizer, predictor = AxialVQVAE(config.tokenizer).eval(), PerceiverDiffusionPredictor(config.predictor).eval()
    tokenizer.codebook.codes.normal_()
    predictor.borrow_codes(tokenizer.codebook.codes)
    window = config.clip_window if name == "tokenizer" else config.window
    dataset = synthetic_dataset(episodes=3, length=12, size=config.size, actions=name == "finetune")
    clips = TrainingClips([Source(dataset=dataset, window=window, cameras={VIEW: "video"})])
    with Run(out, seed=1, config=config, pause_at=pause_at) as run:
        if name == "tokenizer":
            train_tokenizer(config, clips, run)
        else:
            acting = name == "finetune"
            clips = tokenized(clips.sources, tokenizer, config, out.parent / "cache", False, acting)
            if acting:
                finetune(config, clips, tokenizer, predictor, HashedWords(), run)
            else:
                pretrain(config, clips, tokenizer, HashedWords(), run)
    saved = sorted(out.glob("*/model.safetensors"))
    return {f"{path.parent.name}/{key}": value for path in saved for key, value in load_file(path).items()}


MODELS = {
    "tokenizer": {"tokenizer"},
    "pretrain": {"tokenizer", "predictor"},
    "finetune": {"tokenizer", "predictor", "policy", "bins"},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_paused_stage_ends_at_the_same_bits(name: str, tmp_path: Path) -> None:
    straight = train(name, tmp_path / "straight")
    with pytest.raises(Stopped):
        train(name, tmp_path / "paused", pause_at=2)
    assert not list((tmp_path / "paused").glob("*/model.safetensors"))
    resumed = train(name, tmp_path / "paused")
    assert {key.split("/")[0] for key in straight} == MODELS[name] and straight.keys() == resumed.keys()
    assert [key for key, value in straight.items() if not value.equal(resumed[key])] == []


# --- data -------------------------------------------------------------------------------------------------------------


def test_distant_windows_come_out_of_the_loader() -> None:
    dataset = synthetic_dataset(episodes=2, length=12, size=8, actions=True)
    window = DistantWindow(frames=2, ahead=5, chunk=4, stride=2, every=3)
    loader = ClipLoader([Source(dataset=dataset, window=window)], 2, seed=0, prefetch=0)
    assert len(loader._readers[0].index) == 8
    reader = loader._readers[0]
    clip = reader.read(
        np.array([3, 5]), np.zeros(2, np.uint64), False
    )  # anchors 9 of the first, 3 of the second episode
    pictures = [episode.frames["video"].read(range(12)) for episode in dataset.episodes]
    assert clip.frames["main"][0].equal(pictures[0][[7, 9, 9, 11]])
    assert clip.frames["main"][1].equal(pictures[1][[1, 3, 9, 11]])
    assert clip.actions is not None and clip.action_mask is not None
    recorded = torch.from_numpy(np.asarray(dataset.episodes[0].read_actions(), dtype=np.float32))
    assert clip.actions[0, :3].equal(recorded[9:]) and not clip.actions[0, 3].any()
    assert clip.action_mask.tolist() == [[True, True, True, False], [True] * 4]


def test_caches_keep_their_names_and_other_windows_get_others() -> None:
    dataset = synthetic_dataset(episodes=1, length=12, size=8)
    distant = (DistantWindow(), DistantWindow(ahead=9), DistantWindow(stride=2))
    windows = (WindowConfig(), WindowConfig(every=2), *distant)
    assert len({windows_key(WindowIndex(dataset, window), "video") for window in windows}) == 5
    assert WindowConfig().key == [4, 4, 4, 1]  # stored caches are named by it


def test_frames_are_scaled_without_smoothing_into_a_cache_of_their_own(home: Path, tmp_path: Path) -> None:
    dataset = open_dataset(home / "data/video")
    smooth, plain = (cached(dataset, tmp_path, 32, smooth=way) for way in (True, False))
    assert smooth.fingerprint != plain.fingerprint
    camera = next(iter(dataset.episodes[0].frames))
    raw = dataset.episodes[0].frames[camera].read([0, 5])
    assert plain.episodes[0].frames[camera].read([0, 5]).equal(resize_and_crop(raw, (32, 32), smooth=False))
    assert not plain.episodes[0].frames[camera].read([0]).equal(smooth.episodes[0].frames[camera].read([0]))


# --- acting in Meta-World, and imports --------------------------------------------------------------------------------


def test_bins_of_the_release_fit_any_number_of_actions_and_bar_what_has_no_value(generator: torch.Generator) -> None:
    bins = ActionBins(ActionBinsConfig(classes=12))
    actions = torch.randn(131, 4, generator=generator)
    actions[:, 3] = torch.tensor(GRIPPER_EFFORTS)[torch.arange(131) % 10]
    assert bins.fit(actions).decode(bins.encode(actions))[:, 3].equal(actions[:, 3])
    assert bins.barred.sum() == 2 and bins.barred[3, 10:].all()
    with pytest.raises(ValueError, match="take quantile bins"):
        ActionBinsConfig(width=2)
    assert not ActionBins(ActionBinsConfig(kind="quantile", width=2)).barred.any()


def test_an_imported_policy_acts_once_it_has_bins_and_words(home: Path, tmp_path: Path) -> None:
    """An import is a folder of a stage without bins; with them it is complete."""
    models = load_published(home / "finetune")
    assert models.config is not None
    bare = PublishedModels(models.tokenizer, models.predictor, models.policy, replace(models.config, text="sentence"))
    done = completed(bare, home / "data/demonstrations", "hashed")
    assert done.bins is not None and done.config == models.config
    assert all(value.equal(models.bins.state_dict()[key]) for key, value in done.bins.state_dict().items())
    with pytest.raises(ValueError, match="holds no policy for Meta-World: leave out --demonstrations"):
        completed(bare._replace(policy=None), home / "data/demonstrations", None)
    folder = tmp_path / "import"
    shutil.copytree(home / "finetune", folder)
    (folder / "import.json").write_text(json.dumps({"left_out": ["x"]}))
    about = json.loads((folder / "policy/config.json").read_text())
    del about["meta"]["learned_with"]["bins"]
    (folder / "policy/config.json").write_text(json.dumps(about))
    spoken = load_agent(folder).text(["close the door", "something else"])  # the first is a sentence of our Meta-World
    assert spoken.equal(HashedWords()(["Close a door with a revolving joint", "something else"]))
    assert load_published(folder).left_out == ("x",)
    shutil.rmtree(folder / "bins")
    with pytest.raises(ValueError, match="holds no action bins, as no checkpoint does: import it anew with --demonstr"):
        load_agent(folder)


def test_an_unfinished_stage_says_so(tmp_path: Path) -> None:
    open_run(tmp_path / "begun", small(), seed=0)._lock.close()
    with pytest.raises(ValueError, match="has not finished: run its command again"):
        load_published(tmp_path / "begun")
    assert text_encoder(small()).width == 384
