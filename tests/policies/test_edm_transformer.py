"""The continuous action model: overfits a batch, ignores what it must, refuses what does not fit."""

from dataclasses import replace

import pytest
import torch

from ideomotor.diffusion.sigma_samplers import Deterministic, Sampling, Stochastic
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.policies.edm_transformer import ActionGroup, EDMTransformer, EDMTransformerConfig
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.types import Prefix

TRUNK = EncoderDecoderConfig(
    width=32, encoder_layers=1, decoder_layers=2, heads=2,
    attention_dropout=0.0, residual_dropout=0.0, feed_forward_dropout=0.0,
)  # fmt: skip
CONFIG = EDMTransformerConfig(
    action_width=3, chunk=4, feature_width=6, goal_width=5, proprio_width=2, trunk=TRUNK, sampling=Sampling(steps=6)
)


def policy(**changes) -> EDMTransformer:
    torch.manual_seed(0)
    model = EDMTransformer(replace(CONFIG, **changes))
    for weight in model.parameters():  # the published start is too small for a test to see anything
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def batch(n: int = 8) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return {
        "features": torch.randn(n, 7, 6, generator=g),
        "goal": torch.randn(n, 5, generator=g),
        "proprio": torch.randn(n, 2, generator=g),
    }


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_overfits_one_batch_and_acts_so(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model, seen = EDMTransformer(CONFIG), batch(4)
    actions = torch.rand(4, 4, 3, generator=generator) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    many = {name: value.repeat(8, 1, *[1] * (value.ndim - 2)) for name, value in seen.items()}
    for _ in range(200):
        losses = model.loss(actions.repeat(8, 1, 1), **many, generator=generator)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    model.eval()
    assert (model.act(**seen, generator=generator) - actions).square().mean() < 0.03
    other = {name: value.roll(1, 0) for name, value in seen.items()}
    assert (model.act(**other, generator=generator) - actions).square().mean() > 0.1  # it looks


def test_sizes() -> None:
    with torch.device("meta"):
        published = EDMTransformer(EDMTransformerConfig(proprio_width=8, published_places=235, action_positions=False))
        ours = EDMTransformer(EDMTransformerConfig())
    count = sum(weight.numel() for weight in published.parameters())
    unused = {name for name, weight in published.named_parameters() if not weight.requires_grad}
    assert count == 22_602_631
    assert {name.split(".")[0] for name in unused} == {"unused_positions", "unused_goal", "proprio"}
    assert count - sum(weight.numel() for weight in ours.parameters()) == 1_081_728 - 10 * 384  # our positions
    assert all(weight.requires_grad for weight in ours.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_which_tokens_reach_which_action(causal: bool) -> None:
    model = policy(trunk=replace(TRUNK, causal_context=causal)).eval()
    encoded = torch.randn(1, 9, 32, requires_grad=True)
    out = model.denoise(torch.randn(1, 4, 3), torch.ones(1), model.decoder.context(encoded))
    reach = [torch.autograd.grad(out[0, i].sum(), encoded, retain_graph=True)[0][0].abs().sum(1) > 0 for i in range(4)]
    wanted = torch.ones(4, 9).tril().bool() if causal else torch.ones(4, 9).bool()
    assert torch.equal(torch.stack(reach), wanted)


def test_an_action_sees_no_later_ones() -> None:
    model, x = policy().eval(), torch.randn(1, 4, 3, requires_grad=True)
    seen = batch(1)
    out = model.denoise(x, torch.ones(1), model.context(**seen))
    reach = [torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)[0][0].abs().sum(1) > 0 for i in range(4)]
    assert torch.equal(torch.stack(reach), torch.ones(4, 4).tril().bool())


def test_actions_past_the_end_are_not_learned() -> None:
    model, seen, actions = policy(), batch(), torch.randn(8, 4, 3)
    mask = torch.tensor([True, True, True, False]).expand(8, 4)
    other = actions.clone()
    other[:, 3] = 5.0

    def loss(given: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        return model.loss(given, **seen, mask=real, generator=seeded()).total

    torch.testing.assert_close(loss(actions, mask), loss(other, mask))
    assert loss(actions, None) != loss(other, None)
    assert loss(actions, None) == loss(actions, torch.ones(8, 4, dtype=torch.bool))
    assert loss(actions, torch.zeros(8, 4, dtype=torch.bool)) == 0


def test_groups_weigh_their_dimensions() -> None:
    groups = (ActionGroup(name="arm", first=0, width=2, weight=2.0), ActionGroup(name="hand", first=2, width=1))
    seen, actions = batch(), torch.randn(8, 4, 3)
    losses = policy(groups=groups).loss(actions, **seen, generator=seeded())
    arm, hand = losses.terms["denoising_arm"], losses.terms["denoising_hand"]
    torch.testing.assert_close(losses.total, (2 * 2 * arm + hand) / 3)
    plain = policy().loss(actions, **seen, generator=seeded())
    torch.testing.assert_close(plain.total, (2 * arm + hand) / 3)
    assert set(plain.terms) == {"denoising"}


def test_proprioception_is_trained() -> None:
    model = policy()
    model.loss(torch.randn(8, 4, 3), **batch()).total.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.proprio.parameters())


def test_states_of_any_range_are_brought_to_one() -> None:
    plain, standard = policy(), policy(proprio_standard=True)
    recorded = torch.randn(500, 2, generator=seeded()) * torch.tensor([0.01, 0.0]) + torch.tensor([0.5, 3.0])
    standard.measure_proprio(recorded)
    standard.load_state_dict(standard.state_dict() | plain.state_dict())
    seen = batch(64)
    inside = seen | {
        "proprio": (recorded[:64] - recorded.mean(0)) / torch.tensor([recorded[:, 0].std(correction=0), 1])
    }
    torch.testing.assert_close(standard.encode(**seen | {"proprio": recorded[:64]}), plain.encode(**inside))
    older = config_to_json(CONFIG)  # as files were written before there was this choice
    assert "proprio_standard" not in older and config_from_json(EDMTransformerConfig, older) == CONFIG
    again = EDMTransformer(config_from_json(EDMTransformerConfig, config_to_json(standard.config)))
    again.load_state_dict(standard.state_dict())  # saved with the weights
    assert torch.equal(again.proprio_mean, standard.proprio_mean) and again.proprio_deviation[1] == 1
    with pytest.raises(ValueError, match="its width is 0"):
        policy(proprio_width=0, proprio_standard=True)


def test_proprioception_may_be_withheld_where_that_was_trained() -> None:
    model, seen = policy(proprio_dropout=0.5), batch(64)
    proprio = seen["proprio"].requires_grad_()
    for training, low, high in ((True, 16, 48), (False, 64, 64)):
        model.train(training)
        (slope,) = torch.autograd.grad(model._proprio(proprio, 64)[0].sum(), proprio)
        assert low <= int((slope.abs().sum(1) > 0).sum()) <= high
    without = model.act(**seen | {"proprio": None}, generator=seeded())
    assert without.shape == (64, 4, 3) and not torch.equal(without, model.act(**seen, generator=seeded()))


def test_positions_tell_actions_apart() -> None:
    """Later ones also see those before."""
    model = policy().eval()
    with torch.no_grad():
        model.positions[1] += 1
    x, sigma, context = torch.zeros(1, 4, 3), torch.ones(1), model.context(**batch(1))
    before = model.denoise(x, sigma, context)
    with torch.no_grad():
        model.positions[1] -= 1
    moved = (model.denoise(x, sigma, context) - before).abs().sum(2)[0] > 0
    assert moved.tolist() == [False, True, True, True]


def test_a_generator_replays_and_sampling_is_chosen() -> None:
    model, seen = policy().eval(), batch(2)
    assert torch.equal(model.act(**seen, generator=seeded()), model.act(**seen, generator=seeded()))
    noise = torch.randn(2, 4, 3)
    answers = [
        model.act(**seen, noise=noise, sampling=sampling, generator=seeded())
        for sampling in (
            Sampling(steps=6),
            Sampling(steps=6, sigma_min=1.0),
            Sampling(steps=6, sampler="heun"),
            Sampling(steps=6, sampler="euler_ancestral"),
            Sampling(steps=6, levels="karras"),
        )
    ]
    assert torch.equal(answers[0], model.act(**seen, noise=noise))  # the configuration's own
    assert not any(torch.equal(answers[0], other) for other in answers[1:])


def test_a_single_step_is_the_denoised_mean() -> None:
    model, seen, noise = policy().eval(), batch(2), torch.randn(2, 4, 3)
    wanted = model.denoise(80 * noise, torch.full((2,), 80.0), model.context(**seen))
    torch.testing.assert_close(model.act(**seen, noise=noise, sampling=Sampling(steps=1)), wanted)


@pytest.mark.parametrize("density", ["log_logistic", "log_uniform", "uniform", "v_diffusion"])
def test_noise_levels_stay_in_their_range(density: str) -> None:
    sigma = policy(density=density, sigma_min=0.1, sigma_max=3.0)._sigma(torch.linspace(0, 1, 50))
    assert sigma.min() == pytest.approx(0.1, rel=1e-4) and sigma.max() == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_fp32_under_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        losses = policy().loss(torch.randn(8, 4, 3), **batch())
    assert losses.total.dtype == torch.float32 and losses.total.isfinite()


def test_the_published_one_leaves_proprioception_out_where_none_is_given() -> None:
    model, seen = policy(published_places=12, action_positions=False).eval(), batch(2)
    assert model.encode(**seen).shape == (2, 9, 32) and model.encode(**seen | {"proprio": None}).shape == (2, 8, 32)


def test_the_config_survives_json() -> None:
    config = replace(CONFIG, groups=(ActionGroup(name="all", first=0, width=3, weight=0.5),))
    assert config_from_json(EDMTransformerConfig, config_to_json(config)) == config


def test_what_does_not_fit_is_refused() -> None:
    model, seen = policy(), batch()
    with pytest.raises(ValueError, match="8 actions of width 2 came; this policy foretells 4 of width 3"):
        model.loss(torch.zeros(8, 8, 2), **seen)
    with pytest.raises(ValueError, match="features of width 4 and a goal of width 5 came"):
        model.act(**seen | {"features": torch.zeros(8, 7, 4)})
    with pytest.raises(ValueError, match="width 2 and got None"):
        model.act(**seen | {"proprio": None})
    with pytest.raises(ValueError, match="width 2 came; this policy was trained without"):
        policy(proprio_width=0).act(**seen)
    for message, wrong in (
        ("chunk 0", {"chunk": 0}),
        ("proprio_dropout is 1", {"proprio_dropout": 1.0}),
        ("sigma_min 9", {"sigma_min": 9.0, "sigma_max": 2.0}),
        (r"dimensions \[0, 1\]", {"groups": (ActionGroup(name="a", first=0, width=2),)}),
        ("the published network", {"published_places": 3}),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **wrong)
    for message, wrong in (("width 33", {"width": 33}), ("a dropout is 1", {"residual_dropout": 1.0})):
        with pytest.raises(ValueError, match=message):
            replace(TRUNK, **wrong)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "lms", "dpmpp_2m", "euler_ancestral"])
