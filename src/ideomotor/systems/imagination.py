"""What a model imagines, made visible and measured: context, truth and imagination of real clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ideomotor.data.formats import open_dataset
from ideomotor.data.mixture import Source
from ideomotor.data.video_writing import container_of, encode_bytes, write_video
from ideomotor.data.windows import WindowIndex, read_frames
from ideomotor.diffusion.samplers import Order
from ideomotor.evaluation.video_metrics import SquaredError, moving_error, repeat_last
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.denoising_film import denoising_film
from ideomotor.systems.panels import HOTTEST, comparison, enlarged
from ideomotor.systems.sources import DataFacts, read_facts
from ideomotor.systems.stages import domain_of
from ideomotor.systems.vpdd_imagine import imagine
from ideomotor.systems.vpdd_stages import Models, load_models, text_encoder
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.training.checkpoint import write_json
from ideomotor.types import Episode, domain_id

FPS = 5.0  # of written videos: slow enough to compare


def imagine_held_out(models: Models, sources: Sequence[Source], out: Path, clips: int = 200, shown: int = 6) -> None:
    """Foretells held-out clips and writes imagination.json: moving-pixel PSNR beside that of repeating the last frame.

    Args:
        models: of a finished pre-training stage.
        sources: held-out episodes; clips are spread evenly over all their windows.
        out: folder for the figures and the videos of ``shown`` clips.
        clips: how many are measured at most.
        shown: how many are written as videos.
    """
    frames, texts, names, domain = _spread(sources, clips)
    config, context = models.config, models.config.window.context
    tokenizer, predictor = _foretelling(models)
    vectors = text_encoder(config)(texts)
    parts = zip(frames[:, :context].split(32), vectors.split(32), domain.split(32), strict=True)
    imagined = torch.cat([imagine(config, tokenizer, predictor, seen, said, domain=of) for seen, said, of in parts])
    write_imagination(out, frames, imagined, texts, names, shown, {"steps": config.imagine_steps})


def write_imagination(
    out: Path,
    frames: UInt8[Tensor, "b t c h w"],
    imagined: UInt8[Tensor, "b u c h w"],
    texts: Sequence[str],
    names: Sequence[str],
    shown: int,
    facts: Mapping[str, Any],
) -> None:
    """Writes imagination.json, with ``facts``, and videos of ``shown`` clips, whose last frames were ``imagined``."""
    context = frames.shape[1] - imagined.shape[1]
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
            (out / f"{name}-{part}.mp4").write_bytes(encode_bytes(enlarged(video), FPS))
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
            **facts,
            "clips": rows,
        },
    )


def imagine_file(
    model: Path,
    source: Path,
    out: Path,
    *,
    text: str | None = None,
    domain: str | None = None,
    episode: str | None = None,
    start: int | None = None,
    stride: int | None = None,
    rounds: int = 1,
    samples: int = 1,
    steps: int | None = None,
    temperature: float | None = None,
    order: Order = "confidence",
    guidance: float = 1.0,
    seed: int = 0,
    film: Path | None = None,
) -> list[str]:
    """Writes a video of truth, imagined futures and the first one's error; returns lines that say what it shows.

    ``temperature`` is 0 for one future and 1 for several unless it is given; ``film`` gets the denoising pass by pass;
    ``domain`` is what the clip is of, by default that of the data that the model's stage learned from.

    Raises:
        ValueError: the model has no predictor, the clip is too short, or a setting makes no sense.
    """
    if temperature is None:
        temperature = float(samples > 1)
    _check_sampling(samples, steps, temperature, order, guidance)
    check_written(source, out, film)
    models = load_models(model)
    tokenizer, predictor = _foretelling(models)
    config = models.config
    chosen, facts = pick_episode(model, source, episode)
    of = domain_id(_domain(model, predictor, facts, domain))
    if stride is None:
        stride = config.window.stride if facts is None else facts.stride
    start = chosen.length // 3 if start is None else start
    horizon = config.window.horizon * rounds
    if not 0 <= start < chosen.length:
        raise ValueError(f"start is {start}; the clip has frames 0..{chosen.length - 1}: take one of these")
    if min(rounds, stride) < 1:
        raise ValueError(f"rounds is {rounds}, stride is {stride}; both start at 1")
    back = [max(0, start - stride * k) for k in reversed(range(config.window.context))]
    ahead = [min(chosen.length - 1, start + stride * (k + 1)) for k in range(horizon)]
    cameras = [] if facts is None else [name for name in facts.camera.split(",") if name in chosen.frames]
    cameras = cameras or list(chosen.frames)[: config.views]
    if len(cameras) != config.views:
        raise ValueError(f"the model looks through {config.views} cameras; {chosen.id} has {', '.join(chosen.frames)}")
    size = (config.size, config.size)
    frames = torch.cat([read_frames(chosen, camera, back + ahead, size) for camera in cameras], -2)[None]
    said = chosen.text if text is None else text
    context, truth = frames[:, : len(back)], frames[:, len(back) :]
    passes: list[Int[Tensor, "samples latent n"]] = []
    futures = imagine(
        config, tokenizer, predictor, context.expand(samples, -1, -1, -1, -1), text_encoder(config)([said] * samples),
        rounds, temperature, torch.Generator().manual_seed(seed),
        domain=torch.full((samples,), of), steps=steps, order=order, guidance=guidance,
        watch=passes.append if film else None,
    )  # fmt: skip
    write_video(out, comparison(context[0], truth[0], futures), FPS)
    lines = [
        f"{out}: context (blue), truth (green), {samples} imagined (orange), and the {'first ' * (samples > 1)}"
        f"imagined one's error (magenta; black none, white {HOTTEST} of 255 or more); {horizon} frames, {stride} "
        f"apart, from frame {start} of {chosen.id}",
        f'text: "{said}"',
    ]
    if film is not None:
        write_video(film, denoising_film(tokenizer, predictor, passes, context[0], truth[0], futures), FPS)
        lines.append(f"{film}: the same futures as they are denoised, {len(passes)} passes; grey is not known yet")
    return lines + measured(context, truth, futures, start + stride * horizon - (chosen.length - 1))


def check_written(source: Path, out: Path, film: Path | None) -> None:
    """Refuses to write where the input or a folder lies, or files that cannot hold a video.

    Raises:
        ValueError: naming the path.
    """
    for path in (out, *filter(None, [film])):
        container_of(path)
        if path.is_dir():
            raise ValueError(f"{path} is a folder, and a video is to be written there: give the name of a file")
        if path.resolve().is_relative_to(source.resolve()):  # the file itself, or a place in the data set
            raise ValueError(f"{path} would overwrite or join the input {source}: choose another --out or --film")
    if film is not None and film.resolve() == out.resolve():
        raise ValueError(f"film and out are both {out}: give the film a name of its own")


def _check_sampling(samples: int, steps: int | None, temperature: float, order: str, guidance: float) -> None:
    if samples < 1:
        raise ValueError(f"samples is {samples}; wanted 1 or more")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; wanted 1 or more passes, or none for those of the model's settings")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; wanted 0 (the likeliest future) or more, 1 draws as learned")
    if order not in get_args(Order):
        raise ValueError(f"order is {order!r}; wanted one of {', '.join(get_args(Order))}")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance is {guidance}; wanted 0 (the sentence is ignored) or more, 1 is none")
    if samples > 1 and temperature == 0 and order != "random":
        raise ValueError(
            f"samples is {samples} at temperature 0, and all of them would be the same: take a temperature above 0, "
            "order random, or 1 sample"
        )


def measured(
    context: UInt8[Tensor, "1 t c h w"],
    truth: UInt8[Tensor, "1 u c h w"],
    futures: UInt8[Tensor, "samples u c h w"],
    beyond: int,
) -> list[str]:
    """Returns lines on how far the first future is off; ``beyond`` frames of the truth lie behind the clip's end."""
    error = moving_error(truth, futures[:1], context[:, -1:])
    still = moving_error(truth, repeat_last(context, truth.shape[1]), context[:, -1:])
    lines = []
    if error.count:
        lines.append(f"moving-pixel PSNR {error.psnr:.1f} dB; repeating the last frame {still.psnr:.1f} dB")
    if beyond > 0:
        lines.append(
            f"the clip ends {beyond} frames before the horizon does: its last frame stands for them in the truth"
        )
    return lines


