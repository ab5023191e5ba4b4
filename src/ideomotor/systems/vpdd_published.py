"""VPDD as published: one mask-and-replace diffusion over video and action tokens, undone by two networks together.

Each network foretells the clean tokens of its own part; both are called at every one of 100 steps. The settings, and
what the presets ``published`` and ``paper`` do differently, are in ``systems.vpdd_published_config``.

Source: VPDD (2402.14407); the diffusion is UniD3's (2211.14842).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ideomotor.diffusion.discrete import MaskReplace, TimeSampler, posterior_loss
from ideomotor.diffusion.samplers import ancestral
from ideomotor.diffusion.schedule import Vocabulary
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy, Viewed
from ideomotor.predictors.perceiver_diffusion import Observed, PerceiverDiffusionPredictor
from ideomotor.systems.vpdd import VIEW, TextEncoder
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE
from ideomotor.types import Borrowed, Clip, Losses

Network = Callable[[Int[Tensor, "b n"], Int[Tensor, " b"]], Float[Tensor, "b n k"]]
ActionLogits = Callable[[Int[Tensor, "b m"], Int[Tensor, " b"], Float[Tensor, "b n d"]], Float[Tensor, "b m k"]]


@runtime_checkable
class ActionCodec(Protocol):
    """Actions to ids of bins and back; ``QuantileBins`` is one."""

    def encode(self, actions: Float[Tensor, "*b action"]) -> Int[Tensor, "*b action"]:
        """Returns the ids, from 0."""

    def decode(self, ids: Int[Tensor, "*b action"]) -> Float[Tensor, "*b action"]:
        """Returns the actions that those ids stand for."""


def joint_network(
    predictor: PerceiverDiffusionPredictor, seen: Observed, vocabulary: Vocabulary, actions: ActionLogits | None
) -> Network:
    """Returns both networks as one: noised tokens of video and actions in, logits over the whole vocabulary out.

    With ``actions`` the video model is frozen; without, it learns, and action positions get logits of 0.
    """
    codes, tokens = predictor.config.codes, predictor.config.tokens

    def network(xt: Int[Tensor, "b n"], step: Int[Tensor, " b"]) -> Float[Tensor, "b n k"]:
        video, acts = xt[:, :tokens], xt[:, tokens:] - codes
        with torch.set_grad_enabled(torch.is_grad_enabled() and actions is None):
            features = predictor.features(video, step, seen)
            logits = predictor.logits(features)
        if actions is None:
            idle = logits.new_zeros(*acts.shape, vocabulary.groups[1])
            return vocabulary.join([logits, idle])
        return vocabulary.join([logits, actions(acts, step, features)])

    return network


def metaworld_head(policy: GPTDiffusionPolicy, text: Float[Tensor, "b text"]) -> ActionLogits:
    """Returns the action network for one decision: it reads the video model's features of the same step."""
    embedded = policy.observe(text)
    return lambda xt, step, features: policy.logits(xt, step, features, embedded)


def rlbench_head(policy: MultiviewGPTPolicy, seen: Viewed) -> ActionLogits:
    """Returns the action network for one decision: it reads what the cameras see, never the video model."""
    return lambda xt, step, features: policy.logits(xt, step, seen)


def unified_loss(
    config: PublishedVPDD,
    process: MaskReplace,
    network: Network,
    x0: Int[Tensor, "b n"],
    xt: Int[Tensor, "b n"],
    step: Int[Tensor, " b"],
    probability: Float[Tensor, " b"],
) -> tuple[Losses, Float[Tensor, " b"]]:
    """Returns the loss of video and actions together, and what the time sampler is to remember of each sample.

    ``terms`` holds the two parts as the code logs them: each is divided by the positions of both, and the first four
    action positions count ``config.first_weight`` times.
    """
    loss = posterior_loss(process, network(xt, step), x0, xt, step, probability, config.auxiliary)
    with torch.no_grad():
        weight = config.auxiliary * (2 - step / config.steps)
        parts = (loss.main + weight[:, None] * loss.auxiliary) / probability[:, None] / x0.numel()  # b n
        video, actions = parts.split([config.predictor.tokens, x0.shape[1] - config.predictor.tokens], 1)
        first = (config.first_weight - 1) * actions[:, :4].sum()
    terms = {"video": video.sum(), "action": actions.sum() + first}
    return Losses(total=loss.total, terms=terms), loss.main.detach().sum(1)


class _Denoising(nn.Module):
    """What both objectives share: drawing times and noise, and remembering the losses."""

    def __init__(self, config: PublishedVPDD, *, actions: bool) -> None:
        super().__init__()
        self.config = config
        self.times = TimeSampler(config.steps)
        self._process = config.process(actions=actions)

    def _loss(self, network: Network, x0: Int[Tensor, "b n"]) -> Losses:
        if self._process.group.device != x0.device:
            self._process = self._process.to(x0.device)
        step, probability = self.times.sample(len(x0))
        xt = self._process.sample(x0, step)
        losses, squared = unified_loss(self.config, self._process, network, x0, xt, step, probability)
        if self.training:
            self.times.record(step, squared)
        return losses


