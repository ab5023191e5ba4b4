"""Names of an original CLIP's text tower: all of them are wanted, none is left."""

import pytest
import torch

from ideomotor.interop.clip_text import clip_text_config, clip_text_from_published


@pytest.fixture
def published(generator):
    shapes = {"token_embedding.weight": (10, 64), "positional_embedding": (7, 64), "text_projection": (64, 5),
              "ln_final.weight": (64,), "ln_final.bias": (64,)}  # fmt: skip
    for layer in range(2):
        block = {"attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,), "attn.out_proj.weight": (64, 64),
                 "attn.out_proj.bias": (64,), "mlp.c_fc.weight": (96, 64), "mlp.c_fc.bias": (96,),
                 "mlp.c_proj.weight": (64, 96), "mlp.c_proj.bias": (64,)}  # fmt: skip
        block |= {f"ln_{number}.{kind}": (64,) for number in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"transformer.resblocks.{layer}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_every_weight_of_transformers_is_given(published):
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    settings = clip_text_config(published)
    assert (settings["num_hidden_layers"], settings["num_attention_heads"]) == (2, 1)
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings))
    ours = clip_text_from_published(published | {"visual.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(1)})
    model.load_state_dict(ours)
    assert model.text_projection.weight.T.equal(published["text_projection"])


def test_every_name_counts(published):
    del published["text_projection"], published["transformer.resblocks.1.attn.in_proj_bias"]
    published |= {"transformer.resblocks.0.attn.extra.weight": torch.zeros(1), "head": torch.zeros(1)}
    with pytest.raises(
        ValueError,
        match=r"missing text_projection, transformer\S+1\S+in_proj_bias, unknown head, transformer\.resblocks\.0\.attn",
    ):
        clip_text_from_published(published)
