"""Published names of the VPDD tokenizer: all of them are wanted, none is left."""

import pytest
import torch

from ideomotor.interop.vpdd_tokenizer import tokenizer_config, tokenizer_from_published
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig

SMALL = AxialVQVAEConfig(width=8, blocks=2, codes=6, code_width=4, strides=(2, 4, 4))


@pytest.fixture
def published():
    """A small tokenizer's state, put back under the published names."""
    torch.manual_seed(0)
    state = AxialVQVAE(SMALL).state_dict()
    state = {name: value for name, value in state.items() if name not in ("codebook.initialised", "codebook.step")}
    words = {
        "codebook.codes": "codebook.embeddings", "codebook.counts": "codebook.N", "codebook.sums": "codebook.z_avg",
        "encoder.shrink.0.": "encoder.convs.0.", "encoder.shrink.2.": "encoder.convs.1.",
        "encoder.shrink.4.": "encoder.conv_last.", "encoder.project.": "pre_vq_conv.",
        "decoder.project.": "post_vq_conv.", "decoder.grow.0.conv": "decoder.convts.0.convt",
        "decoder.grow.2.conv": "decoder.convts.1.convt", ".blocks.": ".res_stack.", ".body.": ".block.",
        ".columns.": ".attn_w.", ".rows.": ".attn_h.", ".time.": ".attn_t.", ".out.": ".fc.",
    }  # fmt: skip
    theirs = {}
    for name, value in state.items():
        for ours, word in words.items():
            name = name.replace(ours, word)
        if "qkv" in name:
            theirs |= {name.replace("qkv", f"w_{part}s"): x for part, x in zip("qkv", value.chunk(3), strict=True)}
        else:
            theirs[name] = value
    return theirs


def test_round_trip(published):
    assert AxialVQVAEConfig(**tokenizer_config(published, (2, 4, 4))) == SMALL
    torch.manual_seed(0)
    wanted = AxialVQVAE(SMALL)
    got = AxialVQVAE(SMALL)
    got.load_state_dict(tokenizer_from_published(published))
    assert all(value.equal(got.state_dict()[name]) for name, value in wanted.named_parameters())
    assert bool(got.codebook.initialised)  # training goes on from these codes


def test_every_name_counts(published):
    del published["decoder.res_stack.1.block.8.attn_h.w_ks.weight"]
    published |= {"loss.scale": torch.zeros(1), "encoder.extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 names missing \(decoder.*attn_h.w_ks.weight\), 2 left over \(enc.*loss"):
        tokenizer_from_published(published)


def test_other_weights_are_refused(published):
    with pytest.raises(ValueError, match="0 residual blocks and 0 halvings"):
        tokenizer_config({"linear.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="2 halvings shrink an axis by 4"):
        tokenizer_config(published, (8, 8, 8))
