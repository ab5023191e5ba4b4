"""The stages of iVideoGPT, each a few lines: data in, an objective, a learner, a folder out that the next stage reads.

Every OUT folder is self-contained: it holds the tokenizer that the world was trained with, and ivideogpt.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from ideomotor.data.crop_jitter import normal, strong
from ideomotor.data.segments import SegmentWindow
from ideomotor.layers.lora import add_lora, merge_lora
from ideomotor.layers.perceptual import load_perceptual
from ideomotor.layers.quantize import FSQ
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.systems.ivideogpt import IVideoGPT, WorldModeling, packed
from ideomotor.systems.mixed_data import MixedData
from ideomotor.systems.recorded import recorded_actions
from ideomotor.systems.sources import DataOptions, Sources, TrainingClips, open_sources, token_caches
from ideomotor.systems.stages import (
    WORLD_FILE,
    fit,
    learned_with,
    look,
    open_run,
    read_config,
    refuse_as_out,
    refuse_strangers,
    to_train,
)
from ideomotor.systems.world_pace import other_pace
from ideomotor.tokenizers.context_config import ContextVQGANConfig
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.tokenizers.critic import Judging, Painting, PatchCritic
from ideomotor.training.checkpoint import fingerprint, load_model
from ideomotor.training.config import config_to_json, differences
from ideomotor.training.run import Run

console = Console(stderr=True, soft_wrap=True)
Augmentation = Literal["none", "normal", "strong"]


def train_tokenizer(config: IVideoGPT, clips: TrainingClips, run: Run) -> None:
    """Clip -> few tokens -> the clip again; where there is a critic, it learns beside from its start on."""
    tokenizer, stage = ContextVQGAN(config.tokenizer), config.tokenizer_stage
    perceptual, notice = load_perceptual(*config.perceptual)
    console.print(notice, markup=False)
    if perceptual is not None:
        perceptual.to(run.device)
    critic = None if config.critic is None else PatchCritic(config.critic)
    painting = run.learner(Painting(tokenizer, config.reconstruction, perceptual, critic), stage.optim, stage.steps)
    learners = [painting]
    if critic is not None:
        judging = Judging(critic, tokenizer)
        learners.append(run.learner(judging, stage.optim, stage.steps, start=config.critic_start))
    run.fit(clips.loader(stage, run), *learners, steps=stage.steps, held_out=clips.held_out(stage))
    run.save(tokenizer, config.tokenizer, "tokenizer")


def train_world(
    config: IVideoGPT,
    clips: TrainingClips,
    tokenizer: ContextVQGAN,
    run: Run,
    earlier: AutoregressivePredictor | None = None,
    lora: int = 0,
    recompute: bool = False,
) -> None:
    """Clip -> tokens -> the future's tokens, one after the other; begins with the weights of an earlier world, if any.

    ``lora`` above 0 trains pairs of that rank beside the trunk, which are merged into it at the end. ``recompute`` as
    in ``Llama``: it changes no number, so a run may go on with or without.
    """
    predictor = AutoregressivePredictor(config.world)
    sharing = config.shared_codes and earlier is None
    if earlier is not None:
        take_over(predictor, earlier)
    if sharing:
        seen, foretold = tokenizer.context_codebook, tokenizer.dynamics_codebook
        assert isinstance(seen, FSQ) and isinstance(foretold, FSQ)  # IVideoGPT sees to it
        predictor.share_codes(seen.features, foretold.features)
    predictor.trunk.recompute = recompute
    if lora:
        add_lora(predictor.trunk, lora)
    fit(WorldModeling(predictor, tokenizer), config.world_stage, clips, run)
    run.save(tokenizer, tokenizer.config, "tokenizer")
    with run.averaged():  # what is merged and saved is the average, whose names are those before the merging
        if lora:
            merge_lora(predictor.trunk)
        if sharing:
            predictor.merge_codes()
        run.save(predictor, config.world, "world", meta=learned_with(run.dir, "tokenizer"), averaged=False)


def take_over(predictor: AutoregressivePredictor, earlier: AutoregressivePredictor) -> None:
    """Copies every weight of an earlier world; heads that it lacks (actions, rewards) stay as they begin.

    Raises:
        ValueError: as ``refuse_unlike``.
    """
    refuse_unlike(predictor, earlier)
    predictor.load_state_dict(earlier.state_dict(), strict=False)


def refuse_unlike(predictor: AutoregressivePredictor, earlier: AutoregressivePredictor) -> None:
    """Refuses an earlier world whose weights do not fit.

    Raises:
        ValueError: it has other sizes, or heads for which there is no room.
    """
    ours, theirs = predictor.config, earlier.config
    alike = replace(
        theirs,
        action_width=ours.action_width,
        reward=ours.reward,
        action_reconstruction=ours.action_reconstruction,
    )
    changed = differences(config_to_json(alike), config_to_json(ours))
    lost = [name for name in earlier.state_dict() if name not in predictor.state_dict()]
    if changed or lost:
        said = "; ".join(changed + [f"no room for {name}" for name in lost])
        raise ValueError(f"the earlier world does not fit (there -> now): {said}. Give the same --world options")
    if theirs.action_width not in (0, ours.action_width):
        raise ValueError(
            f"the earlier world hears actions of width {theirs.action_width}, this one of {ours.action_width}: begin "
            "from a world without actions"
        )


def run_tokenizer(
    data: DataOptions, config: IVideoGPT, out: Path, seed: int, fresh: bool, augment: Augmentation = "none"
) -> None:
    """``ideomotor ivideogpt tokenizer``: opens the data and trains, unless the run has finished."""
    refuse_as_out(out, data)
    change = None if augment == "none" else (normal if augment == "normal" else strong)(config.size)
    seen = seen_in(data) | ({} if change is None else {"augment": augment})
    load_perceptual(*config.perceptual)  # before anything is thrown away
    stage = config.tokenizer_stage
    sources = None
    if to_train(out, fresh):
        sources = open_sources(data, config, stage, window=config.painted, augmented=change is not None)
    with open_run(out, config, seed, fresh, data, seen) as run:
        if sources is not None:
            sources.note(out)
            train_tokenizer(config, TrainingClips(sources.train, sources.validation, augment=change), run)


def run_world(
    data: DataOptions,
    config: IVideoGPT,
    tokenizer_from: Path,
    world_from: Path | None,
    lora: int,
    out: Path,
    seed: int,
    fresh: bool,
    recompute: bool = False,
) -> None:
    """``ideomotor ivideogpt world``: opens the data, tokenizes it once, and trains, unless the run has finished."""
    for earlier_stage in (tokenizer_from, world_from):
        refuse_as_out(out, data, earlier_stage)
    if lora < 0 or (lora and world_from is None):
        raise ValueError(f"--lora is {lora}: a rank above 0 needs the weights of an earlier world (--world-from)")
    seen = seen_in(data)
    tokenizer = fitting_tokenizer(tokenizer_from, config)
    earlier = None
    noted = seen | {"tokenizer": fingerprint(tokenizer, tokenizer.config), "lora": str(lora)}
    if world_from is not None:
        earlier = load_world(world_from)[1]
        noted["world"] = fingerprint(earlier, earlier.config)
        take_over(AutoregressivePredictor(config.world), earlier)  # before anything is thrown away
        if said := other_pace(world_from, load_config(world_from).window, config.window, data.strides):
            console.print(said, markup=False)
    acting = config.world.action_width > 0
    sources = None
    if to_train(out, fresh):
        sources = open_sources(data, config, config.world_stage, actions=acting, rewards=config.world.reward)
        if acting:
            refuse_other_width(config, sources)
        tell_of_short_ones(sources)
    with open_run(out, config, seed, fresh, data, noted) as run:
        if sources is not None:
            sources.note(out)
            tokenizer.to(run.device)
            clips = with_tokens(sources, tokenizer, config, data.cache)
            train_world(config, clips, tokenizer, run, earlier, lora, recompute)


def seen_in(data: DataOptions) -> dict[str, str]:
    """Returns the fingerprints of the data sets, and whether they are split as released."""
    return look(data) | ({"split": "as released"} if isinstance(data, MixedData) else {})


def refuse_other_width(config: IVideoGPT, sources: Sources) -> None:
    """Refuses data whose actions are wider or narrower than the world's.

    Raises:
        ValueError: naming both.
    """
    width = recorded_actions(sources.train).shape[1]
    if width != config.world.action_width:
        raise ValueError(
            f"the data have actions of width {width}, the world of {config.world.action_width}: set "
            f"--world.action-width {width}, or 0 for a world that nobody acts in"
        )


def tell_of_short_ones(sources: Sources) -> None:
    """Says of which data sets some episodes are too short for their frames to be as far apart as is asked for."""
    for source in sources.train:
        window, episodes = source.window, source.dataset.episodes
        assert isinstance(window, SegmentWindow)
        whole = window.stride * window.stretch
        short = [episode.length for episode in episodes if episode.length < whole] if window.stride > 1 else []
        if short:
            console.print(
                f"{len(short)} of {len(episodes)} episodes of {source.dataset.name!r} are shorter than the {whole} "
                f"frames of a segment: theirs are nearer to one another than {window.stride} (in the shortest "
                f"{window.stride_in(min(short))}). Shorten --window.frames or --window.stride, or leave them out",
                markup=False,
            )


def with_tokens(sources: Sources, tokenizer: ContextVQGAN, config: IVideoGPT, cache: Path) -> TrainingClips:
    """Returns the sources with the tokens of all windows, so that the tokenizer runs once on each."""
    tokenizer.eval()
    caches = token_caches(
        sources.train,
        lambda frames: packed(tokenizer.tokenize(frames)),
        cache,
        fingerprint(tokenizer, tokenizer.config),
        max(tokenizer.context_codes, tokenizer.dynamics_codes),
        next(tokenizer.parameters()).device,
        config.tokenizer_stage.optim,
        whole=True,
    )
    acting = config.world.action_width > 0
    return TrainingClips(
        sources.train,
        sources.validation,
        caches,
        with_frames=False,
        actions=acting,
        rewards=config.world.reward,
    )


def fitting_tokenizer(folder: Path, config: IVideoGPT) -> ContextVQGAN:
    """Returns the tokenizer of a stage.

    Raises:
        ValueError: the folder holds none, or one of other settings than ``config`` speaks of.
    """
    tokenizer = load_tokenizer(folder)
    changed = differences(config_to_json(tokenizer.config), config_to_json(config.tokenizer))
    if changed:
        raise ValueError(
            f"the tokenizer in {folder} was trained with other settings (there -> now): {'; '.join(changed)}. Give the "
            "same --preset and options, or train a tokenizer with these"
        )
    return tokenizer


def load_tokenizer(folder: Path, device: str | torch.device = "cpu") -> ContextVQGAN:
    """Returns the tokenizer in the OUT folder of a stage, or of an import."""
    _refuse_unfinished(folder, "tokenizer")
    return load_model(folder / "tokenizer", ContextVQGAN, ContextVQGANConfig, device)


def load_world(folder: Path, device: str | torch.device = "cpu") -> tuple[ContextVQGAN, AutoregressivePredictor]:
    """Returns the two networks in the OUT folder of the world stage, or of an import.

    Raises:
        ValueError: the folder holds no world, or its networks did not learn together.
    """
    _refuse_unfinished(folder, "world")
    refuse_strangers(folder, ("world",))
    predictor = load_model(folder / "world", AutoregressivePredictor, AutoregressiveConfig, device)
    return load_tokenizer(folder, device), predictor


def load_config(folder: Path) -> IVideoGPT:
    """Returns the settings that a stage left in its folder."""
    if not (folder / WORLD_FILE).is_file():
        raise ValueError(
            f"{folder} holds no stage of iVideoGPT ({WORLD_FILE}): give the --out folder of `ideomotor ivideogpt ...`"
        )
    return read_config(folder / WORLD_FILE, IVideoGPT)


def _refuse_unfinished(folder: Path, name: str) -> None:
    if not (folder / name).is_dir():
        begun = (folder / "run.json").is_file() and not (folder / "done.json").is_file()
        way = "the stage has not finished: run its command again" if begun else f"give the --out folder of `{name}`"
        raise ValueError(f"{folder} holds no {name} of iVideoGPT: {way}")
