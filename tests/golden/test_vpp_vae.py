"""Numbers of the VAE that VPP uses: latents of a small one, and the names and shapes of the published one."""

import json

import pytest
import torch
from recipe import weights
from safetensors.torch import load_file

from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig, svd

pytestmark = pytest.mark.golden
pytest.importorskip("diffusers")


def test_latents_of_a_small_vae(shared):
    folder = shared / "golden" / "vpp"
    about = json.loads((folder / "feature_extraction_tiny.json").read_text())
    described = about["vae_config"]
    vae = SVDVAE(SVDVAEConfig(widths=tuple(described["block_out_channels"]), blocks=described["layers_per_block"]))
    vae.net.load_state_dict(weights(about["vae_weights_recipe"]))
    data = load_file(folder / "feature_extraction_tiny.safetensors")
    pixels = data["rgb_16px"][:, 0].repeat_interleave(8, -1).repeat_interleave(8, -2)
    with torch.no_grad():
        mean, _ = vae.encode(pixels)
    torch.testing.assert_close(mean, data["rgb_image_latent_unscaled"], atol=1e-3, rtol=0)


def test_the_published_layout(shared):
    layout = json.loads((shared / "golden" / "vpp" / "checkpoint_layouts_video.json").read_text())
    with torch.device("meta"):
        ours = SVDVAE(svd()).net.state_dict()
    assert {name: list(value.shape) for name, value in ours.items()} == {
        name: shape for name, shape, _ in layout["video_vae"]["tensors"]
    }
    assert sum(value.numel() for value in ours.values()) == 97_742_847
