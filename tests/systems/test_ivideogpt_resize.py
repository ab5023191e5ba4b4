"""A context that grows and shrinks: what is made is imagined with, and trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ideomotor import cli
from ideomotor.predictors.autoregressive import AutoregressivePredictor
from ideomotor.systems.ivideogpt import IVideoGPT, tiny
from ideomotor.systems.ivideogpt_resize import resize_ivideogpt, resized_config, room_behind
from ideomotor.systems.ivideogpt_stages import load_config, load_tokenizer, load_world, run_world
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.stages import WORLD_FILE, learned_with
from ideomotor.systems.world import World
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.training.checkpoint import save_model, write_json
from ideomotor.training.config import config_to_json


def stage(folder: Path, config: IVideoGPT, world: bool = True) -> Path:
    """Writes untrained networks as a stage does."""
    torch.manual_seed(0)
    tokenizer, predictor = ContextVQGAN(config.tokenizer), AutoregressivePredictor(config.world)
    for name, table in tokenizer.named_parameters():
        if name.endswith("context_positions"):
            torch.nn.init.normal_(table)
    save_model(folder / "tokenizer", tokenizer, config.tokenizer)
    if world:
        save_model(folder / "world", predictor, config.world, learned_with(folder, "tokenizer"))
    write_json(folder / WORLD_FILE, config_to_json(config))
    return folder


def roomy() -> IVideoGPT:
    trunk = replace(tiny().world.trunk, positions=280)
    return replace(tiny(), world=replace(tiny().world, trunk=trunk))


def episode(path: Path, length: int = 20) -> Path:
    rng, ones = np.random.default_rng(0), np.ones((length, 1), np.float32)
    frames = rng.integers(0, 256, (length, 3, 32, 32), dtype=np.uint8)
    path.parent.mkdir(parents=True)
    actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    actions[0] = 0
    np.savez_compressed(path, observation=frames, action=actions, reward=ones, discount=ones)
    return path


def test_a_grown_world_is_imagined_with_and_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = episode(tmp_path / "data/push/000000.npz")
    episode(tmp_path / "data/pull/000000.npz")
    folder, out = stage(tmp_path / "two", roomy()), tmp_path / "three"
    cli.main(["ivideogpt", "resize", str(folder), "--context", "3", "--out", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    assert "context 2 -> 3 frames; fine-tune" in said and "up to 17 frames" in said
    assert "--window.frames 7 --painted.context 3 --painted.frames 5" in said
    assert World.load(out).context == 3
    before, after = load_world(folder)[1].state_dict(), load_world(out)[1].state_dict()
    assert before.keys() == after.keys() and all(row.equal(after[name]) for name, row in before.items())
    made = tmp_path / "out.npz"
    cli.main(["imagine", str(out), "--input", str(source), "--horizon", "4", "--greedy", "--out", str(made)])
    with np.load(made) as arrays:
        assert arrays["context_tokens"].shape == (3, 64) and arrays["tokens"].shape == (1, 4, 4)
    options = DataOptions(data=(tmp_path / "data",), cache=tmp_path / "cache", validation=0)
    run_world(options, load_config(out), out, out, 0, tmp_path / "tuned", 0, False)
    assert World.load(tmp_path / "tuned").context == 3


def test_shrunk_again_it_is_what_it_was(tmp_path: Path) -> None:
    folder = stage(tmp_path / "two", roomy())
    resize_ivideogpt(folder, 4, tmp_path / "four")
    resize_ivideogpt(tmp_path / "four", 2, tmp_path / "again")
    before, after = (load_tokenizer(path).state_dict() for path in (folder, tmp_path / "again"))
    assert all(row.equal(after[name]) for name, row in before.items())
    grown = load_tokenizer(tmp_path / "four").state_dict()
    assert any(row.shape != grown[name].shape for name, row in before.items())
    assert load_config(tmp_path / "again").world == load_config(folder).world


def test_a_world_without_room_stays_behind(tmp_path: Path) -> None:
    folder = stage(tmp_path / "two", tiny())
    lines = " ".join(resize_ivideogpt(folder, 3, tmp_path / "three"))
    assert "the world stayed behind: a context of 3 frames" in lines and "--world.trunk.positions 214" in lines
    assert load_tokenizer(tmp_path / "three").context_length == 3 and not (tmp_path / "three/world").exists()
    assert load_config(tmp_path / "three").world.longest == tiny().window.horizon
    assert room_behind(tiny().world, 2) == tiny().world.longest


def test_a_horizon_that_no_longer_fits_is_shortened() -> None:
    config = replace(tiny(), world=replace(tiny().world, trunk=replace(tiny().world.trunk, positions=210)))
    assert resized_config(config, 3, carried=True).window.horizon == room_behind(config.world, 3) == 3


@pytest.mark.parametrize(("context", "words"), [(2, "has one of 2 frames"), (0, "give another")])
def test_what_makes_no_sense_is_refused(tmp_path: Path, context: int, words: str) -> None:
    folder = stage(tmp_path / "two", tiny(), world=False)
    with pytest.raises(ValueError, match=words):
        resize_ivideogpt(folder, context, tmp_path / "out")
    with pytest.raises(ValueError, match="is there already"):
        resize_ivideogpt(folder, 3, folder)
