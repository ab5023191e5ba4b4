"""Numbers of the published video model of VPP: its loss, its sampling, and its features of one and of two steps."""

import json
from dataclasses import replace

import pytest
import torch
from recipe import weights
from safetensors.torch import load_file

from ideomotor.diffusion.edm import karras, log_normal, scaling
from ideomotor.diffusion.sigma_samplers import euler
from ideomotor.layers.text_tokens import TextTokensConfig
from ideomotor.predictors.latent_diffusion import LatentDiffusion, Noising
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig, TimeIds, published
from ideomotor.predictors.svd_unet import config_of, svd_unet

pytestmark = pytest.mark.golden
pytest.importorskip("diffusers", reason="the svd extra is not installed")

SCALE = 0.18215


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpp"


@pytest.fixture(scope="module")
def model(folder):
    unet = config_of(json.loads((folder / "tvp_unet_tiny.json").read_text())["unet_config"])
    text = TextTokensConfig(width=48, out=48, join="plain")
    settings = published(positions=False)
    ids = {"sampling_ids": settings.sampling_ids, "feature_ids": settings.feature_ids}
    model = LatentDiffusion(LatentDiffusionConfig(unet=unet, text=text, **ids))
    model.unet.load_state_dict(load_file(folder / "tvp_unet_tiny.safetensors"))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae(folder):
    diffusers = pytest.importorskip("diffusers")
    about = json.loads((folder / "feature_extraction_tiny.json").read_text())
    vae = diffusers.AutoencoderKLTemporalDecoder(**about["vae_config"])
    vae.load_state_dict(weights(about["vae_weights_recipe"]), strict=False)  # the encoder alone is given
    return vae.eval().requires_grad_(False)


def enlarged(pictures):
    return pictures.repeat_interleave(8, -1).repeat_interleave(8, -2)


def close(got, wanted, atol, rtol=0.0):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)


@pytest.fixture
def seen(model):
    """What the network was given, call by call."""
    calls = []
    hook = model.unet.register_forward_pre_hook(lambda module, given: calls.append(given))
    yield calls
    hook.remove()


def test_the_loss(folder, model, seen):
    data = load_file(folder / "tvp_objective.safetensors")
    about, config = json.loads((folder / "tvp_objective.json").read_text()), published(positions=False)
    assert (config.sigma_mean, config.sigma_std) == (about["P_mean"], about["P_std"])
    assert config.ids == TimeIds(fps=about["fps"], motion=about["motion_bucket_id"])
    assert config.text_dropout == about["text_drop_probability"] and config.latent_scale == SCALE
    sigma = log_normal(data["sigma_standard_normal"], config.sigma_mean, config.sigma_std)
    close(sigma, data["sigmas"], 0.0, 1e-6)
    every = torch.ones(3, dtype=torch.bool)
    noising = Noising(sigma, data["noise"], data["text_uniform"] > 0.05, every)
    latents = data["latents"] / SCALE
    told = []
    hook = model.unet.register_forward_hook(lambda module, given, got: told.append(got[0]))
    losses = model.loss(latents, latents[:, 0], data["text_embedding"], noising)
    hook.remove()
    close(losses.total[None], data["loss"], 0.0, 1e-5)
    x, c_noise, text, ids = seen[0]
    close(x[:, :2], data["network_input_first_frames"], 1e-4)
    close(told[0][:, :2], data["network_output_first_frames"], 1e-4)
    close(c_noise, data["network_timestep"], 1e-4)
    close(ids, data["added_time_ids"], 0.0)
    assert text.flatten(1).any(1).equal(data["text_embedding_after_dropout_nonzero"].bool())
    for row in range(3):
        one = Noising(*(value[row : row + 1] for value in noising[:4]))
        each = model.loss(latents[row : row + 1], latents[row : row + 1, 0], data["text_embedding"][row : row + 1], one)
        close(each.total, data["loss_per_video"][row], 0.0, 1e-5)


def test_factors_of_the_objective(folder):
    """The published network foretells v, which is -F: so its c_out has the other sign."""
    data = load_file(folder / "tvp_objective.safetensors")
    factors = scaling(data["grid_sigmas"], 1.0)
    close(factors.c_skip, data["grid_c_skip"], 0.0, 1e-5)
    close(-factors.c_out, data["grid_c_out"], 0.0, 1e-5)
    close(factors.c_in, data["grid_c_in"], 0.0, 1e-5)
    close(factors.c_noise, data["grid_c_noise"], 1e-6)
    close(factors.weight, data["grid_loss_weight"], 0.0, 1e-5)