def noted(model: Path, source: Path, episodes: int) -> DataFacts | None:
    """Returns what the model's stage noted of a data set: of its path, or moved with the run, of its name and size."""
    path, every = source.resolve(), read_facts(model)
    moved = [one for one in every if Path(one.path).name == path.name and one.learned + len(one.held_out) == episodes]
    return next((one for one in every if one.path == str(path)), moved[0] if moved else None)


def _domain(model: Path, predictor: DiscreteDiffusionPredictor, facts: DataFacts | None, named: str | None) -> str:
    """The domain of a clip: as named, else that of its data set, else that of all that the model's stage was shown."""
    if named is None:
        return domain_of(model) if facts is None else facts.domain
    if predictor.config.domains == 0:
        raise ValueError(
            f"domain is {named!r}; this model knows no domains (predictor.domains is 0): leave out --domain, or "
            "pre-train one with --domains"
        )
    return named


def pick_episode(model: Path, source: Path, episode: str | None) -> tuple[Episode, DataFacts | None]:
    """Returns the episode of that id, and what the model's stage noted of its data set.

    Where none is named it is the first that the stage held out, or the first of a data set that it does not know.

    Raises:
        ValueError: there is none of that id.
    """
    episodes = open_dataset(source).episodes
    facts = noted(model, source, len(episodes))
    if facts is not None and episode is None:  # one that was not learned from
        there = {candidate.id for candidate in episodes}
        episode = next((name for name in facts.held_out if name in there), None)
    return _find_episode(source, episodes, episode), facts


