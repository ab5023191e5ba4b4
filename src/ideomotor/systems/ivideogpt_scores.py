"""How good a world is: how near each step comes, beside a picture that stands still, and whether actions are heard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from rich.table import Table
from torch import Tensor

from ideomotor.data.segments import SegmentWindow
from ideomotor.evaluation.action_sensitivity import ActionSensitivity, action_sensitivity, exchanged
from ideomotor.evaluation.statistics import Estimate
from ideomotor.evaluation.video_metrics import SquaredError, moving_error, mse, repeat_last
from ideomotor.evaluation.video_protocols import (
    IVIDEOGPT,
    STRICT,
    Comparison,
    VideoProtocol,
    compare_videos,
    join,
    video_table,
)
from ideomotor.evaluation.world_page import STILL
from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import PUBLISHED_SAMPLING
from ideomotor.systems.devices import device_named
from ideomotor.systems.held_out import HeldOut, held_out_clips
from ideomotor.systems.ivideogpt_stages import load_config
from ideomotor.systems.progress import bar
from ideomotor.systems.video_scoring import NO_JUDGES, Judges, VideoScoring, open_judges, protocol_table
from ideomotor.systems.world import World
from ideomotor.training.checkpoint import write_json

_AT_ONCE = 16  # clips imagined together


@dataclass(frozen=True, kw_only=True)
class WorldScores:
    """Figures of a world on held-out clips.

    Attributes:
        moving_psnr: by name ("world", "last frame repeated", perhaps another world), a figure a step, in dB.
        strict: the table of the strict protocol: value, low and high by metric and reduction.
        ivideogpt: that of the published protocol; None where it was not asked for.
        sensitivity: squared error (pixels in 0..1) with the true actions, and how much more with another clip's
            actions and with none; None for a world without actions, and where one clip is all there is.
        reward_error: mean absolute error of the foretold rewards ("world"), and of saying at every step the mean of
            the very rewards that were to be foretold ("their mean"), which no world can know; None for a world that
            foretells none, and for clips without any.
        clips, samples, futures, horizon: what was scored.
    """

    moving_psnr: dict[str, list[float]]
    strict: dict[str, Estimate]
    ivideogpt: dict[str, Estimate] | None
    sensitivity: ActionSensitivity | None
    reward_error: dict[str, float] | None
    clips: int
    samples: int
    futures: int
    horizon: int


def evaluate(
    folder: Path,
    data: Sequence[Path],
    out: Path,
    *,
    against: Path | None = None,
    clips: int = 64,
    samples: int = 1,
    futures: int = 1,
    scoring: VideoScoring | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> WorldScores:
    """Scores the world in a stage's folder and writes the figures; see ``ideomotor ivideogpt evaluate --help``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: weights that are asked for are not there.
        ValueError: no sample, no such device, files that are others, or worlds and clips that do not fit together.
    """
    if min(samples, futures) < 1:
        raise ValueError(f"samples is {samples}, futures {futures}; wanted at least one future of each clip")
    config, scoring = load_config(folder), scoring or VideoScoring()
    judges = open_judges(scoring, device_named(device))
    sampling = Sampling(temperature=0) if samples == futures == 1 else PUBLISHED_SAMPLING
    world = World.load(folder, device=device, sampling=sampling, seed=seed)
    # By the whole path: folders of other runs are often called "world" too.
    others = {} if against is None else {str(against): World.load(against, device=device, sampling=sampling, seed=seed)}
    shape = config.window
    window = SegmentWindow(frames=shape.frames, context=shape.context, stride=shape.stride, pooled=shape.pooled)
    held_out = held_out_clips(folder, data, window, config.size, clips)
    scores = score(
        world, held_out, others, samples=samples, futures=futures, published=scoring.protocol == "ivideogpt",
        judges=judges, seed=seed,
    )  # fmt: skip
    write_json(out, as_json(scores))
    return scores


def score(
    world: World,
    clips: HeldOut,
    others: dict[str, World] | None = None,
    *,
    samples: int = 1,
    futures: int = 1,
    published: bool = False,
    judges: Judges = NO_JUDGES,
    seed: int = 0,
) -> WorldScores:
    """Returns the figures of a world, beside other worlds on the same clips.

    Args:
        world: what is scored.
        clips: that it never saw.
        others: by name, other worlds, whose moving pixels are scored too.
        samples: futures of each clip that the protocols score.
        futures: drawn futures whose mean is the picture that is scored elsewhere. A squared error is least for the
            picture expected; a single future also pays for where it happened to go. A greedy world has but one.
        published: score the videos by the published protocol too.
        judges: further networks that tell videos apart, where the world is.
        seed: of the draws.
    """
    context, horizon = world.context, clips.frames.shape[1] - world.context
    worlds = {"world": world, **(others or {})}
    refuse_other_actions(worlds, clips)
    errors = {name: [SquaredError()] * horizon for name in [*worlds, STILL]}
    gaps, foretold = [], []
    parts: dict[VideoProtocol, list[Comparison]] = {STRICT: [], **({IVIDEOGPT: []} if published else {})}
    swapped = None  # the actions of another clip, whichever
    if clips.actions is not None and len(clips.frames) > 1:
        swapped = exchanged(clips.actions[:, context - 1 : -1], torch.Generator().manual_seed(seed))
    rows = list(range(0, len(clips.frames), _AT_ONCE))
    with bar("imagine held-out clips") as tell:
        for done, first in enumerate(rows):
            frames = clips.frames[first : first + _AT_ONCE]
            actions = None if clips.actions is None else clips.actions[first : first + _AT_ONCE, context - 1 : -1]
            seen, truth, last = frames[:, :context], frames[:, context:], frames[:, context - 1 : context]
            videos = {STILL: repeat_last(seen, horizon)}
            for name, each in worlds.items():
                each.seed(seed + first)
                videos[name], rewards = _expected(each, seen, horizon, actions, futures)
                if each is world and rewards is not None:
                    foretold.append(rewards)
            for name, video in videos.items():
                steps = [moving_error(truth[:, k : k + 1], video[:, k : k + 1], last) for k in range(horizon)]
                errors[name] = [a + b for a, b in zip(errors[name], steps, strict=True)]
            drawn = [videos["world"]] if futures == 1 else []  # a mean of futures is none of them
            while len(drawn) < samples:
                drawn.append(world.imagine(seen, horizon, actions if world.action_width else None).frames.cpu())
            for protocol, compared in parts.items():
                compared.append(_compared(world, frames, drawn, protocol, judges))
            if world.action_width and swapped is not None:
                wrong = swapped[first : first + _AT_ONCE]
                gaps.append(_heard(world, seen, truth, wrong, videos["world"], futures, seed + first))
            tell(done + 1, len(rows))
    tables = {protocol: _figures(join(compared), clips.episodes) for protocol, compared in parts.items()}
    sensitivity = None
    if gaps:
        true, shuffled, zero = (torch.cat(column) for column in zip(*gaps, strict=True))
        sensitivity = action_sensitivity(true, shuffled, zero, clips.episodes)
    return WorldScores(
        moving_psnr={name: [step.psnr for step in steps] for name, steps in errors.items()},
        strict=tables[STRICT],
        ivideogpt=tables.get(IVIDEOGPT),
        sensitivity=sensitivity,
        reward_error=_reward_error(foretold, clips.rewards, context),
        clips=len(clips.frames),
        samples=samples,
        futures=futures,
        horizon=horizon,
    )


def refuse_other_actions(worlds: Mapping[str, World], clips: HeldOut) -> None:
    """Refuses clips without the actions that a world wants, or with actions of another robot.

    Raises:
        ValueError: naming the world and both widths.
    """
    there = None if clips.actions is None else clips.actions.shape[-1]
    for name, world in worlds.items():
        if world.action_width and there != world.action_width:
            found = "some clips record no actions" if there is None else f"the clips have actions of width {there}"
            raise ValueError(
                f"{found}, and {name!r} hears actions of width {world.action_width}: score it on data of its own robot "
                "(--data)"
            )


def _compared(
    world: World,
    frames: UInt8[Tensor, "b t c h w"],
    drawn: Sequence[UInt8[Tensor, "b horizon c h w"]],
    protocol: VideoProtocol,
    judges: Judges,
) -> Comparison:
    """The futures beside the truth, on the world's device; their context is as the tokenizer gives it back."""
    frames = frames.to(world.device)
    seen = frames[:, : world.context]
    if protocol.context_counts:
        seen = world.tokenizer.observe(world.tokenizer.tokenize(seen).context).frames
    whole = torch.stack([torch.cat([seen, future.to(world.device)], 1) for future in drawn])
    return compare_videos(frames, whole, protocol, context=world.context, lpips=judges.lpips, features=judges.features)


