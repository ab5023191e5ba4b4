"""How well a learned world foretells an episode that it has not learned from: its pictures, its rewards, a video."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor import files
from ideomotor.data.replay import Segments, Trajectory, draw_segments
from ideomotor.types import WorldModel

Film = Callable[[Path, UInt8[Tensor, "t c h w"], UInt8[Tensor, "u c h w"], UInt8[Tensor, "u c h w"]], None]
"""Writes a video to a path without suffix: what was seen, what followed, what was imagined."""

_SEGMENTS = 8


@dataclass(frozen=True, kw_only=True)
class WorldScore:
    """Mean squared errors over segments; the lists have an entry a step of the horizon. Pixels count from 0 to 1.

    Attributes:
        pixels: of imagined frames.
        still: of the last frame seen, shown again and again.
        rewards: of foretold rewards, in the world's units.
        constant: of always saying the mean of these rewards, which no world can know.
    """

    pixels: list[float]
    still: list[float]
    rewards: list[float]
    constant: float


def score_world(
    world: WorldModel, episode: Trajectory, horizon: int, seed: int, path: Path, film: Film | None = None
) -> WorldScore:
    """Lets the world foretell segments of the episode under its true actions; writes ``path``.json, and a video of one.

    Raises:
        ValueError: the episode is shorter than a segment.
    """
    count = min(_SEGMENTS, len(episode))
    segments = draw_segments([episode], count, world.context + horizon, seed, 0)
    frames, rewards = foretold(world, segments)
    score = scored(world.context, segments, frames, rewards)
    path.parent.mkdir(parents=True, exist_ok=True)
    if film is not None:
        seen, truth = segments.frames[0].tensor_split([world.context])
        film(path, seen, truth, frames[0])
    files.write_text(path.with_suffix(".json"), json.dumps(asdict(score), indent=1) + "\n")
    return score


def foretold(
    world: WorldModel, segments: Segments
) -> tuple[UInt8[Tensor, "b horizon c h w"], Float[Tensor, "b horizon"] | None]:
    """Returns what the world imagines behind the segments' context, under their actions."""
    state, frames, rewards = world.reset(segments.frames[:, : world.context]), [], []
    for row in range(world.context - 1, segments.frames.shape[1] - 1):  # the action at a frame leads to the next
        imagined = world.step(state, segments.actions[:, row])
        state = imagined.state
        frames.append(imagined.frames.cpu())
        if imagined.reward is not None:
            rewards.append(imagined.reward.cpu().float())
    return torch.stack(frames, 1), torch.stack(rewards, 1) if rewards else None


def scored(
    context: int,
    segments: Segments,
    frames: UInt8[Tensor, "b horizon c h w"],
    rewards: Float[Tensor, "b horizon"] | None,
) -> WorldScore:
    """Returns how far from the truth that is. A frame's reward is what the action before it brought."""
    truth = segments.frames[:, context:].float() / 255
    still = segments.frames[:, context - 1 : context].float() / 255
    brought = segments.rewards[:, context - 1 : -1]
    return WorldScore(
        pixels=(frames.float() / 255 - truth).square().mean((0, 2, 3, 4)).tolist(),
        still=(still - truth).square().mean((0, 2, 3, 4)).tolist(),
        rewards=[] if rewards is None else (rewards - brought).square().mean(0).tolist(),
        constant=float(brought.var(correction=0)),
    )
