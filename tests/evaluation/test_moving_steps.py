import math

import pytest
import torch

from ideomotor.evaluation.moving_steps import MovingErrors
from ideomotor.evaluation.video_metrics import moving_error, repeat_last


@pytest.fixture
def videos(generator):
    """Truth, two imaginations of different merit, and the last frame seen."""

    def noisy(strength):
        noise = torch.randint(-strength, strength + 1, truth.shape, generator=generator)
        return (truth.int() + noise).clamp(0, 255).byte()

    truth = torch.randint(0, 256, (4, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    last = torch.randint(0, 256, (4, 1, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return truth, noisy(5), noisy(40), last


def test_each_step_is_pooled_over_the_clips(videos):
    truth, near, _, last = videos
    found = MovingErrors.of(truth, near, last).psnr("aabb")
    for t, step in enumerate(found):
        assert step.value == pytest.approx(moving_error(truth[:, t : t + 1], near[:, t : t + 1], last).psnr)
        assert step.low <= step.value <= step.high
    assert all(math.isnan(step.low) for step in MovingErrors.of(truth, near, last).psnr("aaaa"))


def test_parts_are_joined(videos):
    truth, near, _, last = videos
    parts = [MovingErrors.of(truth[k], near[k], last[k]) for k in (slice(0, 3), slice(3, 4))]
    whole = MovingErrors.of(truth, near, last)
    assert all(torch.equal(a, b) for a, b in zip(MovingErrors.join(parts), whole, strict=True))


def test_the_gain_is_the_difference_of_the_decibels(videos):
    truth, near, far, last = videos
    ours, theirs, still = (MovingErrors.of(truth, one, last) for one in (near, far, repeat_last(last, 3)))
    gains = ours.gain_over(theirs, "abcd")
    for gain, a, b in zip(gains, ours.psnr("abcd"), theirs.psnr("abcd"), strict=True):
        assert gain.value == pytest.approx(a.value - b.value) and 0 < gain.low <= gain.value <= gain.high
    assert all(step.high < 0 for step in still.gain_over(ours, "abcd"))
    assert [tuple(step) for step in ours.gain_over(ours, "abcd")] == [(0, 0, 0)] * 3


def test_the_best_future_is_each_clips_own(videos):
    truth, near, far, last = videos
    one, other = (torch.cat([a[:2], b[2:]]) for a, b in ((near, far), (far, near)))
    futures = [MovingErrors.of(truth, video, last) for video in (one, other)]
    best, wanted = MovingErrors.best(futures), MovingErrors.of(truth, near, last)
    assert torch.equal(best.total, wanted.total)
    mean = MovingErrors.mean(futures)
    torch.testing.assert_close(mean.total, (futures[0].total + futures[1].total) / 2)
    assert torch.equal(mean.pixels, wanted.pixels)


def test_nothing_that_moves_and_other_clips_are_refused(videos):
    truth, near, _, last = videos
    still = truth.clone()
    still[:, 1:2] = last
    with pytest.raises(ValueError, match="nothing moves at step 2 of any of 4 clips"):
        MovingErrors.of(still, near, last).psnr("abcd")
    with pytest.raises(ValueError, match="do not pair"):
        MovingErrors.of(truth, near, last).gain_over(MovingErrors.of(still, near, last), "abcd")
