"""The stages of VPDD, each a few lines: data in, an objective, a learner, a folder out that the next stage reads.

Every OUT folder is self-contained: it holds the models of the earlier stages that it was trained with, and vpdd.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.layers.text import ClipText, HashedWords, SentenceEncoder
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.systems.sources import DataOptions, TrainingClips, open_sources, recorded_actions, tokenized
from ideomotor.systems.trials import View, roll_out
from ideomotor.systems.vpdd import VIEW, VPDD, ActionDenoising, TextEncoder, VideoDenoising, VPDDAgent
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.checkpoint import load_model, write_json
from ideomotor.training.config import config_from_json, config_to_json, differences
from ideomotor.training.run import Run

Model = TypeVar("Model", bound=nn.Module)


class Models(NamedTuple):
    """What an OUT folder holds; the later ones are None where the stage did not come so far."""

    config: VPDD
    tokenizer: VQVAE3D | None
    predictor: DiscreteDiffusionPredictor | None
    policy: DiscreteDiffusionPolicy | None


def text_encoder(config: VPDD) -> TextEncoder:
    """Returns the encoder that the config names.

    Raises:
        ValueError: its vectors are not as wide as the predictor or the policy expects.
    """
    encoders = {"sentence": SentenceEncoder, "hashed": HashedWords}
    encoder = encoders[config.text]() if config.text in encoders else ClipText(config.text)
    for part, width in (("predictor", config.predictor.text_width), ("policy", config.policy.text_width)):
        if width != encoder.width:
            raise ValueError(
                f"text encoder {config.text!r} gives vectors of width {encoder.width}, and the {part} expects {width}: "
                f"set --{part}.text-width {encoder.width}"
            )
    return encoder


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """All that decides what a stage leaves; a resumed run must have the same."""

    model: VPDD
    data: DataOptions | None = None


def open_run(out: Path, config: VPDD, seed: int, fresh: bool = False, data: DataOptions | None = None) -> Run:
    """Returns the stage's run, and leaves the model's config beside it."""
    if data is not None:  # a command's own options are a DataOptions and more; where the cache lies decides nothing
        facts = {field.name: getattr(data, field.name) for field in fields(DataOptions)}
        data = DataOptions(**facts | {"cache": Path()})
    run = Run(out, seed=seed, config=StageSettings(model=config, data=data), fresh=fresh, save_steps=config.save_every)
    write_json(out / "vpdd.json", config_to_json(config))
    return run


def load_models(folder: Path) -> Models:
    """Returns the models of a finished stage.

    Raises:
        ValueError: the folder is none of a VPDD stage, or the stage has not finished.
    """
    folder = Path(folder)
    if not (folder / "vpdd.json").is_file():
        raise ValueError(f"{folder} holds no VPDD stage (vpdd.json): give the --out folder of `ideomotor vpdd ...`")
    config = config_from_json(VPDD, json.loads((folder / "vpdd.json").read_text()))

    def saved(name: str, cls: Callable[[Any], Model], config_cls: type) -> Model | None:
        return load_model(folder / name, cls, config_cls) if (folder / name).is_dir() else None

    tokenizer = saved("tokenizer", VQVAE3D, VQVAE3DConfig)
    predictor = saved("predictor", DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig)
    policy = saved("policy", DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig)
    if tokenizer is None and predictor is None and policy is None:
        raise ValueError(f"the stage in {folder} has not finished: run its command again, it goes on where it stopped")
    return Models(config, tokenizer, predictor, policy)


def train_tokenizer(config: VPDD, clips: TrainingClips, run: Run) -> None:
    """Clip -> tokens -> the clip again."""
    tokenizer = VQVAE3D(config.tokenizer)
    stage = config.tokenizer_stage
    run.fit(clips.loader(stage, run), run.learner(tokenizer, stage.optim, stage.steps), steps=stage.steps)
    run.save(tokenizer, config.tokenizer, "tokenizer")


def pretrain(config: VPDD, clips: TrainingClips, tokenizer: VQVAE3D, run: Run) -> None:
    """Actionless clip -> tokens -> masked future tokens -> the tokens themselves."""
    predictor = DiscreteDiffusionPredictor(config.predictor)
    objective = VideoDenoising(predictor, tokenizer, text_encoder(config))
    stage = config.pretrain_stage
    run.fit(clips.loader(stage, run), run.learner(objective, stage.optim, stage.steps), steps=stage.steps)
    run.save(tokenizer, config.tokenizer, "tokenizer")
    run.save(predictor, config.predictor, "predictor")


def finetune(
    config: VPDD,
    clips: TrainingClips,
    tokenizer: VQVAE3D | None,
    predictor: DiscreteDiffusionPredictor | None,
    run: Run,
) -> None:
    """Clip with actions -> foresight and pixels -> masked action tokens -> the actions themselves."""
    policy = DiscreteDiffusionPolicy(config.policy)
    policy.bins.fit(recorded_actions(clips.sources))
    objective = ActionDenoising(
        policy, predictor, tokenizer, text_encoder(config), config.window.context, config.shift, config.jitter
    )
    stage = config.finetune_stage
    run.fit(clips.loader(stage, run), run.learner(objective, stage.optim, stage.steps), steps=stage.steps)
    if tokenizer is not None and predictor is not None:
        run.save(tokenizer, config.tokenizer, "tokenizer")
        run.save(predictor, config.predictor, "predictor")
    run.save(policy, config.policy, "policy")


def train_tokenizer_on(data: DataOptions, config: VPDD, run: Run) -> None:
    """``ideomotor vpdd tokenizer``: opens the data and trains, unless the run has finished."""
    if not run.finished:
        train_tokenizer(config, TrainingClips(open_sources(data, config, config.tokenizer_stage).train), run)


def pretrain_on(data: DataOptions, config: VPDD, tokenizer_from: Path, run: Run) -> None:
    """``ideomotor vpdd pretrain``: opens the data, tokenizes it once, and trains, unless the run has finished."""
    if run.finished:
        return
    tokenizer = fitting_tokenizer(load_models(tokenizer_from), config, tokenizer_from)
    sources = open_sources(data, config, config.pretrain_stage).train
    pretrain(config, tokenized(sources, tokenizer, config, data.cache, with_frames=False), tokenizer, run)


def finetune_on(data: DataOptions, config: VPDD, predictor_from: Path | None, run: Run) -> None:
    """``ideomotor vpdd finetune``: opens the demonstrations and trains, unless the run has finished."""
    if run.finished:
        return
    if (predictor_from is None) != (config.policy.features == (0, 0)):
        raise ValueError(
            "a policy with foresight needs --predictor-from, and one without it --policy.features 0 0: give one of them"
        )
    sources = open_sources(data, config, config.finetune_stage, actions=True).train
    if predictor_from is None:
        finetune(config, TrainingClips(sources, actions=True), None, None, run)
        return
    models = load_models(predictor_from)
    tokenizer = fitting_tokenizer(models, config, predictor_from)
    clips = tokenized(sources, tokenizer, config, data.cache, actions=True)
    finetune(config, clips, tokenizer, models.predictor, run)


def tokenizer_of(models: Models, folder: Path) -> VQVAE3D:
    """Returns the folder's tokenizer.

    Raises:
        ValueError: it has none.
    """
    if models.tokenizer is None:
        raise ValueError(f"{folder} holds no tokenizer: give the --out folder of `ideomotor vpdd tokenizer`")
    return models.tokenizer


def fitting_tokenizer(models: Models, config: VPDD, folder: Path) -> VQVAE3D:
    """Returns the folder's tokenizer.

    Raises:
        ValueError: it is not the one that ``config`` speaks of; the message names what differs.
    """
    tokenizer = tokenizer_of(models, folder)
    changed = differences(config_to_json(tokenizer.config), config_to_json(config.tokenizer))
    if models.config.size != config.size:
        changed.append(f"size: {models.config.size} -> {config.size}")
    if changed:
        raise ValueError(
            f"the tokenizer in {folder} was trained with other settings (there -> now): {'; '.join(changed)}. Give the "
            "same --preset and options, or train a tokenizer with these"
        )
    return tokenizer


def load_agent(folder: Path) -> VPDDAgent:
    """Returns the agent of a finished fine-tuning stage."""
    config, tokenizer, predictor, policy = load_models(folder)
    if policy is None:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpdd finetune`")
    return VPDDAgent(config, policy, predictor, tokenizer, text_encoder(config))


def evaluate(
    folder: Path, tasks: Sequence[str], episodes: int, log: Path, workers: int = 2, **options: Any
) -> list[EpisodeResult]:
    """Rolls a fine-tuned policy out on held-out goals; see ``trials.roll_out`` for the options."""
    agent = load_agent(folder)
    config = agent.config
    view = View(
        camera=VIEW,
        size=config.size,
        context=config.window.context,
        stride=config.window.stride,
        execute=config.execute,
    )
    return roll_out(agent, view, tasks, episodes, log, workers, **options)
