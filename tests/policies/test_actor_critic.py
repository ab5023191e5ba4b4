"""What of the agent the golden numbers do not say."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.func import grad

from ideomotor.policies.actor_critic import (
    ActorCritic,
    ActorCriticConfig,
    ActorLearning,
    CriticLearning,
    deviation,
    noisy,
)
from ideomotor.rl.drqv2 import PUBLISHED
from ideomotor.training.learner import Learner, check_ownership
from ideomotor.types import Agent, Clip, Transitions

SMALL = ActorCriticConfig(stack=2, size=16, actions=3, filters=4, features=8, hidden=16)


def batch(count=4):
    def frames():
        return torch.randint(0, 256, (count, 2, 3, 16, 16), dtype=torch.uint8)

    return Transitions(
        frames=frames(),
        actions=torch.rand(count, 3) * 2 - 1,
        rewards=torch.rand(count),
        discounts=torch.full((count,), 0.97),
        next_frames=frames(),
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ActorCritic(SMALL)


def test_pictures_are_scaled_once_and_scaled_ones_are_refused(network):
    frames = batch().frames
    seen = []
    network.encoder.convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.encoder(frames)
    torch.testing.assert_close(seen[0], frames.flatten(1, 2) / 255 - 0.5)
    with pytest.raises(TypeError, match="the encoder scales itself"):
        network.encoder(frames / 255)


def test_sizes():
    published = ActorCritic(ActorCriticConfig())
    assert published.encoder.width == 20_000
    assert sum(weight.numel() for weight in published.actor.parameters()) == 2_106_074
    with pytest.raises(ValueError, match="15 px"):
        ActorCriticConfig(size=14)
    assert ActorCritic(ActorCriticConfig(size=15, hidden=4)).mean_action(
        torch.zeros(1, 3, 3, 15, 15, dtype=torch.uint8)
    ).shape == (1, 4)


def test_every_weight_has_one_owner_and_each_update_moves_its_own(network):
    critic, actor = CriticLearning(network), ActorLearning(network)
    learners = [Learner(one, PUBLISHED, 1) for one in (critic, actor)]
    check_ownership(learners)
    owned = {id(weight) for one in (critic, actor) for weight in one.parameters()}
    assert owned == {id(weight) for weight in network.parameters()}
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def moved():
        now = network.state_dict()
        parts = {name.split(".")[0] for name in now if not now[name].equal(before[name])}
        before.update({name: value.clone() for name, value in now.items()})
        return parts

    learners[0].update(batch())
    assert moved() == {"encoder", "critic"}
    learners[1].update(critic.seen)
    assert moved() == {"actor"}
    critic.follow(0.5)
    assert moved() == {"target"}
    critic.follow(1.0)
    assert all(a.equal(b) for a, b in zip(critic.target.parameters(), critic.critic.parameters(), strict=True))


def test_one_batch_is_learned(network):
    critic = CriticLearning(network)
    learner = Learner(critic, PUBLISHED.__class__(lr=1e-3, warmup=0, schedule="constant"), 1)
    one = batch()
    losses = [learner.update(one)["CriticLearning/loss"] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


def test_bf16_keeps_losses_fp32(network):
    critic, actor = CriticLearning(network), ActorLearning(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert critic(batch()).total.dtype == torch.float32
        assert actor(critic.seen).total.dtype == torch.float32


def test_far_actions_and_strange_ones_cost_what_is_declared(network):
    critic = CriticLearning(network)
    critic(batch())
    seen, noise = critic.seen, torch.zeros(4, 3)
    plain = ActorLearning(network).losses(seen, noise).total
    far = network.actor.unbounded(seen.features)
    torch.testing.assert_close(far.tanh(), network.actor(seen.features))
    priced = ActorLearning(network, outward=0.5).losses(seen, noise).total
    torch.testing.assert_close(priced - plain, 0.5 * far.square().mean())
    done = torch.rand(2, 3)
    shown = replace(seen, shown=seen.features[:2], done=done)
    like = ActorLearning(network, cloning=3.0)
    strange = (network.actor(seen.features[:2]) - done).square().mean()
    torch.testing.assert_close(like.losses(shown, noise).total - plain, 3.0 * strange)
    assert like.losses(seen, noise).total.equal(plain)  # nothing was shown
    assert ActorLearning(network).losses(shown, noise).total.equal(plain)


def test_the_price_brings_an_actor_back_from_its_bounds(network):
    critic = CriticLearning(network)
    critic(batch(16))
    with torch.no_grad():
        network.actor.head[-1].bias.fill_(6.0)
    ends = {}
    for outward in (0.0, 0.1):
        actor = ActorLearning(copy.deepcopy(network), outward=outward)
        learner = Learner(actor, replace(PUBLISHED, lr=1e-2), 1)
        for _ in range(60):
            ends[outward] = learner.update(critic.seen)["ActorLearning/at_its_bounds"]
    assert ends[0.0] > 0.6 and ends[0.1] < 0.3


def test_noise_is_cut_and_the_gradient_is_not():
    mean = torch.tensor([0.9, -0.2])
    noise = torch.tensor([3.0, -3.0])
    torch.testing.assert_close(noisy(mean, 1.0, noise, 0.3), torch.tensor([1 - 1e-6, -0.5]))
    torch.testing.assert_close(noisy(mean, 1.0, noise), torch.tensor([1 - 1e-6, -(1 - 1e-6)]))
    assert grad(lambda m: noisy(m, 1.0, noise).sum())(mean).tolist() == [1, 1]


def test_wrong_noise_is_refused():
    for knots in (((0, 1.0), (0, 0.5)), ((5, 1.0), (0, 0.5)), ((0, -1.0),)):
        with pytest.raises(ValueError, match="rising steps"):
            deviation(0, knots)


def test_it_is_an_agent(network):
    assert isinstance(network, Agent)
    clip = Clip(frames={"corner": batch().frames}, text=("",) * 4)
    assert network.act(clip).shape == (4, 1, 3) and network.act(clip)[:, 0].equal(network.mean_action(batch_of(clip)))


def batch_of(clip):
    return clip.frames["corner"]
