"""What a world imagines of one episode: as a video beside the truth, or as tokens and frames in an npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ideomotor.data.segments import SegmentWindow
from ideomotor.data.video_writing import container_of, write_video
from ideomotor.data.windows import read_frames
from ideomotor.evaluation.video_metrics import moving_error, repeat_last
from ideomotor.files import replacing
from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import PUBLISHED_SAMPLING
from ideomotor.systems.imagination import pick_episode
from ideomotor.systems.ivideogpt_stages import load_config
from ideomotor.systems.panels import HOTTEST, comparison
from ideomotor.systems.world import Imagination, World
from ideomotor.systems.world_pace import pace_of
from ideomotor.types import Episode

FPS = 5.0  # of written videos: slow enough to compare


def imagine_episode(
    folder: Path,
    source: Path,
    out: Path,
    *,
    episode: str | None = None,
    start: int | None = None,
    stride: int | None = None,
    context: int | None = None,
    horizon: int = 14,
    samples: int = 1,
    greedy: bool = False,
    temperature: float | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> list[str]:
    """Imagines ``horizon`` frames after the first ``context`` from ``start`` on; returns lines that say what was made.

    An ``out`` of .npz gets ``frames`` (samples, context and horizon, h, w, 3), ``context_tokens`` and ``tokens``; any
    other a video of truth, futures and the first one's error.

    Raises:
        ValueError: the context is not the world's, the episode is too short or has no actions, there is no such device,
            or a setting makes no sense.
    """
    config = load_config(folder)
    _check(source, out, samples, horizon, stride, greedy, temperature)
    sampling = Sampling(temperature=0) if greedy else PUBLISHED_SAMPLING
    if temperature is not None:
        sampling = Sampling(temperature=temperature, top_k=PUBLISHED_SAMPLING.top_k)
    world = World.load(folder, device=device, sampling=sampling, seed=seed)
    if context not in (None, world.context):
        raise ValueError(
            f"context is {context} frames; the world in {folder} was built for {world.context}: leave --context out, "
            "or bring tokenizer and world to that length (`ideomotor ivideogpt resize`) and train on"
        )
    chosen, facts = pick_episode(folder, source, episode)
    if stride is None:
        stride = pace_of(folder, config.window).strides[0] if facts is None else facts.stride
    start = 0 if start is None else start
    window = SegmentWindow(
        frames=world.context + horizon, context=world.context, stride=stride, pooled=config.window.pooled
    )
    if start < 0 or start + stride * (world.context - 1) >= chosen.length:
        raise ValueError(
            f"start is {start}; {chosen.id} has frames 0..{chosen.length - 1}, of which the context needs "
            f"{world.context}, {stride} apart: take an earlier one, a longer episode, or a smaller --stride"
        )
    size = (world.tokenizer.config.size,) * 2
    indices = start + stride * np.arange(window.frames)
    known = int((indices < chosen.length).sum())
    cameras = [] if facts is None else [name for name in facts.camera.split(",") if name in chosen.frames]
    frames = read_frames(chosen, [*cameras, *chosen.frames][0], indices[:known].tolist(), size)
    actions = _actions(world, chosen, window, start)
    seen = frames[None, : world.context].expand(samples, -1, -1, -1, -1)
    told = None if actions is None else actions.expand(samples, -1, -1)
    imagined = _at_hand(world.imagine(seen, horizon, told))
    lines = [f"{out}: {horizon} frames after frames {indices[0]} to {indices[world.context - 1]} of {chosen.id}"]
    truth = frames[world.context :]
    if known < window.frames:
        lines.append(f"the episode ends {window.frames - known} frames before the horizon does")
    if out.suffix == ".npz":
        _write_arrays(out, world, seen, imagined)
    else:
        shown = torch.cat([truth, truth[-1:].expand(horizon - len(truth), -1, -1, -1)]) if len(truth) else seen[0, -1:]
        write_video(out, comparison(seen[0], shown.expand(horizon, -1, -1, -1), imagined.frames), FPS)
        lines.append(
            f"context (blue), truth (green), {samples} imagined (orange), the first one's error (magenta; white is "
            f"{HOTTEST} of 255 or more)"
        )
    if len(truth):
        error = moving_error(truth[None], imagined.frames[:1, : len(truth)], seen[:1, -1:])
        still = moving_error(truth[None], repeat_last(seen[:1], len(truth)), seen[:1, -1:])
        if error.count:
            lines.append(f"moving-pixel PSNR {error.psnr:.1f} dB; repeating the last frame {still.psnr:.1f} dB")
    return lines


def _check(
    source: Path, out: Path, samples: int, horizon: int, stride: int | None, greedy: bool, temperature: float | None
) -> None:
    if out.suffix != ".npz":
        container_of(out)
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} would overwrite the input: choose another --out")
    if samples < 1 or horizon < 1 or (stride is not None and stride < 1):
        raise ValueError(f"samples {samples}, horizon {horizon} and stride {stride} must be at least 1")
    if greedy and (samples > 1 or temperature is not None):
        raise ValueError("greedy takes the likeliest tokens, so there is one future and no temperature: leave one out")


def _at_hand(imagined: Imagination) -> Imagination:
    rewards = None if imagined.rewards is None else imagined.rewards.cpu()
    return Imagination(imagined.frames.cpu(), imagined.tokens.cpu(), rewards)


def _write_arrays(out: Path, world: World, seen: UInt8[Tensor, "b t c h w"], imagined: Imagination) -> None:
    tokens = world.tokenizer.tokenize(seen[:1].to(world.device))
    painted = world.tokenizer.observe(tokens.context).frames.cpu()
    whole = torch.cat([painted.expand(len(seen), -1, -1, -1, -1), imagined.frames], 1)
    arrays = {
        "frames": whole.permute(0, 1, 3, 4, 2).numpy(),
        "context_tokens": tokens.context[0].cpu().numpy(),
        "tokens": imagined.tokens.numpy(),
    }
    if imagined.rewards is not None:
        arrays["rewards"] = imagined.rewards.numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _actions(world: World, episode: Episode, window: SegmentWindow, start: int) -> torch.Tensor | None:
    """The actions that lead to the imagined frames, 1 x horizon x a."""
    if not world.action_width:
        return None
    if episode.read_actions is None:
        raise ValueError(f"{episode.id} records no actions, and this world wants them: take an episode that has them")
    recorded = episode.read_actions()
    if recorded.shape[1] != world.action_width:
        raise ValueError(
            f"{episode.id} has actions of width {recorded.shape[1]}; this world hears {world.action_width}: take data "
            "of the robot it was trained on"
        )
    rows = start + window.stride * np.arange(world.context - 1, window.frames - 1)
    between = rows[:, None] + np.arange(window.stride if window.pooled else 1)
    if between[-1, -1] >= episode.length:
        fit = int((between[:, -1] < episode.length - 1).sum())  # the last row leads to no frame
        way = f"shorten --horizon to {fit}" if fit else "take a longer episode"
        raise ValueError(
            f"{episode.id} has {episode.length} frames and actions, and frame {between[-1, -1]} is asked for: "
            f"{way}, or begin earlier (--start)"
        )
    return torch.from_numpy(recorded[between].mean(1, dtype=recorded.dtype))[None]
