"""Data sets as the latents that VPP learns from: stage 1 always, stage 2 where it is to, or where there is no video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ideomotor.data.formats import open_dataset
from ideomotor.data.latent_encoding import LatentSpec
from ideomotor.data.latents import LatentCache, is_prepared, with_cached_latents
from ideomotor.data.mixture import Source
from ideomotor.data.sampling import Sampling, StridedWindow
from ideomotor.systems.autoencoders import Autoencoder, vae_fingerprint
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.progress import bar
from ideomotor.systems.sources import DataOptions, Sources, console
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_mix import Opened, SampledData, open_part, refuse_missing, sampled
from ideomotor.systems.vpp_prepare import VAEEncoder, published_dataset
from ideomotor.systems.vpp_robot import acting_window, refuse_other_width
from ideomotor.types import Dataset


def latent_sources(data: DataOptions, config: VPP, vae: Autoencoder, vae_from: Path) -> Sources:
    """Encodes what is not in the cache yet (a bar), and splits by episode; every camera is a film of its own.

    Data sets without video that were published as latents are read as they are; see ``_published``.
    """
    if isinstance(data, SampledData):
        opened = [open_part(part) for part in data.parts]
    else:
        opened = [_option(data, number, config) for number in range(len(data.data))]
    for number, one in enumerate(opened):
        if not one.dataset.episodes[0].frames:
            with one.named():
                dataset = _published(one.path, list(one.sampling.cameras), config, vae)
            opened[number] = one._replace(dataset=dataset)

    def ready(one: Opened) -> Dataset:
        if not one.dataset.episodes[0].frames:
            return one.dataset
        return _encoded(one.dataset, list(one.sampling.cameras), config, vae, vae_from, data.cache)

    return sampled(opened, data.validation, ready)


def _option(data: DataOptions, number: int, config: VPP) -> Opened:
    """A data set that was named with --data, sampled as the preset and the options beside it say."""
    path = data.data[number]
    dataset = open_dataset(path)
    first = dataset.episodes[0]
    there = list(first.frames or first.latents)[: config.views]  # fewer cameras than the robot's are welcome
    cameras = data.cameras[number].split(",") if data.cameras else there
    refuse_missing(dataset, cameras)
    window = StridedWindow(
        frames=config.window.frames,
        stride=data.strides[number] if data.strides else config.window.stride,
        start_step=config.video_stage.every,
    )
    sampling = Sampling(
        window=window,
        cameras=dict.fromkeys(cameras, 1.0),
        weight=data.weights[number] if data.weights else 1.0,
        domain=data.domains[number] if data.domains else "unknown",
    )
    return Opened(path, dataset, sampling)


def looks_at_latents(data: DataOptions, config: VPP, asked: bool) -> bool:
    """Says whether stage 2 looks at latents in place of video: where that is asked, or a data set has no video.

    Raises:
        ValueError: the policy's eyes see video alone.
    """
    bare = [path for path in data.data if not open_dataset(path).episodes[0].frames]
    if config.eyes in ("encoder", "pixels") and (asked or bare):
        why = "--cache-latents was given" if asked else f"{bare[0]} was published as latents, without video"
        raise ValueError(
            f"{why}, and --eyes {config.eyes} looks at video alone: "
            + ("leave it out, or " if asked else "give demonstrations with video, or ")
            + "take --eyes foresight or latents"
        )
    return asked or bool(bare)


def as_latents(
    data: DataOptions, config: VPP, vae: Autoencoder, vae_from: Path
) -> Callable[[Dataset, Sequence[str]], Dataset]:
    """Returns what gives a data set latents of its cameras: those it was published with, or those of its video, which
    are encoded where they are not in the cache yet (a bar). Another robot's demonstrations are refused before that.
    """

    def encode(dataset: Dataset, cameras: Sequence[str]) -> Dataset:
        refuse_other_width(config, Sources([Source(dataset, window=acting_window(config))], [], []))
        if dataset.episodes[0].frames:
            return _encoded(dataset, cameras, config, vae, vae_from, data.cache)
        return _published(dataset.path, cameras, config, vae, "--video-from")

    return encode


def _encoded(
    dataset: Dataset, cameras: Sequence[str], config: VPP, vae: Autoencoder, vae_from: Path, root: Path
) -> Dataset:
    """The data set with latents of its video; those that were prepared in another precision serve too."""
    name, size = vae_fingerprint(vae), (config.size, config.size)
    for camera in cameras:
        if not is_prepared(dataset, root, camera, size, name):
            spec = LatentSpec(camera=camera, size=size, vae=name, scale=vae.scale)
            with bar(f"encode {dataset.name} {camera}") as tell:
                LatentCache.build(dataset, root, spec, VAEEncoder(vae_from, str(chosen_device())), 1, tell)
    return with_cached_latents(dataset, root, cameras, size, name)


def _published(path: Path, cameras: Sequence[str], config: VPP, vae: Autoencoder, given: str = "--vae-from") -> Dataset:
    """The data set with the latents it was published with. Which autoencoder made them no file says: it is taken to be
    the one that is ``given``, where their shape allows it.

    Raises:
        ValueError: no episode has them, or they are of another shape than that autoencoder makes of such frames.
    """
    dataset = published_dataset(path, cameras, vae_fingerprint(vae))
    side = config.size // vae.config.factor
    wanted = (vae.config.channels, side, side)
    for episode, camera in [(episode, camera) for episode in dataset.episodes for camera in cameras]:
        came = episode.latents[camera].shape[1:]
        if came != wanted:
            raise ValueError(
                f"{camera} of episode {episode.id!r} in {path} has latents of shape {came}; this autoencoder makes "
                f"{wanted} of frames of {config.size} px: give the {given} and --size that they were made with"
            )
    console.print(
        f"{dataset.name} has no video: its latents are taken as they were published, for those of {given}",
        markup=False,
    )
    return dataset
