"""The stages of VPDD, each a few lines: data in, an objective, a learner, a folder out that the next stage reads.

Every OUT folder is self-contained: it holds the models of the earlier stages that it was trained with, and vpdd.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ideomotor.data.formats import open_dataset
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.layers.text import ClipText, HashedWords, SentenceEncoder
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.systems.sources import DataOptions, TrainingClips, open_sources, read_facts, recorded_actions, tokenized
from ideomotor.systems.trials import View, roll_out
from ideomotor.systems.vpdd import VIEW, VPDD, ActionDenoising, Stage, TextEncoder, VideoDenoising, VPDDAgent
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.checkpoint import fingerprint, load_model, write_json
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
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the data sets, by path, and of the models of earlier stages."""


def open_run(
    out: Path,
    config: VPDD,
    seed: int,
    fresh: bool = False,
    data: DataOptions | None = None,
    trained_on: Mapping[str, str] | None = None,
) -> Run:
    """Returns the stage's run, and leaves the model's config beside it."""
    if data is not None:  # a command's own options are a DataOptions and more; where the cache lies decides nothing
        facts = {option.name: getattr(data, option.name) for option in fields(DataOptions)}
        data = DataOptions(**facts | {"cache": Path()})
    settings = StageSettings(model=config, data=data, trained_on=trained_on or {})
    run = Run(out, seed=seed, config=settings, fresh=fresh, save_steps=config.save_every)
    if run.processes.is_main:
        write_json(out / "vpdd.json", config_to_json(config))
    return run


def load_models(folder: Path, device: str | torch.device = "cpu") -> Models:
    """Returns the models of a finished stage, on ``device``.

    Raises:
        ValueError: the folder is none of a VPDD stage, or the stage has not finished.
    """
    folder = Path(folder)
    if not (folder / "vpdd.json").is_file():
        raise ValueError(f"{folder} holds no VPDD stage (vpdd.json): give the --out folder of `ideomotor vpdd ...`")
    try:
        config = config_from_json(VPDD, json.loads((folder / "vpdd.json").read_text()))
    except ValueError as error:
        raise ValueError(f"{folder / 'vpdd.json'} cannot be read: {error}") from error

    def saved(name: str, cls: Callable[[Any], Model], config_cls: type) -> Model | None:
        return load_model(folder / name, cls, config_cls, device) if (folder / name).is_dir() else None

    tokenizer = saved("tokenizer", VQVAE3D, VQVAE3DConfig)
    predictor = saved("predictor", DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig)
    policy = saved("policy", DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig)
    if tokenizer is None and predictor is None and policy is None:
        raise ValueError(f"the stage in {folder} has not finished: run its command again, it goes on where it stopped")
    return Models(config, tokenizer, predictor, policy)


def train_tokenizer(config: VPDD, clips: TrainingClips, run: Run) -> None:
    """Clip -> tokens -> the clip again."""
    tokenizer = VQVAE3D(config.tokenizer)
    _fit(tokenizer, config.tokenizer_stage, clips, run)
    run.save(tokenizer, config.tokenizer, "tokenizer")


def pretrain(config: VPDD, clips: TrainingClips, tokenizer: VQVAE3D, run: Run) -> None:
    """Actionless clip -> tokens -> masked future tokens -> the tokens themselves."""
    predictor = DiscreteDiffusionPredictor(config.predictor)
    objective = VideoDenoising(predictor, tokenizer, text_encoder(config))
    _fit(objective, config.pretrain_stage, clips, run)
    run.save(tokenizer, tokenizer.config, "tokenizer")
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
    actions = recorded_actions(clips.sources)
    if actions.shape[1] != config.policy.action_width:
        raise ValueError(
            f"the demonstrations have actions of width {actions.shape[1]}, the policy of {config.policy.action_width}: "
            f"set --policy.action-width {actions.shape[1]}"
        )
    policy.bins.fit(actions)
    objective = ActionDenoising(
        policy,
        predictor,
        tokenizer,
        text_encoder(config),
        config.window.context,
        config.shift,
        config.jitter,
        config.reveal,
    )
    _fit(objective, config.finetune_stage, clips, run)
    if tokenizer is not None and predictor is not None:
        run.save(tokenizer, tokenizer.config, "tokenizer")
        run.save(predictor, predictor.config, "predictor")
    run.save(policy, config.policy, "policy")


def _fit(objective: nn.Module, stage: Stage, clips: TrainingClips, run: Run) -> None:
    learner = run.learner(objective, stage.optim, stage.steps)
    run.fit(clips.loader(stage, run), learner, steps=stage.steps, held_out=clips.held_out(stage))


def run_tokenizer(data: DataOptions, config: VPDD, out: Path, seed: int, fresh: bool) -> None:
    """``ideomotor vpdd tokenizer``: opens the data and trains, unless the run has finished."""
    with open_run(out, config, seed, fresh, data, look(data)) as run:
        if not run.finished:
            sources = open_sources(data, config, config.tokenizer_stage)
            sources.note(out)
            train_tokenizer(config, TrainingClips(sources.train, sources.validation), run)


