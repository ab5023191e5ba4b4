"""The LLaMA-type trunk: rotations against complex numbers, causality, and a cache that changes nothing."""

from dataclasses import replace

import pytest
import torch

from ideomotor.layers.int8 import Int8Linear, to_int8
from ideomotor.layers.linear import Linear
from ideomotor.layers.llama import Llama, LlamaConfig, _turned

CONFIG = LlamaConfig(width=16, layers=3, heads=2, inner=24, positions=20)


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return Llama(CONFIG)


def test_rotations_are_those_of_complex_numbers(trunk, generator):
    x = torch.randn(1, 1, 5, 8, generator=generator)
    angles = torch.arange(3, 8)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    wanted = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    got = _turned(x, trunk._turns(3, 5, x.device))
    torch.testing.assert_close(got, torch.cat([wanted.real, wanted.imag], -1))


@torch.no_grad()
def test_any_cut_through_the_cache_gives_the_same(trunk, generator):
    x = torch.randn(2, 20, 16, generator=generator)
    whole = trunk(x)
    for cuts in ([20], [7, 13], [5, 1, 1, 3, 10], [1] * 20):
        cache = trunk.empty_cache(2, 20)
        pieces = torch.cat([trunk(piece, cache) for piece in x.split(cuts, 1)], 1)
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    for last in (1, 4):
        torch.testing.assert_close(trunk(x, last=last), whole[:, -last:], atol=1e-5, rtol=1e-5)
    cache = trunk.empty_cache(2, 20)
    trunk(x[:, :9], cache, last=1)
    torch.testing.assert_close(trunk(x[:, 9:], cache, last=3), whole[:, -3:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_past_never_sees_the_future(trunk, generator):
    x = torch.randn(1, 12, 16, generator=generator)
    changed = x.clone()
    changed[:, 8:] += 1
    assert trunk(changed)[:, :8].equal(trunk(x)[:, :8]) and not trunk(changed)[:, 8:].equal(trunk(x)[:, 8:])


def test_computed_anew_the_gradients_are_the_same(generator):
    """To the bit, dropout included; and each block runs a second time, in the backward pass."""
    torch.manual_seed(0)
    trunk = Llama(replace(CONFIG, dropout=0.3)).train()
    x, runs = torch.randn(2, 9, 16, generator=generator), []
    trunk.blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    found = []
    for recompute in (False, True):
        trunk.recompute = recompute
        torch.manual_seed(1)
        loss = trunk(x, last=4).square().sum()
        loss.backward()
        found.append([loss.detach(), *(weight.grad.clone() for weight in trunk.parameters())])
        trunk.zero_grad()
    assert len(runs) == 1 + 2
    assert all(one.equal(other) for one, other in zip(*found, strict=True))
    with torch.no_grad():
        trunk.eval()(x, trunk.empty_cache(2, 9))  # where nothing is learned, nothing changes
    assert len(runs) == 4


def test_too_many_positions_are_refused(trunk):
    with pytest.raises(ValueError, match="21 positions came behind 0, and there is room for 20"):
        trunk(torch.zeros(1, 21, 16))
    cache = trunk.empty_cache(1, 6)
    with torch.no_grad():
        trunk(torch.zeros(1, 4, 16), cache)
        with pytest.raises(ValueError, match="3 positions came behind 4, and there is room for 6"):
            trunk(torch.zeros(1, 3, 16), cache)
    with pytest.raises(ValueError, match="even multiple of heads"):
        LlamaConfig(width=6, heads=2)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("width", [64, 40])  # torch's 8-bit product takes widths of 16, 32, ... only
def test_eight_bits_are_close(rows, width, generator):
    linear = Linear(width, 48, bias=False)
    torch.nn.init.normal_(linear.weight, generator=generator)
    x = torch.randn(rows, 2, width, generator=generator)
    wanted = linear(x)
    small = Int8Linear(linear)
    assert small.weight.dtype == torch.int8 and small.weight.abs().max() == 127
    got = small(x.bfloat16())
    assert got.shape == wanted.shape and got.dtype == torch.bfloat16
    assert (got.float() - wanted).norm() < 0.02 * wanted.norm()
    torch.testing.assert_close(small.rows(x.bfloat16(), 8, 20), got[..., 8:20], atol=0.1, rtol=0.02)
    torch.testing.assert_close(linear.rows(x, 8, 20), wanted[..., 8:20])


@torch.no_grad()
def test_a_trunk_of_eight_bits(trunk, generator):
    x = torch.randn(2, 6, 16, generator=generator)
    wanted = trunk(x)
    to_int8(trunk)
    assert sum(isinstance(part, Int8Linear) for part in trunk.modules()) == 12
    assert not any(isinstance(part, Linear) for part in trunk.modules())
    got = trunk(x.bfloat16(), trunk.empty_cache(2, 6))
    assert got.dtype == torch.bfloat16 and (got.float() - wanted).norm() < 0.05 * wanted.norm()
