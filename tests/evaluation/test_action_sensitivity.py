import pytest
import torch

from ideomotor.evaluation.action_sensitivity import action_sensitivity, exchanged


def test_gaps_are_paired(generator):
    """Videos differ in difficulty a thousand times more than actions matter; unpaired, nothing would be seen."""
    difficulty = torch.rand(30, generator=generator) * 1000
    heard = torch.rand(30, generator=generator)
    got = action_sensitivity(difficulty, difficulty + heard, difficulty + 2 * heard)
    assert got.error.value == pytest.approx(float(difficulty.mean()), rel=1e-5)
    assert got.shuffled.value == pytest.approx(float(heard.mean()), rel=1e-3)
    assert got.zero.value == pytest.approx(2 * float(heard.mean()), rel=1e-3)
    assert 0 < got.shuffled.low < got.shuffled.value < got.shuffled.high < got.error.high - got.error.low


def test_a_model_that_does_not_listen_has_no_gap(generator):
    errors = torch.rand(40, generator=generator)
    luck = torch.randn(2, 40, generator=generator) * 0.1
    assert action_sensitivity(errors, errors, errors).shuffled == (0.0, 0.0, 0.0)
    got = action_sensitivity(errors, errors + luck[0], errors + luck[1])
    assert got.shuffled.low < 0 < got.shuffled.high
    assert got.zero.low < 0 < got.zero.high


def test_clips_of_one_episode_widen_the_interval(generator):
    gap = torch.randn(6, 1, generator=generator).expand(6, 10).flatten()
    zeros = torch.zeros(60)
    alone = action_sensitivity(zeros, gap, gap).shuffled
    together = action_sensitivity(zeros, gap, gap, [number // 10 for number in range(60)]).shuffled
    assert together.value == alone.value
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("b", [2, 3, 7])
def test_exchanged_actions_are_never_ones_own(b, generator):
    actions = torch.arange(b).float().view(b, 1, 1).expand(b, 4, 2)
    seen = set()
    for _ in range(20):
        got = exchanged(actions, generator)
        assert got.shape == actions.shape
        order = got[:, 0, 0].int().tolist()
        assert sorted(order) == list(range(b))
        assert all(theirs != own for own, theirs in enumerate(order))
        assert torch.equal(got, actions[order])
        seen.add(tuple(order))
    assert len(seen) > 1 or b == 2


def test_errors_say_what_was_wanted(generator):
    errors = torch.rand(4, generator=generator)
    for wrong in (errors[:3], errors[None], errors / 0):
        with pytest.raises(ValueError, match="one finite error a video"):
            action_sensitivity(errors, wrong, errors)
    with pytest.raises(ValueError, match="at least 2"):
        exchanged(torch.zeros(1, 3, 2), generator)
