"""Published VPP policies, made up small from their recorded layouts, to folders; files that are refused."""

import json
import pickle
import sys
import types
import typing
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ideomotor import cli
from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.systems.importing import read_checkpoint
from ideomotor.systems.vpp_import import import_vpp, models_of
from ideomotor.training.checkpoint import load_model, read_model_info

SMALL = {2560: 40, 1280: 24, 384: 32, 768: 64, 1536: 128, 1152: 96, 2304: 192, 512: 16, 49408: 50, 77: 9}
SMALL_TEXT = {512: 16, 1536: 48, 2048: 64, 49408: 50, 77: 9}


@pytest.fixture(scope="module")
def layouts(shared: Path) -> dict:
    return json.loads((shared / "golden" / "vpp" / "checkpoint_layouts_policy.json").read_text())


def made_up(
    layouts: dict, name: str, small: Mapping[int, int] = SMALL, small_text: Mapping[int, int] = SMALL_TEXT
) -> dict[str, Tensor]:
    """The policy's names, with a text tower of one layer and all widths small."""
    state = {}
    for key, shape, _ in layouts[name]["tensors"]:
        if any(f"{stack}.{layer}." in key for stack in ("resblocks", "encoder.layers") for layer in range(1, 12)):
            continue
        sizes = small_text if key.startswith(("language_goal", "TVP", "text_")) else small
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        state[key] = 0.1 * torch.randn([sizes.get(size, size) for size in shape], generator=generator)
    return state


@pytest.mark.golden
@pytest.mark.parametrize("name", ["calvin_policy", "bimanual_policy"])
def test_the_command_writes_folders_that_load(
    layouts: dict, name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    state, calvin = made_up(layouts, name), name == "calvin_policy"
    torch.save({"model": state, "args": {"lr": 1e-4}}, tmp_path / "last.pt")
    cli.main(["import", "vpp", str(tmp_path / "last.pt"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "VideoFormer" in said and "EDMTransformer" in said and "put the tokenizer's files" in said
    former = load_model(tmp_path / "out/former", VideoFormer, VideoFormerConfig)
    policy = load_model(tmp_path / "out/policy", EDMTransformer, EDMTransformerConfig)
    assert policy.config.sampling == Sampling(sigma_min=1.0 if calvin else 0.001)
    assert former.queries.equal(state["Video_Former.latents"])
    assert policy.action.weight.equal(state["model.inner_model.action_emb.weight"])
    proprio = None if calvin else torch.zeros(1, 38)
    tokens = former(torch.randn(1, 16, 4, former.config.feature_width))
    assert policy.act(tokens, torch.zeros(1, 16), proprio).shape == ((1, 10, 7) if calvin else (1, 8, 38))
    about = json.loads((tmp_path / "out/import.json").read_text())
    assert any(".visual." in key for key in about["left_out"]) == calvin
    assert ("left out" in said) == calvin
    assert read_model_info(tmp_path / "out/policy")["meta"]["learned_with"].keys() == {"former"}
    towers = [
        transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "out" / kind, local_files_only=True)
        for kind in ("goal_text", "video_text")
    ]
    key = "TVP_encoder.text_encoder.text_projection.weight"
    assert towers[1].text_projection.weight.equal(state[key])
    projection = state["language_goal.clip_rn50.text_projection"].T if calvin else state["text_encoder." + key[25:]]
    assert towers[0].text_projection.weight.equal(projection)


@pytest.mark.golden
def test_a_safetensors_file_and_a_damaged_policy(layouts: dict, tmp_path: Path) -> None:
    state = made_up(layouts, "bimanual_policy")
    save_file(state, tmp_path / "policy.safetensors")
    assert any("8 actions of width 38" in line for line in import_vpp(tmp_path / "policy.safetensors", tmp_path / "o"))
    del state["model.inner_model.decoder.ln.weight"]
    with pytest.raises(ValueError, match=r"1 published names are missing \(decoder\.ln\.weight\)"):
        models_of({"model": state})
    state = made_up(layouts, "bimanual_policy") | {"text_encoder.text_model.final_layer_norm.scale": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"unknown text_model\.final_layer_norm.scale"):
        models_of({"model": state})
    state = made_up(layouts, "bimanual_policy") | {"Video_Former.norm.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match="of another shape"):
        models_of({"model": state})


def settings_of_a_release(monkeypatch: pytest.MonkeyPatch) -> object:
    """An object pickled as a release pickles its OmegaConf settings; that library is not needed here."""
    classes = {}
    for module, names in {
        "omegaconf.dictconfig": ("DictConfig",),
        "omegaconf.nodes": ("AnyNode",),
        "omegaconf.base": ("ContainerMetadata",),
    }.items():
        made = types.ModuleType(module)
        for name in names:
            classes[name] = type(name, (), {"__module__": module})
            setattr(made, name, classes[name])
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    metadata, node, config = classes["ContainerMetadata"](), classes["AnyNode"](), classes["DictConfig"]()
    metadata.ref_type, metadata.object_type, metadata.resolver_cache = typing.Any, dict, defaultdict(dict)
    node._val, node._parent = 1e-4, config
    config._metadata, config._content = metadata, {"lr": node}
    return config


def test_settings_beside_the_weights_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        torch.save({"model": {"a": torch.ones(2)}, "args": settings_of_a_release(patch)}, tmp_path / "last.pt")
    assert "omegaconf" not in sys.modules
    content = read_checkpoint(tmp_path / "last.pt")
    assert content["model"]["a"].equal(torch.ones(2))
    assert "omegaconf" not in sys.modules


def test_weights_of_odd_shapes_are_named() -> None:
    policy = {"model.inner_model.pos_emb": torch.zeros(1, 9, 4)}
    with pytest.raises(ValueError, match="no weight of 2 axes"):
        models_of(policy | {"Video_Former.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="no latents of 3 axes"):
        models_of(policy | {"Video_Former.latents": torch.zeros(2, 3, 0)})


class Harmful:
    def __reduce__(self) -> tuple:
        return print, ("this must never run",)


def test_code_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with (tmp_path / "bad.pt").open("wb") as file:
        pickle.dump(Harmful(), file, protocol=2)
    torch.save({"model": {}, "args": Harmful()}, tmp_path / "worse.pt")
    for name in ("bad.pt", "worse.pt"):
        with pytest.raises(ValueError, match=r"not loaded|not a checkpoint"):
            import_vpp(tmp_path / name, tmp_path / "out")
    assert "never run" not in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_another_kind_of_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(100))
    save_file({"a": torch.ones(2)}, tmp_path / "misnamed.pt")
    for name in ("film.mp4", "misnamed.pt"):
        with pytest.raises(ValueError, match=rf"{name} is no checkpoint of torch"):
            import_vpp(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
