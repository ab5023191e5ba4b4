"""Quantile bins: round trips, repeated values, bad input. Ensembles of chunks against explicit averages."""

import math

import pytest
import torch

from ideomotor.policies.actions import QuantileBins, Standardized, TemporalEnsemble
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


def test_a_glitch_sets_no_scale() -> None:
    states = torch.randn(3000, 1, generator=torch.Generator().manual_seed(0))
    calm = Standardized(1).fit(states)
    states[7] = 1e9
    shaken = Standardized(1).fit(states)
    assert torch.allclose(calm.deviation, shaken.deviation, rtol=0.01) and (calm.mean - shaken.mean).abs() < 0.01


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


def foretold(step: int, chunk: torch.Tensor, at: int) -> torch.Tensor | None:
    """What a chunk that was foretold at step ``at`` says of ``step``."""
    return chunk[step - at] if 0 <= step - at < len(chunk) else None


@pytest.mark.parametrize("decay", [0.01, 0.0, 1.5, -0.7])
@pytest.mark.parametrize("execute", [1, 3, 4, 8])
def test_the_ensemble_equals_a_step_by_step_average(decay: float, execute: int, generator: torch.Generator) -> None:
    ensemble, length = TemporalEnsemble(decay), 8
    told: dict[int, list[tuple[int, torch.Tensor]]] = {slot: [] for slot in range(3)}  # of the running episodes
    now = dict.fromkeys(told, 0)
    for _ in range(40):
        slots = [slot for slot in told if torch.rand((), generator=generator) < 0.8]  # the others are left out
        chunks = torch.randn(len(slots), length, 2, generator=generator)
        blended = ensemble.blend(slots, chunks, execute)
        assert blended.shape == chunks.shape and blended.dtype == chunks.dtype
        for slot, chunk, got in zip(slots, chunks, blended, strict=True):
            told[slot].append((now[slot], chunk.clone()))
            for j in range(length):
                said = [foretold(now[slot] + j, earlier, at) for at, earlier in told[slot]]
                values = [value for value in said if value is not None]
                weights = [math.exp(-decay * i) for i in range(len(values))]
                wanted = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
                torch.testing.assert_close(got[j], wanted)
            now[slot] += execute
            if torch.rand((), generator=generator) < 0.2:
                ensemble.forget([slot])
                told[slot], now[slot] = [], 0
        chunks.zero_()  # what is remembered is the ensemble's own


def test_an_ensemble_without_overlap_changes_nothing(generator: torch.Generator) -> None:
    ensemble = TemporalEnsemble(0.01)
    for _ in range(3):
        chunks = torch.randn(2, 4, 1, generator=generator)
        assert torch.equal(ensemble.blend([7, 3], chunks, 4), chunks)


def test_the_newest_chunk_stands_alone_where_no_other_reaches_however_great_the_decay() -> None:
    ensemble = TemporalEnsemble(1e4)
    ensemble.blend([0], torch.zeros(1, 4, 1), 1)
    assert ensemble.blend([0], torch.ones(1, 4, 1), 1).flatten().tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("slots", "chunks", "executed"), [([0], 2, 1), ([0, 0], 2, 1), ([0, 1], 2, -1)], ids=["count", "twice", "negative"]
)
def test_the_ensemble_says_what_it_wants(slots: list[int], chunks: int, executed: int) -> None:
    with pytest.raises(ValueError, match="wanted one chunk a slot, no slot twice, and at least 0 actions"):
        TemporalEnsemble(0.01).blend(slots, torch.zeros(chunks, 4, 1), executed)
    with pytest.raises(ValueError, match="wanted a finite number"):
        TemporalEnsemble(float("nan"))
