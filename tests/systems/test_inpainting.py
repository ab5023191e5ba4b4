"""In-painting both ways: actions of a given future, and futures of given actions, against Bayes' rule by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.layers.text import HashedWords
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.inpainting import actions_given_video, future_given_actions, video_given_actions
from ideomotor.systems.recorded import recorded_actions
from ideomotor.systems.vpdd import VIEW, context_tokens, tiny
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.types import Clip

PRIOR = torch.tensor([0.5, 0.3, 0.15, 0.05])  # of four futures
LIKELIHOOD = torch.tensor([[0.7, 0.1], [0.2, 0.2], [0.05, 0.4], [0.05, 0.3]])  # of two actions, given each


class TinyPredictor(nn.Module):
    """Foretells one token of four, by a known distribution; its features are that token."""

    config = tiny().predictor

    def sample(
        self,
        seen: Tensor,
        text: Tensor,
        steps: int,
        temperature: float,
        generator: torch.Generator,
        *,
        domain: Tensor,
    ) -> Tensor:
        assert len(domain) == len(seen)
        assert temperature == 1.0  # a prior is drawn from as it is, or Bayes' rule does not hold
        return torch.multinomial(PRIOR.expand(len(seen), -1), 1, generator=generator)[:, None]

    def features(self, seen: Tensor, text: Tensor, future: Tensor, domain: Tensor) -> Tensor:
        return future


class TinyPolicy(nn.Module):
    """Says how likely each of two actions is in a given future."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def log_likelihood(self, frames, features, text, actions, state, generator) -> Tensor:
        return LIKELIHOOD[features[:, 0, 0], actions[:, 0, 0].long()].log()


def models() -> VPDDAgent:
    torch.manual_seed(0)
    config = replace(tiny(), policy=replace(tiny().policy, action_width=2))
    tokenizer, policy = VQVAE3D(config.tokenizer), DiscreteDiffusionPolicy(config.policy)
    policy.bins.fit(recorded_actions([Source(dataset=synthetic_dataset(3, length=12, size=32), window=config.window)]))
    nn.init.normal_(policy.actions.head.weight, std=0.3)  # it begins at zero, where nothing would matter
    return VPDDAgent(config, policy, DiscreteDiffusionPredictor(config.predictor), tokenizer, HashedWords())


def clips(n: int = 3) -> tuple[Clip, Clip]:
    data = synthetic_dataset(episodes=3, length=12, size=32)
    window = replace(tiny().window, outlook=0)  # what is painted in is a chunk of the policy's own length
    whole = ClipLoader([Source(dataset=data, window=window, cameras={VIEW: "video"})], n, seed=1, prefetch=0)
    return whole.batch(0).split(4)


@pytest.mark.parametrize("action", [0, 1])
def test_futures_are_drawn_by_bayes_rule(action: int, generator: torch.Generator) -> None:
    config = tiny()
    blank = VQVAE3D(config.tokenizer)
    agent = VPDDAgent(config, TinyPolicy(), TinyPredictor(), blank, lambda said: torch.zeros(len(said), 1))
    many = 4000
    frames = torch.zeros(many, 4, 3, 1, 1, dtype=torch.uint8)
    context = Clip(frames={VIEW: frames}, text=("",) * many, tokens={VIEW: torch.zeros(many, 2, 16, dtype=torch.long)})
    actions = torch.full((many, 8, 2), float(action))
    drawn = future_given_actions(agent, context, actions, samples=64, generator=generator)
    assert drawn.shape == (many, 1, 1)
    posterior = PRIOR * LIKELIHOOD[:, action] / (PRIOR @ LIKELIHOOD[:, action])
    found = torch.bincount(drawn.flatten(), minlength=4) / many
    assert (found - posterior).abs().max() < 0.03
    alone = future_given_actions(agent, context, actions, samples=1, generator=generator)  # no choice: the prior
    assert (torch.bincount(alone.flatten(), minlength=4) / many - PRIOR).abs().max() < 0.03


def test_actions_follow_the_future_that_is_given() -> None:
    agent, (context, future) = models(), clips()
    actions = actions_given_video(agent, context, future.frames[VIEW])
    assert actions.shape == (3, 8, 2) and actions.isfinite().all()
    tokens = agent.tokenizer.encode(future.frames[VIEW])
    assert torch.equal(actions, actions_given_video(agent, context, tokens))
    handed = []
    sample = agent.policy.sample
    agent.policy.sample = lambda frames, features, *rest, **more: (
        handed.append(features) or sample(frames, features, *rest, **more)
    )
    actions_given_video(agent, context, future.frames[VIEW])
    actions_given_video(agent, context, 255 - future.frames[VIEW])
    seen, text = context_tokens(context, agent.tokenizer, agent.predictor), HashedWords()(context.text)
    assert torch.equal(handed[0], agent.predictor.features(seen, text, tokens))
    assert (handed[0] - handed[1]).abs().max() > 0.01
    unknown = torch.full_like(tokens, agent.predictor.future.mask_id)  # nothing is demanded: as it acts by itself
    assert torch.equal(actions_given_video(agent, context, unknown), agent.act(context))


def test_a_video_of_given_actions(generator: torch.Generator) -> None:
    agent, (context, rest) = models(), clips()
    video = video_given_actions(agent, context, rest.actions, samples=3, generator=generator)
    assert video.shape == (3, 4, 3, 32, 32) and video.dtype == torch.uint8
    again = video_given_actions(agent, context, rest.actions, 3, torch.Generator().manual_seed(5))
    assert torch.equal(again, video_given_actions(agent, context, rest.actions, 3, torch.Generator().manual_seed(5)))


def test_what_cannot_be_painted_in_is_refused() -> None:
    agent, (context, rest) = models(), clips()
    with pytest.raises(ValueError, match="has 2 latent frames of 16 tokens; the predictor foretells 1 of 16: give 4"):
        actions_given_video(agent, context, rest.frames[VIEW].repeat(1, 2, 1, 1, 1))
    with pytest.raises(ValueError, match="samples is 0"):
        video_given_actions(agent, context, rest.actions, samples=0)
    with pytest.raises(ValueError, match="chunks of 3 actions"):
        video_given_actions(agent, context, rest.actions[:, :3])
    with pytest.raises(ValueError, match=r"actions of shape \(1, 8, 2\) came for 3 samples"):
        video_given_actions(agent, context, rest.actions[:1])
    with pytest.raises(ValueError, match=r"actions of shape \(8, 2\)"):
        video_given_actions(agent, context, rest.actions[0])
    with pytest.raises(ValueError, match="1 futures came for 3 samples"):
        actions_given_video(agent, context, rest.frames[VIEW][:1])
    with pytest.raises(ValueError, match="float32 came; wanted uint8 frames"):
        actions_given_video(agent, context, rest.frames[VIEW] / 255)
    tokens = agent.tokenizer.encode(rest.frames[VIEW])
    for wrong, words in ((tokens - 126, r"lie in -\d+"), (tokens + 126, r"\.\.\d+; wanted 0\.\.124, and 125"),
                         (tokens[:, 0], "a future of shape"), (tokens.float(), "float32 came")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            actions_given_video(agent, context, wrong)
    with pytest.raises(ValueError, match="domains are"):
        video_given_actions(agent, replace(context, domain=torch.tensor([7, 0, 0])), rest.actions)
    blind = VPDDAgent(agent.config, agent.policy, None, None, HashedWords())
    with pytest.raises(ValueError, match="has no foresight, so it knows no futures"):
        actions_given_video(blind, context, rest.frames[VIEW])
