"""Compiled acting equals plain acting, and no size of a batch below the largest is compiled anew."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from ideomotor.layers.text import HashedWords
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.vpdd import PRESETS, VIEW
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_compiled import CompiledAgent
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.types import DOMAINS, Clip


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def agent() -> VPDDAgent:
    """A very small one whose actions depend on what it sees."""
    config = PRESETS["tiny"]()
    predictor = replace(config.predictor, domains=len(DOMAINS), trunk=replace(config.predictor.trunk, layers=1))
    policy = replace(config.policy, trunk=replace(config.policy.trunk, layers=1))
    config = replace(config, imagine_steps=2, predictor=predictor, policy=policy)
    torch.manual_seed(0)
    head = DiscreteDiffusionPolicy(policy)
    head.bins.fit(torch.randn(500, policy.action_width))
    for weight in head.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    foresight = DiscreteDiffusionPredictor(predictor)
    assert foresight.domain is not None
    torch.nn.init.normal_(foresight.domain.weight)
    return VPDDAgent(config, head, foresight, VQVAE3D(config.tokenizer), HashedWords())


def seen(batch: int, seed: int = 0) -> Clip:
    chance = torch.Generator().manual_seed(seed)
    return Clip(
        frames={VIEW: torch.randint(0, 256, (batch, 4, 3, 32, 32), dtype=torch.uint8, generator=chance)},
        text=tuple(f"press button {number}" for number in range(batch)),
        proprio=torch.randn(batch, 3, generator=chance),
        domain=torch.arange(batch) % len(DOMAINS),
    )


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_smaller_batches_are_padded_and_nothing_is_compiled_twice() -> None:
    """At the dial's last position every network is called."""
    plain, compiled = agent(), CompiledAgent(agent(), backend="eager")
    plain.dial = compiled.agent.dial = "full"
    assert torch.equal(compiled.act(seen(3)), plain.act(seen(3)))
    once = graphs()
    assert once > 0
    for batch, seed in ((1, 1), (2, 2), (3, 3)):
        clip = seen(batch, seed)
        assert torch.equal(compiled.act(clip), plain.act(clip))
        assert compiled.agent.imagined is not None and torch.equal(compiled.agent.imagined, plain.imagined)
    assert graphs() == once and compiled.batch == 3
    assert not torch.equal(plain.act(seen(3, 1)), plain.act(seen(3, 2)))  # else all of this would show nothing


def test_a_machine_that_cannot_compile_is_told_of() -> None:
    def broken(*_: Any) -> Any:
        raise OSError("No working C++ compiler found")

    with pytest.raises(RuntimeError, match=r"cannot be compiled here .*No working C\+\+ .*apt install g\+\+"):
        CompiledAgent(agent(), backend=broken).act(seen(1))
    with pytest.raises(ValueError, match="batch is 0"):
        CompiledAgent(agent(), batch=0)
