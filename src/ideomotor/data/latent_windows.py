"""Windows of latents: what a VAE said of the frames of a window, as its mean or as a sample that can be drawn again."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.data.permutation import mixed
from ideomotor.data.windows import WindowIndex
from ideomotor.types import Dataset, Moments

Draw = Literal["mean", "sample"]


def read_latents(
    index: WindowIndex, windows: Sequence[int], camera: str, draws: Sequence[int], draw: Draw
) -> Float[Tensor, "b t z h w"]:
    """Returns the latents of these windows, not scaled; a frame that a window shows twice has one latent.

    Args:
        index: of a dataset whose episodes have latents of the camera.
        windows: by number.
        camera: the dataset's name of it.
        draws: a number a window, of which its sample is a pure function.
        draw: "mean", or "sample": mean and deviation times noise; what was published as a sample stays as it is.

    Raises:
        ValueError: a file is damaged, or two windows differ in shape.
    """
    rows = []
    for window, number in zip(windows, draws, strict=True):
        episode_number, anchor = index.locate(window)
        episode = index.dataset.episodes[episode_number]
        picked = index.config.frame_indices(anchor, episode.length, number)
        frames, places = np.unique(picked, return_inverse=True)
        moments = episode.latents[camera].read(frames.tolist())
        values = moments.mean if draw == "mean" else _sampled(moments, number, camera)
        rows.append(values[torch.from_numpy(places)])
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"latents of dataset {index.dataset.name!r}, camera {camera!r}, have the shapes "
            f"{', '.join(map(str, sorted(shapes)))}; a batch needs one: encode all episodes at one size"
        )
    return torch.stack(rows)


def vae_of(dataset: Dataset, camera: str) -> str:
    """Returns the fingerprint of the VAE that made a camera's latents; "" where they do not say.

    Raises:
        ValueError: an episode has no such latents, or they are of several VAEs.
    """
    without = [episode.id for episode in dataset.episodes if camera not in episode.latents]
    if without:
        raise ValueError(
            f"{len(without)} of {len(dataset.episodes)} episodes of dataset {dataset.name!r} have no latents of camera "
            f"{camera!r}, {without[0]!r} for one: encode them (ideomotor vpp prepare), or leave them out"
        )
    names = sorted({episode.latents[camera].vae for episode in dataset.episodes})
    if len(names) > 1:
        raise ValueError(
            f"the latents of dataset {dataset.name!r}, camera {camera!r}, were made by {len(names)} VAEs "
            f"({', '.join(name[:12] or 'one unnamed' for name in names)}): encode all episodes with one"
        )
    return names[0]


def _sampled(moments: Moments, draw: int, camera: str) -> Float[Tensor, "t z h w"]:
    if moments.std is None:
        return moments.mean
    number = np.array([(draw + zlib.crc32(camera.encode())) % (1 << 64)], dtype=np.uint64)
    generator = torch.Generator().manual_seed(int(mixed(number)[0]))
    return moments.mean + moments.std * torch.randn(moments.mean.shape, generator=generator)
