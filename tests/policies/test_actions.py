"""Quantile bins: round trips, repeated values, bad input."""

import pytest
import torch

from ideomotor.policies.actions import QuantileBins, Standardized
from ideomotor.policies.published_actions import ActionBins, ActionBinsConfig


def test_round_trip_error_is_small_and_extremes_survive(generator: torch.Generator) -> None:
    actions = torch.randn(4000, 3, generator=generator)
    bins = QuantileBins(48, 3).fit(actions)
    ids = bins.encode(actions)
    assert ids.min() == 0 and ids.max() == 47
    counts = torch.bincount(ids[:, 0], minlength=48)
    assert counts.min() > 60 and counts.max() < 110  # equally filled: 4000 / 48 = 83
    assert (bins.decode(ids) - actions).abs().mean() < 0.06
    assert torch.equal(bins.encode(bins.decode(ids)), ids)
    assert torch.equal(bins.encode(torch.tensor([[-99.0, 0.0, 99.0]]))[0, [0, 2]], torch.tensor([0, 47]))


def test_a_value_that_fills_many_quantiles_comes_back_exactly(generator: torch.Generator) -> None:
    gripper = torch.where(torch.rand(1000, 1, generator=generator) < 0.7, 1.0, -1.0)
    bins = QuantileBins(48, 1).fit(gripper)
    assert torch.equal(bins.decode(bins.encode(gripper)), gripper)
    mixed = torch.cat([gripper, torch.linspace(-0.5, 0.5, 200)[:, None]])
    bins = QuantileBins(48, 1).fit(mixed)
    assert torch.equal(bins.decode(bins.encode(gripper)), gripper)


def test_brute_force_assignment(generator: torch.Generator) -> None:
    actions = torch.randn(97, 1, generator=generator)
    bins = QuantileBins(8, 1).fit(actions)
    ordered = actions[:, 0].sort().values
    edges = [float(ordered[97 * k // 8]) for k in range(1, 8)]
    for value, got in zip(actions[:, 0].tolist(), bins.encode(actions)[:, 0].tolist(), strict=True):
        assert got == sum(value >= edge for edge in edges)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(0, 3), "at least one row of 3"),
        (torch.zeros(5, 4), "wanted at least one row of 3"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), "action 0 holds a value that is not finite"),
        (torch.tensor([[0.0] * 3, [0.0, 0.0, -1e35]]), r"action 1 holds a value that is .* 1e\+30 and more .*: drop"),
    ],
)
def test_bad_actions_are_refused(actions: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantileBins(8, 3).fit(actions)


def test_states_come_to_a_common_scale_and_constants_stay() -> None:
    states = torch.tensor([[0.1, 7.0], [0.3, 7.0], [0.2, 7.0]])
    scaled = Standardized(2).fit(states)(states)
    assert torch.allclose(scaled[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(scaled[:, 0].std(correction=0), torch.tensor(1.0), atol=1e-5)
    assert torch.equal(scaled[:, 1], torch.zeros(3))


def test_actions_that_would_get_ids_without_a_meaning_are_refused(generator: torch.Generator) -> None:
    actions = torch.randn(64, 3, generator=generator)
    bins = QuantileBins(8, 3).fit(actions)
    release = ActionBins(ActionBinsConfig(classes=12)).fit(torch.cat([actions, torch.ones(64, 1)], 1))
    broken = actions.reshape(4, 16, 3).clone()
    broken[2, 5, 1] = float("nan")
    for codec, chunk in ((bins, broken), (release, torch.cat([broken, torch.ones(4, 16, 1)], 2))):
        with pytest.raises(ValueError, match=r"the action at \[2, 5\] is .*nan.*; wanted finite numbers: leave"):
            codec.encode(chunk)
    with pytest.raises(ValueError, match="actions of width 4 came; these bins are for width 3"):
        bins.encode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="actions of width 3 came; these bins are for width 4"):
        release.encode(torch.zeros(2, 3))
