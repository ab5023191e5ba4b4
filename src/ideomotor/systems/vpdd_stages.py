"""The stages of VPDD, each a few lines: data in, an objective, a learner, a folder out that the next stage reads.

Every OUT folder is self-contained: it holds the models of the earlier stages that it was trained with, and vpdd.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import nn

from ideomotor.data.mixture import Source
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.policies.actions import TemporalEnsemble
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.systems import vpdd_published_stages as published
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.recorded import recorded_actions, recorded_states
from ideomotor.systems.sources import (
    DataOptions,
    TrainingClips,
    open_sources,
    tokenized,
)
from ideomotor.systems.stages import (
    FAST_FILE,
    PUBLISHED_FILE,
    camera_of,
    domain_of,
    encoder_named,
    fit,
    learned_with,
    look,
    open_run,
    read_config,
    refuse_as_out,
    refuse_strangers,
    refuse_strides,
    to_train,
    view_of,
)
from ideomotor.systems.trials import roll_out
from ideomotor.systems.vpdd import VPDD, ActionDenoising, Dial, TextEncoder, VideoDenoising
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_compiled import CompiledAgent
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.checkpoint import fingerprint, load_model
from ideomotor.training.config import config_to_json, differences
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
    encoder = encoder_named(config.text)
    for part, width in (("predictor", config.predictor.text_width), ("policy", config.policy.text_width)):
        if width != encoder.width:
            raise ValueError(
                f"text encoder {config.text!r} gives vectors of width {encoder.width}, and the {part} expects {width}: "
                f"set --{part}.text-width {encoder.width}"
            )
    return encoder


def load_models(folder: Path, device: str | torch.device = "cpu") -> Models:
    """Returns the models of a finished stage, on ``device``.

    Raises:
        ValueError: the folder is none of a VPDD stage, the stage has not finished, or its models did not learn
            together.
    """
    folder = Path(folder)
    if (folder / PUBLISHED_FILE).is_file():
        raise ValueError(
            f"{folder} holds VPDD in its published form: give a --preset of that form, or another folder "
            "(`ideomotor imagine` reads those of the fast form alone)"
        )
    if not (folder / FAST_FILE).is_file():
        raise ValueError(f"{folder} holds no VPDD stage ({FAST_FILE}): give the --out folder of `ideomotor vpdd ...`")
    config = read_config(folder / FAST_FILE, VPDD)
    refuse_strangers(folder)

    def saved(name: str, cls: Callable[[Any], Model], config_cls: type) -> Model | None:
        return load_model(folder / name, cls, config_cls, device) if (folder / name).is_dir() else None

    tokenizer = saved("tokenizer", VQVAE3D, VQVAE3DConfig)
    predictor = saved("predictor", DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig)
    policy = saved("policy", DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig)
    if tokenizer is None and predictor is None and policy is None and (folder / "done.json").is_file():
        raise ValueError(f"the models of {folder} are gone, though its stage has finished: train it again with --fresh")
    if tokenizer is None and predictor is None and policy is None:
        raise ValueError(f"the stage in {folder} has not finished: run its command again, it goes on where it stopped")
    return Models(config, tokenizer, predictor, policy)


def train_tokenizer(config: VPDD, clips: TrainingClips, run: Run) -> None:
    """Clip -> tokens -> the clip again."""
    tokenizer = VQVAE3D(config.tokenizer)
    fit(tokenizer, config.tokenizer_stage, clips, run)
    run.save(tokenizer, config.tokenizer, "tokenizer")


def pretrain(config: VPDD, clips: TrainingClips, tokenizer: VQVAE3D, run: Run) -> None:
    """Actionless clip -> tokens -> masked future tokens -> the tokens themselves."""
    predictor = DiscreteDiffusionPredictor(config.predictor)
    objective = VideoDenoising(predictor, tokenizer, text_encoder(config))
    fit(objective, config.pretrain_stage, clips, run)
    run.save(tokenizer, tokenizer.config, "tokenizer")
    run.save(predictor, config.predictor, "predictor", meta=learned_with(run.dir, "tokenizer"))


def finetune(
    config: VPDD,
    clips: TrainingClips,
    tokenizer: VQVAE3D | None,
    predictor: DiscreteDiffusionPredictor | None,
    run: Run,
) -> None:
    """Clip with actions -> foresight and pixels -> masked action tokens -> the actions themselves."""
    policy = DiscreteDiffusionPolicy(config.policy)
    _learn_scales(policy, clips.sources)
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
    fit(objective, config.finetune_stage, clips, run)
    if tokenizer is not None and predictor is not None:
        run.save(tokenizer, tokenizer.config, "tokenizer")
        run.save(predictor, predictor.config, "predictor", meta=learned_with(run.dir, "tokenizer"))
    run.save(policy, config.policy, "policy", meta=learned_with(run.dir, "tokenizer", "predictor"))


def _learn_scales(policy: DiscreteDiffusionPolicy, sources: Sequence[Source]) -> None:
    """Places the bins of the actions, and learns the scale of the states where the policy is told them."""
    config, actions = policy.config, recorded_actions(sources)
    if actions.shape[1] != config.action_width:
        raise ValueError(
            f"the demonstrations have actions of width {actions.shape[1]}, the policy of {config.action_width}: "
            f"set --policy.action-width {actions.shape[1]}"
        )
    policy.bins.fit(actions)
    if config.outlook:
        policy.action_scale.fit(actions)
    if config.state_width:
        states = recorded_states(sources)
        if states.shape[1] != config.state_width:
            raise ValueError(
                f"the demonstrations have states of width {states.shape[1]}, the policy of {config.state_width}: set "
                f"--policy.state-width {states.shape[1]}, or 0 for images only"
            )
        policy.state_scale.fit(states)


def run_tokenizer(data: DataOptions, config: VPDD, out: Path, seed: int, fresh: bool) -> None:
    """``ideomotor vpdd tokenizer``: opens the data and trains, unless the run has finished."""
    refuse_as_out(out, data)
    seen = look(data)
    sources = open_sources(data, config, config.tokenizer_stage) if to_train(out, fresh) else None
    with open_run(out, config, seed, fresh, data, seen) as run:
        if sources is not None:
            sources.note(out)
            train_tokenizer(config, TrainingClips(sources.train, sources.validation), run)


def run_pretrain(data: DataOptions, config: VPDD, tokenizer_from: Path, out: Path, seed: int, fresh: bool) -> None:
    """``ideomotor vpdd pretrain``: opens the data, tokenizes it once, and trains, unless the run has finished."""
    refuse_as_out(out, data, tokenizer_from)
    text_encoder(config)  # before anything is thrown away
    seen = look(data)
    tokenizer = fitting_tokenizer(load_models(tokenizer_from), config, tokenizer_from)
    earlier = seen | {"tokenizer": fingerprint(tokenizer, tokenizer.config)}
    sources = open_sources(data, config, config.pretrain_stage) if to_train(out, fresh) else None
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if sources is not None:
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
    refuse_as_out(out, data, predictor_from)
    text_encoder(config)  # before anything is thrown away
    seen = look(data)
    refuse_strides(data, config.window.stride)
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
    sources = open_sources(data, config, config.finetune_stage, actions=True) if to_train(out, fresh) else None
    if sources is not None:
        _learn_scales(DiscreteDiffusionPolicy(config.policy), sources.train)  # refuses before --fresh what does not fit
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if sources is not None:
            sources.note(out)
            clips = TrainingClips(sources.train, sources.validation, actions=True)
            if tokenizer is not None:
                tokenizer.to(run.device)
                clips = tokenized(
                    sources.train, tokenizer, config, data.cache, actions=True, validation=sources.validation
                )
            finetune(config, clips, tokenizer, predictor, run)


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
    """Returns the agent of a finished fine-tuning stage; it thinks on ``device``, and acts in the domain of its
    demonstrations.
    """
    config, tokenizer, predictor, policy = load_models(folder, device)
    if policy is None:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpdd finetune`")
    return VPDDAgent(config, policy, predictor, tokenizer, text_encoder(config), domain_of(folder))


def turn(agent: VPDDAgent, dial: Dial) -> None:
    """Turns the agent's imagine dial.

    Raises:
        ValueError: there is no such setting, or the policy cannot act at it.
    """
    if dial not in get_args(Dial):
        raise ValueError(f"dial is {dial!r}; wanted one of {', '.join(get_args(Dial))}")
    if dial != "none" and agent.predictor is None:
        raise ValueError(
            f"dial is {dial}; this policy has no foresight at all: take none, or one with --predictor-from"
        )
    policy = agent.policy.config
    if dial == "none" and agent.predictor is not None and policy.foresight_dropout == 0:
        raise ValueError(
            "dial is none; this policy never learned to act without foresight: fine-tune with "
            "--policy.foresight-dropout 0.1, or take features"
        )
    agent.dial = dial


def evaluate(
    folder: Path,
    tasks: Sequence[str],
    episodes: int,
    log: Path,
    workers: int = 2,
    device: str | torch.device | None = None,
    dial: Dial | None = None,
    execute: int | None = None,
    ensemble: float | Literal["off"] | None = None,
    compiled: bool = False,
    **options: Any,
) -> list[EpisodeResult]:
    """Rolls a fine-tuned policy of either form out on held-out goals; see ``trials.roll_out`` for the other options.

    It computes on ``device``, by default CUDA where there is any.

    It looks through the camera that it was fine-tuned on, unless another is named, imagines as far as ``dial`` says and
    carries out ``execute`` actions of a chunk, overlapping ones averaged with decay ``ensemble`` ("off" for the newest
    chunk alone); by default as its settings do. ``compiled`` acts through a ``CompiledAgent``.

    Unless ``arm`` names it, the log keeps the episodes under a fingerprint of all that decides how they end (models,
    settings, camera, look, domain, compiling), and the dial where it is not at "features": what differs in
    any is tried anew.
    """
    device = chosen_device(device)
    options["camera"] = options.get("camera") or camera_of(folder)
    if (Path(folder) / PUBLISHED_FILE).is_file():
        if dial is not None:
            raise ValueError(f"{folder} holds the published form, which always imagines in full: leave out --dial")
        if execute is not None or ensemble is not None or compiled:
            raise ValueError(
                f"{folder} holds the published form, which acts as published: leave out --execute, --ensemble, "
                "--compile"
            )
        return published.evaluate(folder, tasks, episodes, log, workers, device, **options)
    agent = load_agent(folder, device)
    if dial is not None:
        turn(agent, dial)
    before = agent.config
    decay = before.ensemble if ensemble is None else ensemble
    agent.config = replace(
        before, execute=before.execute if execute is None else execute, ensemble=None if decay == "off" else decay
    )
    if agent.config.ensemble is not None:
        options["ensemble"] = TemporalEnsemble(agent.config.ensemble)
    if "arm" not in options:
        seen = [options["camera"], options.get("look", "fast"), config_to_json(agent.config), agent.domain]
        options["arm"] = _arm(agent, [*seen, "compiled"] if compiled else seen)
    acting = CompiledAgent(agent) if compiled else agent
    return roll_out(acting, view_of(agent.config), tasks, episodes, log, workers, **options)


def _arm(agent: VPDDAgent, settings: list[Any]) -> str:
    """A fingerprint of the models and of ``settings``, and the dial where it is not at "features"."""
    parts = [fingerprint(part, part.config) for part in (agent.policy, agent.predictor, agent.tokenizer) if part]
    suffix = "" if agent.dial == "features" else f"-{agent.dial}"
    return hashlib.sha256(json.dumps([parts, settings]).encode()).hexdigest()[:12] + suffix