def test_a_chunk_begins_with_the_actions_under_way_and_goes_on_from_them(sampler: Deterministic | Stochastic) -> None:
    """Rows know one action, three and none. The network is shown them at every noise level, with that much noise."""
    model, seen = policy(sampling=Sampling(sampler=sampler, steps=5)).eval(), batch(3)
    under_way = torch.rand(3, 4, 3, generator=seeded()) * 2 - 1
    prefix, noise = Prefix(under_way, torch.tensor([1, 3, 0])), torch.randn(3, 4, 3, generator=seeded())

    def act(prefix: Prefix | None) -> torch.Tensor:
        return model.act(**seen, noise=noise, generator=seeded(), prefix=prefix)

    chunk = act(prefix)
    assert torch.equal(chunk[0, :1], under_way[0, :1]) and torch.equal(chunk[1, :3], under_way[1, :3])
    torch.testing.assert_close(chunk[2], act(None)[2])
    other = act(Prefix(-under_way, prefix.known))
    assert (other[0, 1:] - chunk[0, 1:]).abs().max() > 1e-3 and (other[1, 3:] - chunk[1, 3:]).abs().max() > 1e-3
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole = model.denoise
    model.denoise = lambda x, sigma, context: (shown.append((x, sigma)), whole(x, sigma, context))[1]  # type: ignore[method-assign]
    act(prefix)
    for x, sigma in shown:
        torch.testing.assert_close(x[1, :3], under_way[1, :3] + sigma[1] * noise[1, :3])
