"""Another number of context frames for a tokenizer that has learned, and for the world beside it where it fits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from ideomotor.files import drafted
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.systems.agent_worlds import PACE_FILE, repeat_of
from ideomotor.systems.importing import filled
from ideomotor.systems.ivideogpt import IVideoGPT
from ideomotor.systems.ivideogpt_stages import load_config, load_tokenizer, load_world
from ideomotor.systems.sources import DATA_FILE
from ideomotor.systems.stages import WORLD_FILE, learned_with
from ideomotor.tokenizers.context_vqgan import ContextVQGAN, resize_context
from ideomotor.training.checkpoint import save_model, write_json, writing
from ideomotor.training.config import config_to_json


def resize_ivideogpt(folder: Path, context: int, out: Path) -> list[str]:
    """Writes the networks in a stage's folder, or an import's, for a context of that many frames.

    Of the tokenizer only tables of positions change (``resize_context``), of the world nothing but what it reads; both
    want fine-tuning. A world in whose positions the context leaves no room for a frame is left behind.

    Returns:
        Lines that say what was made, and with which options it is trained on.

    Raises:
        ValueError: no context, the one that it has, or an ``out`` that holds something.
    """
    config = load_config(folder)
    tokenizer, predictor = load_tokenizer(folder), None
    if (folder / "world").is_dir():
        predictor = load_world(folder)[1]
    before = tokenizer.context_length
    if context < 1 or context == before:
        raise ValueError(f"--context is {context}; {folder} has one of {before} frames: give another, 1 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new folder")
    state, settings = resize_context(tokenizer.state_dict(), tokenizer.config, context)
    room = room_behind(config.world, context)
    kept = predictor if room else None
    resized = resized_config(config, context, carried=kept is not None)
    meta = {"context_resized_from": before}
    repeat = repeat_of(folder)
    with drafted(out) as draft, writing(out):
        save_model(draft / "tokenizer", filled(ContextVQGAN, settings, state), settings, meta)
        if kept is not None:
            world = filled(AutoregressivePredictor, resized.world, kept.state_dict())
            save_model(draft / "world", world, resized.world, meta | learned_with(draft, "tokenizer"))
        write_json(draft / WORLD_FILE, config_to_json(resized))
        if (folder / DATA_FILE).is_file():  # what was held out stays held out
            shutil.copyfile(folder / DATA_FILE, draft / DATA_FILE)
        if repeat is not None:
            write_json(draft / PACE_FILE, {"repeat": repeat})
        if out.exists():
            out.rmdir()
        draft.rename(out.resolve())
    return _said(config, resized, predictor is not None, kept is not None, out)


def room_behind(world: AutoregressiveConfig, context: int) -> int:
    """Returns how many future frames fit behind so many context frames, 0 or more."""
    left = world.trunk.positions - context * (world.context_tokens + 1) + 1
    return max(0, left // (world.dynamics_tokens + 1))


def resized_config(config: IVideoGPT, context: int, carried: bool) -> IVideoGPT:
    """Returns the settings for another context; as many frames are foretold as before, or as fit.

    Where the world is not ``carried`` over, one that begins anew gets the positions that it needs.
    """
    world, horizon = config.world, config.window.horizon
    if carried:
        horizon = min(horizon, room_behind(world, context))
    else:
        needed = context * (world.context_tokens + 1) - 1 + horizon * (world.dynamics_tokens + 1)
        world = replace(world, trunk=replace(world.trunk, positions=max(world.trunk.positions, needed)))
    painted = config.painted
    span = None if painted.span is None else painted.span + context - painted.context
    return replace(
        config,
        tokenizer=replace(config.tokenizer, context_length=context),
        world=replace(world, context=context),
        window=replace(config.window, context=context, frames=context + horizon),
        painted=replace(painted, context=context, frames=context + painted.horizon, span=span),
    )


def _said(config: IVideoGPT, resized: IVideoGPT, had_world: bool, carried: bool, out: Path) -> list[str]:
    before, now = config.tokenizer.context_length, resized.tokenizer.context_length
    lines = [f"{out}: context {before} -> {now} frames; fine-tune it, attention is now shared otherwise"]
    if carried:
        lines.append(
            f"the world came along: up to {resized.world.longest} frames behind its context "
            f"({config.world.longest} before); it has never seen frames at these positions, so fine-tune it too"
        )
    elif had_world:
        lines.append(
            f"the world stayed behind: a context of {now} frames leaves none of its {config.world.trunk.positions} "
            "positions for a future frame; train one with `ideomotor ivideogpt world`"
        )
    painted, window = resized.painted, resized.window
    given = (
        f"--tokenizer.context-length {now} --world.context {now} --window.context {now} --window.frames "
        f"{window.frames} --painted.context {now} --painted.frames {painted.frames}"
    )
    if painted.span is not None:
        given += f" --painted.span {painted.span}"
    if resized.world.trunk.positions != config.world.trunk.positions:
        given += f" --world.trunk.positions {resized.world.trunk.positions}"
    lines.append(f"to train on, give the preset and options of before, and {given}")
    return lines
