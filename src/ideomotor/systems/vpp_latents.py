"""Data sets as the latents that stage 1 of VPP learns from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from ideomotor.data.formats import open_dataset
from ideomotor.data.latent_encoding import LatentSpec
from ideomotor.data.latents import LatentCache, with_cached_latents
from ideomotor.data.mixture import Source
from ideomotor.data.windows import split
from ideomotor.systems.autoencoders import Autoencoder, vae_fingerprint
from ideomotor.systems.progress import bar
from ideomotor.systems.sources import DataFacts, DataOptions, Sources
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_prepare import VAEEncoder


def latent_sources(data: DataOptions, config: VPP, vae: Autoencoder, vae_from: Path) -> Sources:
    """Encodes what is not in the cache yet (a bar), and splits by episode; every camera is a film of its own."""
    train: list[Source] = []
    validation: list[Source] = []
    noted: list[DataFacts] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, size = vae_fingerprint(vae), (config.size, config.size)
    for number, path in enumerate(data.data):
        dataset = open_dataset(path)
        there = list(dataset.episodes[0].frames)[: config.views]  # video of fewer cameras than the robot's is welcome
        for camera in (cameras := data.cameras[number].split(",") if data.cameras else there):
            spec = LatentSpec(camera=camera, size=size, vae=name, scale=vae.scale)
            with bar(f"encode {dataset.name} {camera}") as tell:
                LatentCache.build(dataset, data.cache, spec, VAEEncoder(vae_from, device), 1, tell)
        dataset = with_cached_latents(dataset, data.cache, cameras, size, name)
        learned, held = split(dataset, data.validation) if data.validation else (dataset, None)
        window = replace(
            config.window,
            every=config.video_stage.every,
            stride=data.strides[number] if data.strides else config.window.stride,
        )
        weight = (data.weights[number] if data.weights else 1.0) / len(cameras)
        domain = data.domains[number] if data.domains else "unknown"
        for camera in cameras:
            for part, into in ((learned, train), (held, validation)):
                if part is not None:
                    into.append(Source(part, weight, window, {"main": camera}, domain=domain))
        noted.append(
            DataFacts(
                path=str(path.resolve()), camera=",".join(cameras), stride=window.stride,
                learned=len(learned.episodes),
                held_out=[episode.id for episode in held.episodes] if held is not None else [],
                left_out=[asdict(entry) for entry in dataset.quarantined], domain=domain,
            )
        )  # fmt: skip
    return Sources(train, validation, noted)
