"""Published names of the iVideoGPT transformer: all of them are wanted, none is left, both ways."""

import pytest
import torch

from ideomotor.interop.ivideogpt import transformer_config, transformer_from_published, transformer_to_published
from ideomotor.layers.llama import LlamaConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor

TRUNK = LlamaConfig(width=8, layers=2, heads=2, inner=12, positions=600)
TINY = AutoregressiveConfig(context_codes=5, dynamics_codes=4, action_width=3, trunk=TRUNK)
SETTINGS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 600, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "attention_dropout": 0.0, "hidden_act": "silu"}  # fmt: skip
TOKENIZER = {"num_vq_embeddings": 5, "num_dyn_embeddings": 4, "context_length": 2}


@pytest.fixture
def published():
    torch.manual_seed(0)
    return transformer_to_published(AutoregressivePredictor(TINY).state_dict())


def test_both_ways(published):
    assert "llm.model.layers.1.self_attn.k_proj.weight" in published and "action_linear.bias" in published
    fields = transformer_config(published, SETTINGS, TOKENIZER)
    assert AutoregressiveConfig(**fields | {"trunk": LlamaConfig(**fields["trunk"])}) == TINY
    torch.manual_seed(0)
    wanted = AutoregressivePredictor(TINY).state_dict()
    ours = transformer_from_published(published)
    assert ours.keys() == wanted.keys() and all(ours[name].equal(wanted[name]) for name in wanted)


def test_every_name_counts(published):
    del published["llm.model.layers.0.mlp.up_proj.weight"], published["action_linear.bias"]
    published |= {"llm.model.layers.1.extra": torch.zeros(1), "value_head.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"2 are missing \(action_linear.bias, llm\S+up_proj.weight\), 2 left over \(llm.*extra, value"
    ):
        transformer_from_published(published)
    with pytest.raises(ValueError, match=r"of our names 1 are missing \(head.weight\), 1 left over \(tail\)"):
        ours = AutoregressivePredictor(TINY).state_dict()
        transformer_to_published(
            {name: value for name, value in ours.items() if name != "head.weight"} | {"tail": ours["head.weight"]}
        )


def test_other_folders_are_refused(published):
    with pytest.raises(ValueError, match="knows 11 ids; a tokenizer of 6 and 4 codes wants 12"):
        transformer_config(published, SETTINGS, TOKENIZER | {"num_vq_embeddings": 6})
    for other in ({"hidden_act": "gelu"}, {"num_key_value_heads": 1}, {"rope_scaling": {"type": "linear"}}):
        with pytest.raises(ValueError, match=r"config.json asks for"):
            transformer_config(published, SETTINGS | other, TOKENIZER)
    with pytest.raises(ValueError, match=r"no matrix model\.embed_tokens\.weight; the 1 names begin with x"):
        transformer_config({"x": torch.zeros(1)}, SETTINGS, TOKENIZER)
