"""Published names of the VPP policy: all of them are wanted and none is left, at full size too; wrong ones are told."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ideomotor.interop import vpp as names
from ideomotor.interop.clip_text import tower_config
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig

TENSORS = {"calvin_policy": 760, "bimanual_policy": 655}


@pytest.fixture(scope="module")
def layouts(shared: Path) -> dict:
    return json.loads((shared / "golden" / "vpp" / "checkpoint_layouts_policy.json").read_text())


def hollow(layout: dict) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape, _ in layout["tensors"]}


@pytest.mark.golden
@pytest.mark.parametrize("name", TENSORS)
def test_every_published_name_maps(layouts: dict, name: str) -> None:
    layout = layouts[name]
    state = hollow(layout)
    assert len(state) == TENSORS[name]
    parts = names.split_checkpoint(state)
    former_config = VideoFormerConfig(**names.former_config(parts.former))
    fields = names.policy_config(parts.policy, former_config.frames * former_config.queries)
    trunk = EncoderDecoderConfig(**fields.pop("trunk"))
    config = EDMTransformerConfig(**fields, trunk=trunk)
    calvin = name == "calvin_policy"
    assert former_config == VideoFormerConfig(feature_width=2560 if calvin else 1280)
    assert (config.chunk, config.action_width, config.proprio_width) == ((10, 7, 8) if calvin else (8, 38, 38))
    assert config.trunk == EncoderDecoderConfig(causal_context=True) and parts.calvin == calvin
    with torch.device("meta"):
        models = VideoFormer(former_config), EDMTransformer(config)
    mapped = names.former_from_published(parts.former), names.policy_from_published(parts.policy)
    counts = (layout["parameters"]["Video_Former"], layout["parameters"]["model"])
    for model, tensors, count in zip(models, mapped, counts, strict=True):
        assert {key: value.shape for key, value in tensors.items()} == {
            key: value.shape for key, value in model.state_dict().items()
        }
        assert sum(weight.numel() for weight in model.parameters()) == count
    frozen = {key for key, weight in models[1].named_parameters() if not weight.requires_grad}
    assert {key.split(".")[0] for key in frozen} == {"unused_positions", "unused_goal", "proprio"}
    for tower in (parts.goal_text, parts.video_text):
        settings = tower_config(tower)
        assert (settings["num_hidden_layers"], settings["hidden_size"], settings["num_attention_heads"]) == (12, 512, 8)
        assert len(tower) == 197
    image = {key for key in state if ".visual." in key or key.endswith("logit_scale")}
    assert set(parts.left_out) == image and bool(image) == calvin


def published_former(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {"latents": torch.randn(3, 2, 16), "time_pos_emb": torch.randn(3, 1, 16)}
    shapes = {"norm": (16,), "goal_emb.0": (32, 5), "goal_emb.2": (16, 32)}
    refine = 1 if kind == "2d" else 2
    for layer in range(2):
        shapes |= {f"layers.{layer}.0.{part}": (16,) for part in ("norm_media", "norm_latents")}
        shapes[f"layers.{layer}.{refine}.0"] = (16,)
        if kind == "3d":
            shapes |= {f"layers.{layer}.1.qkv": (48, 16), f"layers.{layer}.1.proj": (16, 16)}
        matrices = {"0.to_q": (8, 16), "0.to_k": (8, 16), "0.to_v": (8, 16), "0.to_out": (16, 8)}
        matrices |= {f"{refine}.1": (64, 16), f"{refine}.3": (16, 64)}
        state |= {f"layers.{layer}.{part}.weight": torch.randn(shape) for part, shape in matrices.items()}
    for part, shape in shapes.items():
        state |= {f"{part}.weight": torch.randn(shape), f"{part}.bias": torch.randn(shape[:1])}
    return state


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_formers_of_both_kinds(kind: str) -> None:
    state = published_former(kind)
    model = VideoFormer(VideoFormerConfig(**names.former_config(state)))
    model.load_state_dict(names.former_from_published(state))
    assert model.config.kind == kind and model.config.head_width == 1
    joined = torch.cat([state["layers.1.0.to_k.weight"], state["layers.1.0.to_v.weight"]])
    assert model.get_parameter("layers.1.read.key_value.weight").equal(joined)


def test_a_linear_one() -> None:
    state = {"weight": torch.randn(16, 5), "bias": torch.randn(16)}
    model = VideoFormer(VideoFormerConfig(**names.former_config(state)))
    model.load_state_dict(names.former_from_published(state))
    x = torch.randn(1, 2, 3, 5)
    torch.testing.assert_close(model(x)[0, :3], torch.nn.functional.linear(x[0, 0], **state))


def test_every_name_counts() -> None:
    state = published_former("3d")
    del state["layers.1.0.to_v.weight"]
    with pytest.raises(
        ValueError, match=r"1 published names are missing \(layers.1.0.to_v.weight\), 1 left over \(x\)"
    ):
        names.former_from_published(state | {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no pos_emb of 3 axes"):
        names.policy_config({"tok_emb.weight": torch.zeros(4, 4)}, 6)
    with pytest.raises(ValueError, match=r"no names begin with model\.inner_model\.; 1 names .*\(head\.weight\)"):
        names.split_checkpoint({"Video_Former.latents": torch.zeros(1), "head.weight": torch.zeros(1)})


def test_parts_that_do_not_belong_together() -> None:
    state = {"tok_emb.weight": torch.zeros(4, 4), "pos_emb": torch.zeros(1, 20, 4)}
    with pytest.raises(ValueError, match="20 places, of which a goal and 224 tokens leave none"):
        names.policy_config(state, 224)
