"""Published latents: one ``.pt`` file a view, a float32 tensor ``t z h w``, a latent a frame.

VPP passes its data on so. The tensors are *samples* of SVD's VAE, scaled by 0.18215; neither mean nor deviation was
kept, nor which weights made them. Files are read with ``weights_only``: no code in them is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ideomotor.data.formats.checks import Unfit
from ideomotor.types import Dataset, Latents, Moments, Quarantined

SCALE = 0.18215
"""What published latents were multiplied by. Source: ``scaling_factor`` of SVD's VAE."""
FOLDERS = ("latent_videos", "latent_videos_svd")
"""Annotations name the first where the files lie in the second."""


@dataclass(frozen=True, kw_only=True)
class PublishedLatents:
    """One view's latents in a file (a ``types.Latents``); ``vae`` is "" until somebody says it: ``stated_vae``."""

    path: Path
    shape: tuple[int, int, int, int]
    vae: str = ""

    def read(self, indices: Sequence[int]) -> Moments:
        """Returns the latents of those frames, no longer scaled, in the order asked for; there is no deviation.

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: the file was damaged or changed after it was opened, or holds what is no number.
        """
        wrong = [index for index in indices if not 0 <= index < self.shape[0]]
        if wrong:
            raise IndexError(f"latent {wrong[0]} of {self.path}: it has latents 0..{self.shape[0] - 1}")
        stored = _tensor(self.path)
        if tuple(stored.shape) != self.shape:
            raise ValueError(f"{self.path} was changed after it was opened: open the dataset again")
        values = stored[torch.as_tensor(list(indices), dtype=torch.long)] / SCALE
        if not values.isfinite().all():
            raise ValueError(f"{self.path} holds values that are no numbers: leave the episode out, or encode it anew")
        return Moments(values, None)


def open_latents(path: Path) -> PublishedLatents:
    """Returns the latents in a file; its values are not read.

    Raises:
        Unfit: the file is cut short or no such file, or holds something else.
    """
    t, z, height, width = _tensor(path).shape
    return PublishedLatents(path=path, shape=(t, z, height, width))


def stated_vae(dataset: Dataset, vae: str) -> Dataset:
    """Returns the dataset with its published latents said to be those of the VAE of that fingerprint.

    Files do not say it, and latents of different VAEs are not mixed; whoever mixes these with others vouches for them.
    """

    def stated(latents: Latents) -> Latents:
        return replace(latents, vae=vae) if isinstance(latents, PublishedLatents) else latents

    episodes = (
        replace(episode, latents={name: stated(latents) for name, latents in episode.latents.items()})
        for episode in dataset.episodes
    )
    return replace(dataset, episodes=tuple(episodes))


def listed_latents(
    root: Path, annotation: dict[str, Any], length: int | None
) -> tuple[dict[str, PublishedLatents], list[Quarantined]]:
    """Returns the latents that an annotation lists, by camera, and those that cannot be used, with the reason.

    A file that is not there is passed over: data sets list latents that were not passed on.

    Args:
        root: the folder of the data set.
        annotation: with ``latent_videos: [{latent_video_path: ...}, ...]``, in the order of the cameras, or without.
        length: frames of the episode; None where no video says it, and the first latents do.
    """
    found: dict[str, PublishedLatents] = {}
    lost: list[Quarantined] = []
    listed = annotation.get("latent_videos")
    for number, entry in enumerate(listed if isinstance(listed, list) else []):
        name = str(entry.get("latent_video_path") or "") if isinstance(entry, dict) else ""
        path = _place(root, name)
        if path is None:
            continue
        try:
            latents = open_latents(path)
            length = latents.shape[0] if length is None else length
            if latents.shape[0] != length:
                raise Unfit(f"holds {latents.shape[0]} latents; the episode has {length} frames")
            found[f"camera{number}"] = latents
        except Unfit as error:
            lost.append(Quarantined(path=path.relative_to(root).as_posix(), reason=str(error)))
    return found, lost


def _place(root: Path, name: str) -> Path | None:
    """Where a listed file lies; None where it was not passed on."""
    first, _, rest = name.partition("/")
    names = [name, *(f"{folder}/{rest}" for folder in FOLDERS if first in FOLDERS)] if name else []
    return next((root / name for name in names if (root / name).is_file()), None)


def _tensor(path: Path) -> Tensor:
    """The tensor of a file, memory-mapped."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unfit(f"{path} is damaged or cut short, or no tensor saved by torch ({reason}): copy it anew") from error
    except OSError as error:
        raise Unfit(f"{path} cannot be opened ({error.strerror})") from error
    if not isinstance(stored, Tensor) or stored.ndim != 4 or not len(stored) or not stored.is_floating_point():
        held = f"{stored.dtype} {tuple(stored.shape)}" if isinstance(stored, Tensor) else type(stored).__name__
        raise Unfit(f"{path} holds {held}; wanted latents, a floating-point tensor (frames, channels, height, width)")
    return stored
