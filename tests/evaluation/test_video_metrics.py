import math

import pytest
import torch

from ideomotor.evaluation.video_metrics import (
    SquaredError,
    masked_error,
    moving_error,
    psnr,
    repeat_last,
    squared_error,
    ssim,
)


def video(generator, *shape):
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_moving_error_equals_a_loop_over_pixels(generator):
    truth, imagined = video(generator, 2, 3, 3, 5, 4), video(generator, 2, 3, 3, 5, 4)
    last = (truth[:, :1].int() + torch.randint(-30, 31, (2, 1, 3, 5, 4), generator=generator)).clamp(0, 255).byte()
    total = count = 0
    for b in range(2):
        for t in range(3):
            for row in range(5):
                for column in range(4):
                    now, before = truth[b, t, :, row, column].tolist(), last[b, 0, :, row, column].tolist()
                    if any(abs(n - o) > 25 for n, o in zip(now, before, strict=True)):
                        guess = imagined[b, t, :, row, column].tolist()
                        total += sum((n - g) ** 2 for n, g in zip(now, guess, strict=True))
                        count += 3
    assert 0 < count < truth.numel()
    error = moving_error(truth, imagined, last, threshold=25)
    assert (error.total, error.count) == (total, count)
    assert error.psnr == pytest.approx(10 * math.log10(255**2 / (total / count)))


def test_the_threshold_itself_does_not_move():
    last = torch.full((1, 1, 3, 2, 2), 100, dtype=torch.uint8)
    truth = last.clone()
    truth[0, 0, 1, 0, 0] = 120
    truth[0, 0, 2, 1, 1] = 79
    assert moving_error(truth, last, last).count == 3  # one pixel of three channels: 79 moves, 120 does not


def test_pooling_a_set_is_adding(generator):
    truth, imagined = video(generator, 4, 2, 3, 8, 8), video(generator, 4, 2, 3, 8, 8)
    last = video(generator, 4, 1, 3, 8, 8)
    parts = [moving_error(truth[i : i + 1], imagined[i : i + 1], last[i : i + 1]) for i in range(4)]
    assert sum(parts, SquaredError()) == moving_error(truth, imagined, last)


def test_masked_error_equals_a_loop_over_pixels(generator):
    truth, imagined = video(generator, 2, 3, 3, 4, 5), video(generator, 2, 3, 3, 4, 5)
    mask = torch.rand(2, 3, 4, 5, generator=generator) < 0.3
    places = mask.nonzero().tolist()
    total = sum(
        (int(truth[b, t, c, row, column]) - int(imagined[b, t, c, row, column])) ** 2
        for b, t, row, column in places
        for c in range(3)
    )
    assert masked_error(truth, imagined, mask) == SquaredError(total, 3 * len(places))
    assert masked_error(truth, imagined, torch.ones_like(mask)) == squared_error(truth, imagined)
    for wrong in (mask.byte(), mask[:, :2]):
        with pytest.raises(ValueError, match="wanted bool"):
            masked_error(truth, imagined, wrong)


def test_repeat_last_is_worse_than_the_truth_only_where_it_moves(generator):
    context = torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)
    truth = torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)
    truth[:, :, :, :4, :4] = 200
    still = repeat_last(context, 2)
    assert still.shape == truth.shape
    assert torch.equal(still, context[:, -1:].repeat(1, 2, 1, 1, 1))
    assert moving_error(truth, still, context[:, -1:]).psnr == pytest.approx(10 * math.log10(255**2 / 200**2))
    assert squared_error(truth, still).psnr > moving_error(truth, still, context[:, -1:]).psnr + 10
    assert moving_error(truth, truth, context[:, -1:]).psnr == math.inf


def test_psnr_per_frame_equals_the_formula(generator):
    truth, imagined = video(generator, 2, 3, 3, 6, 6), video(generator, 2, 3, 3, 6, 6)
    imagined[1, 2] = truth[1, 2]
    got = psnr(truth, imagined)
    for b in range(2):
        for t in range(3):
            mean = (
                sum(
                    (int(x) - int(y)) ** 2 for x, y in zip(truth[b, t].flatten(), imagined[b, t].flatten(), strict=True)
                )
                / 108
            )
            assert got[b, t].item() == (pytest.approx(10 * math.log10(255**2 / mean), rel=1e-6) if mean else math.inf)


def test_ssim_equals_its_definition_window_by_window(generator):
    """Weighted mean, variance and covariance of every 11x11 window, by explicit sums in float64."""
    truth = video(generator, 1, 1, 2, 13, 12)
    imagined = (truth.int() + torch.randint(-40, 41, truth.shape, generator=generator)).clamp(0, 255).byte()
    offsets = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(2):
        for row in range(3):
            for column in range(2):
                x, y = (v[0, 0, channel, row : row + 11, column : column + 11].double() for v in (truth, imagined))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(truth, imagined).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-4)
    assert ssim(truth, truth).item() == pytest.approx(1.0, abs=1e-5)


def test_ssim_equals_torchmetrics(generator):
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    truth = video(generator, 2, 3, 3, 24, 20)
    imagined = (truth.int() + torch.randint(-40, 41, truth.shape, generator=generator)).clamp(0, 255).byte()
    _, everywhere = image.structural_similarity_index_measure(
        imagined.flatten(0, 1).float(), truth.flatten(0, 1).float(), data_range=255.0, return_full_image=True
    )
    inside = everywhere[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # its border windows look at mirrored pixels
    assert torch.allclose(ssim(truth, imagined).flatten(), inside, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda v: squared_error(v, v[:, :1]), "the same frames"),
        (lambda v: psnr(v.float(), v), "wanted uint8"),
        (lambda v: psnr(v[0], v[0]), "wanted uint8 `b t c h w`"),
        (lambda v: ssim(v, v), "at least 11x11"),
        (lambda v: moving_error(v, v, v), "the same frames"),
        (lambda v: moving_error(v, v, v[:, :1], threshold=255).psnr, "no pixel was compared"),
    ],
)
def test_errors_say_what_was_wanted(call, says, generator):
    with pytest.raises(ValueError, match=says):
        call(video(generator, 2, 3, 3, 8, 8))
