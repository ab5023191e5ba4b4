import math

import pytest
import torch
from torch import nn

from ideomotor.training.optim import OptimConfig, WeightAverage, build_optimizer, learning_rate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_no_decay_on_vectors_and_embeddings() -> None:
    net = Net()
    decayed, spared = build_optimizer(net, OptimConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {id(w) for w in decayed["params"]} == {id(net.linear.weight)}
    assert {id(w) for w in spared["params"]} == {
        id(w) for w in (net.embedding.weight, net.linear.bias, net.norm.weight, net.norm.bias)
    }


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no weight that wants a gradient"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_schedule_by_hand() -> None:
    config = OptimConfig(lr=1.0, warmup=4, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(config, step, 11) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    for step in range(4, 11):
        assert rates[step] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 6)))
    assert rates[-1] == pytest.approx(0.1)
    constant = OptimConfig(lr=1.0, warmup=2, schedule="constant")
    assert [learning_rate(constant, step, 5) for step in range(5)] == [0.5, 1, 1, 1, 1]
    assert learning_rate(OptimConfig(warmup=0), 0, 1) == OptimConfig().lr


def test_tri_stage_by_hand() -> None:
    config = OptimConfig(lr=2.0, schedule="tri_stage", final_lr=1e-6, warmup=70)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[:3] == pytest.approx([0.2, 1.1, 2.0])  # 2 steps of warm-up from a tenth
    assert rates[2:11] == [2.0] * 9  # 8 steps held
    assert rates[55] == pytest.approx(2.0 * (1 + 1e-6) / 2)
    assert rates[99] > rates[100] == pytest.approx(2e-6)
    assert learning_rate(config, 0, 1) == 2.0  # too few steps for a warm-up


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"betas": (0.9, 1.0)},
        {"schedule": "step"},
        {"clip_norm": 0.0},
        {"ema": 1.0},
        {"accumulate": 0},
        {"final_lr": 2.0},
    ],
)
def test_wrong_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimConfig(**wrong)


def test_average_takes_floats_and_copies_counters() -> None:
    net = nn.BatchNorm1d(2)
    average = WeightAverage(net, decay=0.5)
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.running_mean.fill_(8.0)
        net.num_batches_tracked.fill_(7)
    average.update(net, step=0)  # decay min(0.5, 1 / 10)
    assert average.tensors["weight"].tolist() == pytest.approx([0.1 * 1 + 0.9 * 3] * 2)
    assert average.tensors["running_mean"].tolist() == pytest.approx([0.9 * 8] * 2)
    assert average.tensors["num_batches_tracked"] == 7
    average.update(net, step=100)  # decay 0.5
    assert average.tensors["weight"].tolist() == pytest.approx([0.5 * 2.8 + 0.5 * 3] * 2)


def test_swapped_gives_the_average_and_takes_it_back() -> None:
    net = nn.Linear(2, 2)
    average = WeightAverage(net, decay=0.5)
    first = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="inside"), average.swapped(net):
        assert torch.equal(net.weight, first)
        raise RuntimeError("inside")
    assert torch.equal(net.weight, first + 1)


def test_decay_in_the_gradient_is_plain_adam_over_everything() -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    config = OptimConfig(lr=0.1, weight_decay=0.5, decay="gradient", betas=(0.9, 0.999))
    optimizers = (build_optimizer(ours, config), torch.optim.Adam(plain.parameters(), lr=0.1, weight_decay=0.5))
    for _ in range(3):
        for module, optimizer in zip((ours, plain), optimizers, strict=True):
            module(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(ours.weight, plain.weight) and torch.allclose(ours.bias, plain.bias)
    with pytest.raises(ValueError, match="decoupled"):
        OptimConfig(decay="l2")  # type: ignore[arg-type]
