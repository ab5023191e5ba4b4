"""Video and actions, asked either way: which actions lead to a given future, and what given actions lead to."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ideomotor.diffusion.samplers import draw
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.vpdd import context_tokens, decode, encode, seen_frames
from ideomotor.systems.vpdd_agent import VPDDAgent, refuse_odd_context
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.types import Clip


@torch.inference_mode()
def actions_given_video(
    agent: VPDDAgent,
    context: Clip,
    future: UInt8[Tensor, "b t c h w"] | Int[Tensor, "b latent n"],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b chunk action"]:
    """Returns the actions that lead to a given future: the policy acts on the features of that future.

    Args:
        agent: with a predictor and a tokenizer.
        context: what was seen.
        future: frames of the horizon, or their tokens, [MASK] where nothing is demanded.
        temperature: of the draws; 0 takes the likeliest actions.
        generator: of the draws.

    Raises:
        ValueError: the agent has no foresight, or the future is not one of its predictor's for each sample.
    """
    tokenizer, predictor = _foretelling(agent)
    refuse_odd_context(context, agent.config)
    is_video = future.ndim == 5
    if not (future.dtype == torch.uint8 if is_video else future.ndim == 3 and not future.is_floating_point()):
        raise ValueError(
            f"a future of shape {tuple(future.shape)}, {future.dtype} came; wanted uint8 frames (b t c h w) or whole "
            "numbers, the tokens (b latent n)"
        )
    context = context.to(_device(agent))
    future = future.to(_device(agent))
    with _precision(agent):
        tokens = encode(tokenizer, future, predictor.config.views) if is_video else future.long()  # b latent n
        _refuse_other_future(
            tokens, len(context), predictor, f"{agent.config.window.horizon} frames of {agent.config.size} px"
        )
        text = agent.text(context.text).to(tokens.device)
        seen = context_tokens(context, tokenizer, predictor)
        features = predictor.features(seen, text, tokens, agent.domain_ids(context))
        return agent.policy.sample(
            seen_frames(context, agent.config.views),
            features,
            text,
            context.proprio,
            agent.config.action_steps,
            temperature,
            generator,
        ).float()


@torch.inference_mode()
def video_given_actions(
    agent: VPDDAgent,
    context: Clip,
    actions: Float[Tensor, "b chunk action"],
    samples: int = 16,
    generator: torch.Generator | None = None,
) -> UInt8[Tensor, "b t c h w"]:
    """Returns a video of what given actions lead to; see ``future_given_actions``."""
    tokenizer, predictor = _foretelling(agent)
    tokens = future_given_actions(agent, context, actions, samples, generator)
    with _precision(agent):
        return decode(tokenizer, tokens, predictor.config.grid, predictor.config.views)


@torch.inference_mode()
def future_given_actions(
    agent: VPDDAgent,
    context: Clip,
    actions: Float[Tensor, "b chunk action"],
    samples: int = 16,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b latent n"]:
    """Returns tokens of a future, drawn from p(future | context, actions).

    By Bayes' rule that is p(future | context) p(actions | future, context) up to a factor: ``samples`` futures are
    drawn from the predictor, and one of them by the policy's likelihood of the actions (sampling-importance-resampling,
    Rubin 1987). Exact for many samples; with few, a future that the predictor hardly ever foretells is not found. The
    likelihood is the policy's bound (``log_likelihood``), with the same maskings for all samples.

    Raises:
        ValueError: the agent has no foresight, or the actions are not a whole chunk of its policy for each sample.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; wanted 1 or more futures to choose from")
    if actions.ndim != 3 or len(actions) != len(context):
        raise ValueError(
            f"actions of shape {tuple(actions.shape)} came for {len(context)} samples; wanted one chunk each "
            "(b chunk action)"
        )
    tokenizer, predictor = _foretelling(agent)
    refuse_odd_context(context, agent.config)
    context, actions = context.to(_device(agent)), actions.to(_device(agent))
    with _precision(agent):
        seen = _each(context_tokens(context, tokenizer, predictor), samples)
        text = _each(agent.text(context.text).to(seen.device), samples)
        state = None if context.proprio is None else _each(context.proprio, samples)
        domain = _each(agent.domain_ids(context), samples)
        # (b samples) latent n
        futures = predictor.sample(seen, text, agent.config.imagine_steps, 1.0, generator, domain=domain)
        features = predictor.features(seen, text, futures, domain)
        log_p = agent.policy.log_likelihood(
            _each(seen_frames(context, agent.config.views), samples), features, text,
            _each(actions, samples), state, generator=generator,
        )  # fmt: skip
    weights = rearrange(log_p.double(), "(b samples) -> b samples", samples=samples).softmax(1)
    chosen = draw(weights, generator=generator)  # b
    return rearrange(futures, "(b samples) latent n -> b samples latent n", samples=samples)[
        torch.arange(len(chosen), device=chosen.device), chosen
    ]


def _refuse_other_future(
    tokens: Int[Tensor, "b latent n"], batch: int, predictor: DiscreteDiffusionPredictor, frames: str
) -> None:
    wanted = (predictor.config.latents, predictor.config.grid[0] * predictor.config.grid[1])
    if tuple(tokens.shape[1:]) != wanted:
        raise ValueError(
            f"the future has {tokens.shape[1]} latent frames of {tokens.shape[2]} tokens; the predictor foretells "
            f"{wanted[0]} of {wanted[1]}: give {frames}"
        )
    if len(tokens) != batch:
        raise ValueError(f"{len(tokens)} futures came for {batch} samples: give one each")
    mask = predictor.future.mask_id
    if int(tokens.min()) < 0 or int(tokens.max()) > mask:
        raise ValueError(
            f"the future's tokens lie in {int(tokens.min())}..{int(tokens.max())}; wanted 0..{mask - 1}, and {mask} "
            "where nothing is demanded"
        )


def _each(x: Tensor, samples: int) -> Tensor:
    return repeat(x, "b ... -> (b samples) ...", samples=samples)


def _foretelling(agent: VPDDAgent) -> tuple[VQVAE3D, DiscreteDiffusionPredictor]:
    if agent.tokenizer is None or agent.predictor is None:
        raise ValueError("this policy has no foresight, so it knows no futures: fine-tune one with --predictor-from")
    return agent.tokenizer, agent.predictor


def _precision(agent: VPDDAgent) -> torch.autocast:
    return agent.config.finetune_stage.optim.autocast(_device(agent))


def _device(agent: VPDDAgent) -> torch.device:
    return next(agent.policy.parameters()).device
