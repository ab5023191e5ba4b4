"""Numbers of the published VPP networks: the Video Former and the action denoiser, small and at full size."""

import json

import pytest
import recipe
import torch
from safetensors.torch import load_file

from ideomotor.diffusion import edm
from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.interop import vpp as names
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.step_text import sinusoid
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig

pytestmark = pytest.mark.golden
EVALUATION = Sampling(sigma_min=1.0)
SAMPLERS = {
    theirs: Sampling(sampler=ours, sigma_min=0.01)
    for theirs, ours in (
        ("euler", "euler"),
        ("heun", "heun"),
        ("dpm", "dpm2"),
        ("lms", "lms"),
        ("dpmpp_2m", "dpmpp_2m"),
        ("dpmpp_2_with_lms", "dpmpp_2m"),
        ("dpmpp_2s", "dpmpp_2s"),
    )
}


def close(got, wanted, atol=1e-4, rtol=1e-5):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)


def under(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def former_of(state, heads):
    model = VideoFormer(VideoFormerConfig(**names.former_config(state, heads)))
    model.load_state_dict(names.former_from_published(state))
    return model.eval()


def policy_of(state, tokens, heads):
    fields = names.policy_config(state, tokens, heads)
    trunk = EncoderDecoderConfig(**fields.pop("trunk"))
    model = EDMTransformer(EDMTransformerConfig(**fields, trunk=trunk))
    model.load_state_dict(names.policy_from_published(state))
    return model.eval()


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpp"


@pytest.fixture(scope="module")
def former_data(folder):
    return load_file(folder / "video_former_tiny.safetensors")


@pytest.fixture(scope="module")
def tiny(folder):
    return load_file(folder / "action_denoiser_tiny.safetensors")


@pytest.fixture(scope="module")
def policy(tiny):
    return policy_of(under(tiny, "state.inner_model."), tokens=12, heads=4)


def seen(data, proprio=False):
    return data["tokens"], data["goal"][:, 0], data["proprio"][:, 0] if proprio else None


@pytest.mark.parametrize("variant", ["3d", "3d_without_temporal", "2d"])
def test_video_former(folder, former_data, variant):
    sizes = json.loads((folder / "video_former_tiny.json").read_text())["config"]
    model = former_of(under(former_data, f"{variant}.state."), heads=sizes["heads"])
    for ours, theirs in (("width", "dim"), ("layers", "depth"), ("feature_width", "condition_dim"),
                         ("head_width", "dim_head"), ("frames", "num_frame")):  # fmt: skip
        assert getattr(model.config, ours) == sizes[theirs], ours
    assert model.config.frames * model.config.queries == sizes["num_latents"]
    assert model.config.kind == ("3d" if variant == "3d" else "2d")
    close(model(former_data["input"]), former_data[f"{variant}.output"], atol=1e-5)


def test_video_former_extras_and_gradients(former_data):
    model = former_of(under(former_data, "3d.state."), heads=4)
    close(
        model(former_data["input"], known=former_data["frame_mask"].bool()),
        former_data["3d.output_with_frame_mask"],
        atol=1e-5,
    )
    close(
        model(former_data["input"], extra=former_data["extra_tokens"]),
        former_data["3d.output_with_extra_tokens"],
        atol=1e-5,
    )
    (model(former_data["input"]) * former_data["loss_weights"]).sum().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters()}
    wanted = under(former_data, "3d.grad.")
    close(grads["embed.0.weight"], wanted["goal_emb.0.weight"])
    close(grads["queries"], wanted["latents"])
    close(grads["time"], wanted["time_pos_emb"])
    close(grads["layers.0.read.key_value.weight"].chunk(2)[0], wanted["layers.0.0.to_k.weight"])
    close(grads["layers.1.time.qkv.weight"], wanted["layers.1.1.qkv.weight"])
    close(grads["layers.1.feed_forward.1.weight"], wanted["layers.1.2.1.weight"])


