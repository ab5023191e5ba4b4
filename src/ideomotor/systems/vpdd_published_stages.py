"""The stages of VPDD as published: as those of the fast form, with its windows, its objectives and its agent.

Every OUT folder is self-contained: it holds the models of the earlier stages, and vpdd_published.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ideomotor.envs.metaworld_tasks import INSTRUCTIONS
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy, GPTDiffusionPolicyConfig
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy, MultiviewGPTPolicyConfig
from ideomotor.policies.published_actions import ActionBins, ActionBinsConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig
from ideomotor.systems.recorded import recorded_actions
from ideomotor.systems.sources import DataOptions, Sources, TrainingClips, open_sources, tokenized
from ideomotor.systems.stages import (
    IMPORT_FILE,
    PUBLISHED_FILE,
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
from ideomotor.systems.vpdd import TextEncoder
from ideomotor.systems.vpdd_prompts import METAWORLD
from ideomotor.systems.vpdd_published import UnifiedActionDenoising, UnifiedVideoDenoising
from ideomotor.systems.vpdd_published_agent import PublishedAgent
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.training.checkpoint import fingerprint, load_model, read_json
from ideomotor.training.config import config_to_json, differences
from ideomotor.training.run import Run

Model = TypeVar("Model", bound=nn.Module)
_LEARNED = ("size", "window.frames", "window.ahead", "window.stride", "steps", "replace", "tokenizer.", "predictor.")


class PublishedModels(NamedTuple):
    """What a folder or checkpoint holds; a tokenizer's has no networks, a pre-trained one no policy, an import no bins
    unless they were fitted, and one of a tokenizer alone no config.
    """

    tokenizer: AxialVQVAE
    predictor: PerceiverDiffusionPredictor | None
    policy: GPTDiffusionPolicy | MultiviewGPTPolicy | None
    config: PublishedVPDD | None
    left_out: tuple[str, ...] = ()
    bins: ActionBins | None = None


def load_published(folder: Path, device: str | torch.device = "cpu") -> PublishedModels:
    """Returns what a finished stage or ``import_vpdd`` left, on ``device``.

    Raises:
        ValueError: the folder is neither, the stage has not finished, or its models did not learn together.
    """
    folder = Path(folder)
    imported, known = (folder / IMPORT_FILE).is_file(), (folder / PUBLISHED_FILE).is_file()
    if not imported and not known:
        raise ValueError(
            f"{folder} holds no published VPDD ({PUBLISHED_FILE}): give the --out folder of `ideomotor vpdd ...` with "
            "the same --preset, or of `ideomotor import vpdd ...`"
        )
    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"the stage in {folder} has not finished: run its command again, it goes on where it stopped")
    config = read_config(folder / PUBLISHED_FILE, PublishedVPDD) if known else None
    refuse_strangers(folder)

    def saved(name: str, cls: Callable[[Any], Model], config_cls: type) -> Model | None:
        return load_model(folder / name, cls, config_cls, device) if (folder / name).is_dir() else None

    policy: GPTDiffusionPolicy | MultiviewGPTPolicy | None
    if config is not None and isinstance(config.policy, MultiviewGPTPolicyConfig):
        policy = saved("policy", MultiviewGPTPolicy, MultiviewGPTPolicyConfig)
    else:
        policy = saved("policy", GPTDiffusionPolicy, GPTDiffusionPolicyConfig)
    return PublishedModels(
        load_model(folder / "tokenizer", AxialVQVAE, AxialVQVAEConfig, device),
        saved("predictor", PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig),
        policy,
        config,
        tuple(read_json(folder / IMPORT_FILE)["left_out"]) if imported else (),
        saved("bins", ActionBins, ActionBinsConfig),
    )


def text_encoder(config: PublishedVPDD) -> TextEncoder:
    """Returns the encoder that the config names; CLIP's vectors keep their length.

    Raises:
        ValueError: its vectors are not as wide as predictor and policy expect.
    """
    encoder = encoder_named(config.text, unit=False)
    wanted = (config.predictor.text_width, config.policy.text_width)
    if wanted != (encoder.width, encoder.width):
        raise ValueError(
            f"text encoder {config.text!r} gives vectors of width {encoder.width}; predictor and policy expect "
            f"{wanted[0]} and {wanted[1]}: give --text the folder of a CLIP of that width (RN50: 1024; for imported "
            f"weights to `ideomotor import vpdd`), or train with --predictor.text-width {encoder.width} "
            f"--policy.text-width {encoder.width}"
        )
    return encoder


def train_tokenizer(config: PublishedVPDD, clips: TrainingClips, run: Run) -> None:
    """Clip -> tokens -> the clip again."""
    tokenizer = AxialVQVAE(config.tokenizer)
    fit(tokenizer, config.tokenizer_stage, clips, run)
    run.save(tokenizer, config.tokenizer, "tokenizer")


def pretrain(config: PublishedVPDD, clips: TrainingClips, tokenizer: AxialVQVAE, text: TextEncoder, run: Run) -> None:
    """Actionless clip -> tokens now and a while later -> the later ones noised -> the tokens themselves."""
    predictor = PerceiverDiffusionPredictor(config.predictor)
    predictor.borrow_codes(tokenizer.codebook.codes)
    fit(UnifiedVideoDenoising(config, predictor, tokenizer, text), config.pretrain_stage, clips, run)
    run.save(tokenizer, tokenizer.config, "tokenizer")
    run.save(predictor, config.predictor, "predictor", meta=learned_with(run.dir, "tokenizer"))


def finetune(
    config: PublishedVPDD,
    clips: TrainingClips,
    tokenizer: AxialVQVAE,
    predictor: PerceiverDiffusionPredictor,
    text: TextEncoder,
    run: Run,
) -> None:
    """Clip with actions -> tokens of video and actions, noised together -> the actions themselves."""
    assert isinstance(config.policy, GPTDiffusionPolicyConfig)
    policy = GPTDiffusionPolicy(config.policy)
    bins = fitted_bins(config, recorded_actions(clips.sources))
    objective = UnifiedActionDenoising(config, policy, predictor, tokenizer, text, bins)
    fit(objective, config.finetune_stage, clips, run)
    run.save(tokenizer, tokenizer.config, "tokenizer")
    run.save(predictor, predictor.config, "predictor", meta=learned_with(run.dir, "tokenizer"))
    run.save(bins, bins.config, "bins")
    run.save(policy, config.policy, "policy", meta=learned_with(run.dir, "tokenizer", "predictor", "bins"))


def fitted_bins(config: PublishedVPDD, actions: torch.Tensor) -> ActionBins:
    """Returns the config's bins, fitted to recorded actions.

    Raises:
        ValueError: the actions are of another width, too few, or none that the release's bins know, which are for
            Meta-World's [-1, 1].
    """
    if actions.shape[1] != config.policy.action_width:
        raise ValueError(
            f"the demonstrations have actions of width {actions.shape[1]}, the policy of {config.policy.action_width}: "
            f"set --policy.action-width {actions.shape[1]} --bins quantile"
        )
    beyond = (~(actions.abs() <= 1)).any(1).nonzero()  # nan too
    if config.bins == "release" and len(beyond):
        row = int(beyond[0])
        raise ValueError(
            f"row {row} of the demonstrations' {len(actions)} actions is {actions[row].tolist()}; bins of the release "
            "are for actions in [-1, 1]: scale or clip them, or set --bins quantile, which takes any actions"
        )
    try:
        return ActionBins(config.action_bins).fit(actions)
    except ValueError as error:
        raise ValueError(f"{error} (or set --bins quantile, which takes any actions)") from error


def run_tokenizer(data: DataOptions, config: PublishedVPDD, out: Path, seed: int, fresh: bool) -> None:
    """``ideomotor vpdd tokenizer``: opens the data and trains, unless the run has finished."""
    refuse_as_out(out, data)
    seen, sources = look(data), None
    if to_train(out, fresh):
        sources = open_sources(data, config, config.tokenizer_stage, window=config.clip_window, smooth=False)
    with open_run(out, config, seed, fresh, data, seen) as run:
        if sources is not None:
            sources.note(out)
            train_tokenizer(config, TrainingClips(sources.train, sources.validation), run)


def run_pretrain(
    data: DataOptions, config: PublishedVPDD, tokenizer_from: Path, out: Path, seed: int, fresh: bool
) -> None:
    """``ideomotor vpdd pretrain``: opens the data, tokenizes it once, and trains, unless the run has finished."""
    refuse_as_out(out, data, tokenizer_from)
    text, earlier = text_encoder(config), look(data)
    tokenizer = fitting(load_published(tokenizer_from)._replace(predictor=None), config, tokenizer_from).tokenizer
    earlier |= {"tokenizer": fingerprint(tokenizer, tokenizer.config)}
    sources = open_sources(data, config, config.pretrain_stage, smooth=False) if to_train(out, fresh) else None
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if sources is not None:
            sources.note(out)
            tokenizer.to(run.device)
            pretrain(config, _token_clips(sources, data, config, tokenizer, actions=False), tokenizer, text, run)


def run_finetune(
    data: DataOptions, config: PublishedVPDD, predictor_from: Path | None, out: Path, seed: int, fresh: bool
) -> None:
    """``ideomotor vpdd finetune``: opens the demonstrations and trains, unless the run has finished."""
    refuse_as_out(out, data, predictor_from)
    text, earlier = text_encoder(config), look(data)
    refuse_strides(data, config.window.stride)
    if predictor_from is None:
        raise ValueError("the published policy reads what the predictor foretells: give --predictor-from")
    tokenizer, predictor, *_ = fitting(load_published(predictor_from), config, predictor_from)
    if predictor is None:
        raise ValueError(f"{predictor_from} holds no predictor: give the --out folder of `ideomotor vpdd pretrain`")
    earlier |= {
        "tokenizer": fingerprint(tokenizer, tokenizer.config),
        "predictor": fingerprint(predictor, predictor.config),
    }
    sources = None
    if to_train(out, fresh):
        sources = open_sources(data, config, config.finetune_stage, actions=True, smooth=False)
        fitted_bins(config, recorded_actions(sources.train))  # refuses what it cannot take
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if sources is not None:
            sources.note(out)
            tokenizer.to(run.device)
            clips = _token_clips(sources, data, config, tokenizer, actions=True)
            finetune(config, clips, tokenizer, predictor, text, run)


def _token_clips(
    sources: Sources, data: DataOptions, config: PublishedVPDD, tokenizer: AxialVQVAE, *, actions: bool
) -> TrainingClips:
    return tokenized(
        sources.train, tokenizer, config, data.cache, with_frames=False, actions=actions, validation=sources.validation
    )


def fitting(models: PublishedModels, config: PublishedVPDD, folder: Path) -> PublishedModels:
    """Returns the models of an earlier stage.

    Raises:
        ValueError: they learned by other settings than ``config`` has; the message names what differs.
    """
    new = config_to_json(config)
    old = new | {"tokenizer": config_to_json(models.tokenizer.config)}
    if models.config is not None:
        old |= {"size": models.config.size}
    if models.config is not None and models.predictor is not None:
        old = config_to_json(models.config) | {"predictor": config_to_json(models.predictor.config)}
    changed = [line for line in differences(old, new) if line.startswith(_LEARNED)]
    if changed:
        raise ValueError(
            f"the models in {folder} were trained with other settings (there -> now): {'; '.join(changed)}. Give the "
            "same --preset and options, or train them with these"
        )
    return models


def load_agent(folder: Path, device: str | torch.device = "cpu") -> PublishedAgent:
    """Returns the agent of a finished fine-tuning stage, or of an imported policy with fitted bins, on ``device``.

    Raises:
        ValueError: something is missing; the message says where to get it.
    """
    tokenizer, predictor, policy, config, _, bins = load_published(folder, device)
    if policy is None or predictor is None or config is None:
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpdd finetune`")
    if not isinstance(policy, GPTDiffusionPolicy):
        raise ValueError(f"{folder} holds a policy for RLBench, which has no roll-outs here: give one for Meta-World")
    if bins is None:
        raise ValueError(
            f"{folder} holds no action bins, as no checkpoint does: import it anew with --demonstrations, the data set "
            "that its policy was trained on"
        )
    text = text_encoder(config)
    if (folder / IMPORT_FILE).is_file():
        text = _as_released(text)
    return PublishedAgent(config, policy, predictor, tokenizer, text, bins, bins.barred)


def evaluate(
    folder: Path,
    tasks: Sequence[str],
    episodes: int,
    log: Path,
    workers: int,
    device: str | torch.device,
    **options: Any,
) -> list[EpisodeResult]:
    """Rolls a policy out as ``vpdd_stages.evaluate`` says; draws and dropout begin at the option ``seed``."""
    agent = load_agent(Path(folder), device)
    options.setdefault("arm", fingerprint(agent.policy, agent.policy.config)[:12])
    with torch.random.fork_rng():
        torch.manual_seed(options.get("seed", 0))
        return roll_out(agent, view_of(agent.config), tasks, episodes, log, workers, **options)


def _as_released(text: TextEncoder) -> TextEncoder:
    """The release's weights know its own sentences, not those of our Meta-World."""
    words = {INSTRUCTIONS[task]: sentence for task, sentence in METAWORLD.items()}
    return lambda sentences: text([words.get(sentence, sentence) for sentence in sentences])
