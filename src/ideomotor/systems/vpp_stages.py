"""The stages of VPP, each a few lines: data in, an objective, a learner, a folder out that the next stage reads.

Every OUT folder is self-contained: it holds the models of the earlier stages that it was trained with, and vpp.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ideomotor.data.loader import ClipLoader
from ideomotor.layers.lora import add_lora, merge_lora
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.policies.own_robots import OwnRobotConfig
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.predictors.latent_diffusion import LatentDiffusion, VideoDenoising
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig
from ideomotor.systems.autoencoders import Autoencoder, load_vae, saved_vae, vae_fingerprint
from ideomotor.systems.recorded import recorded_states
from ideomotor.systems.sources import (
    DataOptions,
    TrainingClips,
    open_sources,
)
from ideomotor.systems.stages import (
    VPP_FILE,
    fit,
    learned_with,
    look,
    open_run,
    read_config,
    refuse_as_out,
    refuse_edited,
    refuse_strangers,
    refuse_strides,
    refuse_uneven,
    refuse_unfinished,
    to_train,
)
from ideomotor.systems.vpp import VPP, ActionDenoising, Foreseeing, Looking
from ideomotor.systems.vpp_agent import VPPAgent
from ideomotor.systems.vpp_encoder import Encoding, looking_through, noted_with, refuse_other_eyes, saved_encoder
from ideomotor.systems.vpp_features import feature_caches
from ideomotor.systems.vpp_latents import as_latents, latent_sources, looks_at_latents
from ideomotor.systems.vpp_mix import SampledData, frame_sources, looked
from ideomotor.systems.vpp_robot import acting_window, fitted_robot, refuse_other_width
from ideomotor.systems.vpp_text import goal_encoder, token_encoder
from ideomotor.systems.vpp_weights import FirstWeights, first_weights
from ideomotor.tokenizers.image_encoder import ImageEncoder, load_encoder
from ideomotor.tokenizers.patch_pca import PatchPCA, PatchPCAConfig
from ideomotor.tokenizers.svd_vae import SVDVAE, VAEReconstruction
from ideomotor.training.checkpoint import fingerprint, load_model
from ideomotor.training.config import config_to_json, differences
from ideomotor.training.run import Run

Model = TypeVar("Model", bound=nn.Module)


class Models(NamedTuple):
    """What an OUT folder holds; the later ones are None where the stage did not come so far."""

    config: VPP
    vae: Autoencoder | None
    predictor: LatentDiffusion | None
    encoder: ImageEncoder | None
    looking: Looking | None
    robot: RobotActions | None
    policy: EDMTransformer | None


def load_models(folder: Path, device: str | torch.device = "cpu") -> Models:
    """Returns the models of a finished stage, on ``device``.

    Raises:
        ValueError: the folder is none of VPP, the stage has not finished, or its models did not learn together.
    """
    if not (folder / VPP_FILE).is_file():
        raise ValueError(f"{folder} holds no stage of VPP ({VPP_FILE}): give the --out folder of `ideomotor vpp ...`")
    config = read_config(folder / VPP_FILE, VPP)
    refuse_strangers(folder, ("predictor", "looking", "policy"))

    def saved(name: str, cls: Callable[[Any], Model], config_cls: type) -> Model | None:
        return load_model(folder / name, cls, config_cls, device) if (folder / name).is_dir() else None

    models = Models(
        config,
        saved_vae(folder / "vae", device) if (folder / "vae").is_dir() else None,
        saved("predictor", LatentDiffusion, LatentDiffusionConfig),
        saved_encoder(folder / "encoder", device) if (folder / "encoder").is_dir() else None,
        saved("looking", Looking, VPP),
        saved("robot", RobotActions, OwnRobotConfig),
        saved("policy", EDMTransformer, EDMTransformerConfig),
    )
    if models.looking is not None:
        changed = differences(config_to_json(models.looking.config), config_to_json(config))
        if changed:
            raise ValueError(
                f"{folder / VPP_FILE} is not what the policy beside it was trained with (trained -> {VPP_FILE}): "
                f"{'; '.join(changed)}. Put the run's own {VPP_FILE} back, or train a policy with these settings"
            )
    if all(part is None for part in models[1:]):
        raise ValueError(f"the stage in {folder} has not finished: run its command again, it goes on where it stopped")
    refuse_edited(folder / VPP_FILE, config)
    return models


def train_vae(config: VPP, clips: TrainingClips, run: Run) -> None:
    """Clip -> latents -> the clip again; then the scale of the latents is measured. A map of patches is only fitted."""
    loader = ClipLoader(clips.sources, config.vae_stage.batch, run.seed, actions=False, prefetch=0)

    def videos(batches: int) -> Iterator[UInt8[Tensor, "b t c h w"]]:
        return (frames.to(run.device) for step in range(batches) for frames in loader.batch(step).frames.values())

    vae: Autoencoder
    if isinstance(config.vae, PatchPCAConfig):
        vae = PatchPCA(config.vae)
        vae.fit(videos(config.vae_stage.steps))
    else:
        vae = SVDVAE(config.vae)
        fit(VAEReconstruction(vae), config.vae_stage, clips, run)
        with run.averaged():  # of the weights that are saved
            vae.measure_scale(videos(8))
    run.save(vae, vae.config, "vae")


def train_video(
    config: VPP,
    clips: TrainingClips,
    vae: Autoencoder,
    run: Run,
    begin_with: FirstWeights | None = None,
    recompute: bool = False,
    lora: int = 0,
) -> None:
    """Clip of latents -> noised latents -> the clean ones, given the first frame and a sentence (stage 1).

    ``lora`` above 0 holds the weights still and trains pairs of that rank, which are merged into them at the end.
    """
    predictor = LatentDiffusion(replace(config.video, latent_scale=vae.scale))
    if begin_with is not None:
        begin_with.fill(predictor)
    if lora:
        add_lora(predictor.unet, lora)
    fit(VideoDenoising(predictor, token_encoder(config), recompute), config.video_stage, clips, run)
    run.save(vae, vae.config, "vae")
    with run.averaged():  # what is merged and saved is the average, whose names are those before the merging
        if lora:
            merge_lora(predictor.unet)
        about = learned_with(run.dir, "vae")
        run.save(predictor, predictor.config, "predictor", meta=about, averaged=False)


def train_policy(
    config: VPP,
    clips: TrainingClips,
    vae: Autoencoder | None,
    predictor: LatentDiffusion | None,
    run: Run,
    robot: RobotActions | None = None,
    encoder: ImageEncoder | None = None,
) -> None:
    """Clip with actions -> features of the future -> noised actions -> the actions themselves (stage 2)."""
    looking, policy = Looking(config), EDMTransformer(config.head)
    if config.head.proprio_standard:
        policy.measure_proprio(recorded_states(clips.sources))
    foreseeing = seeing_by(config, vae, predictor, encoder)
    objective = ActionDenoising(config, looking, policy, foreseeing, goal_encoder(config), robot)
    fit(objective, config.policy_stage, clips, run)
    if vae is not None:
        run.save(vae, vae.config, "vae")
    if predictor is not None:
        run.save(predictor, predictor.config, "predictor", meta=learned_with(run.dir, "vae"))
    if encoder is not None:
        run.save(encoder, encoder.config, "encoder", meta=noted_with(encoder))
    run.save(looking, config, "looking", meta=learned_with(run.dir, "vae", "predictor", "encoder"))
    if robot is not None:
        run.save(robot, robot.config, "robot")
    run.save(
        policy, policy.config, "policy", meta=learned_with(run.dir, "vae", "predictor", "encoder", "looking", "robot")
    )


def run_vae(data: DataOptions, config: VPP, out: Path, seed: int, fresh: bool) -> None:
    """``ideomotor vpp vae``: opens the data and trains, unless the run has finished."""
    refuse_as_out(out, data)
    refuse_uneven(config.vae_stage, "vae-stage")
    seen, sources = looked(data), None
    if to_train(out, fresh):
        if isinstance(data, SampledData):
            sources = frame_sources(data, config.size)
        else:
            sources = open_sources(data, config, config.vae_stage)
    with open_run(out, config, seed, fresh, data, seen) as run:
        if sources is not None:
            sources.note(out)
            train_vae(config, TrainingClips(sources.train, sources.validation), run)


def run_video(
    data: DataOptions,
    config: VPP,
    vae_from: Path,
    out: Path,
    seed: int,
    fresh: bool,
    begin_from: Path | None = None,
    recompute: bool = False,
    lora: int = 0,
) -> None:
    """``ideomotor vpp video``: encodes the data once, and trains stage 1, unless the run has finished."""
    refuse_as_out(out, data, vae_from)
    if lora < 0 or (lora and begin_from is None):
        raise ValueError(f"--lora is {lora}: a rank above 0 needs weights to begin with (--begin-from)")
    refuse_uneven(config.video_stage, "video-stage")
    token_encoder(config)  # before anything is thrown away
    seen, begin_with = looked(data), None
    vae = fitting_vae(vae_from, config)
    if begin_from is not None:
        refuse_as_out(out, data, begin_from)
        begin_with = first_weights(begin_from, config, vae)
        seen |= {"weights it begins with": begin_with.fingerprint, "lora": str(lora)}
    sources = latent_sources(data, config, vae, vae_from) if to_train(out, fresh) else None
    with open_run(out, config, seed, fresh, data, seen | {"vae": vae_fingerprint(vae)}) as run:
        if sources is not None:
            sources.note(out)
            clips = TrainingClips(sources.train, sources.validation, with_frames=False, latents="sample")
            train_video(config, clips, vae, run, begin_with, recompute, lora)


def run_policy(
    data: DataOptions,
    config: VPP,
    video_from: Path | None,
    out: Path,
    seed: int,
    fresh: bool,
    cache_latents: bool = False,
    encoder_from: Path | None = None,
) -> None:
    """``ideomotor vpp policy``: opens the demonstrations and trains stage 2, unless the run has finished.

    ``cache_latents`` looks at latents of their video, which are made once; what was published as latents alone is
    looked at so in any case, and all that is learned from beside it.
    """
    for earlier_folder in (video_from, encoder_from):
        refuse_as_out(out, data, earlier_folder)
    refuse_other_eyes(config.eyes, video_from, encoder_from)
    refuse_uneven(config.policy_stage, "policy-stage")
    goal_encoder(config)  # before anything is thrown away
    seen = look(data)
    refuse_strides(data, config.window.stride)
    vae = predictor = encoder = None
    earlier = dict(seen)
    if video_from is not None:
        vae, predictor = seeing(video_from, config)
        earlier |= {"vae": vae_fingerprint(vae)}
        if predictor is not None:
            earlier |= {"predictor": fingerprint(predictor, predictor.config)}
    if encoder_from is not None:
        encoder = load_encoder(encoder_from)
        earlier |= {"encoder": fingerprint(encoder, encoder.config)}
        config = looking_through(config, encoder)
    if cache_latents:
        earlier |= {"looked at": "latents"}
    sources = features = robot = encode = None
    if to_train(out, fresh):
        if looks_at_latents(data, config, cache_latents):
            assert vae is not None and video_from is not None
            encode = as_latents(data, config, vae, video_from)
        sources = open_sources(
            replace(data, strides=()), config, config.policy_stage,
            actions=True, window=acting_window(config), encode=encode,
        )  # fmt: skip
        refuse_other_width(config, sources)
        robot = fitted_robot(config, sources.train)
        foreseeing = seeing_by(config, vae, predictor, encoder)
        if config.cache_features and foreseeing is not None:
            features = feature_caches(sources.train, foreseeing, data.cache, encode is not None)
    with open_run(out, config, seed, fresh, data, earlier) as run:
        if sources is not None:
            sources.note(out)
            for part in (vae, predictor, encoder):
                if part is not None:
                    part.to(run.device).eval()
            clips = TrainingClips(
                sources.train, sources.validation, actions=True, features=features,
                with_frames=features is None and encode is None, latents=None if encode is None else "mean",
            )  # fmt: skip
            train_policy(config, clips, vae, predictor, run, robot, encoder)


def seeing_by(
    config: VPP,
    vae: Autoencoder | None,
    predictor: LatentDiffusion | None,
    encoder: ImageEncoder | None,
    folder: Path | None = None,
) -> Foreseeing | Encoding | None:
    """Returns what makes features of frames, of the networks that there are; None for eyes of the policy's own.

    ``folder`` is that of the stage, for a text encoder that lies in it.
    """
    if encoder is not None:
        return Encoding(config, encoder)
    return None if vae is None else Foreseeing(config, vae, predictor, token_encoder(config, folder))


def seeing(folder: Path, config: VPP) -> tuple[Autoencoder, LatentDiffusion | None]:
    """Returns what the policy's eyes need of an earlier stage.

    Raises:
        ValueError: the folder holds none, or of other sizes or windows than ``config`` speaks of.
    """
    models = load_models(folder)
    vae = fitting_vae(folder, config)
    if config.eyes == "latents":
        return vae, None
    if models.predictor is None:
        refuse_unfinished(folder)
        raise ValueError(f"{folder} holds no video model: give the --out folder of `ideomotor vpp video`")
    wanted = replace(config.video, latent_scale=vae.scale)
    changed = differences(config_to_json(models.predictor.config), config_to_json(wanted))
    there, here = config_to_json(models.config.window), config_to_json(config.window)
    changed += [line for line in differences(there, here) if line.split(":")[0] in ("horizon", "stride")]
    if models.config.size != config.size:
        changed.append(f"size: {models.config.size} -> {config.size}")
    if changed:
        raise ValueError(
            f"the video model in {folder} was trained with other settings (there -> now): {'; '.join(changed)}. Give "
            "the same --preset and options, or train one with these"
        )
    return vae, models.predictor


def fitting_vae(folder: Path, config: VPP) -> Autoencoder:
    """Returns the autoencoder in a stage's folder, or in one of diffusers.

    Raises:
        ValueError: it has other sizes than ``config`` speaks of.
    """
    vae = load_vae(folder)
    sizes = replace(vae.config, scale=config.vae.scale)
    changed = differences(config_to_json(sizes), config_to_json(config.vae))
    if changed:
        raise ValueError(
            f"the autoencoder in {folder} has other sizes (there -> now): {'; '.join(changed)}. Give the same --preset "
            "and options"
        )
    return vae


def load_agent(folder: Path, device: str | torch.device = "cpu") -> VPPAgent:
    """Returns the agent of a finished stage 2; it thinks on ``device``."""
    models = load_models(folder, device)
    if models.policy is None or models.looking is None:
        refuse_unfinished(folder)
        raise ValueError(f"{folder} holds no policy: give the --out folder of `ideomotor vpp policy`")
    config = models.looking.config
    needed: tuple[nn.Module | None, ...] = {
        "foresight": (models.vae, models.predictor), "latents": (models.vae,), "encoder": (models.encoder,),
        "pixels": (),
    }[config.eyes]  # fmt: skip
    if None in needed:
        raise ValueError(
            f"{folder} lacks what its policy looks with (vae, predictor, or encoder): train it again with --fresh"
        )
    foreseeing = seeing_by(config, models.vae, models.predictor, models.encoder, folder)
    if config.robot and models.robot is None:
        raise ValueError(f"{folder} lacks the scales of its robot (robot): train it again with --fresh")
    return VPPAgent(config, models.looking, models.policy, foreseeing, goal_encoder(config, folder), models.robot)