def test_video_former_full(folder):
    about = json.loads((folder / "video_former_full.json").read_text())
    model = former_of(recipe.weights(about["weights"]), heads=8)
    assert model.config == VideoFormerConfig()
    with torch.no_grad():
        got = model(recipe.weights([about["input"]])["input"])
    close(got, load_file(folder / "video_former_full.safetensors")["output"])


def test_denoiser(tiny, policy):
    sigmas = tiny["sigmas"]
    for proprio, name in ((False, "denoised"), (True, "denoised_with_proprio")):
        context = policy.context(*seen(tiny, proprio))
        for level, sigma in enumerate(sigmas):
            x = tiny["actions"] + sigma * tiny["noise"]
            close(policy.denoise(x, sigma.expand(3), context), tiny[name][level])
    close(policy.encode(*seen(tiny)), tiny["encoder_context"])
    close(policy.encode(*seen(tiny, True)), tiny["encoder_context_with_proprio"])
    factors = edm.scaling(sigmas, 0.5)
    for name in ("c_skip", "c_out", "c_in"):
        close(factors._asdict()[name], tiny[name], atol=0)


def test_network(tiny, policy):
    context = policy.context(*seen(tiny))
    for level, sigma in enumerate(tiny["sigmas"]):
        factors = edm.scaling(sigma.expand(3), 0.5)
        x = tiny["actions"] + sigma * tiny["noise"]
        close(policy._network(factors.over(x).c_in * x, factors.c_noise, context), tiny["network_output"][level])
    sigmas, loss_sigmas = (edm.scaling(tiny[name], 0.5) for name in ("sigmas", "loss_sigmas"))
    close(policy.sigma(sinusoid(sigmas.c_noise, 32))[:, None], tiny["sigma_embedding"])
    x = tiny["actions"] + tiny["loss_sigmas"][:, None, None] * tiny["noise"]
    found = policy._network(loss_sigmas.over(x).c_in * x, loss_sigmas.c_noise, context)
    close(found, tiny["loss_network_output"])
    blind = policy.context(tiny["tokens"], torch.zeros_like(tiny["goal"][:, 0]))
    level = torch.full((3,), 0.7).log() / 4
    close(policy._network(tiny["actions"], level, blind), tiny["network_output_zero_goal"])


def test_who_reaches_whom(folder, tiny, policy):
    """The published cross-attention is causal: tokens from the fifth on reach no action through the decoder."""
    about = json.loads((folder / "action_denoiser_tiny.json").read_text())
    encoded, sigma = policy.encode(*seen(tiny)).detach().requires_grad_(), torch.ones(3)
    actions = tiny["actions"].clone().requires_grad_()

    def reach(model):
        out = model.denoise(actions, sigma, model.decoder.context(encoded))
        grads = [torch.autograd.grad(out[:, i].square().sum(), (encoded, actions), retain_graph=True) for i in range(5)]
        context, other = zip(*grads, strict=True)
        return [(torch.stack(rows).abs().sum((1, 3)) > 0).int().T.tolist() for rows in (context, other)]

    context, others = reach(policy)
    assert context == about["context_token_reaches_action"]
    assert others == about["action_token_reaches_action"]
    for block in policy.decoder.blocks:
        block.causal_context = False
    try:
        assert reach(policy) == [[[1] * 5] * 13, others]
    finally:
        for block in policy.decoder.blocks:
            block.causal_context = True


def test_loss_and_gradients(folder, tiny, policy):
    policy.zero_grad()
    context = policy.context(*seen(tiny))
    loss = policy.errors(tiny["actions"], tiny["noise"], tiny["loss_sigmas"], context).mean()
    close(loss, tiny["loss"][0])
    loss.backward()
    grads = {name: weight.grad for name, weight in policy.named_parameters()}
    wanted = under(tiny, "grad.inner_model.")
    close(grads["action.weight"], wanted["action_emb.weight"])
    close(grads["features.weight"], wanted["tok_emb.weight"])
    close(grads["goal.0.weight"], wanted["lang_emb.0.weight"])
    close(grads["encoder.blocks.0.attention.query.weight"], wanted["encoder.blocks.0.attn.query.weight"])
    close(
        grads["decoder.blocks.1.context.keys_values.weight"].chunk(2)[0],
        wanted["decoder.blocks.1.cross_att.key.weight"],
    )
    modulation = wanted["decoder.blocks.0.adaLN_zero.modulation.1.weight"]
    close(grads["decoder.blocks.0.modulation.1.weight"], modulation)
    about = json.loads((folder / "action_denoiser_tiny.json").read_text())
    without = {name.removeprefix("inner_model.") for name in about["parameters_without_gradient"]}
    table = dict(names._policy_names(under(tiny, "state.inner_model.")))
    assert {table[name][0] for name, grad in grads.items() if grad is None} == without
    frozen = {name for name, weight in policy.named_parameters() if not weight.requires_grad}
    assert {table[name][0] for name in frozen} == without


