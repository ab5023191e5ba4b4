"""What `ideomotor vpp prepare` does: any data set to latents on disk, once, so that stage 1 needs no VAE at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.cache import Progress
from ideomotor.data.formats import open_dataset
from ideomotor.data.formats.latent_files import stated_vae
from ideomotor.data.latent_encoding import Encode, Fit, LatentSpec
from ideomotor.data.latent_windows import vae_of
from ideomotor.data.latents import LatentCache, with_cached_latents
from ideomotor.systems.autoencoders import Autoencoder, load_vae, vae_fingerprint
from ideomotor.systems.devices import chosen_device, device_named
from ideomotor.systems.progress import Tell, bar
from ideomotor.systems.sources import report_quarantine
from ideomotor.systems.vpp_mix import open_mix, open_part, refuse_both
from ideomotor.types import Dataset, Quarantined

_READ = 256  # published latents looked at together


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Which data sets become latents, by which VAE, and where they are kept."""

    data: tuple[Path, ...] = ()
    """One or more data sets in any format (see `ideomotor data inspect`). Or else --mix."""
    mix: str | None = None
    """A mix in place of --data, as for `ideomotor vpp video`: published, or your own file. Of each data set the cameras
    that it names are encoded; those without video are read through."""
    root: Path | None = None
    """Folder that the paths in the mix are relative to; by default that of its file."""
    vae: Path | None = None
    """Folder of a VAE: one trained here, or that of a diffusers pipeline (SVD). Left out, nothing is encoded, and the
    latents that the data sets were published with are read through."""
    cameras: tuple[str, ...] = ()
    """Cameras of each data set, joined by commas; all of its first episode's by default."""
    size: int = 256
    """Height and width of the frames that are encoded; a multiple of what the VAE shrinks by (8)."""
    fit: Fit = "crop"
    """How frames become square: cut to the centre, or squeezed, as those of VPP's published latents were."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """How latents are stored: float16 keeps 11 bits, bfloat16 keeps 8 and any range."""
    workers: int = 1
    """Processes that decode and encode, each with a VAE of its own."""
    batch: int = 16
    """Frames encoded at a time, by each process."""
    device: str | None = None
    """Where the VAE computes; a GPU by default, where there is one."""
    cache: Path = Path("runs/cache")
    """Where latents are kept, named by the fingerprints of data and VAE."""

    def __post_init__(self) -> None:
        refuse_both(self.data, self.mix, self.root)
        if self.cameras and self.mix is not None:
            raise ValueError("a mix names the cameras of each data set: leave --cameras out")
        if self.cameras and len(self.cameras) != len(self.data):
            raise ValueError(
                f"--cameras has {len(self.cameras)} values for {len(self.data)} data sets: give one each, or none"
            )
        if min(self.size, self.workers, self.batch) < 1:
            raise ValueError(f"size {self.size}, workers {self.workers}, batch {self.batch}: each is at least 1")


class Prepared(NamedTuple):
    """One camera of a data set; ``folder`` is None for published latents, which stay where they are."""

    name: str
    camera: str
    episodes: int
    frames: int
    left_out: int
    folder: Path | None

    @property
    def line(self) -> str:
        """For the terminal."""
        lost = f", {self.left_out} episodes left out" if self.left_out else ""
        return f"{self.name}, {self.camera}: {self.episodes} episodes, {self.frames} frames{lost}; " + (
            f"in {self.folder}" if self.folder else "published latents, all sound"
        )


@dataclass(frozen=True)
class VAEEncoder:
    """Opens the VAE in a folder where it is called: in every process that encodes."""

    folder: Path
    device: str

    def __call__(self) -> Encode:
        """Returns what turns frames into mean and deviation of their latents."""
        vae = load_vae(self.folder).to(self.device)

        def encode(frames: UInt8[Tensor, "t c h w"]) -> tuple[Float[Tensor, "t z h w"], Float[Tensor, "t z h w"]]:
            mean, std = vae.moments(frames[None].to(self.device))
            return mean[0], std[0]

        return encode


def prepare(options: PrepareOptions) -> list[Prepared]:
    """Encodes what is not on disk yet, with a bar, and looks through what is; returns what there is then.

    A kill costs the shards in the making; the same command goes on after the others.

    Raises:
        FileNotFoundError: there is no data set, or no VAE.
        OSError: the disk has no room.
        ValueError: a data set cannot be read, lacks a camera or latents, or holds damaged ones; the cache lies in it,
            or there is no such device.
    """
    parts = [] if options.mix is None else open_mix(options.mix, options.root)
    for path in (*options.data, *(part.path for part in parts)):
        if options.cache.resolve().is_relative_to(path.resolve()):
            raise ValueError(
                f"--cache is {options.cache}, in the data set {path}, which it would change: choose another"
            )
    if options.device is not None:
        device_named(options.device)
    vae = None if options.vae is None else load_vae(options.vae)
    if vae is not None and options.size % vae.config.factor:
        raise ValueError(f"size {options.size} is no multiple of {vae.config.factor}, by which the VAE shrinks frames")
    wanted: list[tuple[Dataset, Sequence[str]]] = []
    for number, path in enumerate(options.data):
        dataset = open_dataset(path)
        wanted.append((dataset, _cameras(dataset, options.cameras[number] if options.cameras else "", vae is None)))
    wanted += [(one.dataset, tuple(one.sampling.cameras)) for one in map(open_part, parts)]
    done: list[Prepared] = []
    for dataset, camera in [(dataset, camera) for dataset, cameras in wanted for camera in cameras]:
        with bar(f"{dataset.name} {camera}") as tell:
            if vae is None or (parts and not dataset.episodes[0].frames):
                done.append(_published(dataset, camera, tell))
            else:
                done.append(_encoded(dataset, camera, vae, options, tell))
    return done


def prepared_dataset(
    path: Path, cameras: Sequence[str], cache: Path, size: int, vae: str, fit: Fit = "crop"
) -> Dataset:
    """Returns a data set with the latents that `prepare` made with the VAE of that fingerprint.

    Raises:
        FileNotFoundError: it was not prepared.
        ValueError: it was prepared with another VAE, or the latents are damaged.
    """
    return with_cached_latents(open_dataset(path), cache, cameras, (size, size), vae, fit)


def published_dataset(path: Path, cameras: Sequence[str], vae: str) -> Dataset:
    """Returns a data set with the latents it was published with, said to be those of the VAE of that fingerprint.

    Episodes without them are left out and join ``quarantined``.

    Raises:
        ValueError: no episode has them.
    """
    dataset = open_dataset(path)
    kept, lost = [], []
    for episode in dataset.episodes:
        missing = [camera for camera in cameras if camera not in episode.latents]
        if missing:
            reason = f"has latents of {_listed(episode.latents)}, and none of {_listed(missing)}"
            lost.append(Quarantined(path=episode.id, reason=reason))
        else:
            kept.append(episode)
    if not kept:
        raise ValueError(
            f"none of the {len(lost)} episodes in {path} has latents of {_listed(cameras)}: {lost[0].path} "
            f"{lost[0].reason}. Encode them (ideomotor vpp prepare --vae), or name others by --cameras"
        )
    whole = replace(dataset, episodes=tuple(kept), quarantined=(*dataset.quarantined, *lost))
    return stated_vae(whole, vae)


def _listed(cameras: Iterable[str]) -> str:
    return ", ".join(map(repr, cameras)) or "no camera"


def _cameras(dataset: Dataset, named: str, encoded: bool) -> list[str]:
    if named:
        return named.split(",")
    first = dataset.episodes[0]
    return list(first.latents if encoded else first.frames) or list(first.latents or first.frames)


def _encoded(dataset: Dataset, camera: str, vae: Autoencoder, options: PrepareOptions, tell: Tell) -> Prepared:
    device = str(chosen_device(options.device))
    spec = LatentSpec(
        camera=camera,
        size=(options.size, options.size),
        vae=vae_fingerprint(vae),
        scale=vae.scale,
        fit=options.fit,
        dtype=options.dtype,
        batch=options.batch,
    )
    assert options.vae is not None
    encoder = VAEEncoder(options.vae, device)
    report = rated(tell, f"{dataset.name} {camera}", time.monotonic)
    cache = LatentCache.build(dataset, options.cache, spec, encoder, options.workers, report)
    cache.verify(lambda shards, total: tell(shards, total, f"check {dataset.name} {camera}"))
    report_quarantine(replace(dataset, quarantined=dataset.quarantined + cache.quarantined))
    frames = sum(latents.shape[0] for latents in cache.latents.values())
    left_out = len(dataset.quarantined) + len(cache.quarantined)
    return Prepared(dataset.name, camera, len(cache.latents), frames, left_out, cache.folder)


def _published(dataset: Dataset, camera: str, tell: Tell) -> Prepared:
    """Reads every latent once: what is damaged is found now and not in the middle of a training."""
    vae_of(dataset, camera)  # refuses episodes without
    report = rated(tell, f"{dataset.name} {camera}", time.monotonic)
    total, done = sum(episode.length for episode in dataset.episodes), 0
    for episode in dataset.episodes:
        for start in range(0, episode.length, _READ):
            block = range(start, min(start + _READ, episode.length))
            episode.latents[camera].read(block)
            done += len(block)
            report(done, total)
    report_quarantine(dataset)
    return Prepared(dataset.name, camera, len(dataset.episodes), total, len(dataset.quarantined), None)


def rated(tell: Tell, title: str, clock: Callable[[], float]) -> Progress:
    """Returns a progress that tells frames done with the rate since its first call; what was done before counts not."""
    began: tuple[float, int] | None = None

    def report(done: int, total: int) -> None:
        nonlocal began
        began = began or (clock(), done)
        seconds, frames = clock() - began[0], done - began[1]
        tell(done, total, f"{title} ({frames / seconds:,.0f} frames/s)" if seconds > 0 and frames else title)

    return report
