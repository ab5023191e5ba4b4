"""Cross-attention against torch's own, and the paddings that published weights rest on."""

import pytest
import torch
import torch.nn.functional as F

from ideomotor.layers.resnet import CrossAttention, Downsample, FoldedUpsample, MapAttention, ResnetBlock, Upsample


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_cross_attention_is_attention_over_all_context_frames():
    width, size, context, samples, frames = 16, 3, 2, 2, 4
    ours = CrossAttention(width, size, context, heads=4, groups=4, dropout=0.5).eval()
    for weight in ours.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    theirs = torch.nn.MultiheadAttention(width, 4, batch_first=True)
    theirs.load_state_dict(
        {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}
        | {"out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias}
    )
    x, maps = torch.randn(samples * frames, width, size, size), torch.randn(samples * context, width, size, size)
    got = ours(x, ours.remember(maps))
    for i in range(samples):
        both = torch.cat([*maps[2 * i : 2 * i + 2]], 1)[None]  # one above the other, one norm
        key = ours.context_norm(both).flatten(2).transpose(1, 2) + ours.context_positions
        for j in range(frames):
            row = x[i * frames + j][None]
            query = ours.query_norm(row).flatten(2).transpose(1, 2) + ours.query_positions
            added = theirs(query, key, key)[0].transpose(1, 2).unflatten(2, (size, size))
            torch.testing.assert_close(got[i * frames + j], F.silu(row + added)[0])
    ours.train()
    assert not ours(x, ours.remember(maps)).equal(got)  # dropout


def test_map_attention_has_one_head():
    block, x = MapAttention(8, 4), torch.randn(2, 8, 3, 5)
    places = block.norm(x).flatten(2).transpose(1, 2)
    weights = (block.query(places) @ block.key(places).transpose(1, 2) / 8**0.5).softmax(-1)
    wanted = x + block.out(weights @ block.value(places)).transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(block(x), wanted)


def test_zeros_are_added_right_and_below():
    block = Downsample(1)
    with torch.no_grad():
        block.conv.weight.copy_(torch.ones_like(block.conv.weight))
        block.conv.bias.zero_()
    assert block(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]


def test_resolution_and_width():
    x = torch.randn(2, 8, 4, 6)
    assert Upsample(8)(x).shape == (2, 8, 8, 12)
    assert ResnetBlock(8, 16, 4)(x).shape == (2, 16, 4, 6)
    assert "shortcut.weight" in ResnetBlock(8, 16, 4).state_dict()
    assert "shortcut.weight" not in ResnetBlock(8, 8, 4).state_dict()


def test_folded_upsampling_is_the_same():
    upsample, x = Upsample(5), torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(FoldedUpsample(upsample)(x), upsample(x))
