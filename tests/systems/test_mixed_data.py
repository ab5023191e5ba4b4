"""A named mix as the data of a stage, and the release's augmentation, from the command to what is learned from."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ideomotor import cli
from ideomotor.data.crop_jitter import normal
from ideomotor.data.loader import ClipLoader
from ideomotor.systems.ivideogpt import tiny
from ideomotor.systems.ivideogpt_stages import run_tokenizer
from ideomotor.systems.mixed_data import MixedData, MixOptions
from ideomotor.systems.sources import DataOptions, TrainingClips, open_sources, read_facts
from ideomotor.training.checkpoint import read_json

SIDES = ["train/traj_0", "train/traj_1", "train/traj_2", "test/traj_0"]


def record(folder: Path, names: list[str], camera: str, height: int = 48, width: int = 64) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frames = rng.integers(0, 256, (12, height, width, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", **{camera: frames})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    record(tmp_path / "root/bair_robot_pushing", SIDES, "aux1_image")
    return tmp_path / "root"


def test_a_mix_names_all_about_its_data(tmp_path: Path) -> None:
    names = ("fractal20220817_data", "kuka", "bridge", "taco_play", "jaco_play", "berkeley_cable_routing", "roboturk",
             "nyu_door_opening_surprising_effectiveness", "viola", "berkeley_autolab_ur5", "toto")  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    chosen = MixOptions(mix="rtx", root=tmp_path, validation=0.2).chosen()
    told = zip(chosen.weights, chosen.strides, chosen.cameras, strict=True)
    facts = dict(zip([path.name for path in chosen.data], told, strict=True))
    assert tuple(facts) == names and chosen.validation == 0.2
    assert facts["taco_play"] == (2.0, 5, "rgb_static") and facts["bridge"] == (1.0, 2, "image")
    plain = MixOptions(data=(tmp_path,), weights=(2.0,))
    assert plain.chosen() is plain


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give one"),
        ({"mix": "bair", "root": Path(), "data": (Path("x"),)}, "give one"),
        ({"mix": "bair"}, "go together"),
        ({"data": (Path("x"),), "root": Path()}, "go together"),
        ({"mix": "bair", "root": Path(), "strides": (2,)}, "leave --weights, --strides"),
        ({"mix": "beer", "root": Path()}, "there is no mix 'beer'"),
        ({"mix": "rtx", "root": Path("nowhere")}, "11 of 11 data sets .* are not in nowhere"),
    ],
)
def test_what_does_not_fit_is_named(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MixOptions(**given).chosen()


def test_a_tokenizer_learns_from_a_mix_split_as_released(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    words = ["ivideogpt", "tokenizer", "--preset", "tiny", "--mix", "bair", "--root", str(root), "--out", str(out)]
    cli.main([*words, "--cache", str(tmp_path / "cache")])
    (facts,) = read_facts(out)
    assert (facts.camera, facts.learned, facts.held_out) == ("aux1_image", 3, ["test/traj_0"])
    assert (out / "tokenizer").is_dir()
    assert read_json(out / "run.json")["config"]["trained_on"]["split"] == "as released"


def test_no_validation_leaves_the_released_episodes_out_all_the_same(root: Path, tmp_path: Path) -> None:
    data = MixOptions(mix="bair", root=root, validation=0, cache=tmp_path / "cache").chosen()
    assert isinstance(data, MixedData)
    sources = open_sources(data, tiny(), tiny().tokenizer_stage, window=tiny().painted)
    assert len(sources.train[0].dataset.episodes) == 3 and not sources.validation


def test_clips_are_cropped_from_larger_frames_and_never_twice_alike(root: Path, tmp_path: Path) -> None:
    data = DataOptions(data=(root / "bair_robot_pushing",), cache=tmp_path / "cache", validation=0.25)
    stage = tiny().tokenizer_stage
    sources = open_sources(data, tiny(), stage, window=tiny().painted, augmented=True)
    assert sources.train[0].dataset.episodes[0].frames["aux1_image"].shape[2:] == (48, 64)  # 3/2 of 32, aspect kept
    clips = TrainingClips(sources.train, sources.validation, augment=normal(32))
    plain = TrainingClips(sources.train, sources.validation)

    run = SimpleNamespace(seed=0, device=torch.device("cpu"), processes=SimpleNamespace(world_size=1, rank=0))
    loaders = [each.loader(stage, run)(0) for each in (clips, clips, plain)]
    first, again, unchanged = (loader.batch(3).frames["main"] for loader in loaders)
    assert first.shape == (4, 4, 3, 32, 32) and unchanged.shape == (4, 4, 3, 48, 64)
    assert first.equal(again) and not first.equal(loaders[0].batch(4).frames["main"])
    (held,) = clips.held_out(stage, batches=1)
    assert held.frames["main"].shape[-2:] == (32, 32)
    assert held.frames["main"].equal(plain.held_out(stage, batches=1)[0].frames["main"])


def test_what_a_sample_becomes_does_not_depend_on_its_batch(root: Path, tmp_path: Path) -> None:
    data = DataOptions(data=(root / "bair_robot_pushing",), cache=tmp_path / "cache", validation=0)
    sources = open_sources(data, tiny(), tiny().tokenizer_stage, window=tiny().painted, augmented=True).train
    whole = ClipLoader(sources, 4, 0, augment=normal(32), actions=False).batch(1).frames["main"]
    halves = [
        ClipLoader(sources, 4, 0, world_size=2, rank=rank, augment=normal(32), actions=False).batch(1).frames["main"]
        for rank in (0, 1)
    ]
    assert torch.cat(halves).equal(whole)
    with pytest.raises(ValueError, match="stand for unchanged frames"):
        ClipLoader(sources, 4, 0, augment=normal(32), token_cache=[], actions=False)


def test_an_augmented_stage_learns_otherwise_and_resumes_only_as_such(root: Path, tmp_path: Path) -> None:
    data = DataOptions(data=(root / "bair_robot_pushing",), cache=tmp_path / "cache", validation=0.25)
    for name in ("none", "strong"):
        run_tokenizer(data, tiny(), tmp_path / name, 0, False, name)
    one, other = (load_file(tmp_path / name / "tokenizer/model.safetensors") for name in ("none", "strong"))
    assert any(not row.equal(other[name]) for name, row in one.items())
    with pytest.raises(ValueError, match="augment"):
        run_tokenizer(data, tiny(), tmp_path / "strong", 0, False, "normal")
