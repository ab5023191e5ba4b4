"""VPDD as published, at toy size: presets, objectives, sampling and acting."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ideomotor.data.distant_windows import DistantWindow
from ideomotor.layers.gpt import GPTConfig
from ideomotor.layers.text import HashedWords
from ideomotor.policies.actions import QuantileBins
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy, GPTDiffusionPolicyConfig
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy, MultiviewGPTPolicyConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig
from ideomotor.systems.vpdd import VIEW
from ideomotor.systems.vpdd_published import (
    UnifiedActionDenoising,
    UnifiedVideoDenoising,
    metaworld_head,
    rlbench_head,
    sample,
)
from ideomotor.systems.vpdd_published_agent import PublishedAgent
from ideomotor.systems.vpdd_published_config import PRESETS, PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import Learner
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Clip

FORMS = ("published", "paper")
WIDTH = 16
TEXT = HashedWords().width


def small(name: str = "published", steps: int = 8) -> PublishedVPDD:
    trunk = GPTConfig(width=WIDTH, layers=2, heads=2, inner=32, dropout=0.1)
    return replace(
        PRESETS[name](),
        size=16,
        window=DistantWindow(chunk=3),
        steps=steps,
        tokenizer=AxialVQVAEConfig(width=8, blocks=1, codes=12, code_width=8),
        predictor=PerceiverDiffusionPredictorConfig(
            codes=12, code_width=8, grid=(4, 4), width=WIDTH, head_width=8, latents=10, blocks=1, text_width=TEXT,
            places=34, dropout=0.0,
        ),
        bins="quantile",
        policy=GPTDiffusionPolicyConfig(classes=6, action_width=2, chunk=3, text_width=TEXT, places=24, trunk=trunk),
    )  # fmt: skip


def networks(config: PublishedVPDD) -> tuple[AxialVQVAE, PerceiverDiffusionPredictor, GPTDiffusionPolicy, QuantileBins]:
    torch.manual_seed(0)
    tokenizer = AxialVQVAE(config.tokenizer).eval()
    predictor = PerceiverDiffusionPredictor(config.predictor)
    predictor.borrow_codes(tokenizer.codebook.codes)
    assert isinstance(config.policy, GPTDiffusionPolicyConfig)
    return tokenizer, predictor, GPTDiffusionPolicy(config.policy), QuantileBins(6, 2).fit(torch.randn(200, 2))


def clip(batch: int = 4) -> Clip:
    generator = torch.Generator().manual_seed(3)
    return Clip(
        text=("press the button", "open the door") * (batch // 2),
        tokens={VIEW: torch.randint(0, 12, (batch, 2, 16), generator=generator)},
        actions=torch.randn(batch, 3, 2, generator=generator),
    )


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_sizes_are_the_published_ones() -> None:
    config = PRESETS["published"]()
    assert parameters(PerceiverDiffusionPredictor(config.predictor)) == 9_210_368
    # What the release never uses: a word embedding; with it a state encoder of 39 values, and two attentions.
    linear, word = 256 * 256 + 256, 256
    state = 2 * 39 + 39 * 256 + 256 + linear
    assert isinstance(config.policy, GPTDiffusionPolicyConfig)
    assert parameters(GPTDiffusionPolicy(config.policy)) == 6_897_166 - word - state - 8 * linear
    assert parameters(MultiviewGPTPolicy(MultiviewGPTPolicyConfig())) == 8_127_352 - word


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    for config in (PRESETS[name](), replace(PRESETS[name](), policy=MultiviewGPTPolicyConfig())):
        assert config_from_json(PublishedVPDD, config_to_json(config)) == config


def test_presets_differ_in_what_the_docstring_says() -> None:
    published, paper = PRESETS["published"](), PRESETS["paper"]()
    masked = [config.process().schedule.log_gamma_bar[50].exp() for config in (published, paper)]
    kept = [config.process().schedule.log_alpha_bar[50].exp() for config in (published, paper)]
    assert 1 - masked[0] - kept[0] == pytest.approx(1e-6, rel=1e-3)
    assert 1 - masked[1] - kept[1] == pytest.approx(0.1, rel=0.05)
    assert len(published.process().group) == 592 and len(paper.process(actions=False).group) == 576


@pytest.mark.parametrize("name", FORMS)
def test_the_video_objective_overfits_one_batch(name: str) -> None:
    config = small(name)
    tokenizer, predictor, _, _ = networks(config)
    objective = UnifiedVideoDenoising(config, predictor, tokenizer, HashedWords())
    assert {key.split(".")[0] for key in objective.state_dict()} == {"times", "predictor"}
    first, last = overfit(objective, 300, "video")  # idle actions add a constant to the loss itself
    assert last < 0.4 * first
    assert int(objective.times.count.sum()) == 4 * 300


def test_the_action_objective_overfits_one_batch() -> None:
    config = small()
    tokenizer, predictor, policy, bins = networks(config)
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    objective = UnifiedActionDenoising(config, policy, predictor, tokenizer, HashedWords(), bins)
    assert {key.split(".")[0] for key in objective.state_dict()} == {"times", "policy", "codec"}
    first, last = overfit(objective, 150, "action")
    assert last < 0.3 * first
    assert all(value.equal(before[key]) for key, value in predictor.state_dict().items())


def overfit(objective: nn.Module, steps: int, term: str) -> tuple[float, float]:
    """The mean loss over many draws of noise, before and after training on one batch."""
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)

    @torch.no_grad()
    def measured() -> float:
        objective.eval()
        torch.manual_seed(1)
        value = sum(float(objective(clip()).terms[term]) for _ in range(20))
        objective.train()
        return value

    first = measured()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(clip()).total.backward()
        optimizer.step()
    return first, measured()


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_resumed_training_ends_at_the_same_bits(kind: str) -> None:
    def learner() -> Learner:
        config = small()
        tokenizer, predictor, policy, bins = networks(config)
        objective = (
            UnifiedVideoDenoising(config, predictor, tokenizer, HashedWords())
            if kind == "pretrain"
            else UnifiedActionDenoising(config, policy, predictor, tokenizer, HashedWords(), bins)
        )
        return Learner(objective, OptimConfig(lr=1e-3, accumulate=2, ema=0.9), steps=4)

    straight, paused, resumed = learner(), learner(), learner()
    for _ in range(4):
        metrics = straight.update(clip())
    assert {key.split("/")[-1] for key in metrics} >= {"loss", "video", "action"}
    for _ in range(2):
        paused.update(clip())
    resumed.load_state(paused.state())
    for _ in range(2):
        resumed.update(clip())
    wanted, found = straight.state().tensors, resumed.state().tensors
    assert wanted.keys() == found.keys() and all(value.equal(found[key]) for key, value in wanted.items())
    assert int(found["weights.times.count"].sum()) == 16


def test_clips_that_do_not_fit_are_named() -> None:
    config = small()
    tokenizer, predictor, policy, bins = networks(config)
    objective = UnifiedActionDenoising(config, policy, predictor, tokenizer, HashedWords(), bins)
    with pytest.raises(ValueError, match="a clip without actions came to fine-tuning"):
        objective(replace(clip(), actions=None))
    with pytest.raises(ValueError, match="chunks of 2 actions came; this policy foretells 3: set the window's chunk"):
        objective(replace(clip(), actions=torch.zeros(4, 2, 2)))
    with pytest.raises(ValueError, match="actions of width 3 came; these bins are for width 2"):
        objective(replace(clip(), actions=torch.zeros(4, 3, 3)))
    with pytest.raises(ValueError, match="has 3 latent frames; one is observed and one foretold: give windows of con"):
        objective(replace(clip(), tokens={VIEW: torch.zeros(4, 3, 16)}))
    with pytest.raises(ValueError, match="latent frames of 16 tokens and got 9: use the tokenizer"):
        predictor.observe(torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, TEXT))
    with pytest.raises(ValueError, match="has 12 codes of width 4, the predictor was built for 12 of width 8"):
        predictor.borrow_codes(torch.zeros(12, 4))


@pytest.mark.parametrize("name", FORMS)
def test_an_agent_acts_and_a_generator_repeats_it(name: str) -> None:
    config = small(name)
    tokenizer, predictor, policy, bins = networks(config)
    agent = PublishedAgent(config, policy, predictor, tokenizer, HashedWords(), bins)
    assert policy.training == (name == "published") and not predictor.training
    frames = torch.randint(0, 256, (2, config.window.context, 3, 16, 16), dtype=torch.uint8)
    context = Clip(frames={VIEW: frames}, text=("", "push"))
    actions = agent.act(context)
    assert actions.shape == (2, 3, 2)
    assert torch.isin(actions, bins.centres).all()

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        text = HashedWords()(context.text)
        head = metaworld_head(policy.eval(), text)
        generator = torch.Generator().manual_seed(seed)
        return sample(config, predictor, torch.zeros(2, 16, dtype=torch.long), text, head, generator)

    assert all(one.equal(other) for one, other in zip(drawn(1), drawn(1), strict=True))
    assert not drawn(1)[0].equal(drawn(2)[0])
    video, ids = drawn(1)
    assert video.min() >= 0 and video.max() < 12 and ids.min() >= 0 and ids.max() < 6


def test_video_alone_and_views_in_place_of_features() -> None:
    config = small()
    _, predictor, _, _ = networks(config)
    history, text = torch.zeros(1, 16, dtype=torch.long), torch.randn(1, TEXT)
    video, ids = sample(config, predictor, history, text)
    assert video.shape == (1, 16) and ids.shape == (1, 0)
    trunk = GPTConfig(width=WIDTH, layers=1, inner=32)
    views = MultiviewGPTPolicyConfig(
        classes=6, chunk=3, view_width=32, channels=8, patch=4, text_width=TEXT, places=64, trunk=trunk
    )
    policy = MultiviewGPTPolicy(views).eval()
    images = torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8)
    seen = policy.observe(torch.randn(1, 16, 32), images, torch.ones(1, 4), text)
    _, ids = sample(replace(config, policy=views), predictor, history, text, rlbench_head(policy, seen))
    assert ids.shape == (1, 21) and ids.max() < 6


@pytest.mark.parametrize("name", FORMS)
def test_barred_ids_are_never_drawn(name: str) -> None:
    """Fails if replacements of the noise, or a network that wants nothing else, can leave an id without a value."""
    config = small(name)
    _, predictor, policy, _ = networks(config)
    barred = torch.zeros(2, 6, dtype=torch.bool)
    barred[1, 2:] = True
    torch.nn.init.constant_(policy.heads[1][-1].bias, 0.0)
    policy.heads[1][-1].bias.data[5] = 50.0
    text = HashedWords()(["push"] * 32)
    history = torch.zeros(32, 16, dtype=torch.long)
    _, free = sample(config, predictor, history, text, metaworld_head(policy, text))
    _, ids = sample(config, predictor, history, text, metaworld_head(policy, text), barred=barred)
    assert (free.unflatten(1, (3, 2))[..., 1] == 5).all()
    assert ids.unflatten(1, (3, 2))[..., 1].max() < 2 and ids.unflatten(1, (3, 2))[..., 0].max() > 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 64}, r"frames of 64 px give a grid of \(16, 16\) with 12 codes"),
        ({"window": DistantWindow(frames=3, chunk=3)}, "window.frames is 3 and clip_frames 8; a latent frame stands"),
        ({"clip_frames": 6}, "window.frames is 4 and clip_frames 6"),
        ({"window": DistantWindow()}, "chunk is 4 in the window and 3 in the policy"),
        ({"execute": 4}, r"execute 4 must lie in 1\.\.chunk"),
        ({"policy": GPTDiffusionPolicyConfig(chunk=3)}, "the policy is 256 wide and reads features of width 16"),
    ],
)
def test_settings_that_do_not_fit_are_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(small(), **change)
