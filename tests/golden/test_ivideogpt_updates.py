"""One recorded update of the published iVideoGPT transformer, from pictures to changed weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.interop.ivideogpt import transformer_config, transformer_from_published, transformer_to_published
from ideomotor.layers.llama import LlamaConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.training.optim import OptimConfig, build_optimizer

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "ivideogpt"


def tokens_of(folder, frames):
    """Context and dynamics tokens by the recorded tokenizer."""
    interop = pytest.importorskip("ideomotor.interop.ivideogpt_tokenizer", reason="the tokenizer is not here yet")
    from ideomotor.tokenizers.context_config import ContextVQGANConfig
    from ideomotor.tokenizers.context_vqgan import ContextVQGAN

    place = folder / "checkpoints" / "tiny64-c2-act-free" / "tokenizer"
    state = load_file(place / "diffusion_pytorch_model.safetensors")
    config = interop.tokenizer_settings(json.loads((place / "config.json").read_text()), state)
    tokenizer = ContextVQGAN(ContextVQGANConfig(**config))
    tokenizer.load_state_dict(interop.tokenizer_from_published(state))
    return tokenizer.eval().tokenize(frames)


@pytest.fixture
def predictor(folder):
    place = folder / "checkpoints" / "tiny64-c2-act-cond-reward" / "transformer"
    tokenizer = json.loads((folder / "checkpoints/tiny64-c2-act-free/tokenizer/config.json").read_text())
    state = load_file(place / "model.safetensors")
    fields = transformer_config(state, json.loads((place / "config.json").read_text()), tokenizer)
    made = AutoregressivePredictor(AutoregressiveConfig(**fields | {"trunk": LlamaConfig(**fields["trunk"])}))
    made.load_state_dict(transformer_from_published(state))
    return made


def test_which_weights_decay(folder, predictor):
    facts = json.loads((folder / "fixtures" / "world_model_updates.json").read_text())["facts"]
    decaying, spared = build_optimizer(predictor, OptimConfig(weight_decay=0.01)).param_groups
    groups = {id(weight): group["weight_decay"] for group in (decaying, spared) for weight in group["params"]}
    decay = transformer_to_published(
        {name: torch.full_like(weight, groups[id(weight)]) for name, weight in predictor.named_parameters()}
    )
    assert {name for name, value in decay.items() if (value > 0).all()} == set(facts["weight_decay"])
    assert {name for name, value in decay.items() if (value == 0).all()} == set(facts["no_weight_decay"])


def test_an_update_of_the_transformer(folder, predictor):
    data = load_file(folder / "fixtures" / "world_model_updates.safetensors")
    facts = json.loads((folder / "fixtures" / "world_model_updates.json").read_text())["facts"]
    tokens = tokens_of(folder, data["in.obs_u8"])
    actions, rewards = data["in.action"][:, 1:5], data["in.reward"][:, 2:, 0]
    losses = predictor.loss(tokens.context, tokens.dynamics, actions, rewards)
    for got, name in ((losses.terms["cross_entropy"], "ce_loss"), (losses.terms["reward"], "reward_loss"),
                      (losses.total, "model_loss")):  # fmt: skip
        assert float(got.detach()) == pytest.approx(float(data[f"out.metric_{name}"]), rel=1e-4), name
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
    assert float(norm) == pytest.approx(float(data["out.metric_model_train/grad_norm"]), rel=2e-2)
    grown = transformer_to_published({name: weight.grad for name, weight in predictor.named_parameters()})
    for name, wanted in facts["model_grad_norm_after_clip"].items():
        assert float(grown[name].norm()) == pytest.approx(wanted, rel=2e-2, abs=1e-5), name
    before = {name: value.clone() for name, value in transformer_to_published(predictor.state_dict()).items()}
    arguments = facts["arguments"]
    config = OptimConfig(lr=arguments["model_lr"], weight_decay=arguments["model_wd"], betas=(0.9, 0.999))
    build_optimizer(predictor, config).step()
    after = transformer_to_published(predictor.state_dict())
    for name, wanted in facts["model_mean_abs_change"].items():
        assert float((after[name] - before[name]).abs().mean()) == pytest.approx(wanted, rel=1e-2), name
