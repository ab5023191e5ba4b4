"""The trunk: blocks see the past and never the future; the cache changes nothing."""

import pytest
import torch

from ideomotor.layers.transformer import Transformer, TransformerConfig, repeat_cache


@pytest.fixture
def trunk() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(width=32, layers=3, heads=4)).eval()


def test_a_block_equals_explicit_masked_attention(trunk: Transformer) -> None:
    """Block by block with a cache is the same function as one pass with the block-causal mask written out."""
    x = torch.randn(2, 7, 32)
    first, cache = trunk(x[:, :4])
    second, _ = trunk(x[:, 4:], cache)
    allowed = torch.ones(7, 7, dtype=torch.bool)
    allowed[:4, 4:] = False
    y = x
    for block in trunk.blocks:
        query, key, value = block.attention.qkv(block.norm_attention(y)).view(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4)
        score = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~allowed, float("-inf")).softmax(-1) @ value
        y = y + block.attention.out(score.transpose(1, 2).reshape(2, 7, 32))
        y = y + block.feed_forward(block.norm_feed_forward(y))
    torch.testing.assert_close(torch.cat([first, second], 1), trunk.norm(y), atol=2e-6, rtol=0)


def test_the_prefix_cache_is_bit_exact(trunk: Transformer) -> None:
    x = torch.randn(3, 9, 32)
    _, cache = trunk(x[:, :5])
    once, _ = trunk(x[:, 5:], cache)
    _, again = trunk(x[:, :5])
    twice, _ = trunk(x[:, 5:], again)
    assert torch.equal(once, twice)


def test_gradients_show_who_sees_whom(trunk: Transformer) -> None:
    x = torch.randn(1, 6, 32, requires_grad=True)
    first, cache = trunk(x[:, :3])
    (leak,) = torch.autograd.grad(first.sum(), x, retain_graph=True)
    assert leak[:, 3:].abs().max() == 0 and leak[:, :3].abs().min(-1).values.max() > 0
    second, _ = trunk(x[:, 3:], cache)
    (seen,) = torch.autograd.grad(second[:, 0].square().sum(), x)
    assert (seen.abs().sum(-1) > 0).all()


def test_repeated_caches_serve_samples_in_a_row(trunk: Transformer) -> None:
    prefix, block = torch.randn(2, 3, 32), torch.randn(4, 2, 32)
    _, cache = trunk(prefix)
    got, _ = trunk(block, repeat_cache(cache, 2))
    for row in range(4):
        _, own = trunk(prefix[row // 2][None])
        want, _ = trunk(block[row][None], own)
        torch.testing.assert_close(got[row][None], want, atol=1e-6, rtol=0)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads 5, .* width 32 a multiple of heads"):
        TransformerConfig(width=32, heads=5)
