"""The autoregressive predictor: stepping equals whole passes, it learns what actions do, and wrong use is refused."""

from dataclasses import replace

import pytest
import torch

from ideomotor.layers.int8 import to_int8
from ideomotor.layers.llama import LlamaConfig
from ideomotor.layers.sampling import Sampling
from ideomotor.layers.symlog import symexp, symlog
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor

CONFIG = AutoregressiveConfig(
    context_codes=7, dynamics_codes=5, context_tokens=6, dynamics_tokens=3, context=2, action_width=2, reward=True,
    action_reconstruction=0.5, trunk=LlamaConfig(width=32, layers=2, heads=2, inner=48, positions=40),
)  # fmt: skip
GREEDY = Sampling(temperature=0)


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    model = AutoregressivePredictor(CONFIG)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def window(batch, frames, generator):
    context = torch.randint(0, 7, (batch, 2, 6), generator=generator)
    dynamics = torch.randint(0, 5, (batch, frames, 3), generator=generator)
    return context, dynamics, torch.randn(batch, frames, 2, generator=generator)


def test_sequence(generator):
    predictor = AutoregressivePredictor(CONFIG)
    context, dynamics, _ = window(1, 2, generator)
    ids = predictor.sequence(context, dynamics)[0].tolist()
    first, second = context[0].tolist()
    coming, after = (dynamics[0] + 7).tolist()
    assert ids == [*first, 12, *second, 13, *coming, 13, *after]
    assert predictor.labels(torch.tensor([ids]))[0].tolist() == [-100] * 14 + [*coming, 13, *after]


@torch.no_grad()
def test_stepping_is_one_whole_pass(predictor, generator):
    """Greedy tokens are the likeliest of one pass over the finished sequence, rewards are read from it too."""
    context, _, actions = window(3, 4, generator)
    tokens, rewards = predictor.generate(context, 4, actions, sampling=GREEDY)
    ids = predictor.sequence(context, tokens)
    features = predictor.features(ids, actions)
    likeliest = predictor.head(features)[..., 7:12].argmax(-1)[:, CONFIG.prompt :].unflatten(1, (4, 4))[:, :, :-1]
    assert likeliest.equal(tokens)
    torch.testing.assert_close(
        rewards, symexp(predictor.rewards(features[:, CONFIG.prompt :].unflatten(1, (4, 4)))), rtol=1e-4, atol=1e-5
    )
    other, _ = predictor.generate(context, 4, -actions, sampling=GREEDY)
    assert not other.equal(tokens)


def test_no_dropout_in_imagination(generator):
    torch.manual_seed(0)
    predictor = AutoregressivePredictor(replace(CONFIG, trunk=replace(CONFIG.trunk, dropout=0.5))).train()
    context, dynamics, actions = window(2, 4, generator)
    rewards = [predictor.generate(context, 4, actions, sampling=GREEDY)[1] for _ in range(2)]
    assert rewards[0].equal(rewards[1])
    losses = [predictor.loss(context, dynamics, actions).total for _ in range(2)]
    assert not losses[0].equal(losses[1])


