"""What a model imagines, made visible and measured: context, truth and imagination of real clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from ideomotor.data.formats import open_dataset
from ideomotor.data.mixture import Source
from ideomotor.data.video_writing import encode_bytes, write_video
from ideomotor.data.windows import WindowIndex, read_frames
from ideomotor.evaluation.video_metrics import SquaredError, moving_error, repeat_last
from ideomotor.systems.sources import read_facts
from ideomotor.systems.vpdd import VIEW, imagine
from ideomotor.systems.vpdd_stages import Models, load_models, text_encoder
from ideomotor.training.checkpoint import write_json
from ideomotor.types import Episode

FPS = 5.0  # of written videos: slow enough to compare
FRAME = {"seen": (60, 120, 220), "truth": (60, 160, 80), "imagined": (225, 140, 30)}  # border colours, RGB


def imagine_held_out(models: Models, sources: Sequence[Source], out: Path, clips: int = 200, shown: int = 6) -> None:
    """Foretells held-out clips and writes imagination.json: moving-pixel PSNR beside that of repeating the last frame.

    Args:
        models: of a finished pre-training stage.
        sources: held-out episodes; clips are spread evenly over all their windows.
        out: folder for the figures and the videos of ``shown`` clips.
        clips: how many are measured at most.
        shown: how many are written as videos.
    """
    frames, texts, names = _spread(sources, clips)
    config, context = models.config, models.config.window.context
    imagined = _imagine(models, frames[:, :context], texts)
    truth, last = frames[:, context:], frames[:, context - 1 : context]
    ours = [moving_error(truth[i : i + 1], imagined[i : i + 1], last[i : i + 1]) for i in range(len(frames))]
    still = repeat_last(frames[:, :context], truth.shape[1])
    theirs = [moving_error(truth[i : i + 1], still[i : i + 1], last[i : i + 1]) for i in range(len(frames))]
    moving = [i for i in range(len(frames)) if ours[i].count > 0]
    # The clips that are shown are not chosen by how well they went: of those where enough moves, evenly spaced ones.
    lively = sorted(moving, key=lambda i: -ours[i].count)[: max(shown, len(moving) // 2)]
    picked = sorted(lively)[:: max(1, len(lively) // shown)][:shown]
    rows = []
    for i in picked:
        name = f"clip-{i}"
        for part, video in (("context", frames[i, :context]), ("truth", truth[i]), ("imagination", imagined[i])):
            (out / f"{name}-{part}.mp4").write_bytes(encode_bytes(_enlarged(video), FPS))
        rows.append(
            {
                "file": name,
                "text": texts[i],
                "source": names[i],
                "moving_psnr": ours[i].psnr,
                "repeat_last_moving_psnr": theirs[i].psnr,
            }
        )
    write_json(
        out / "imagination.json",
        {
            "moving_psnr": _pooled(ours).psnr,
            "repeat_last_moving_psnr": _pooled(theirs).psnr,
            "num_clips": len(frames),
            "steps": config.imagine_steps,
            "clips": rows,
        },
    )


def imagine_file(
    model: Path,
    source: Path,
    out: Path,
    *,
    text: str | None = None,
    episode: str | None = None,
    start: int | None = None,
    stride: int | None = None,
    rounds: int = 1,
    samples: int = 1,
    seed: int = 0,
) -> list[str]:
    """Writes a video of context and truth beside one or more imagined futures; returns lines that say what it shows.

    Raises:
        ValueError: the model has no predictor, or the clip is too short.
    """
    models = load_models(model)
    config = models.config
    facts = next((facts for facts in read_facts(model) if facts.path == str(source.resolve())), None)
    if facts is not None and episode is None and facts.held_out:
        episode = facts.held_out[0]  # one that was not learned from
    chosen = _find(source, episode)
    if stride is None:
        stride = config.window.stride if facts is None else facts.stride
    start = chosen.length // 3 if start is None else start
    horizon = config.window.horizon * rounds
    if not 0 <= start < chosen.length:
        raise ValueError(f"start is {start}; the clip has frames 0..{chosen.length - 1}")
    if min(rounds, samples, stride) < 1:
        raise ValueError(f"rounds is {rounds}, samples {samples}, stride is {stride}; all start at 1")
    back = [max(0, start - stride * k) for k in reversed(range(config.window.context))]
    ahead = [min(chosen.length - 1, start + stride * (k + 1)) for k in range(horizon)]
    camera = next(iter(chosen.frames)) if facts is None else facts.camera
    frames = read_frames(chosen, camera, back + ahead, (config.size, config.size))[None]
    said = chosen.text if text is None else text
    context, truth = frames[:, : len(back)], frames[:, len(back) :]
    imagined = _imagine(
        models, context.expand(samples, -1, -1, -1, -1), [said] * samples, rounds, float(samples > 1), seed
    )
    write_video(out, _panels(context[0], truth[0], imagined), FPS)
    ended = start + stride * horizon - (chosen.length - 1)
    error = moving_error(truth, imagined[:1], context[:, -1:])
    still = moving_error(truth, repeat_last(context, horizon), context[:, -1:])
    lines = [
        f"{out}: context (blue), truth (green) and {samples} imagined (orange); {horizon} frames, {stride} apart, "
        f"from frame {start} of {chosen.id}",
        f'text: "{said}"',
    ]
    if error.count:
        lines.append(f"moving-pixel PSNR {error.psnr:.1f} dB; repeating the last frame {still.psnr:.1f} dB")
    if ended > 0:
        lines.append(
            f"the clip ends {ended} frames before the horizon does: its last frame stands for them in the truth"
        )
    return lines


def _find(source: Path, episode: str | None) -> Episode:
    episodes = open_dataset(source).episodes
    if episode is None:
        return episodes[0]
    for candidate in episodes:
        if candidate.id == episode:
            return candidate
    some = ", ".join(candidate.id for candidate in episodes[:8])
    raise ValueError(
        f"{source} has no episode {episode!r}; it has {len(episodes)}: {some}{', ...' if len(episodes) > 8 else ''}"
    )


def _imagine(
    models: Models,
    context: UInt8[Tensor, "b t c h w"],
    texts: Sequence[str],
    rounds: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> UInt8[Tensor, "b t c h w"]:
    if models.predictor is None or models.tokenizer is None:
        raise ValueError(
            "this model has no predictor, so it imagines nothing: give the --out folder of `ideomotor vpdd pretrain`"
        )
    vectors = text_encoder(models.config)(texts)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        imagine(models.config, models.tokenizer, models.predictor, frames, vector, rounds, temperature, generator)
        for frames, vector in zip(context.split(32), vectors.split(32), strict=True)
    ]
    return torch.cat(parts)


def _spread(sources: Sequence[Source], clips: int) -> tuple[UInt8[Tensor, "b t c h w"], list[str], list[str]]:
    """Evenly spaced windows of all the sources' episodes."""
    every = [(source, WindowIndex(source.dataset, source.window)) for source in sources]
    total = sum(len(index) for _, index in every)
    places = [round((k + 0.5) * total / min(clips, total) - 0.5) for k in range(min(clips, total))]
    frames, texts, names = [], [], []
    first = 0
    for source, index in every:
        camera = source.camera_names()[VIEW]
        for place in places:
            if first <= place < first + len(index):
                number, anchor = index.locate(place - first)
                episode = source.dataset.episodes[number]
                frames.append(episode.frames[camera].read(source.window.frame_indices(anchor, episode.length).tolist()))
                texts.append(episode.text)
                names.append(f"{source.dataset.name} {episode.id}, frame {anchor}")
        first += len(index)
    return torch.stack(frames), texts, names


