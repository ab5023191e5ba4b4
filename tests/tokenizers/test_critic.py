"""Critic and painter: spectral norm, who owns what, when the critic is heard."""

from dataclasses import replace

import pytest
import torch
from test_context_vqgan import TINY, video

from ideomotor.layers.perceptual import PerceptualDistance
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.tokenizers.critic import Judging, Painting, PatchCritic, PatchCriticConfig, SpectralConv2d
from ideomotor.tokenizers.losses import ReconstructionConfig, adaptive_weight
from ideomotor.training import OptimConfig, Run
from ideomotor.types import Clip

CLIP = Clip(frames={"main": video(2, 4)}, text=("", ""))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return ContextVQGAN(replace(TINY, dropout=0.0)), PatchCritic(PatchCriticConfig(width=16, depth=2))


def test_the_spectral_norm_becomes_one():
    torch.manual_seed(0)
    conv = SpectralConv2d(3, 8)
    for _ in range(100):
        conv(torch.zeros(1, 3, 4, 4))
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    x = torch.randn(1, 3, 8, 8)
    wanted = torch.nn.functional.conv2d(x, conv.weight / largest, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv.eval()(x), wanted)
    before = conv.left.clone()
    conv(x)
    assert conv.left.equal(before)  # no step in eval mode


def test_the_critic_is_heard_once_it_has_learned(parts):
    tokenizer, critic = parts
    painting, judging = Painting(tokenizer, ReconstructionConfig(), critic=critic), Judging(critic, tokenizer)
    assert "critic" not in painting(CLIP).terms
    judging(CLIP).total.backward()
    assert all(weight.grad is None for weight in tokenizer.parameters())
    critic.zero_grad()
    losses = painting(CLIP)
    assert losses.terms["adaptive_weight"] > 0
    losses.total.backward()
    assert all(weight.grad is None for weight in critic.parameters())
    assert all(weight.grad is not None for weight in tokenizer.parameters() if weight.requires_grad)
    with torch.no_grad():  # validation has no gradients to balance
        assert "critic" not in painting(CLIP).terms


def test_weights_have_one_owner(parts):
    tokenizer, critic = parts
    painting = Painting(tokenizer, ReconstructionConfig(), PerceptualDistance((2, 2, 2, 2, 2)), critic)
    assert {name.split(".")[0] for name in painting.state_dict()} == {"tokenizer"}
    assert {name.split(".")[0] for name in Judging(critic, tokenizer).state_dict()} == {"critic"}


def test_codebooks_can_be_held(parts):
    tokenizer, _ = parts
    Painting(tokenizer, ReconstructionConfig(train_codebooks=False))(CLIP).total.backward()
    assert tokenizer.context_codebook.codes.weight.grad is None and tokenizer.to_context.weight.grad is not None
    moving = ContextVQGAN(replace(TINY, codebook="ema"))
    with pytest.raises(ValueError, match="cannot be held"):
        Painting(moving, ReconstructionConfig(train_codebooks=False))


def test_settings_change_the_price(parts):
    tokenizer, _ = parts
    tokenizer.eval()
    plain = Painting(tokenizer, ReconstructionConfig())(CLIP)
    squared = Painting(tokenizer, ReconstructionConfig(pixels="l2"))(CLIP)
    balanced = Painting(tokenizer, ReconstructionConfig(balanced=True))(CLIP)
    assert squared.terms["future"] < plain.terms["future"]
    pixels = 0.5 * (plain.terms["future"] + plain.terms["context"])  # two frames of each
    commitments = plain.terms["commitment_context"] + plain.terms["commitment_dynamics"]
    torch.testing.assert_close(balanced.total.detach(), pixels + commitments)
    with pytest.raises(ValueError, match="wanted 'l1' or 'l2'"):
        ReconstructionConfig(pixels="l3")


def test_the_adaptive_weight_is_bounded():
    weight = torch.ones(2, requires_grad=True)
    assert adaptive_weight((weight * 3).sum(), (weight * 1e-9).sum(), weight) == 1e4
    torch.testing.assert_close(adaptive_weight((weight * 3).sum(), (weight * 2).sum(), weight), torch.tensor(1.5))


def test_a_stage_of_both_resumes_to_the_bit(tmp_path):
    """The critic starts at step 2; a run stopped on either side of it equals one that was never stopped."""

    def stage(folder, **settings):
        with Run(folder, seed=1, log_steps=1, **settings) as run:
            tokenizer, critic = ContextVQGAN(TINY), PatchCritic(PatchCriticConfig(width=16, depth=2))
            painter = run.learner(Painting(tokenizer, ReconstructionConfig(), critic=critic), OptimConfig(warmup=0), 4)
            judge = run.learner(Judging(critic, tokenizer), OptimConfig(warmup=0), 4, start=2)
            run.fit(lambda start: iter([CLIP] * 4), painter, judge, steps=4)
            assert (painter.step, judge.step) == (4, 2)
            return {**tokenizer.state_dict(), **critic.state_dict()}

    straight = stage(tmp_path / "a")
    for pause in (1, 3):
        with pytest.raises(SystemExit):
            stage(tmp_path / "b", pause_at=pause)
    again = stage(tmp_path / "b")
    assert all(again[name].equal(value) for name, value in straight.items())