def run_pretrain(data: DataOptions, config: VPDD, tokenizer_from: Path, out: Path, seed: int, fresh: bool) -> None:
    """``ideomotor vpdd pretrain``: opens the data, tokenizes it once, and trains, unless the run has finished."""
    seen = look(data)
    tokenizer = fitting_tokenizer(load_models(tokenizer_from), config, tokenizer_from)
    earlier = seen | {"tokenizer": fingerprint(tokenizer, tokenizer.config)}
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if not run.finished:
            sources = open_sources(data, config, config.pretrain_stage)
            sources.note(out)
            tokenizer.to(run.device)
            pretrain(
                config,
                tokenized(
                    sources.train, tokenizer, config, data.cache, with_frames=False, validation=sources.validation
                ),
                tokenizer,
                run,
            )


def run_finetune(
    data: DataOptions, config: VPDD, predictor_from: Path | None, out: Path, seed: int, fresh: bool
) -> None:
    """``ideomotor vpdd finetune``: opens the demonstrations and trains, unless the run has finished."""
    seen = look(data)
    if any(stride != config.window.stride for stride in data.strides):
        raise ValueError(
            f"--strides is {data.strides}, and the policy looks every {config.window.stride} frames when it acts: "
            "leave --strides to pre-training, and set --window.stride for all stages"
        )
    if (predictor_from is None) != (config.policy.features == (0, 0)):
        raise ValueError(
            "a policy with foresight needs --predictor-from, and one without it --policy.features 0 0: give one of them"
        )
    tokenizer = predictor = None
    earlier = dict(seen)
    if predictor_from is not None:
        models = load_models(predictor_from)
        tokenizer, predictor = (
            fitting_tokenizer(models, config, predictor_from),
            fitting_predictor(models, config, predictor_from),
        )
        earlier |= {
            "tokenizer": fingerprint(tokenizer, tokenizer.config),
            "predictor": fingerprint(predictor, predictor.config),
        }
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if not run.finished:
            sources = open_sources(data, config, config.finetune_stage, actions=True)
            sources.note(out)
            clips = TrainingClips(sources.train, sources.validation, actions=True)
            if tokenizer is not None:
                tokenizer.to(run.device)
                clips = tokenized(
                    sources.train, tokenizer, config, data.cache, actions=True, validation=sources.validation
                )
            finetune(config, clips, tokenizer, predictor, run)


def look(data: DataOptions) -> dict[str, str]:
    """Opens every data set once and returns their fingerprints: a mistyped path must not claim the folder of a run."""
    return {str(path): open_dataset(path).fingerprint for path in data.data}


def fitting_predictor(models: Models, config: VPDD, folder: Path) -> DiscreteDiffusionPredictor:
    """Returns the folder's predictor.

    Raises:
        ValueError: it has none, or it learned to foretell other windows than ``config`` speaks of.
    """
    if models.predictor is None:
        raise ValueError(f"{folder} holds no predictor: give the --out folder of `ideomotor vpdd pretrain`")
    learned, wanted = config_to_json(models.config.window), config_to_json(config.window)
    changed = [line for line in differences(learned, wanted) if line.split(":")[0] in ("context", "horizon", "stride")]
    if changed:
        raise ValueError(
            f"the predictor in {folder} learned other windows (there -> now): {'; '.join(changed)}. Give the same "
            "--window options, or pre-train with these"
        )
    return models.predictor


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


def load_agent(folder: Path, device: str | torch.device = "cpu") -> VPDDAgent:
    """Returns the agent of a finished fine-tuning stage; it thinks on ``device``."""
    config, tokenizer, predictor, policy = load_models(folder, device)
    if policy is None:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpdd finetune`")
    return VPDDAgent(config, policy, predictor, tokenizer, text_encoder(config))


def evaluate(
    folder: Path,
    tasks: Sequence[str],
    episodes: int,
    log: Path,
    workers: int = 2,
    device: str | torch.device = "cpu",
    **options: Any,
) -> list[EpisodeResult]:
    """Rolls a fine-tuned policy out on held-out goals, on ``device``; see ``trials.roll_out`` for the options.

    It looks through the camera that it was fine-tuned on, unless another is named.

    The log keeps the episodes under the policy's fingerprint, unless ``arm`` names it: another policy in the same
    folder is tried anew.
    """
    agent = load_agent(folder, device)
    config, policy = agent.config, agent.policy
    view = View(
        camera=VIEW,
        size=config.size,
        context=config.window.context,
        stride=config.window.stride,
        execute=config.execute,
        action_width=policy.config.action_width,
    )
    cameras = {facts.camera for facts in read_facts(folder)}
    if options.get("camera") is None and len(cameras) == 1:
        options["camera"] = cameras.pop()
    options.setdefault("arm", fingerprint(policy, policy.config)[:12])
    return roll_out(agent, view, tasks, episodes, log, workers, **options)
