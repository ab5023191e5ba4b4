"""Numbers of the published VPP policy from latents to actions: video network, Video Former, denoising, re-planning."""

import json

import pytest
import recipe
import torch
from safetensors.torch import load_file

from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.interop import vpp as names
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.text_tokens import TextTokensConfig
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig, published
from ideomotor.predictors.svd_unet import config_of

pytestmark = pytest.mark.golden
pytest.importorskip("diffusers", reason="the svd extra is not installed")


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpp"


@pytest.fixture(scope="module")
def about(folder):
    return json.loads((folder / "policy_end_to_end_tiny.json").read_text())


@pytest.fixture(scope="module")
def predictor(folder):
    unet = config_of(json.loads((folder / "tvp_unet_tiny.json").read_text())["unet_config"])
    text = TextTokensConfig(width=48, out=48, join="plain")
    ids = published(positions=False).feature_ids
    model = LatentDiffusion(LatentDiffusionConfig(unet=unet, text=text, feature_ids=ids))
    model.unet.load_state_dict(load_file(folder / "tvp_unet_tiny.safetensors"))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def head(about):
    """The checkpoint's weights under their published names; the tiny networks have 4 heads."""
    parts = names.split_checkpoint(recipe.weights(about["weights"]))
    former = VideoFormer(VideoFormerConfig(**names.former_config(parts.former, heads=4)))
    former.load_state_dict(names.former_from_published(parts.former))
    fields = names.policy_config(parts.policy, former.config.frames * former.config.queries, heads=4)
    trunk = EncoderDecoderConfig(**fields.pop("trunk"))
    policy = EDMTransformer(EDMTransformerConfig(**fields, trunk=trunk))
    policy.load_state_dict(names.policy_from_published(parts.policy))
    return former.eval(), policy.eval()


@torch.no_grad()
def test_from_latents_to_actions(folder, about, predictor, head):
    data, (former, policy) = load_file(folder / "policy_end_to_end_tiny.safetensors"), head
    views = torch.cat([data["scaled_latent_static"], data["scaled_latent_gripper"]]) / 0.18215
    goal = data["goal"][:, 0]
    sampling = Sampling(sigma_min=about["sigma_min"], sigma_max=about["sigma_max"])
    chunks = []
    for plan, scale in enumerate((1, 2)):  # the second sees doubled latents
        # The recorded sentences differ between the views, so each view is a sample of its own here.
        features = predictor.features(scale * views, data["text_embedding"], noise=data["video_noise"][plan][:, None])
        tokens = former(torch.cat([*features], 1)[None])  # the views' tokens side by side in a frame
        torch.testing.assert_close(tokens[0], data["visual_tokens"][plan], atol=1e-3, rtol=0)
        chunk = policy.act(tokens, goal, sampling=sampling, noise=data["action_noise"][plan])
        torch.testing.assert_close(chunk[0], data["action_chunks"][plan], atol=1e-3, rtol=0)
        chunks.append(chunk[0])
    every = about["replan_every"]
    taken = [chunks[step // every][step % every] for step in range(len(data["step_actions"]))]
    torch.testing.assert_close(torch.stack(taken), data["step_actions"], atol=1e-3, rtol=0)