@torch.no_grad()
def test_forks_go_their_own_ways(predictor, generator):
    context, _, actions = window(2, 3, generator)
    state = predictor.step(predictor.observe(context), actions[:, 0], sampling=GREEDY).state
    forked = predictor.fork(state, 3)
    many = torch.randn(6, 2, generator=generator)
    together = predictor.step(forked, many, sampling=GREEDY)
    for row in range(6):
        alone = predictor.step(predictor.select(state, [row // 3]), many[row : row + 1], sampling=GREEDY)
        assert alone.tokens[0].equal(together.tokens[row])
    predictor.step(state, actions[:, 1])  # forks left it as it was
    with pytest.raises(ValueError, match="was stepped on to 21: fork it before"):
        predictor.step(state, actions[:, 1])


@torch.no_grad()
def test_draws_are_legal_and_seeded(predictor, generator):
    context, _, actions = window(4, 6, generator)
    predictor.head.weight[:7] += 10  # codes of context frames would win
    drawn = [predictor.generate(context, 6, actions, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0][0].equal(drawn[1][0]) and not drawn[0][0].equal(drawn[2][0])
    assert all(tokens.min() >= 0 and tokens.max() < 5 for tokens, _ in drawn)
    assert len(drawn[0][0].unique()) == 5


def test_it_learns_what_actions_do(generator):
    """The next tokens are the last context frame's, moved on by the action; the reward is the action's sign."""
    torch.manual_seed(0)
    predictor = AutoregressivePredictor(replace(CONFIG, action_width=1))
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3)

    def batch(n):
        context = torch.randint(0, 5, (n, 2, 6), generator=generator)
        actions = torch.randint(0, 2, (n, 2, 1), generator=generator)
        dynamics = (context[:, 1, :3][:, None] + actions.cumsum(1)) % 5
        return context, dynamics, 2.0 * actions - 1, (2.0 * actions - 1)[..., 0]

    for _ in range(200):
        losses = predictor.loss(*batch(64))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert set(losses.terms) == {"cross_entropy", "accuracy", "reward", "action_reconstruction"}
    context, dynamics, actions, rewards = batch(32)
    tokens, foretold = predictor.generate(context, 2, actions, sampling=GREEDY)
    assert (tokens == dynamics).float().mean() > 0.95
    torch.testing.assert_close(foretold, rewards, atol=0.3, rtol=0)


def test_the_terms_of_the_loss(predictor, generator):
    context, dynamics, actions = window(2, 3, generator)
    rewards = torch.tensor([[1.0, -4, 0], [20, 0.5, -0.1]])
    losses = predictor.loss(context, dynamics, actions, rewards)
    ids = predictor.sequence(context, dynamics)
    features = predictor.features(ids, actions)
    logits, labels = predictor.head(features), predictor.labels(ids)
    entropy = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
    frames = features[:, CONFIG.prompt :].unflatten(1, (3, 4))
    reward = (predictor.reward(frames[:, :, 3])[..., 0] - symlog(rewards)).square().mean()
    told = (predictor.reconstruction(frames) - actions[:, :, None]).square().mean()
    torch.testing.assert_close(losses.total, entropy + reward + 0.5 * told)
    assert set(predictor.loss(context, dynamics).terms) == {"cross_entropy", "accuracy"}  # video without actions


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@torch.no_grad()
def test_reduced_precision_keeps_the_logits(predictor, generator, precision):
    context, dynamics, actions = window(4, 4, generator)
    ids = predictor.sequence(context, dynamics)
    wanted = predictor.head(predictor.features(ids, actions))
    if precision == "bf16":
        predictor.bfloat16()
    else:
        to_int8(predictor)
    got = predictor.head(predictor.features(ids, actions)).float()
    assert (got - wanted).norm() < 0.05 * wanted.norm()
    tokens, rewards = predictor.generate(context, 4, actions, sampling=GREEDY)
    assert tokens.max() < 5 and rewards.dtype == torch.float32


@torch.no_grad()
def test_wrong_use_is_refused(predictor, generator):
    context, dynamics, actions = window(1, 3, generator)
    with pytest.raises(ValueError, match=r"3 context frames of 6 tokens came; .* built for 2 of 6"):
        predictor.observe(context[:, [0, 1, 1]])
    with pytest.raises(ValueError, match=r"context tokens lie in 0..7; wanted 0..6"):
        predictor.observe(torch.arange(12).view(1, 2, 6).clamp(max=7))
    with pytest.raises(ValueError, match=r"future tokens lie in 0..12; wanted 0..4, without the offsets"):
        predictor.loss(context, torch.tensor([[[0, 7, 12]]]))
    with pytest.raises(ValueError, match=r"a horizon of 7 frames came; the 40 positions .* hold 1 to 6 behind 2"):
        predictor.observe(context, horizon=7)
    with pytest.raises(ValueError, match="at most 6 future frames follow 2 context frames"):
        predictor.loss(context, torch.zeros(1, 7, 3).long())
    with pytest.raises(ValueError, match=r"actions of shape \(1, 1, 3\) came .* action_width is 2"):
        predictor.step(predictor.observe(context), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2 actions came for a horizon of 3 frames"):
        predictor.generate(context, 3, actions[:, :2])
    state = predictor.step(predictor.observe(context, horizon=1), actions[:, 0]).state
    with pytest.raises(ValueError, match=r"the state is full: 1 frames were foretold. Observe with a longer horizon"):
        predictor.step(state, actions[:, 1])
    bare = AutoregressivePredictor(replace(CONFIG, action_width=0, action_reconstruction=0.0, reward=False))
    with pytest.raises(ValueError, match="action_width is 0"):
        bare.loss(context, dynamics, actions)
    with pytest.raises(ValueError, match="without reward head"):
        bare.loss(context, dynamics, None, torch.zeros(1, 3))
    for wrong in ({"context": 6}, {"context_codes": 0}, {"action_width": 0}):
        with pytest.raises(ValueError):
            replace(CONFIG, **wrong)


@torch.no_grad()
def test_actions_beyond_what_the_robot_does_are_those_at_its_limit(predictor, generator):
    context, dynamics, actions = window(2, 3, generator)
    limited = AutoregressivePredictor(replace(CONFIG, action_limit=0.5))
    limited.load_state_dict(predictor.state_dict())
    within = actions.clamp(-0.5, 0.5)
    ids = predictor.sequence(context, dynamics)
    assert limited.features(ids, actions).equal(predictor.features(ids, within))
    assert not predictor.features(ids, actions).equal(predictor.features(ids, within))
    tokens, _ = limited.generate(context, 3, actions, sampling=GREEDY)
    assert tokens.equal(predictor.generate(context, 3, within, sampling=GREEDY)[0])
    terms = [model.loss(context, dynamics, given).terms for model, given in ((limited, actions), (predictor, within))]
    assert terms[0] == terms[1]
    with pytest.raises(ValueError, match="action_limit is 0"):
        replace(CONFIG, action_limit=0.0)
