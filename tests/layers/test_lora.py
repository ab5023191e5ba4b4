"""LoRA: nothing at the start, learns with the rest frozen, and is gone once merged."""

import pytest
import torch

from ideomotor.layers.linear import Linear
from ideomotor.layers.llama import Llama, LlamaConfig
from ideomotor.layers.lora import LoRALinear, add_lora, merge_lora


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return Llama(LlamaConfig(width=16, layers=2, heads=2, inner=24, positions=20))


def test_it_learns_beside_frozen_weights_and_merges(trunk, generator):
    x, wanted = (torch.randn(2, 6, 16, generator=generator) for _ in range(2))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    plain = trunk(x)
    add_lora(trunk, rank=2)
    assert trunk(x).equal(plain)
    trained = {name for name, weight in trunk.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 4 * 2 and all(name.endswith((".down", ".up")) for name in trained)
    optimizer = torch.optim.Adam([weight for weight in trunk.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(20):
        loss = (trunk(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = trunk(x).detach()
    assert (learned - wanted).square().mean() < 0.9 * (plain - wanted).square().mean()
    merge_lora(trunk)
    assert trunk.state_dict().keys() == before.keys() and all(weight.requires_grad for weight in trunk.parameters())
    assert trunk.norm.weight.equal(before["norm.weight"])
    torch.testing.assert_close(trunk(x), learned, atol=1e-5, rtol=1e-4)


def test_rows(generator):
    pair = LoRALinear(Linear(5, 7, bias=False), rank=2, alpha=4)
    torch.nn.init.normal_(pair.up, generator=generator)
    x = torch.randn(3, 5, generator=generator)
    torch.testing.assert_close(pair.rows(x, 2, 6), pair(x)[:, 2:6])


def test_wrong_use_is_refused(trunk):
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(trunk, rank=0)
    with pytest.raises(ValueError, match="Llama has no LoRA to merge"):
        merge_lora(trunk)
    with pytest.raises(ValueError, match="Embedding has no linear map"):
        add_lora(torch.nn.Embedding(2, 2))