def test_noise_on_the_first_frame_is_told(folder, model, vae, seen):
    """The published code noises the picture; here the noised picture's latent is given, and its strength."""
    data = load_file(folder / "tvp_objective.safetensors")
    about = json.loads((folder / "tvp_objective.json").read_text())
    strength = torch.tensor([about["rgb_noise_augmentation_used_log_strength"]]).exp()
    frames = enlarged(data["rgb_16px"])
    films = vae.encode(frames.flatten(0, 1)).latent_dist.mode()[None]
    first = vae.encode(frames[:, 0] + strength * enlarged(data["rgb_image_noise_16px"])).latent_dist.mode()
    one = torch.ones(1, dtype=torch.bool)
    noising = Noising(data["sigmas"][1:2], data["rgb_latent_noise"], one, one, strength, torch.zeros_like(first))
    losses = model.loss(films, first, data["text_embedding"][:1], noising)
    x, _, _, ids = seen[0]
    close(x, data["rgb_network_input"], 1e-4)
    close(ids, data["rgb_added_time_ids"], 0.0, 1e-6)
    close(losses.total[None], data["rgb_loss"], 0.0, 1e-5)


def recording(trajectory):
    """Euler's sampler, which keeps where it was after each step."""

    def sampler(denoise, x, sigmas):
        for step in range(len(sigmas) - 1):
            x = euler(denoise, x, sigmas[step : step + 2])
            trajectory.append(x)
        return x

    return sampler


@pytest.mark.parametrize(("steps", "guidance"), [(10, 3.0), (20, 7.5), (30, 3.0)])
def test_levels_and_guidance_of_sampling(folder, model, monkeypatch, steps, guidance):
    """A network that says 0 without a sentence and 1 with it gives the ramp; noise of 1 shows where it begins."""
    data, calls = load_file(folder / "tvp_objective.safetensors"), []

    def denoise(x, sigma, first, text, ids):
        calls.append((x, sigma, ids))
        return torch.cat([torch.zeros_like(x[:1]), torch.ones_like(x[:1])])

    monkeypatch.setattr(model, "denoise", denoise)
    levels, noise = [], torch.ones(1, 16, 4, 2, 2)

    def sampler(denoise, x, sigmas):
        levels.append(sigmas)
        return denoise(x, sigmas[:1]) * SCALE

    found = model.sample(noise[:, 0], torch.ones(1, 20, 48), steps, guidance, noise=noise, sampler=sampler)
    close(found[0, :, 0, 0, 0], data[f"guidance_ramp_1_to_{guidance}"], 1e-6)
    close(levels[0], data[f"sampler_sigmas_{steps}"], 0.0, 1e-5)
    close(scaling(levels[0][:-1], 1.0).c_noise, data[f"sampler_timesteps_{steps}"], 1e-5)
    x, _, ids = calls[0]
    close(ids, data["time_ids_sampling_with_guidance"], 0.0, 1e-6)
    close(model.time_ids(model.config.ids, 2), data["time_ids_training"], 0.0)
    about = json.loads((folder / "feature_extraction_tiny.json").read_text())
    close(x, torch.full_like(x, about["init_noise_sigma"]), 0.0, 1e-6)


def test_sampling(folder, model, seen):
    data = load_file(folder / "tvp_sampling_tiny.safetensors")
    first, noise, text = data["scaled_condition_latent"] / SCALE, data["noise"], data["text_embedding"]
    about, config = json.loads((folder / "tvp_sampling_tiny.json").read_text()), model.config
    told = TimeIds(fps=about["fps"], motion=about["motion_bucket_id"], noise=about["noise_aug_strength_id"])
    assert config.sampling_ids == told and len(data["sigmas_4"]) == about["num_inference_steps"] + 1
    close(karras(4, config.sigma_min, config.sigma_max), data["sigmas_4"], 0.0, 1e-5)
    trajectory = []
    found = model.sample(first, text, 4, noise=noise, sampler=recording(trajectory))
    close(found * SCALE, data["default_guidance.latents"], 1e-3)
    close(torch.stack(trajectory), data["default_guidance.trajectory"], 1e-3)
    x, _, told, ids = seen[0]
    close(x, data["default_guidance.first_call_network_input"], 1e-4)
    close(told[:, :2], data["default_guidance.text"], 0.0)
    close(ids, data["default_guidance.added_time_ids"], 0.0)
    close(torch.stack([call[1][0] for call in seen]), data["timesteps_4"], 1e-4)
    assert not torch.equal(model.sample(first, text, 4, noise=noise, guidance=2.0), found)
    close(model.sample(first, text, 4, 7.5, noise=noise) * SCALE, data["guidance_7.5.latents"], 1e-3)
    del seen[:]
    close(model.sample(first, text, 4, 1.0, noise=noise) * SCALE, data["no_guidance.latents"], 1e-3)
    assert len(seen) == 4 and len(seen[0][0]) == about["no_guidance_network_batch"]


