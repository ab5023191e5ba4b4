"""Numbers of the published agent, and the draws of its replay."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.data.replay import Replay, ReplayConfig, Trajectory
from ideomotor.data.transforms import shift
from ideomotor.interop.drqv2 import agent_from_published
from ideomotor.policies.actor_critic import (
    ActorCritic,
    ActorCriticConfig,
    ActorLearning,
    CriticLearning,
    deviation,
    noisy,
)
from ideomotor.rl.drqv2 import PUBLISHED
from ideomotor.training.learner import Learner
from ideomotor.types import Transitions

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "ivideogpt" / "fixtures"


@pytest.fixture(scope="module")
def data(folder):
    return load_file(folder / "drqv2.safetensors")


@pytest.fixture
def network(data):
    weights = {
        name.removeprefix("in."): value
        for name, value in data.items()
        if name.startswith(("in.encoder", "in.actor", "in.critic"))
    }
    weights["critic_target.trunk.0.weight"] = weights["critic.trunk.0.weight"]
    network = ActorCritic(ActorCriticConfig(features=4, hidden=16))
    network.load_state_dict(agent_from_published(weights))
    return network


def test_names_and_shapes_of_the_published_agent(shared):
    layouts = json.loads((shared / "golden/ivideogpt/checkpoint_layouts.json").read_text())["models"]
    (agent,) = (about for name, about in layouts.items() if name.startswith("DrQ-v2"))
    theirs = {f"{part}.{name}": torch.empty(shape) for part, about in agent.items() for name, shape in about.items()}
    ours = ActorCritic(ActorCriticConfig()).state_dict()
    assert {n: v.shape for n, v in agent_from_published(theirs).items()} == {n: v.shape for n, v in ours.items()}
    with pytest.raises(ValueError, match="no weight of a published agent"):
        agent_from_published({"encoder.convnet.1.weight": ours["encoder.convs.0.weight"]})


def frames(data, name):
    return data[f"in.{name}_u8"].unflatten(1, (3, 3))  # b t c h w


def moved(data, name):
    # Published offsets are x, y into a picture padded by 4; ours are moves down, right.
    return shift(frames(data, name), 4 - data[f"in.offsets_{name}"].flip(-1))


def close(got, wanted, atol=1e-4):
    torch.testing.assert_close(got.detach(), wanted, atol=atol, rtol=0.0)


def test_the_shift_is_a_crop_of_the_padded_picture(data):
    close(moved(data, "obs").flatten(1, 2)[:, :3].float(), data["out.shifted_obs"], 2e-3)


def test_forward(data, network):
    features = network.encoder(frames(data, "obs"))
    close(features[:, :64], data["out.features_first_64"])
    close(torch.stack([features.mean(-1), features.std(-1)], -1), data["out.features_mean_std"])
    close(network.actor.trunk(features), data["out.trunk_actor"])
    close(network.actor(features), data["out.actor_mean"])
    q = network.critic(features, data["in.action"])
    close(q, torch.cat([data["out.q1"], data["out.q2"]], -1))
    mean = network.actor(features)
    close(noisy(mean, 0.37, data["in.noise_critic"], 0.3), data["out.sample_std0.37_clip0.3"])
    close(noisy(mean, 0.37, data["in.noise_critic"]), data["out.sample_std0.37_noclip"])


def test_noise(folder):
    facts = json.loads((folder / "drqv2.json").read_text())["facts"]
    for step in (0, 5000, 200_000):
        assert deviation(step, ((0, 1.0), (100_000, 0.1))) == pytest.approx(facts[f"std_step_{step}"])
    for step, wanted in facts["std_step_linear(1.0,0.5,100,0.1,50)"].items():
        assert deviation(int(step), ((0, 1.0), (100, 0.5), (150, 0.1))) == pytest.approx(wanted)


def test_one_update_of_everything(data, network, monkeypatch):
    critic, actor = CriticLearning(network), ActorLearning(network)
    critic.std = actor.std = deviation(5000, ((0, 1.0), (100_000, 0.1)))
    batch = Transitions(
        frames=moved(data, "obs"),
        actions=data["in.action"],
        rewards=data["in.reward"][:, 0],
        discounts=data["in.discount"][:, 0],
        next_frames=moved(data, "next_obs"),
    )
    learners = Learner(critic, PUBLISHED, 1), Learner(actor, PUBLISHED, 1)
    monkeypatch.setattr(torch, "randn_like", lambda like: data["in.noise_critic"])
    monkeypatch.setattr(torch, "randn", lambda *shape, device: data["in.noise_actor"])
    metrics = learners[0].update(batch)
    metrics |= learners[1].update(critic.seen)
    critic.follow(0.01)
    for ours, theirs in (
        ("CriticLearning/loss", "critic_loss"),
        ("CriticLearning/q1", "critic_q1"),
        ("CriticLearning/q2", "critic_q2"),
        ("CriticLearning/target", "critic_target_q"),
        ("CriticLearning/batch_reward", "batch_reward"),
        ("ActorLearning/loss", "actor_loss"),
        ("ActorLearning/log_likelihood", "actor_logprob"),
        ("ActorLearning/entropy", "actor_ent"),
    ):
        assert metrics[ours] == pytest.approx(data[f"out.metric_{theirs}"].item(), rel=1e-4), theirs
    updated = {n.removeprefix("out.after_update."): v for n, v in data.items() if n.startswith("out.after_update.")}
    weights = network.state_dict()
    for (ours, wanted), theirs in zip(agent_from_published(updated).items(), updated, strict=True):
        difference = (weights[ours] - wanted).abs()
        # A first step of Adam has size 1e-4 whatever the gradient, so where that is nearly zero its sign is noise.
        assert (difference > 1e-6).float().mean() < 0.002, theirs
        assert difference.max() < 2.1e-4
        assert not torch.equal(data[f"in.{theirs}"], wanted)


def test_replay(folder, tmp_path):
    data, facts = load_file(folder / "replay.safetensors"), json.loads((folder / "replay.json").read_text())["facts"]
    episode = Trajectory(
        frames=data["in.observation"][:, -3:].numpy(),
        actions=data["in.action"].numpy(),
        rewards=data["in.reward"][:, 0].numpy(),
        discounts=data["in.discount"][:, 0].numpy(),
    )
    replay = Replay(tmp_path, ReplayConfig(steps=facts["nstep"], discount=facts["discount"]))
    replay.add(0, episode)
    every = replay.transitions(4000, 0, 0)
    starts = newest(every.frames)
    assert (starts.min(), starts.max()) == (0, facts["nstep_draw_range_half_open_before_plus_1"][1] - 1)
    for at, index in enumerate(data["in.indices"].tolist()):
        drawn = int((starts == index - 1).nonzero()[0, 0])
        # The file's older frames say nothing (201, 202); ours are stacked when drawn.
        assert every.frames[drawn, -1].equal(data["out.nstep_obs"][at, -3:])
        assert every.next_frames[drawn, -1].equal(data["out.nstep_next_obs"][at, -3:])
        assert newest(every.frames[:, -2])[drawn] == max(index - 2, 0)
        close(every.actions[drawn], data["out.nstep_action"][at], 0.0)
        close(every.rewards[drawn], data["out.nstep_reward"][at, 0], 1e-5)
        close(every.discounts[drawn], data["out.nstep_discount"][at, 0], 1e-6)
    check_segments(replay, data, facts)


def check_segments(replay, data, facts):
    every = replay.segments(4000, facts["segment_length"], 0, 0)
    starts = every.frames[:, 0, 0, 0, 0].long()
    assert starts.min() == 0 and starts.max() >= facts["segment_draw_range_half_open"][1] - 1
    for at, index in enumerate(data["in.segment_indices"].tolist()):
        drawn = int((starts == index - 1).nonzero()[0, 0])
        assert every.frames[drawn].equal(data["out.segment_obs"][at])
        close(every.actions[drawn], data["out.segment_action"][at], 0.0)
        close(every.rewards[drawn], data["out.segment_reward"][at, :, 0], 0.0)


def newest(stacks):
    return (stacks if stacks.ndim == 4 else stacks[:, -1])[:, 0, 0, 0].long()
