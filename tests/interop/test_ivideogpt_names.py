"""Published names of the iVideoGPT tokenizer: both ways, all of them wanted, none left; settings that are refused."""

import pytest
import torch

from ideomotor.interop import ivideogpt_tokenizer as names
from ideomotor.tokenizers.context_config import ContextVQGANConfig
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.tokenizers.critic import PatchCritic, PatchCriticConfig

SMALL = ContextVQGANConfig(
    size=32, widths=(8, 8, 16), blocks=2, latent=4, patch=2, context_codes=12, dynamics_codes=20, norm_groups=4,
    attention_limit=8, context_length=3, middle_attention=True,
)  # fmt: skip


@pytest.fixture
def state():
    torch.manual_seed(0)
    return ContextVQGAN(SMALL).state_dict()


def test_round_trip(state):
    published, config = names.tokenizer_to_published(state), names.settings_to_published(vars(SMALL))
    assert ContextVQGANConfig(**names.tokenizer_settings(config, published)) == SMALL
    again = names.tokenizer_from_published(published)
    assert again.keys() == state.keys() and all(again[name].equal(value) for name, value in state.items())


def test_the_context_is_told_by_the_weights(state):
    published = names.tokenizer_to_published(state)
    config = names.settings_to_published(vars(SMALL)) | {"context_length": 7}
    assert names.tokenizer_settings(config, published)["context_length"] == 3


def test_older_names_of_the_attention(state):
    published = names.tokenizer_to_published(state)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in published.items():
        for new, word in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{word}.")
        renamed[name] = value
    assert renamed.keys() != published.keys()
    assert names.tokenizer_from_published(renamed).keys() == state.keys()


def test_every_name_counts(state):
    published = names.tokenizer_to_published(state)
    del published["cond_decoder.up_blocks.1.resnets.0.conv_shortcut.weight"], published["quant_conv.bias"]
    published |= {"encoder.extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"2 names missing \(cond_.*shortcut.weight, quant_conv.bias\), 1 left"):
        names.tokenizer_from_published(published)
    with pytest.raises(ValueError, match=r"2 names missing .*10 left over .*context_codebook.counts"):
        names.tokenizer_to_published(ContextVQGAN(ContextVQGANConfig(**vars(SMALL) | {"codebook": "ema"})).state_dict())


def test_other_settings_are_refused():
    config = names.settings_to_published(vars(SMALL))
    with pytest.raises(ValueError, match=r"unknown keys depth; .*act_fn='gelu'.*vq_embed_dim=9"):
        names.tokenizer_settings(config | {"depth": 3, "act_fn": "gelu", "vq_embed_dim": 9}, {})
    with pytest.raises(ValueError, match=r"codebook='fsq'.*cannot be exported"):
        names.settings_to_published(vars(SMALL) | {"codebook": "fsq"})


def test_critic_round_trip():
    state = PatchCritic(PatchCriticConfig(width=16)).state_dict()
    published = names.critic_to_published(state)
    assert {"encoder.0.weight_orig", "encoder.8.weight_u", "shuffle.bias"} < published.keys()
    again = names.critic_from_published(published)
    assert int(again.pop("updates")) == 1  # it counts as one that has learned
    assert all(again[name].equal(state[name]) for name in again) and len(again) == len(state) - 1
