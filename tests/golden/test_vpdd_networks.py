"""Numbers of the published VPDD networks: the video model, both action models, and both together in the diffusion."""

import json

import pytest
import torch
from recipe import weights
from safetensors.torch import load_file

from ideomotor.diffusion.discrete import log_one_hot
from ideomotor.interop.vpdd import (
    is_multiview,
    policy_config,
    policy_from_published,
    predictor_config,
    predictor_from_published,
)
from ideomotor.layers.gpt import GPTConfig
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy, GPTDiffusionPolicyConfig
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy, MultiviewGPTPolicyConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig
from ideomotor.systems.vpdd_published import joint_network, metaworld_head, sample, unified_loss
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAEConfig

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpdd"


def close(got, wanted, atol):
    got = got.detach()
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0.0)


def below(prefix, state):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def predictor_of(state, grid):
    config = PerceiverDiffusionPredictorConfig(**predictor_config(state), grid=grid)
    predictor = PerceiverDiffusionPredictor(config)
    predictor.load_state_dict(predictor_from_published(state))
    return predictor.eval()


def policy_of(state):
    config, trunk = policy_config(state)
    build, build_config = (
        (MultiviewGPTPolicy, MultiviewGPTPolicyConfig)
        if is_multiview(state)
        else (GPTDiffusionPolicy, GPTDiffusionPolicyConfig)
    )
    policy = build(build_config(**config, trunk=GPTConfig(**trunk)))
    policy.load_state_dict(policy_from_published(state))
    return policy.eval()


@pytest.mark.parametrize("gradients", [False, True])  # linear maps are computed in another way without them
def test_the_video_model(folder, gradients):
    data = load_file(folder / "p_theta1_tiny.safetensors")
    predictor = predictor_of(below("state.", data), (6, 6)).requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        check_tiny_video(data, predictor)


def check_tiny_video(data, predictor):
    seen = predictor.observe(data["history_tokens"].flatten(1), data["text"])
    features = predictor.features(data["future_tokens"].flatten(1), data["t"], seen)
    close(features, data["features"], 1e-5)
    close(predictor.logits(features), data["logits"], 1e-5)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_metaworld_head(folder, gradients):
    data = load_file(folder / "p_theta2_metaworld_tiny.safetensors")
    with torch.set_grad_enabled(gradients):
        check_tiny_head(data, policy_of(below("state.", data)))


def check_tiny_head(data, policy):
    text = policy.observe(data["text"])
    for tokens, logits in (
        ("", ""),
        ("_fifth_changed", "_fifth_token_changed"),
        ("_last_changed", "_last_token_changed"),
    ):
        xt = data[f"action_tokens{tokens}"] - 64
        close(policy.logits(xt, data["t"], data["features"], text), data[f"action_logits{logits}"], 1e-4)


def check_video(data, predictor):
    """Compares what the files of both benchmarks hold of the video model, and returns the features."""
    places = data["selected_positions"]
    seen = predictor.observe(data["history_tokens"].flatten(1), data["text"])
    features = predictor.features(data["x_t"][:, :576], data["t"], seen)
    logits = predictor.logits(features)
    close(logits[:, places], data["video_logits_selected"], 2e-4)
    close(logits.logsumexp(-1), data["video_logsumexp"], 2e-4)
    assert logits.argmax(-1).equal(data["video_argmax"])
    return features


@torch.inference_mode()
def test_full_size_networks_of_metaworld(folder):
    data, about = read(folder, "policy_metaworld_full")
    state = weights(about["weights"])
    features = check_video(data, predictor_of(below("traj_model.", state), (24, 24)))
    close(features[:, data["feature_positions"]], data["feature_map_selected"], 2e-4)
    policy = policy_of(below("act_model.", state))
    logits = policy.logits(data["x_t"][:, 576:] - 2048, data["t"], features, policy.observe(data["text"]))
    close(logits, data["action_logits"], 2e-4)


@torch.inference_mode()
def test_full_size_networks_of_rlbench(folder):
    data, about = read(folder, "policy_rlbench_full")
    state = weights(about["weights"])
    predictor = predictor_of(below("traj_model.", state), (24, 24))
    check_video(data, predictor)
    policy = policy_of(below("act_model.", state))
    views = torch.cat(
        [predictor.codes[data[f"view_{view}"].flatten(1)] for view in ("wrist", "left", "right", "wrist")], -1
    )
    images = data["images_uint8_32px"].repeat_interleave(4, -1).repeat_interleave(4, -2)
    seen = policy.observe(views, images, data["proprio"], data["text"])
    logits = policy.logits(data["x_t"][:, 576:] - 2048, data["t"], seen)
    close(logits, data["action_logits"], 2e-4)


def read(folder, name):
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


def pick_with(video, actions):
    """Gumbel-max with recorded noise, which the files hold as (batch, class, position)."""
    uniform = torch.cat([video, actions], -1).transpose(-2, -1)
    noise = -(-(uniform + 1e-30).log() + 1e-30).log()
    return lambda log_p: (log_p + noise).argmax(-1)


@pytest.fixture(scope="module")
def end_to_end(folder):
    data, about = read(folder, "policy_metaworld_end_to_end_tiny")
    state = below("state.", data)
    predictor, policy = predictor_of(below("traj_model.", state), (24, 24)), policy_of(below("act_model.", state))
    tokenizer = AxialVQVAEConfig(codes=predictor.config.codes, code_width=predictor.config.code_width)
    config = PublishedVPDD(
        steps=about["config"]["n_timesteps"], tokenizer=tokenizer, predictor=predictor.config, policy=policy.config
    )
    return config, predictor, policy, data


@torch.inference_mode()
def test_the_loss_of_both_networks(end_to_end):
    config, predictor, policy, data = end_to_end
    codes, text = config.predictor.codes, data["text"][0]
    x0 = torch.cat([data["target_tokens"].view(1, -1), data["action_ids"].view(1, -1) + codes], 1)
    step, process = data["loss_t"], config.process()
    barred = torch.nn.functional.pad(process.foreign, (0, 1))
    scores = process.log_marginal(log_one_hot(x0, config.vocabulary.size), step).masked_fill(barred, -1e4)
    xt = pick_with(data["loss_uniform_video"], data["loss_uniform_action"])(scores)
    seen = predictor.observe(data["history_tokens"].view(1, -1), text)
    network = joint_network(predictor, seen, config.vocabulary, metaworld_head(policy, text))
    probability = torch.full((1,), 1 / config.steps)
    losses, _ = unified_loss(config, process, network, x0, xt, step, probability)
    for got, name in (
        (losses.total, "loss"),
        (losses.terms["video"], "loss_state"),
        (losses.terms["action"], "loss_action"),
    ):
        torch.testing.assert_close(got[None], data[name], atol=0.0, rtol=1e-5)


def test_complete_sampling(end_to_end):
    config, predictor, policy, data = end_to_end
    noise = iter(zip(data["sample_uniform_video"], data["sample_uniform_action"], strict=True))
    text = data["text"][0]
    video, ids = sample(
        config,
        predictor,
        data["history_tokens"].view(1, -1),
        text,
        metaworld_head(policy, text),
        pick=lambda log_p: pick_with(*next(noise))(log_p),
    )
    assert video.view(1, 1, 24, 24).equal(data["sample_video_tokens"])
    assert (ids.view(1, 4, 4) + config.predictor.codes).equal(data["sample_action_tokens"])
