import math

import pytest
import torch

from ideomotor.evaluation.frechet import frechet_distance, moments
from ideomotor.evaluation.video_metrics import mse, psnr, ssim
from ideomotor.evaluation.video_protocols import IVIDEOGPT, STRICT, compare_videos, evaluate_videos, join, video_table


@pytest.fixture
def videos(generator):
    """Five videos of four frames, one seen; three futures of each, whose seen frame came back unharmed."""
    truth = torch.randint(0, 256, (5, 4, 3, 12, 12), generator=generator, dtype=torch.uint8)
    strength = torch.rand(3, 5, 1, 1, 1, 1, generator=generator) * 60
    noise = torch.randn(3, *truth.shape, generator=generator) * strength
    noise[:, :, 0] = 0
    return truth, (truth + noise).clamp(0, 255).byte()


class Means:
    """A vector of each frame's channel means."""

    name = "frechet_means"

    def __call__(self, video):
        return video.float().mean(dim=(3, 4))


def l1(first, second):
    assert 0 <= first.min() <= first.max() <= 1
    return (first - second).abs().mean(dim=(1, 2, 3))


def test_strict_equals_a_loop_over_future_frames(videos):
    truth, futures = videos
    table = evaluate_videos(truth, futures, STRICT, context=1)
    for name, metric, best in (("mse", mse, min), ("psnr", psnr, max), ("ssim", ssim, max)):
        each = [[metric(truth[b : b + 1, 1:], f[b : b + 1, 1:]).mean().item() for f in futures] for b in range(5)]
        row = table.rows[name, "best"]
        assert row.value == pytest.approx(sum(map(best, each)) / 5, rel=1e-5)
        assert table.rows[name, "mean"].value == pytest.approx(sum(map(sum, each)) / 15, rel=1e-5)
        assert min(map(best, each)) - 1e-6 <= row.low < row.value < row.high <= max(map(best, each)) + 1e-6
    assert (table.protocol, table.videos, table.futures, table.frames) == ("strict", 5, 3, 3)


def test_the_seen_frame_counts_only_as_published(videos):
    truth, futures = videos
    published = evaluate_videos(truth, futures, IVIDEOGPT, context=1)
    strict = evaluate_videos(truth, futures, STRICT, context=1)
    assert set(published.rows) == {(name, "best") for name in ("mse", "psnr", "ssim")}
    wanted = (80 + 3 * strict.rows["psnr", "best"].value) / 4  # an equal frame has 80 dB, for nothing
    assert published.rows["psnr", "best"].value == pytest.approx(wanted, rel=1e-5)
    assert published.rows["mse", "best"].value == pytest.approx(strict.rows["mse", "best"].value * 3 / 4, rel=1e-5)
    assert published.frames == 4


def test_batches_joined_equal_the_whole(videos):
    truth, futures = videos
    given = {"context": 2, "lpips": l1, "features": [Means()]}
    parts = [compare_videos(truth[i : i + 2], futures[:, i : i + 2], STRICT, **given) for i in (0, 2, 4)]
    episodes = ["a", "a", "b", "c", "c"]
    assert video_table(join(parts), episodes) == evaluate_videos(truth, futures, STRICT, episodes=episodes, **given)


def test_given_networks_add_their_rows(videos):
    truth, futures = videos
    table = evaluate_videos(truth, futures, STRICT, context=1, lpips=l1, features=[Means()])
    distance = [
        [(truth[b, 1:].float() - f[b, 1:].float()).abs().mean().item() / 255 for f in futures] for b in range(5)
    ]
    assert table.rows["lpips", "best"].value == pytest.approx(sum(map(min, distance)) / 5, rel=1e-4)
    real, fake = Means()(truth[:, 1:]).flatten(0, 1), Means()(futures[:, :, 1:].flatten(0, 1)).flatten(0, 1)
    row = table.rows["frechet_means", "all"]
    assert row.value == pytest.approx(frechet_distance(moments(real), moments(fake), "sample"), rel=1e-6)
    assert row.low < row.value < row.high
    assert not any(name in ("fvd", "lpips") for name, _ in evaluate_videos(truth, futures, STRICT, context=1).rows)


def test_clips_of_one_episode_are_drawn_together(videos):
    truth, futures = videos
    row = evaluate_videos(truth, futures, STRICT, context=1, episodes=["one"] * 5, features=[Means()]).rows
    assert all(math.isnan(estimate.low) and math.isnan(estimate.high) for estimate in row.values())


def test_the_text_says_what_it_needs_to_be_compared(videos):
    text = evaluate_videos(*videos, STRICT, context=1).markdown()
    assert text.startswith("Protocol `strict`: 5 videos, 3 futures each, 3 frames scored.")
    assert "| psnr | best | " in text


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t, f: evaluate_videos(t, f[:, :, 1:], STRICT, context=1), "context frames included"),
        (lambda t, f: evaluate_videos(t, f[:0], STRICT, context=1), "at least one"),
        (lambda t, f: evaluate_videos(t, f[0], STRICT, context=1), "wanted `n b t c h w`"),
        (lambda t, f: evaluate_videos(t, f, IVIDEOGPT, context=4), "at least 1 seen and 1 foretold"),
        (lambda t, f: evaluate_videos(t, f, STRICT, context=0), "at least 1 seen and 1 foretold"),
        (lambda t, f: evaluate_videos(t.float(), f.float(), STRICT, context=1), "wanted uint8"),
        (lambda t, f: evaluate_videos(t, f, STRICT, context=1, episodes=["a"]), "the name of its episode for each"),
        (lambda t, f: join([compare_videos(t, f[:n], STRICT, context=1) for n in (1, 2)]), "cannot be joined"),
        (lambda t, f: join([]), "cannot be joined"),
    ],
)
def test_errors_say_what_was_wanted(call, says, videos):
    with pytest.raises(ValueError, match=says):
        call(*videos)