def _figures(comparison: Comparison, episodes: Sequence[str]) -> dict[str, Estimate]:
    rows = video_table(comparison, episodes).rows
    return {f"{metric} ({reduction})": row for (metric, reduction), row in rows.items()}


def _expected(
    world: World,
    seen: UInt8[Tensor, "b context c h w"],
    horizon: int,
    actions: Float[Tensor, "b horizon a"] | None,
    futures: int,
) -> tuple[UInt8[Tensor, "b horizon c h w"], Float[Tensor, "b horizon"] | None]:
    """The mean of so many futures, and of their rewards."""
    count = 1 if world.sampling.temperature == 0 else futures
    imagined = [world.imagine(seen, horizon, actions if world.action_width else None) for _ in range(count)]
    frames = torch.stack([one.frames.cpu() for one in imagined]).float().mean(0).round().to(torch.uint8)
    rewards = [one.rewards.cpu() for one in imagined if one.rewards is not None]
    return frames, torch.stack(rewards).mean(0) if rewards else None


def _reward_error(
    foretold: list[Float[Tensor, "b horizon"]], rewards: Float[Tensor, "b t"] | None, context: int
) -> dict[str, float] | None:
    if not foretold or rewards is None:
        return None
    brought = rewards[:, context - 1 : -1]
    named = {"world": torch.cat(foretold), "their mean": brought.mean()}
    return {name: float((said - brought).abs().mean()) for name, said in named.items()}


