"""Published checkpoints of VPDD, made up from their recorded layouts, to models of ours; and files that are refused."""

import errno
import json
import pickle
import shutil
import zlib
from argparse import Namespace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ideomotor import cli
from ideomotor.diffusion.schedule import Vocabulary, linear_schedule
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy
from ideomotor.systems import vpdd_import
from ideomotor.systems.importing import read_checkpoint
from ideomotor.systems.vpdd_import import import_vpdd, models_of
from ideomotor.systems.vpdd_published_stages import load_published
from ideomotor.training.checkpoint import read_model_info, save_model

CLASSES = {
    "metaworld_pretrain_48": 48,
    "metaworld_finetune_48": 48,
    "metaworld_finetune_256": 256,
    "rlbench_pretrain_360": 360,
    "rlbench_finetune_360": 360,
}
PUBLISHED_TO_OURS = {"at": "alpha", "ct": "gamma", "1_min_ct": "one_minus_gamma"}


@pytest.fixture(scope="module")
def layouts(shared: Path) -> dict:
    return json.loads((shared / "golden" / "vpdd" / "checkpoint_layouts.json").read_text())


@cache
def random(name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith(".attn.bias"):
        return torch.ones(shape, dtype=torch.uint8).tril()
    if name.endswith("masked_bias"):
        return torch.tensor(-1e4)
    return torch.rand(shape, generator=generator).to(getattr(torch, dtype))


def noise(codes: int, classes: int) -> dict[str, Tensor]:
    schedule = linear_schedule(Vocabulary((codes, classes)))
    found = {}
    for kind, bar in (("", ""), ("cumprod_", "_bar")):
        found[f"log_{kind}at"] = getattr(schedule, f"log_alpha{bar}")
        found[f"log_{kind}ct"] = getattr(schedule, f"log_gamma{bar}")
        found[f"log_1_min_{kind}ct"] = getattr(schedule, f"log_one_minus_gamma{bar}")
        for group, name in enumerate(("obs", "act")):
            found[f"log_{kind}bt_{name}"] = getattr(schedule, f"log_beta{bar}")[:, group]
    return {name: value.float() for name, value in found.items()}


def made_up(layouts: dict, name: str) -> dict[str, Tensor]:
    """Random weights under the recorded names, with the constants and the schedule that the release stores."""
    state = {entry[0]: random(entry[0], tuple(entry[1]), entry[2]) for entry in layouts[name]["tensors"]}
    for prefix in layouts[name].get("vqvae_prefixes", ()):
        state |= {prefix + key: value for key, value in made_up(layouts, "vqvae").items()}
    if name != "vqvae":
        state |= noise(2048, CLASSES[name])
    return state


@pytest.mark.golden
@pytest.mark.parametrize("name", CLASSES)
def test_every_published_layout_maps(layouts: dict, name: str) -> None:
    state = made_up(layouts, name)
    models = models_of({"step": 7, "model": state, "ema": state})
    assert models.config is not None and models.predictor is not None
    assert models.config.vocabulary.groups == (2048, CLASSES[name]) and models.config.steps == 100
    kind = MultiviewGPTPolicy if "rlbench" in name else GPTDiffusionPolicy
    assert ("finetune" in name) == isinstance(models.policy, kind)
    # Every weight came over, or is named as left out.
    trained = layouts[name]["trainable_without_vqvae"]
    ours = sum(w.numel() for part in (models.predictor, models.policy) if part for w in part.parameters())
    unused = sum(
        state[left].numel()
        for left in models.left_out
        if ".attn.bias" not in left and "masked" not in left and "Lt_" not in left
    )
    assert ours + unused == trained
    assert sum(weight.numel() for weight in models.tokenizer.parameters()) == layouts["vqvae"]["parameters"]
    # And landed where it belongs.
    assert models.predictor.codes.equal(models.tokenizer.codebook.codes)
    gate = state["model.traj_model.layers.3.1.fn.net.0.weight"][1024:]
    assert models.predictor.get_parameter("think.3.feed_forward.gate.weight").equal(gate)
    if models.policy is not None:
        turned = state["model.act_model.transformer.h.5.mlp.c_fc.weight"].t()
        assert models.policy.get_parameter("trunk.blocks.5.feed_forward.0.weight").equal(turned)


@pytest.mark.golden
def test_the_command_writes_folders_that_load(layouts: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = made_up(layouts, "metaworld_finetune_48")
    ema = state | {"model.traj_model.latents": state["model.traj_model.latents"] + 1}
    torch.save({"step": 600_000, "model": state, "ema": ema}, tmp_path / "state_200.pt")
    cli.main(["import", "vpdd", str(tmp_path / "state_200.pt"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "PerceiverDiffusionPredictor, 9,210,368 parameters" in said and "model.act_model.self_attn (8 t" in said
    assert "holds no action bins" in said
    models = load_published(tmp_path / "out")
    assert models.predictor is not None and models.policy is not None
    assert models.predictor.latents.equal(ema["model.traj_model.latents"])
    about = json.loads((tmp_path / "out" / "import.json").read_text())
    assert (about["step"], about["weights"]) == (600_000, "ema")
    assert (
        set(about["left_out"]) == set(models.left_out) and "model.act_model.transformer.wte.weight" in models.left_out
    )
    assert read_model_info(tmp_path / "out/policy")["meta"]["learned_with"].keys() == {"tokenizer", "predictor"}


@pytest.mark.golden
def test_an_import_takes_the_place_of_an_earlier_one_whole_or_not_at_all(
    layouts: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.save(made_up(layouts, "metaworld_finetune_48"), tmp_path / "all.pt")
    state = made_up(layouts, "vqvae")
    torch.save(state | {"codebook.embeddings": state["codebook.embeddings"] + 1}, tmp_path / "tokenizer.pt")
    out = tmp_path / "out"

    def full(folder: Path, *others: object) -> str:
        if folder.name == "predictor":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return save_model(folder, *others)

    with monkeypatch.context() as patch:
        patch.setattr(vpdd_import, "save_model", full)
        with pytest.raises(SystemExit):
            cli.main(["import", "vpdd", str(tmp_path / "all.pt"), "--out", str(out)])
    assert "No space left" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"all.pt", "tokenizer.pt"}
    import_vpdd(tmp_path / "all.pt", out)
    (out / "rollouts.jsonl").write_text("")
    import_vpdd(tmp_path / "tokenizer.pt", tmp_path / "other")
    shutil.rmtree(out / "tokenizer")
    shutil.copytree(tmp_path / "other/tokenizer", out / "tokenizer")
    with pytest.raises(ValueError, match=r"learned with the tokenizer .* they do not belong together"):
        load_published(out)
    import_vpdd(tmp_path / "tokenizer.pt", out)
    assert {path.name for path in out.iterdir()} == {"tokenizer", "import.json", "rollouts.jsonl"}
    assert load_published(out).policy is None


@pytest.mark.golden
def test_a_tokenizer_alone(layouts: dict, tmp_path: Path) -> None:
    state = made_up(layouts, "vqvae")
    arguments = {"args": Namespace(downsample=(2, 4, 4), n_codes=2048)}
    torch.save({"state_dict": state, "hyper_parameters": arguments, "epoch": 3}, tmp_path / "last.ckpt")
    tokenizer = models_of(read_checkpoint(tmp_path / "last.ckpt")).tokenizer
    assert tokenizer.config.strides == (2, 4, 4)
    save_file(state, tmp_path / "last.safetensors")
    lines = import_vpdd(tmp_path / "last.safetensors", tmp_path / "out")
    assert len(lines) == 1 and "AxialVQVAE, 30,861,827" in lines[0]
    models = load_published(tmp_path / "out")
    assert models.predictor is None and models.policy is None
    assert models.tokenizer.codebook.codes.equal(state["codebook.embeddings"])


def spoilt(layouts: dict, **changes: Tensor | None) -> dict:
    state = made_up(layouts, "metaworld_finetune_48")
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    return {"model": state}


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.traj_model.extra.weight", torch.zeros(2), r"1 left over \(extra.weight\)"),
        ("model.other", torch.zeros(2), r"1 left over \(model.other\)"),
        ("Lt_history", None, r"1 names missing \(Lt_history\)"),
        ("model.traj_model.embed_traj.bias", None, "PerceiverDiffusionPredictor does not fit.*missing: future.bias"),
        ("model.traj_model.latents", torch.zeros(2048, 250), "of another shape: .*embedding.places is"),
        ("model.traj_model.vqvae.codebook.N", torch.zeros(7), "of another shape|differ"),
        ("model.act_model.vqvae.codebook.N", torch.zeros(2048), "two tokenizers that differ in codebook.N"),
        ("model.act_model.predict_act_x.2.weight", torch.zeros(40, 256), "heads.0.2.weight is"),
        ("model.act_model.predict_gripper.2.weight", torch.zeros(40, 256), "of another shape|40 classes"),
        ("model.act_model.transformer.h.0.attn.bias", torch.ones(1, 1, 9, 9), "not the constant causal mask"),
        ("log_cumprod_ct", torch.zeros(101), r"noise schedule \(log_cumprod_ct\) is not the published one"),
        ("log_at", torch.zeros(100, 2), "noise schedule"),
    ],
)
def test_what_does_not_map_is_named(layouts: dict, name: str, value: Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models_of(spoilt(layouts, **{name: value}), "model")


@pytest.mark.golden
def test_entries_that_do_not_fit_together(layouts: dict) -> None:
    content = spoilt(layouts)
    with pytest.raises(ValueError, match="has no 'ema' weights: give --weights model"):
        models_of(content)
    codes = "model.traj_model.vqvae.codebook.embeddings"
    ema = content["model"] | {codes: torch.zeros(2048, 256)}
    with pytest.raises(ValueError, match="copies of the codebook differ"):
        models_of(content | {"ema": ema})


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/ideomotor-was-here"),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture, legacy: bool) -> None:
    source = tmp_path / "state.pt"
    torch.save({"model": {"x": torch.zeros(1)}, "step": Evil()}, source, _use_new_zipfile_serialization=not legacy)
    for arguments in ([], ["--weights", "model"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["import", "vpdd", str(source), "--out", str(tmp_path / "out"), *arguments])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert "holds more than tensors, and loading it could run code, so it was not loaded" in said
    source.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_checkpoint(source)
    assert not Path("/tmp/ideomotor-was-here").exists() and not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt is not a file"):
        read_checkpoint(tmp_path / "nothing.pt")
    for name, content in (("a.pt", b""), ("b.pt", b"hello"), ("c.safetensors", b"hello"), ("d.pt", b"PK\x03\x04no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="damaged or misnamed"):
            read_checkpoint(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; wanted a checkpoint's mapping"):
        read_checkpoint(tmp_path / "list.pt")
    for content in (
        {},
        {"model": {}},
        {"model": {"a": 1}},
        {"state_dict": {"a": torch.zeros(1)}},
        {"a": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"wanted names|other things|not the weights of a VPDD tok|not a publ"):
            models_of(content, "model")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is there already and holds no import: give a new folder"):
        import_vpdd(tmp_path / "a.pt", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no published VPDD"):
        load_published(tmp_path / "out")