class UnifiedVideoDenoising(_Denoising):
    """Actionless clip -> tokens of two latent frames -> the second one noised -> the tokens themselves."""

    def __init__(
        self, config: PublishedVPDD, predictor: PerceiverDiffusionPredictor, tokenizer: AxialVQVAE, text: TextEncoder
    ) -> None:
        super().__init__(config, actions=config.idle_actions)
        self.predictor, self.text = predictor, text
        self.tokenizer = Borrowed(tokenizer)

    def forward(self, clip: Clip) -> Losses:
        """Returns the variational bound's loss of the foretold latent frame."""
        history, future = latent_frames(clip, self.tokenizer.module)
        seen = self.predictor.observe(history, self.text(clip.text).to(history.device))
        network = joint_network(self.predictor, seen, self.config.vocabulary, None)
        idle = self.config.policy.tokens if self.config.idle_actions else 0
        return self._loss(network, nn.functional.pad(future, (0, idle), value=self.config.predictor.codes))


class UnifiedActionDenoising(_Denoising):
    """Clip with actions -> tokens of video and actions, noised together -> the action model's part of the loss.

    The video model is frozen and without dropout; its part of the loss is a constant that rules the time sampling, as
    published. So are the tails of chunks beyond an episode's end, which are trained on like any other action.
    """

    def __init__(
        self,
        config: PublishedVPDD,
        policy: GPTDiffusionPolicy,
        predictor: PerceiverDiffusionPredictor,
        tokenizer: AxialVQVAE,
        text: TextEncoder,
        actions: ActionCodec,
    ) -> None:
        super().__init__(config, actions=True)
        self.policy, self.text, self.codec = policy, text, actions
        self.predictor, self.tokenizer = Borrowed(predictor.eval()), Borrowed(tokenizer)

    def forward(self, clip: Clip) -> Losses:
        """Returns the variational bound's loss of the foretold latent frame and the recorded actions."""
        if clip.actions is None:
            raise ValueError("a clip without actions came to fine-tuning: give demonstrations, not actionless video")
        if clip.actions.shape[1] < self.policy.config.chunk:
            raise ValueError(
                f"chunks of {clip.actions.shape[1]} actions came; this policy foretells {self.policy.config.chunk}: "
                "set the window's chunk to that many"
            )
        history, future = latent_frames(clip, self.tokenizer.module)
        text = self.text(clip.text).to(history.device)
        predictor, config = self.predictor.module, self.config
        with torch.no_grad():
            seen = predictor.observe(history, text)
        ids = self.codec.encode(clip.actions[:, : self.policy.config.chunk]).flatten(1) + config.predictor.codes
        network = joint_network(predictor, seen, config.vocabulary, metaworld_head(self.policy, text))
        return self._loss(network, torch.cat([future, ids], 1))


def latent_frames(clip: Clip, tokenizer: AxialVQVAE) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Returns the tokens of the observed and of the foretold latent frame, from the cache where the clip has them.

    Raises:
        ValueError: the clip does not have just these two.
    """
    tokens = clip.tokens[VIEW].long() if clip.tokens is not None else tokenizer.encode(clip.frames[VIEW])
    if tokens.shape[1] != 2:
        raise ValueError(
            f"the clip has {tokens.shape[1]} latent frames; one is observed and one foretold: give windows of "
            f"context {tokenizer.frames_per_latent} and horizon {tokenizer.frames_per_latent}"
        )
    return tokens[:, 0], tokens[:, 1]


@torch.inference_mode()
def sample(
    config: PublishedVPDD,
    predictor: PerceiverDiffusionPredictor,
    history: Int[Tensor, "b n"],
    text: Float[Tensor, "b text"],
    head: ActionLogits | None = None,
    generator: torch.Generator | None = None,
    pick: Callable[[Float[Tensor, "b n vocab"]], Int[Tensor, "b n"]] | None = None,
    barred: Bool[Tensor, "action k"] | None = None,
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b m"]]:
    """Returns the foretold latent frame's tokens and the ids of the chunk's bins, by the whole chain from masks alone.

    Without a ``head`` the video is foretold alone, and there are no ids. ``generator`` and ``pick`` are those of
    ``diffusion.samplers.ancestral``; ``barred`` are ids of each dimension of an action that are never drawn.
    """
    process = config.process(actions=head is not None).to(history.device)
    network = joint_network(predictor, predictor.observe(history, text), config.vocabulary, head)
    start = history.new_full((len(history), len(process.group)), config.vocabulary.mask_id)
    video, codes = config.predictor.tokens, config.predictor.codes
    never = torch.zeros_like(process.foreign)
    if barred is not None and head is not None:
        never[video:, codes:] = barred.to(never.device).repeat(config.policy.chunk, 1)
    tokens = ancestral(network, start, process, config.top_p, generator, pick, never)
    return tokens[:, :video], tokens[:, video:] - codes