def _heard(
    world: World,
    seen: UInt8[Tensor, "b t c h w"],
    truth: UInt8[Tensor, "b t c h w"],
    wrong: Float[Tensor, "b t a"],
    imagined: UInt8[Tensor, "b t c h w"],
    futures: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors with the true actions, wrong ones, and none; drawn from the same seed."""
    errors = [mse(truth, imagined).mean(1)]
    for other in (wrong, torch.zeros_like(wrong)):
        world.seed(seed)
        errors.append(mse(truth, _expected(world, seen, truth.shape[1], other, futures)[0]).mean(1))
    return errors[0], errors[1], errors[2]


def as_json(scores: WorldScores) -> dict[str, Any]:
    """Returns the figures as plain values; an interval that cannot be had (one episode) is null."""
    plain = asdict(scores)
    plain["strict"] = {name: row.plain() for name, row in scores.strict.items()}
    if scores.ivideogpt is not None:
        plain["ivideogpt"] = {name: row.plain() for name, row in scores.ivideogpt.items()}
    if scores.sensitivity is not None:
        plain["sensitivity"] = {name: row.plain() for name, row in scores.sensitivity._asdict().items()}
    return plain


def score_table(scores: WorldScores) -> Table:
    """Returns the figures a step for the terminal."""
    table = Table("step", *scores.moving_psnr, title=f"moving-pixel PSNR in dB, {scores.clips} held-out clips")
    for step in range(scores.horizon):
        table.add_row(str(step + 1), *(f"{values[step]:.2f}" for values in scores.moving_psnr.values()))
    if scores.sensitivity is not None:
        gap = scores.sensitivity.shuffled
        within = "all of one episode, so no interval"
        if math.isfinite(gap.low):
            within = f"{gap.low:.2e} to {gap.high:.2e}"
        table.caption = f"with another clip's actions the squared error is {gap.value:.2e} more ({within})"
    if scores.reward_error is not None:
        said = ", ".join(f"{name} {error:.3g}" for name, error in scores.reward_error.items())
        table.caption = f"{table.caption or ''}\nmean absolute error of the rewards: {said}".lstrip()
    return table


def video_scores_table(scores: WorldScores) -> Table:
    """Returns the figures of each protocol for the terminal, with what they need to be compared."""
    said = f"{scores.clips} clips, {scores.samples} futures each, {scores.horizon} frames foretold"
    return protocol_table({"strict": scores.strict, "ivideogpt": scores.ivideogpt or {}}, said)