def test_sampling_away_from_no_picture(folder, model, vae, seen):
    """The published path from a picture leaves the first frame out of the negative, which training never does."""
    data = load_file(folder / "tvp_sampling_tiny.safetensors")
    first = vae.encode(2 * enlarged(data["rgb_01_16px"]) - 1).latent_dist.mode()
    blank = LatentDiffusion(replace(model.config, blank_negative=True))
    blank.load_state_dict(model.state_dict())
    hook = blank.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    found = blank.sample(first, data["text_embedding"], 4, noise=data["noise"])
    hook.remove()
    close(seen[0][0][:, 0, 4:], data["rgb.first_call_condition_channels_frame0"], 1e-3)
    close(found * SCALE, data["rgb.latents"], 1e-3)


def test_features(folder, model):
    """The two recorded views have different texts here, so each is a sample of its own."""
    data = load_file(folder / "feature_extraction_tiny.safetensors")
    first, text, noise = data["scaled_latent"] / SCALE, data["text_embedding"], data["noise"][:, None]
    stages, hooks = {}, []
    for name in ("conv_in", "time_embedding", "add_embedding", "mid_block"):
        part = getattr(model.unet, name)
        hooks.append(
            part.register_forward_hook(lambda _, given, got, name=name: stages.update({name: (given[0], got)}))
        )
    read = model.features(first, text, noise=noise)
    for hook in hooks:
        hook.remove()
    frames = stages["conv_in"][0].unflatten(0, (2, 16))
    close(frames[:, :2], data["network_input_first_frames"], 1e-5)
    close(stages["add_embedding"][0], data["added_time_embedding_in"], 1e-4)
    close(stages["time_embedding"][1], data["time_embedding_out"], 1e-4)
    close(stages["mid_block"][1].unflatten(0, (2, 16)), data["mid_block"], 1e-3)
    close(torch.cat([*read[:, 0]])[None], data["policy_tokens_frame0"], 1e-3)
    maps = read.unflatten(2, (8, 8)).movedim(-1, 2)  # b t d h w
    coarse, fine = maps.split(64, 2)
    close(coarse[..., ::2, ::2], data["up_block_0"], 1e-3)
    close(fine, data["up_block_1"], 1e-3)
    three = model.features(first, text, layers=(0, 1, 2), noise=noise)[:, -1].unflatten(1, (16, 16)).movedim(-1, 1)
    close(three, data["feature.layers_0_1_2_last_frame"], 1e-3)
    alone = model.features(first, text, layers=(1,), noise=noise)
    assert alone.equal(read[..., 64:])


def test_features_of_the_second_step(folder, model):
    data = load_file(folder / "feature_extraction_tiny.safetensors")
    first, text, noise = data["scaled_latent"] / SCALE, data["text_embedding"], data["noise"][:, None]
    second = []
    hook = model.unet.conv_in.register_forward_hook(lambda _, given, got: second.append(given[0]))
    read = model.features(first, text, noise=noise, steps=2, schedule=20)
    hook.remove()
    close(karras(20, model.config.sigma_min, 700.0), data["sigmas_20"], 0.0, 1e-5)
    close(second[1].unflatten(0, (2, 16))[:, 0], data["two_step.network_input_second_call_frame0"], 1e-3)
    last = read[:, -1].unflatten(1, (8, 8)).movedim(-1, 1)
    close(last, data["two_step.feature_last_frame"], 1e-3)


def test_features_of_a_picture(folder, model, vae):
    data = load_file(folder / "feature_extraction_tiny.safetensors")
    first = vae.encode(enlarged(data["rgb_16px"])[:, 0]).latent_dist.mode()
    close(first, data["rgb_image_latent_unscaled"], 1e-4)
    read = model.features(first[:, None], data["text_embedding"], noise=data["noise"][:, None])
    close(read[:, -1].unflatten(1, (8, 8)).movedim(-1, 1), data["rgb_feature_last_frame"], 1e-3)


def test_the_whole_network(folder, model):
    data = load_file(folder / "feature_extraction_tiny.safetensors")
    first = (data["scaled_latent"] / SCALE).expand(-1, 16, -1, -1, -1)
    x = torch.cat([data["noise"], first], 2)
    c_noise = data["timesteps_20"][0].expand(2)
    found = model.unet(x, c_noise, data["text_embedding"], data["added_time_ids"]).sample
    close(found, data["unet_full_output"], 1e-3)


def test_full_size_names(folder):
    recorded = json.loads((folder / "checkpoint_layouts_video.json").read_text())["video_unet"]["tensors"]
    with torch.device("meta"):
        unet = svd_unet(published(positions=True).unet)
    assert sum(weight.numel() for weight in unet.parameters()) == 1_524_623_082
    ours = {name: list(value.shape) for name, value in unet.state_dict().items()}
    assert ours == {name: shape for name, shape, _ in recorded}
