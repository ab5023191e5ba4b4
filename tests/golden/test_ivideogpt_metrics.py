"""Numbers of the published evaluation of iVideoGPT: frame metrics, best of n, both Frechet distances."""

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.evaluation.frechet import frechet_distance, frechet_estimate, moments
from ideomotor.evaluation.video_protocols import (
    IVIDEOGPT,
    compare_videos,
    evaluate_videos,
    frame_scores,
    join,
    video_table,
)
from ideomotor.layers.perceptual import load_perceptual

pytestmark = pytest.mark.golden

ORDER = ("mse", "psnr", "ssim", "lpips")


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def data(shared):
    return load_file(shared / "golden" / "ivideogpt" / "fixtures" / "metrics.safetensors")


@pytest.fixture(scope="module")
def videos(data):
    truth = data["in.truth_u8"]
    return truth, data["in.candidates_u8"].unflatten(0, (-1, len(truth)))  # a row is candidate * 2 + video


@pytest.fixture(scope="module")
def network(shared):
    """Narrow and random: it pins the arithmetic of LPIPS, not its values."""
    return load_perceptual(shared / "golden/ivideogpt/checkpoints/narrow-losses/perceptual.safetensors")[0]


def best(table):
    return torch.tensor([table.rows[name, "best"].value for name in ORDER])


def test_every_frame(data, videos, network):
    truth, futures = videos
    scores = [frame_scores(truth, future, network) for future in futures]
    for name in ORDER:
        close(torch.stack([score[name] for score in scores]), data[f"out.frame_{name}"])


def test_best_of_n(data, videos, network):
    close(best(evaluate_videos(*videos, IVIDEOGPT, context=1, lpips=network)), data["out.best_of_n"])


def test_best_of_n_in_small_batches(data, videos, network):
    truth, futures = videos
    parts = [
        compare_videos(truth[i : i + 1], futures[:, i : i + 1], IVIDEOGPT, context=1, lpips=network)
        for i in range(len(truth))
    ]
    close(best(video_table(join(parts))), data["out.best_of_n_small_batches"])


def test_a_single_candidate(data, videos, network):
    truth, futures = videos
    close(
        best(evaluate_videos(truth, futures[:1], IVIDEOGPT, context=1, lpips=network)),
        data["out.single_first_candidate"],
    )


def test_moments(data):
    real = moments(data["in.features_real"])
    close(real.mean, data["out.fvd_mean_real"])
    close(real.covariance("population"), data["out.fvd_cov_real"])


@pytest.mark.parametrize("divisor", ["population", "sample"])
def test_frechet(data, divisor):
    real, fake = data["in.features_real"], data["in.features_fake"]
    wanted = data[f"out.fvd_{divisor}_covariance"].item()
    assert frechet_distance(moments(real), moments(fake), divisor) == pytest.approx(wanted, rel=1e-4)
    blocks = [moments(block) for block in real.chunk(4)], [moments(block) for block in fake.chunk(4)]
    assert frechet_estimate(*blocks, divisor).value == pytest.approx(wanted, rel=1e-4)  # features come in batches
