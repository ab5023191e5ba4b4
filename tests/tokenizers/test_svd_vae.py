import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig, VAEReconstruction, load_diffusers, small
from ideomotor.training.checkpoint import load_model, save_model
from ideomotor.types import Clip

pytest.importorskip("diffusers")
TINY = SVDVAEConfig(widths=(32, 32), blocks=1, scale=0.5, together=2)


@pytest.fixture(scope="module")
def tiny() -> SVDVAE:
    torch.manual_seed(0)
    return SVDVAE(TINY).eval()


def discs(samples: int, length: int, size: int) -> torch.Tensor:
    episodes = synthetic_dataset(samples, length, size).episodes
    return torch.stack([episode.frames["video"].read(range(length)) for episode in episodes])


def test_frames_keep_their_shape_through_latents(tiny: SVDVAE):
    frames = discs(2, 5, 16)[..., :8]
    mean, std = tiny.moments(frames)
    assert mean.shape == std.shape == (2, 5, 4, 8, 4) and (std > 0).all()
    painted = tiny.decode(mean)
    assert painted.shape == frames.shape and painted.dtype == torch.uint8
    assert not mean.requires_grad


def test_each_frame_is_encoded_on_its_own_and_pieces_are_decoded_apart(tiny: SVDVAE):
    frames = discs(1, 5, 16)
    mean, _ = tiny.moments(frames)
    torch.testing.assert_close(tiny.moments(frames[:, 2:3])[0], mean[:, 2:3])
    torch.testing.assert_close(tiny.decode(mean[:, 2:4]), tiny.decode(mean)[:, 2:4])  # a piece of two
    with torch.no_grad():
        assert not torch.equal(tiny.paint(mean[:, 2:4]), tiny.paint(mean)[:, 2:4])


def test_the_small_one_shrinks_by_eight_and_stays_small():
    vae = SVDVAE(small())
    assert vae.config.factor == 8 == SVDVAEConfig().factor
    assert sum(weight.numel() for weight in vae.parameters()) == 405_946
    with pytest.raises(ValueError, match="not measured"):
        _ = vae.scale
    with pytest.raises(ValueError, match="20x16 do not divide into cells of 8x8"):
        vae.moments(torch.zeros(1, 1, 3, 20, 16, dtype=torch.uint8))


def test_it_never_computes_in_float16_unless_told(tiny: SVDVAE):
    frames = discs(1, 2, 16)
    wanted, _ = tiny.moments(frames)
    for dtype in (torch.bfloat16, torch.float16):  # as a policy acts that was trained in fp16
        with torch.autocast("cpu", dtype):
            assert torch.equal(tiny.moments(frames)[0], wanted)
    half = SVDVAE(TINY).half()
    for call in (lambda: half.moments(frames), lambda: half.decode(wanted)):
        with pytest.raises(TypeError, match="float16"):
            call()
    loose = SVDVAE(replace(TINY, force_upcast=False))
    loose.load_state_dict(tiny.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(loose.moments(frames)[0], wanted)


def test_a_small_one_learns_and_its_measured_scale_is_saved(tmp_path: Path):
    torch.manual_seed(0)
    vae = SVDVAE(small())
    objective = VAEReconstruction(vae)
    frames = discs(4, 4, 16)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    totals = []
    for step in range(32):
        losses = objective(Clip(frames={"main": frames[step % 4 :][:1]}, text=("",)))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
        assert losses.terms.keys() == {"reconstruction", "kl", "psnr"}
    assert sum(totals[-4:]) < 0.6 * sum(totals[:4]), totals
    scale = vae.measure_scale([frames[:2], frames[2:]])
    mean, std = vae.moments(frames)
    values = (mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))) * scale
    assert values.std().item() == pytest.approx(1, abs=0.05)
    save_model(tmp_path / "vae", vae, vae.config)
    loaded = load_model(tmp_path / "vae", SVDVAE, SVDVAEConfig)
    assert loaded.scale == scale and torch.equal(loaded.moments(frames)[0], mean)


@pytest.mark.parametrize("blocks", [1, 2])
def test_whatever_trains_has_a_gradient(blocks: int):
    """Several processes wait for the gradient of every weight that wants one."""
    objective = VAEReconstruction(SVDVAE(replace(TINY, blocks=blocks)))
    objective(Clip(frames={"main": discs(1, 2, 16)}, text=("",))).total.backward()
    still = [name for name, weight in objective.named_parameters() if weight.requires_grad and weight.grad is None]
    frozen = [name for name, weight in objective.named_parameters() if not weight.requires_grad]
    assert still == [] and bool(frozen) == (blocks == 1), "only what diffusers' decoder goes past stays as it is"


def test_a_scale_needs_latents(tiny: SVDVAE):
    with pytest.raises(ValueError, match="0 values"):
        SVDVAE(TINY).measure_scale([])


def published(folder: Path, vae: SVDVAE, **changes) -> Path:
    folder.mkdir(parents=True)
    described = dict(vae.net.config) | {"_class_name": "AutoencoderKLTemporalDecoder", "scaling_factor": 0.25} | changes
    (folder / "config.json").write_text(json.dumps(described))
    save_file(vae.net.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_a_diffusers_folder_is_read_strictly(tmp_path: Path, tiny: SVDVAE):
    published(tmp_path / "pipeline" / "vae", tiny)
    frames = discs(1, 2, 16)
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        vae = load_diffusers(folder)
        assert vae.scale == 0.25 and vae.config.widths == (32, 32)
        assert torch.equal(vae.moments(frames)[0], tiny.moments(frames)[0])
    with pytest.raises(ValueError, match="holds a UNet; wanted an AutoencoderKLTemporalDecoder"):
        load_diffusers(published(tmp_path / "unet", tiny, _class_name="UNet"))
    with pytest.raises(ValueError, match="do not fit its config"):
        load_diffusers(published(tmp_path / "wide", tiny, block_out_channels=[32, 64]))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_diffusers(tmp_path)
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_diffusers(tmp_path / "pipeline")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        load_diffusers(tmp_path / "pipeline")
