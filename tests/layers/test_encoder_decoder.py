"""Attention against explicit sums, and what modulation and dropout do."""

from dataclasses import replace

import pytest
import torch

from ideomotor.layers.encoder_decoder import ContextAttention, Decoder, Encoder, EncoderDecoderConfig

CONFIG = EncoderDecoderConfig(width=8, encoder_layers=2, decoder_layers=2, heads=2)


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_attention_by_hand(causal: bool) -> None:
    torch.manual_seed(0)
    part = ContextAttention(CONFIG).eval()
    x, context = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    query, (key, value) = part.query(x)[0], part.keys_values(context)[0].chunk(2, -1)
    rows = []
    for i in range(3):
        read, seen = [], i + 1 if causal else 5
        for head in (slice(0, 4), slice(4, 8)):
            share = torch.tensor([query[i, head] @ key[j, head] / 2 for j in range(seen)]).softmax(0)
            read.append(sum(share[j] * value[j, head] for j in range(seen)))
        rows.append(part.out(torch.cat(read)))
    torch.testing.assert_close(part(x, part.key_value(context), causal=causal)[0], torch.stack(rows))


def test_the_encoder_has_no_places() -> None:
    torch.manual_seed(0)
    encoder, x, order = Encoder(CONFIG).eval(), torch.randn(2, 5, 8), torch.randperm(5)
    torch.testing.assert_close(encoder(x)[:, order], encoder(x[:, order]))


def test_the_condition_gates_all_but_the_context() -> None:
    """With all of its modulation at 0 a decoder block passes on what it reads of the context, and nothing else."""
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).eval()
    for block in decoder.blocks:
        torch.nn.init.zeros_(block.modulation[1].weight)
        torch.nn.init.zeros_(block.modulation[1].bias)
    x, condition, context = torch.randn(1, 3, 8), torch.randn(1, 1, 8), decoder.context(torch.randn(1, 5, 8))
    wanted = x
    for block, entry in zip(decoder.blocks, context, strict=True):
        wanted = wanted + block.context(block.norm_context(wanted), entry)
    torch.testing.assert_close(decoder(x, condition, context), decoder.norm(wanted))
    other = Decoder(CONFIG).eval()
    assert not torch.equal(other(x, condition, context), other(x, condition + 1, context))


@pytest.mark.parametrize("kind", ["attention_dropout", "residual_dropout", "feed_forward_dropout"])
def test_each_dropout_acts_in_training_alone(kind: str) -> None:
    torch.manual_seed(0)
    without = dict.fromkeys(("attention_dropout", "residual_dropout", "feed_forward_dropout"), 0.0)
    encoder, x = Encoder(replace(CONFIG, **without | {kind: 0.5})), torch.randn(2, 5, 8)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
