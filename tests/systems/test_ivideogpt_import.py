"""Folders as iVideoGPT is published, made up, to worlds of ours and back; and folders that are refused."""

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ideomotor import World, cli
from ideomotor.layers.llama import LlamaConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.systems import ivideogpt_import
from ideomotor.systems.importing import read_checkpoint
from ideomotor.systems.ivideogpt import published_large, published_small, tiny
from ideomotor.systems.ivideogpt_import import config_of, export_ivideogpt, find, import_ivideogpt
from ideomotor.systems.ivideogpt_stages import load_config, load_world, run_world
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.stages import learned_with
from ideomotor.systems.world import World as SteppedWorld
from ideomotor.tokenizers.context_config import ContextVQGANConfig
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.training.checkpoint import save_model

TOKENIZER, TRANSFORMER = "tokenizer/diffusion_pytorch_model.safetensors", "transformer/model.safetensors"
SIZES = ContextVQGANConfig(widths=(16, 16, 32), blocks=1, latent=8, norm_groups=8, context_codes=20, dynamics_codes=30)
WORLD = AutoregressiveConfig(
    context_codes=20, dynamics_codes=30, action_width=4, trunk=LlamaConfig(layers=2, heads=2, width=128, inner=64)
)


def published(home: Path, tokenizer: ContextVQGANConfig, world: AutoregressiveConfig) -> Path:
    """Writes random weights in the published form."""
    torch.manual_seed(0)
    networks = ContextVQGAN(tokenizer), AutoregressivePredictor(world)
    for weight in networks[1].parameters():
        torch.nn.init.normal_(weight, std=0.05)
    save_model(home / "made/tokenizer", networks[0], tokenizer)
    save_model(home / "made/world", networks[1], world, learned_with(home / "made", "tokenizer"))
    export_ivideogpt(home / "made", home / "hub")
    return home / "hub"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder of a small world with actions."""
    return published(tmp_path_factory.mktemp("published"), SIZES, WORLD)


@pytest.fixture
def copied(hub: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(hub, tmp_path / "hub"))


def episode(folder: Path, length: int = 16) -> Path:
    """Writes one episode in the replay layout."""
    folder.mkdir(parents=True)
    rng, ones = np.random.default_rng(0), np.ones((length, 1), np.float32)
    frames = rng.integers(0, 256, (length, 3, 64, 64), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (length, 4)).astype(np.float32)
    actions[0] = 0
    path = folder / "episode.npz"
    np.savez_compressed(path, observation=frames, action=actions, reward=0 * ones, discount=ones)
    return path


def ideomotor(*words: object) -> int:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --- what an import is good for ---------------------------------------------------------------------------------------


def test_an_import_is_imagined_with_and_trained_on(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, source = tmp_path / "out", episode(tmp_path / "data")
    assert ideomotor("import", "ivideogpt", hub, "--out", out) == 0
    said = capsys.readouterr().out
    assert "heads: action; actions of width 4" in said and "context 2 frames, up to 30 foretold" in said
    assert json.loads((out / "import.json").read_text())["source"] == "hub"
    assert {path.name for path in out.iterdir()} == {"tokenizer", "world", "ivideogpt.json", "import.json"}
    words = ("--input", source, "--context", 2, "--horizon", 14, "--greedy", "--out", tmp_path / "out.npz")
    assert ideomotor("imagine", out, *words) == 0
    made = np.load(tmp_path / "out.npz")
    assert made["frames"].shape == (1, 16, 64, 64, 3) and made["tokens"].shape == (1, 14, 16)
    config = load_config(out)
    assert config == config_of(SIZES, WORLD) and config.world_stage == published_small().world_stage
    config = replace(config, window=replace(config.window, frames=4), world_stage=tiny().world_stage)
    options = DataOptions(data=(tmp_path / "data",), cache=tmp_path / "cache", validation=0)
    run_world(options, config, out, out, 2, tmp_path / "finetuned", 0, False)
    assert load_world(tmp_path / "finetuned")[1].config == WORLD


def test_what_no_checkpoint_tells_is_as_published() -> None:
    for preset in (published_small(), published_large()):
        assert config_of(preset.tokenizer, preset.world) == preset
    short = replace(WORLD, trunk=replace(WORLD.trunk, positions=600))
    assert config_of(SIZES, short).window.horizon == short.longest == 5
    many = config_of(replace(SIZES, context_length=9), replace(WORLD, context=9, trunk=LlamaConfig(positions=4096)))
    assert many.painted.context == many.window.context == 9


def test_snapshots_have_the_published_settings(tmp_path: Path) -> None:
    sizes = replace(published_small().tokenizer, widths=(32, 32, 32))
    world = AutoregressiveConfig(action_width=4, reward=True, trunk=replace(WORLD.trunk, heads=2))
    hub = published(tmp_path, sizes, world)
    for file, name in ((TOKENIZER, "tokenizer.pt"), (TRANSFORMER, "model.pt")):
        torch.save(load_file(hub / file), tmp_path / name)
    tokenizer_file, world_file = find(tmp_path)
    assert tokenizer_file.settings is None and world_file.settings is None
    with pytest.raises(ValueError, match=r"ContextVQGAN does not fit the model: .*of another shape: "):
        import_ivideogpt(tmp_path, tmp_path / "out")  # a snapshot of other sizes than the published
    (tmp_path / "tokenizer.pt").unlink()
    shutil.copytree(hub / "tokenizer", tmp_path / "tokenizer")
    said = import_ivideogpt(tmp_path, tmp_path / "out")
    assert "a snapshot names no settings" in said[-1] and "heads: action, reward" in said[-2]
    assert load_world(tmp_path / "out")[1].config == world


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_world_with_fewer_bits_foretells_nearly_the_same(hub: Path, tmp_path: Path, weights: str) -> None:
    import_ivideogpt(hub, tmp_path / "out")
    full, fast = SteppedWorld.load(tmp_path / "out"), World.load(tmp_path / "out", weights=weights)
    frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
    imagined = fast.imagine(frames, 3, torch.zeros(2, 3, 4))
    assert imagined.frames.shape == (2, 3, 3, 64, 64)
    painted = full.tokenizer.paint(imagined.tokens, full.tokenizer.observe(full.tokenizer.tokenize(frames).context))
    assert (painted.float() - imagined.frames.float()).abs().mean() < 4
    assert sum(part.nbytes for part in fast.predictor.state_dict().values()) < 0.6 * sum(
        part.nbytes for part in full.predictor.state_dict().values()
    )


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights are 'fp8'; wanted 'float32', 'bf16' or 'int8'"):
        World.load(tmp_path, weights="fp8")


# --- what is refused --------------------------------------------------------------------------------------------------


def change(file: str, edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def spoil(hub: Path) -> None:
        state = load_file(hub / file)
        edit(state)
        save_file(state, hub / file)

    return spoil


def settings(file: str, **values: object) -> Callable[[Path], None]:
    def spoil(hub: Path) -> None:
        path = (hub / file).with_name("config.json")
        told = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in told.items() if value != "gone"}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda hub: shutil.rmtree(hub / "transformer"), r"holds a tokenizer, and no transformer \(transformer/model"),
        (lambda hub: shutil.rmtree(hub / "tokenizer"), r"holds a transformer, and no tokenizer \(tokenizer/diffusion"),
        (shutil.rmtree, "holds neither tokenizer nor transformer"),
        (lambda hub: (hub / "tokenizer/config.json").unlink(), r"tokenizer/config\.json is missing: a release has it"),
        (lambda hub: (hub / TOKENIZER).write_bytes(b"junk"), "is not a safetensors file"),
        (lambda hub: (hub / "transformer/config.json").write_text("{"), "is not JSON"),
        (change(TOKENIZER, lambda state: state.pop("quant_conv.bias")), r"1 names missing \(quant_conv\.bias\)"),
        (change(TOKENIZER, lambda state: state.update({"ema.x": torch.zeros(1)})), r"1 left over \(ema\.x\)"),
        (change(TRANSFORMER, lambda state: state.update({"llm.x": torch.zeros(1)})), r"1 left over \(llm\.x\)"),
        (change(TRANSFORMER, lambda state: state.pop("llm.model.norm.weight")), r"1 are missing \(llm\.model\.norm"),
        (
            change(TRANSFORMER, lambda state: state.update({"action_linear.bias": torch.zeros(3)})),
            "AutoregressivePredictor does not fit the model: of another shape: action.bias is",
        ),
        (
            settings(TRANSFORMER, rms_norm_eps="gone"),
            "not the config of an iVideoGPT transformer: rms_norm_eps missing",
        ),
        (settings(TRANSFORMER, num_key_value_heads=1), "shared key-value heads"),
        (settings(TOKENIZER, act_fn="relu"), "act_fn='relu'"),
        (settings(TOKENIZER, num_vq_embeddings=21), "knows 52 ids; a tokenizer of 21 and 30|of another shape"),
    ],
)
def test_what_does_not_map_is_named(
    copied: Path, spoil: Callable[[Path], None], words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    spoil(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        import_ivideogpt(copied, tmp_path / "out")
    assert ideomotor("import", "ivideogpt", copied, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/ideomotor-world-was-here"),))


def test_code_in_a_snapshot_is_never_run(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "transformer")
    torch.save({"x": torch.zeros(1), "agent": Evil()}, copied / "model.pt")
    with pytest.raises(ValueError, match="holds more than tensors, and loading it could run code"):
        import_ivideogpt(copied, tmp_path / "out")
    torch.save({"x": torch.zeros(1), "step": 3}, copied / "model.pt")
    with pytest.raises(ValueError, match="holds other things than tensors: step"):
        import_ivideogpt(copied, tmp_path / "out")
    assert not Path("/tmp/ideomotor-world-was-here").exists() and not (tmp_path / "out").exists()


def test_an_import_takes_the_place_of_an_earlier_one_whole_or_not_at_all(
    hub: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    import_ivideogpt(hub, out)
    before = (out / "world/config.json").read_text()
    (out / "scores.json").write_text("{}")
    (out / "vpdd_published.json").write_text("{}")  # of an import of the other system
    change(TRANSFORMER, lambda state: state["action_linear.bias"].add_(1))(copied)

    def full(folder: Path, *others: object) -> str:
        if folder.name == "world":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return save_model(folder, *others)

    with monkeypatch.context() as patch:
        patch.setattr(ivideogpt_import, "save_model", full)
        assert ideomotor("import", "ivideogpt", copied, "--out", out) == 2
    assert (out / "world/config.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"hub", "out"}
    import_ivideogpt(copied, out)
    assert (
        load_world(out)[1].get_parameter("action.bias").allclose(load_file(copied / TRANSFORMER)["action_linear.bias"])
    )
    assert (out / "scores.json").is_file() and not (out / "vpdd_published.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"hub", "out"}, "nothing half-made lies about"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/all.txt").write_text("all of it")
    for call in (lambda to: import_ivideogpt(hub, to), lambda to: export_ivideogpt(out, to)):
        with pytest.raises(ValueError, match=r"is there already.*give a new folder"):
            call(tmp_path / "thesis")


@pytest.mark.parametrize(("earlier", "moved"), [(False, 1), (True, 0), (True, 3)])
def test_a_kill_while_an_import_is_put_in_place_leaves_a_folder_to_import_to(
    hub: Path, tmp_path: Path, earlier: bool, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain, count = tmp_path / "out", Path.rename, [0]
    if earlier:
        import_ivideogpt(hub, out)

    def killed(self: Path, target: Path) -> Path:
        if Path(target).resolve().is_relative_to(out) and "new-" not in str(target):
            count[0] += 1
            if count[0] > moved:
                raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with suppress(KeyboardInterrupt):  # where less is to be moved, nothing is cut off
            import_ivideogpt(hub, out)
    left = out.with_name(".out.new-99999999")  # as a kill leaves it: nothing was cleared
    left.mkdir()
    import_ivideogpt(hub, out)
    assert World.load(out).context == 2 and not left.exists()


def test_worlds_that_were_never_published_are_not_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny()
    for change_it, words in (
        (config.tokenizer, "no tokenizer with codebook='fsq'"),
        (replace(SIZES, residual=True), "no tokenizer with residual=True"),
        (replace(SIZES, size=32, attention_limit=8), "frames of 64 and 4 tokens came; the published code knows 256"),
    ):
        shutil.rmtree(tmp_path / "world", ignore_errors=True)
        codes = change_it.num_codes
        world = replace(config.world, context_codes=codes[0], dynamics_codes=codes[1])
        save_model(tmp_path / "world/tokenizer", ContextVQGAN(change_it), change_it)
        save_model(tmp_path / "world/world", AutoregressivePredictor(world), world)
        with pytest.raises(ValueError, match=words):
            export_ivideogpt(tmp_path / "world", tmp_path / "hub")
        assert not (tmp_path / "hub").exists()


def test_exported_files_say_that_they_are_of_torch(hub: Path) -> None:
    from safetensors import safe_open

    for file in (TOKENIZER, TRANSFORMER):
        with safe_open(hub / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert read_checkpoint(hub / file)


# --- full size --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_size_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    preset = published_small()
    hub = published(tmp_path, preset.tokenizer, preset.world)
    shutil.rmtree(tmp_path / "made")
    assert ideomotor("import", "ivideogpt", hub, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "ContextVQGAN, 114,159,174 parameters" in said and "AutoregressivePredictor, 138,434,304" in said
    assert load_config(tmp_path / "out") == preset
    source = episode(tmp_path / "data")
    words = ("--input", source, "--context", 2, "--horizon", 14, "--greedy", "--out", tmp_path / "out.npz")
    assert ideomotor("imagine", tmp_path / "out", *words) == 0
    made = np.load(tmp_path / "out.npz")
    assert made["frames"].shape == (1, 16, 64, 64, 3) and made["tokens"].shape == (1, 14, 16)
    assert len(np.unique(made["tokens"])) > 1 and made["tokens"].max() < 8192
    shutil.rmtree(tmp_path)  # a gigabyte and a half