def _pooled(errors: Sequence[SquaredError]) -> SquaredError:
    return sum(errors[1:], errors[0])


def _enlarged(video: UInt8[Tensor, "t c h w"], times: int = 2) -> UInt8[Tensor, "t c h w"]:
    return video.repeat_interleave(times, -1).repeat_interleave(times, -2)


def _panels(
    context: UInt8[Tensor, "t c h w"], truth: UInt8[Tensor, "u c h w"], imagined: UInt8[Tensor, "samples u c h w"]
) -> UInt8[Tensor, "t c h w"]:
    """Truth on the left, imaginations right of it; while the context plays, all show it, framed as seen."""
    left = torch.cat([_framed(context, "seen"), _framed(truth, "truth")])
    panels = [left] + [torch.cat([_framed(context, "seen"), _framed(video, "imagined")]) for video in imagined]
    return rearrange(torch.stack(panels), "panels t c h w -> t c h (panels w)")


def _framed(video: UInt8[Tensor, "t c h w"], kind: str) -> UInt8[Tensor, "t c h w"]:
    large = _enlarged(video)
    colour = torch.tensor(FRAME[kind], dtype=torch.uint8)[:, None, None]
    framed = colour.expand(len(large), -1, large.shape[-2] + 8, large.shape[-1] + 8).clone()
    framed[:, :, 4:-4, 4:-4] = large
    return framed
