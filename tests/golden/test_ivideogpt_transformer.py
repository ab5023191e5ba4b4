"""Numbers of the published iVideoGPT transformer: layout, logits, losses, gradients, generation, interaction."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.interop.ivideogpt import transformer_config, transformer_from_published, transformer_to_published
from ideomotor.layers.llama import LlamaConfig
from ideomotor.layers.sampling import Sampling, filtered
from ideomotor.layers.symlog import symexp, symlog
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor, medium, small

pytestmark = pytest.mark.golden
GREEDY = Sampling(temperature=0)
TOKENIZERS = {"tiny64-c2-act-cond-reward": "tiny64-c2-act-free", "tiny64-c2-illegal-ids": "tiny64-c2-act-free"}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "ivideogpt"


def read(folder, name):
    facts = json.loads((folder / "fixtures" / f"{name}.json").read_text())["facts"]
    return load_file(folder / "fixtures" / f"{name}.safetensors"), facts


def predictor_of(folder, name, context=None):
    place = folder / "checkpoints"
    state = load_file(place / name / "transformer" / "model.safetensors")
    settings = json.loads((place / name / "transformer" / "config.json").read_text())
    tokenizer = json.loads((place / TOKENIZERS.get(name, name) / "tokenizer" / "config.json").read_text())
    if context is not None:
        tokenizer["context_length"] = context
    config = transformer_config(state, settings, tokenizer)
    predictor = AutoregressivePredictor(AutoregressiveConfig(**config | {"trunk": LlamaConfig(**config["trunk"])}))
    predictor.load_state_dict(transformer_from_published(state))
    exported = transformer_to_published(predictor.state_dict())
    assert exported.keys() == state.keys() and all(exported[key].equal(state[key]) for key in state)
    return predictor.eval()


def codes(config, ids):
    """Takes a recorded sequence apart: codes of context frames, and of future frames, each counted from 0."""
    every = config.context_tokens + 1
    seen = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, : config.prompt]], 1).unflatten(1, (-1, every))[..., 1:]
    future = ids[:, config.prompt :].unflatten(1, (-1, config.dynamics_tokens + 1))[..., 1:]
    return seen, future - config.context_codes


def close(got, wanted, atol=2e-4):
    torch.testing.assert_close(got.detach(), wanted, atol=atol, rtol=0.0)


def near(got, wanted, rtol=1e-4):
    torch.testing.assert_close(got.detach().to(wanted), wanted, atol=0.0, rtol=rtol)


def test_the_layout(folder):
    for layout in json.loads((folder / "fixtures" / "sequence_layout.json").read_text())["layouts"]:
        config = AutoregressiveConfig(context=layout["context"], trunk=LlamaConfig(width=4, layers=1, heads=1, inner=4))
        predictor = AutoregressivePredictor(config)
        future = layout["frames"] - layout["context"]
        ids = predictor.sequence(torch.zeros(1, config.context, 256).long(), torch.zeros(1, future, 16).long())
        assert ids.shape[1] == layout["length"] and config.prompt + 1 == layout["prompt_length"]
        assert (ids[0] == 16384).nonzero()[:, 0].tolist() == layout["context_slot_positions"]
        assert (ids[0] == 16385).nonzero()[:, 0].tolist() == layout["frame_slot_positions"]
        labels = predictor.labels(ids)[0]
        counted = (labels != -100).nonzero()[:, 0]
        assert counted[0] == layout["first_target"] and len(counted) == layout["targets"]
        assert (labels == 16385).sum() == layout["targets_that_are_slots"]
        assert (labels == -100).sum() == layout["masked"]


def check_pass(predictor, ids, labels, logits, loss, actions=None):
    context, dynamics = codes(predictor.config, ids)
    assert predictor.sequence(context, dynamics).equal(ids) and predictor.labels(ids).equal(labels)
    features = predictor.features(ids, actions, last=logits.shape[1])
    close(predictor.head(features), logits)
    losses = predictor.loss(context, dynamics, actions)
    near(losses.terms["cross_entropy"], loss)


@pytest.mark.parametrize(
    "fixture, name, context, windows",
    [("transformer_act_free_c2", "tiny64-c2-act-free", 2, ("c2_t4", "c2_t5", "c2_t6", "c2_t6goal")),
     ("transformer_act_free_c1", "tiny64-c2-illegal-ids", 1, ("c1_t4", "c1_t5", "c1_t6"))],
)  # fmt: skip
@pytest.mark.parametrize("gradients", [False, True])  # linear maps are computed in another way without them
def test_without_actions(folder, fixture, name, context, windows, gradients):
    data, _ = read(folder, fixture)
    predictor = predictor_of(folder, name, context)
    with torch.set_grad_enabled(gradients):
        for window in windows:
            check_pass(
                predictor, *(data[f"{part}_{window}"] for part in ("in.ids", "in.labels", "out.logits", "out.loss"))
            )
        if context == 2:
            features = predictor.features(data["in.ids_c2_t6"])
            close(features[:, -40:], data["out.hidden_last_c2_t6"])
            close(predictor.head(features[:1]), data["out.logits_all_c2_t6"])


@pytest.mark.parametrize(
    "fixture, name",
    [
        ("transformer_act_cond_c1", "tiny64-c1-act-cond"),
        ("transformer_act_cond_reward_c2", "tiny64-c2-act-cond-reward"),
    ],
)
def test_with_actions(folder, fixture, name):
    data, facts = read(folder, fixture)
    predictor = predictor_of(folder, name)
    config = predictor.config
    for frames in (4, 5, 6):
        ids, actions = data[f"in.ids_t{frames}"], data["in.actions"][:, config.context - 1 : frames - 1]
        check_pass(predictor, ids, data[f"in.labels_t{frames}"], data[f"out.logits_t{frames}"],
                   data[f"out.loss_t{frames}"], actions)  # fmt: skip
        assert facts[f"t{frames}"]["action_rows"] == list(range(config.context - 1, frames - 1))
        if config.reward:
            features = predictor.features(ids, actions, last=17 * actions.shape[1]).unflatten(1, (-1, 17))
            close(predictor.rewards(features), data[f"out.reward_pred_t{frames}"][..., 0], 1e-4)
    entered = []
    predictor.trunk.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    rewards = symexp(data["in.reward_target"][..., 0]) if config.reward else None
    losses = predictor.loss(*codes(config, ids), actions, rewards)
    close(entered[0][:, config.prompt :], data["out.inputs_embeds_t6"])
    if config.reward:
        near(losses.terms["reward"], data["out.reward_loss_t6"])
    losses.total.backward()
    grown = transformer_to_published({key: weight.grad for key, weight in predictor.named_parameters()})
    close(grown["action_linear.weight"], data["out.grad_action_weight_t6"], 1e-4)
    for key, norm in facts["t6"]["grad_norm"].items():
        assert float(grown[key].norm()) == pytest.approx(norm, rel=2e-2, abs=1e-5), key


def test_action_reconstruction(folder):
    data, _ = read(folder, "transformer_act_cond_c1")
    state = predictor_of(folder, "tiny64-c1-act-cond").state_dict()
    head = {key: data[f"in.action_recon_linear.{key}"] for key in ("weight", "bias")}
    published = transformer_to_published(state) | {f"action_recon_linear.{key}": value for key, value in head.items()}
    settings = json.loads((folder / "checkpoints/tiny64-c1-act-cond/transformer/config.json").read_text())
    tokenizer = json.loads((folder / "checkpoints/tiny64-c1-act-cond/tokenizer/config.json").read_text())
    config = transformer_config(published, settings, tokenizer)
    config |= {"trunk": LlamaConfig(**config["trunk"]), "action_reconstruction": 0.5}
    predictor = AutoregressivePredictor(AutoregressiveConfig(**config))
    predictor.load_state_dict(transformer_from_published(published))
    losses = predictor.loss(*codes(predictor.config, data["in.ids_t6"]), data["in.actions"][:, :5])
    near(losses.terms["action_reconstruction"], data["out.action_recon_loss"])
    near(losses.total, data["out.action_recon_total_loss"])


def context_of(predictor, prompt):
    """The codes of a recorded prompt, which ends on the first frame slot."""
    config = predictor.config
    return codes(config, torch.cat([prompt, prompt.new_zeros(len(prompt), config.dynamics_tokens)], 1))[0]


def test_greedy_without_actions(folder):
    data, _ = read(folder, "generate_act_free_c2")
    predictor = predictor_of(folder, "tiny64-c2-act-free")
    context = context_of(predictor, data["in.prompt"])
    tokens, rewards = predictor.generate(context, 4, sampling=GREEDY)
    assert rewards is None and predictor.sequence(context, tokens).equal(data["out.generated"])
    logits = predictor.head(predictor.features(data["in.prompt"], last=1))[:, 0]
    close(logits, data["out.logits_next"])
    for k in (100, 10):
        close(Sampling(top_k=k).probabilities(logits), data[f"out.probs_top{k}"], 1e-4)
    assert filtered(data["in.tie_logits"], 3).equal(
        data["out.tie_filtered"].masked_fill(data["out.tie_probs"] == 0, -torch.inf)
    )
    close(Sampling(top_k=3).probabilities(data["in.tie_logits"]), data["out.tie_probs"], 1e-6)


def test_greedy_with_actions(folder):
    data, _ = read(folder, "generate_act_cond_c1")
    predictor = predictor_of(folder, "tiny64-c1-act-cond")
    context = context_of(predictor, data["in.prompt"])
    tokens, _ = predictor.generate(context, 5, data["in.actions"][:, :5], sampling=GREEDY)
    assert predictor.sequence(context, tokens).equal(data["out.generated"])
    wanted = data["out.generated_without_action"]  # its third frame has a slot's id in the place of a code
    tokens, _ = predictor.generate(context, 2, sampling=GREEDY)
    assert predictor.sequence(context, tokens).equal(wanted[:, : 256 + 2 * 17])
    is_code = torch.ones(5, 17, dtype=torch.bool)
    is_code[:, 0] = False  # slots are put there
    assert likeliest(predictor, wanted, 5 * 17)[:, is_code.flatten()].equal(wanted[:, 256:][:, is_code.flatten()])


@torch.no_grad()
def likeliest(predictor, ids, count):
    """What the network holds likeliest, of all ids, at each of the last positions, given the recorded ones before."""
    return predictor.head(predictor.features(ids, last=count + 1)[:, :-1]).argmax(-1)


def test_illegal_ids_are_what_the_published_generation_gives_and_ours_does_not(folder):
    data, facts = read(folder, "generate_illegal_ids_c2")
    predictor = predictor_of(folder, "tiny64-c2-illegal-ids")
    config, wanted = predictor.config, data["out.generated"]
    count = wanted.shape[1] - config.prompt - 1
    assert likeliest(predictor, wanted, count).equal(wanted[:, -count:])
    foretold = codes(config, wanted)[1]
    illegal = (foretold < 0) | (foretold >= config.dynamics_codes)
    assert illegal.sum() == facts["generated_ids_that_are_no_dynamics_code"]
    tokens, _ = predictor.generate(context_of(predictor, data["in.prompt"]), 4, sampling=GREEDY)
    assert tokens.min() >= 0 and tokens.max() < config.dynamics_codes


def test_the_interactive_path(folder):
    data, _ = read(folder, "rollout_interactive_c2")
    predictor = predictor_of(folder, "tiny64-c2-act-cond-reward")
    state = predictor.observe(context_of(predictor, data["out.context_tokens"]), horizon=4)
    for frame in range(4):
        tokens, reward, state = predictor.step(state, data["in.actions"][:, frame], sampling=GREEDY)
        assert (tokens + predictor.config.context_codes).equal(data["out.tokens"][:, frame])
        torch.testing.assert_close(reward, data["out.rewards"][:, 1 + frame, 0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(symlog(reward), data["out.rewards_before_symexp"][:, frame, 0], atol=2e-5, rtol=1e-4)


def test_symlog(folder):
    data, _ = read(folder, "world_model_updates")
    x = torch.tensor([-30, -1, -0.1, 0, 0.5, 2, 20])
    close(symlog(x), data["out.symlog"], 1e-6)
    near(symexp(data["out.symlog"]), data["out.symexp"])


@pytest.mark.parametrize("size, build", [("small (138 M)", small), ("medium (436 M)", medium)])
@pytest.mark.parametrize("heads", [(), ("action",), ("action", "reward", "reconstruction")])
def test_full_size_names_and_shapes(folder, size, build, heads):
    layouts = json.loads((folder / "checkpoint_layouts.json").read_text())
    wanted, extra = layouts["models"][f"transformer {size}"], layouts["models"]["transformer small, action-conditioned"]
    shapes = {f"llm.{key}" if heads else key: tuple(shape) for key, shape in wanted["shapes"].items()}
    kinds = {"action": "always", "reward": "with_reward_head", "reconstruction": "with_action_reconstruction"}
    for head in heads:
        for key, shape in extra[f"extra_{kinds[head]}"].items():
            shapes[key] = tuple(build().trunk.width if side == 768 else side for side in shape)
    settings = layouts["configs"][f"transformer {size}"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = transformer_config(state, settings, layouts["configs"]["tokenizer-64"])
    config = AutoregressiveConfig(**config | {"trunk": LlamaConfig(**config["trunk"])})
    if not heads:
        assert config == build()
    with torch.device("meta"):
        predictor = AutoregressivePredictor(config)
    ours = transformer_from_published(state)
    assert {key: value.shape for key, value in predictor.state_dict().items()} == {k: v.shape for k, v in ours.items()}
    back = transformer_to_published(ours)
    assert {key: tuple(value.shape) for key, value in back.items()} == shapes
    if not heads:
        assert sum(weight.numel() for weight in predictor.parameters()) == wanted["parameters"]
        assert len(back) == wanted["tensors"]