def _find_episode(source: Path, episodes: Sequence[Episode], episode: str | None) -> Episode:
    """Returns the episode of that id; the first where none is named.

    Raises:
        ValueError: there is none of that id.
    """
    if episode is None:
        return episodes[0]
    for candidate in episodes:
        if candidate.id == episode:
            return candidate
    some = ", ".join(candidate.id for candidate in episodes[:8])
    raise ValueError(
        f"{source} has no episode {episode!r}; it has {len(episodes)}: {some}{', ...' if len(episodes) > 8 else ''}"
    )


def _foretelling(models: Models) -> tuple[VQVAE3D, DiscreteDiffusionPredictor]:
    if models.predictor is None or models.tokenizer is None:
        raise ValueError(
            "this model has no predictor, so it imagines nothing: give the --out folder of `ideomotor vpdd pretrain`"
        )
    return models.tokenizer, models.predictor


def _spread(
    sources: Sequence[Source], clips: int
) -> tuple[UInt8[Tensor, "b t c h w"], list[str], list[str], Int[Tensor, " b"]]:
    """Evenly spaced windows of all the sources' episodes: frames, texts, names, domains."""
    every = [(source, WindowIndex(source.dataset, source.window)) for source in sources]
    total = sum(len(index) for _, index in every)
    places = [round((k + 0.5) * total / min(clips, total) - 0.5) for k in range(min(clips, total))]
    frames, texts, names, domains = [], [], [], []
    first = 0
    for source, index in every:
        cameras = source.camera_names().values()
        for place in places:
            if first <= place < first + len(index):
                number, anchor = index.locate(place - first)
                episode = source.dataset.episodes[number]
                steps = source.window.frame_indices(anchor, episode.length).tolist()
                frames.append(torch.cat([episode.frames[camera].read(steps) for camera in cameras], -2))
                texts.append(episode.text)
                domains.append(domain_id(source.domain))
                names.append(f"{source.dataset.name} {episode.id}, frame {anchor}")
        first += len(index)
    return torch.stack(frames), texts, names, torch.tensor(domains)


def _pooled(errors: Sequence[SquaredError]) -> SquaredError:
    return sum(errors[1:], errors[0])