@pytest.mark.parametrize(
    ("name", "sampling", "proprio"),
    [
        ("ddim.calvin_evaluation", EVALUATION, False),
        ("ddim.calvin_evaluation_with_proprio", EVALUATION, True),
        ("ddim.training_validation", Sampling(), False),
        *((f"sampler.{theirs}", sampling, False) for theirs, sampling in SAMPLERS.items()),
    ],
)
def test_sampling(tiny, policy, name, sampling, proprio):
    close(policy.act(*seen(tiny, proprio), sampling=sampling, noise=tiny["initial_noise"]), tiny[f"{name}.actions"])


def test_calls_of_each_sampler(folder):
    recorded = json.loads((folder / "action_denoiser_tiny.json").read_text())["other_samplers_sigma_min_0.01"]
    assert {name for name, _ in recorded} == SAMPLERS.keys()
    for name, wanted in recorded:
        calls = []
        SAMPLERS[name].run(lambda x, sigma, calls=calls: calls.append(sigma) or x, torch.ones(1, 5, 7))
        assert len(calls) == wanted, name


@pytest.mark.parametrize(("name", "sampling"), [("calvin_evaluation", EVALUATION), ("training_validation", Sampling())])
def test_every_step_of_ddim(tiny, policy, name, sampling):
    data, context, calls = under(tiny, f"ddim.{name}."), policy.context(*seen(tiny)), []
    close(sampling.sigmas(), data["sigmas"], atol=1e-6)

    def denoise(x, sigma):
        x0 = policy.denoise(x, sigma, context)
        calls.append((x, x0))
        return x0

    sampling.run(denoise, tiny["initial_noise"])
    for (x, x0), inputs, denoised in zip(calls, data["inputs"], data["denoised"], strict=True):
        close(x, inputs)
        close(x0, denoised)


def test_denoiser_full(folder):
    about = json.loads((folder / "action_denoiser_full.json").read_text())
    data, inputs = load_file(folder / "action_denoiser_full.safetensors"), recipe.weights(about["inputs"])
    model = policy_of(under(recipe.weights(about["weights"]), "inner_model."), tokens=224, heads=8)
    assert sum(weight.numel() for weight in model.parameters()) == 22_602_631
    assert sum(weight.numel() for weight in model.parameters() if not weight.requires_grad) == 1_081_728
    see, noise = (inputs["tokens"], inputs["goal"][:, 0]), inputs["initial_noise"]
    with torch.no_grad():
        close(model.encode(*see)[:, :12], data["encoder_context_first_12"])
        context = model.context(*see)
        for level, sigma in enumerate(data["sigmas"]):
            x = inputs["actions"] + sigma * inputs["noise"]
            close(model.denoise(x, sigma.expand(2), context), data["denoised"][level])
            factors = edm.scaling(sigma.expand(2), 0.5)
            found = model._network(factors.over(x).c_in * x, factors.c_noise, context)
            close(found, data["network_output"][level])
        close(model.errors(inputs["actions"], inputs["noise"], data["loss_sigmas"], context).mean(), data["loss"][0])
    close(model.act(*see, sampling=EVALUATION, noise=noise), data["ddim.calvin_evaluation.actions"])
    close(model.act(*see, sampling=Sampling(), noise=noise), data["ddim.training_validation.actions"])
