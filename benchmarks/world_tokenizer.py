"""What frames cost: the tokenizer alone, and the whole step of a world, its frame painted."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.systems.world import World
from ideomotor.tokenizers.context_config import ContextVQGANConfig, published_64
from ideomotor.tokenizers.context_vqgan import ContextFeatures, ContextTokens, ContextVQGAN, in_bf16
from world_baseline import Reprefilling
from world_machine import GREEDY, Machine, Row, floor, reduced, seconds

STEPS = 3


def sizes(config: AutoregressiveConfig | None, tiny: bool) -> ContextVQGANConfig:
    """Returns the published tokenizer, or one that proves that the benchmark runs."""
    told = published_64() if not tiny else replace(published_64(), widths=(32, 32, 32), blocks=1, latent=16)
    if config is None:
        return told
    return replace(told, context_codes=config.context_codes, dynamics_codes=config.dynamics_codes)


@torch.no_grad()
def tokenizer_rows(machine: Machine, tiny: bool) -> list[Row]:
    """Returns the rows of tokenizing a clip and painting it again, plainly and in bf16."""
    torch.manual_seed(0)
    plain = ContextVQGAN(sizes(None, tiny)).eval()
    frames = torch.randint(0, 256, (1, 4 if tiny else 16, 3, plain.config.size, plain.config.size), dtype=torch.uint8)
    count, wanted = frames.shape[1], plain.tokenize(frames)
    rows: list[Row] = []
    for weights, used in (("fp32", plain), ("bf16", in_bf16(plain))):
        tokens = used.tokenize(frames)
        spent = {
            "tokenize": seconds(lambda used=used: used.tokenize(frames), 3) / count,
            "detokenize": seconds(lambda used=used: detokenize(used, wanted), 3) / count,
        }
        with FlopCounterMode(display=False) as counter:
            used.tokenize(frames)
            detokenize(used, wanted)
        whole, least = sum(spent.values()), counter.get_total_flops() / machine.operations[weights] / count
        made: Row = {"tokenizer": "tokenize + detokenize", "weights": weights, "frames": count}
        made |= {f"CPU-s to {name} a frame": value for name, value in spent.items()}
        made |= {"frames a CPU-s": 1 / whole, "floor, s": least, "over floor": whole / least}
        if weights != "fp32":
            same = [(one == other).float().mean() for one, other in zip(tokens, wanted, strict=True)]
            made["times faster"] = rows[0]["frames a CPU-s"] ** -1 / whole
            made["same ids"] = float(sum(same)) / len(same)
        rows.append(made)
    return rows


def detokenize(tokenizer: ContextVQGAN, tokens: ContextTokens) -> ContextFeatures:
    """Paints the context and all frames after it."""
    features = tokenizer.observe(tokens.context)
    tokenizer.paint(tokens.dynamics, features)
    return features


@torch.no_grad()
def whole_rows(config: AutoregressiveConfig, machine: Machine, tiny: bool) -> list[Row]:
    """Returns the rows of one step of a world, frame included: the published way, and ours by weights."""
    torch.manual_seed(0)
    tokenizer, predictor = ContextVQGAN(sizes(config, tiny)).eval(), AutoregressivePredictor(config).eval()
    size = tokenizer.config.size
    frames = torch.randint(0, 256, (1, config.context, 3, size, size), dtype=torch.uint8)
    actions = torch.randn(1, STEPS, config.action_width)
    rows = [published_row(tokenizer, predictor, frames, actions)]
    for weights in ("fp32", "bf16", "int8"):
        world = World(
            tokenizer if weights == "fp32" else in_bf16(tokenizer), reduced(predictor, weights), sampling=GREEDY
        )
        observe = seconds(lambda world=world: world.reset(frames))
        spent = seconds(lambda world=world: step_all(world, frames, actions)) - observe
        every = config.dynamics_tokens + 1
        passes = [(1, config.prompt + token) for token in range(every)]
        least = floor(world.predictor, machine, weights, 1, passes)
        features = world.tokenizer.observe(world.tokenizer.tokenize(frames).context)
        with FlopCounterMode(display=False) as counter:
            world.tokenizer.paint(torch.zeros(1, 1, config.dynamics_tokens).long(), features)
        least += counter.get_total_flops() / machine.operations[weights]
        rows.append(whole_row("world.step", weights, spent / STEPS, rows[0]) | {"CPU-s to reset": observe})
        rows[-1] |= {"floor, s": least, "over floor": spent / STEPS / least}
    return rows


def step_all(world: World, frames: torch.Tensor, actions: torch.Tensor) -> None:
    """Resets the world and takes all actions."""
    state = world.reset(frames)
    for action in actions.unbind(1):
        state = world.step(state, action).state


def published_row(
    tokenizer: ContextVQGAN, predictor: AutoregressivePredictor, frames: torch.Tensor, actions: torch.Tensor
) -> Row:
    """Returns the row of the published way: the prefix again for each frame, and the frame painted in float32."""
    baseline, tokens = Reprefilling(predictor, quick=False), tokenizer.tokenize(frames)
    features = tokenizer.observe(tokens.context)
    every, first = predictor.config.dynamics_tokens + 1, predictor.config.prompt
    dynamics = torch.zeros(1, STEPS, predictor.config.dynamics_tokens, dtype=torch.long)
    ids, spent = predictor.sequence(tokens.context, dynamics), 0.0
    for frame in range(STEPS):
        told = ids[:, : first + frame * every]
        spent += seconds(lambda told=told, frame=frame: baseline.frame(told, actions[:, : frame + 1]))
        spent += seconds(lambda: tokenizer.paint(dynamics[:, :1], features))
    return whole_row("prefix again, as published, and painting", "fp32", spent / STEPS, None)


def whole_row(name: str, weights: str, step: float, beside: Row | None) -> Row:
    """Returns the columns that every row has."""
    made: Row = {"whole step": name, "weights": weights, "CPU-s a step": step, "steps a CPU-s": 1 / step}
    if beside is not None:
        made["times faster"] = beside["CPU-s a step"] / step
    return made
