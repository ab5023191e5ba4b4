from pathlib import Path

import pytest
import torch

from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.tokenizers.patch_pca import PatchPCA, PatchPCAConfig
from ideomotor.training.checkpoint import load_model, save_model


def discs(samples: int = 4, length: int = 6, size: int = 16) -> torch.Tensor:
    episodes = synthetic_dataset(samples, length, size).episodes
    return torch.stack([episode.frames["video"].read(range(length)) for episode in episodes])


def fitted(channels: int, whiten: float = 0.5) -> PatchPCA:
    pca = PatchPCA(PatchPCAConfig(patch=4, channels=channels, whiten=whiten))
    pca.fit([discs()[:2], discs()[2:]])
    return pca


def error(pca: PatchPCA, frames: torch.Tensor) -> float:
    return float((pca.decode(pca.moments(frames)[0]).float() - frames.float()).square().mean())


def test_all_components_paint_the_frames_again_and_fewer_paint_what_they_can():
    noise = torch.randint(0, 256, (4, 6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = PatchPCA(PatchPCAConfig(patch=4, channels=48))
    whole.fit([noise])
    assert torch.equal(whole.decode(whole.moments(noise)[0]), noise)
    few, more = error(fitted(4), discs()), error(fitted(12), discs())
    assert more < few / 2
    assert error(fitted(4, whiten=0.0), discs()) == pytest.approx(few, rel=0.01)  # the same subspace


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_scaled_latents_have_unit_variance_and_channels_are_whitened_so_far(whiten: float):
    pca = fitted(6, whiten)
    mean, std = pca.moments(discs())
    assert mean.shape == (4, 6, 6, 4, 4) and not std.any() and pca.config.factor == 4
    variances = (mean * pca.scale).transpose(1, 2).transpose(0, 1).flatten(1).var(1)
    assert variances.mean() == pytest.approx(1, rel=0.02)
    plain = fitted(6, 0.0).moments(discs())[0].transpose(1, 2).transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(variances / variances[0], (plain / plain[0]) ** (1 - whiten), rtol=0.02, atol=1e-4)


def test_the_same_videos_give_the_same_map_and_it_is_saved(tmp_path: Path):
    one = fitted(6)
    save_model(tmp_path / "vae", one, one.config)
    again = load_model(tmp_path / "vae", PatchPCA, PatchPCAConfig)
    assert again.scale == one.scale and torch.equal(again.into, fitted(6).into)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(again.moments(discs())[0], one.moments(discs())[0])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="not fitted"):
        _ = PatchPCA(PatchPCAConfig()).scale
    with pytest.raises(ValueError, match="0 patches vary"):
        PatchPCA(PatchPCAConfig()).fit([])
    with pytest.raises(ValueError, match="vary in fewer than 24 directions"):
        PatchPCA(PatchPCAConfig()).fit([torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"20x16 do not divide into patches of 8x8"):
        PatchPCA(PatchPCAConfig()).moments(torch.zeros(1, 1, 3, 20, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"channels in 1..48"):
        PatchPCAConfig(patch=4, channels=49)
