"""Latents that tests can work out: those of frame t are t + 1000 times the episode's number, deviation 0.5."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.types import Dataset, Moments


@dataclass(frozen=True)
class Counted:
    number: int
    length: int
    std: float | None = 0.5
    vae: str = "v"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.length, 4, 2, 2)

    def read(self, indices):
        mean = torch.tensor([1000.0 * self.number + t for t in indices])[:, None, None, None].expand(-1, 4, 2, 2)
        return Moments(mean, None if self.std is None else torch.full_like(mean, self.std))


def with_latents(episodes: int = 3, length: int = 9, cameras=("video",), **settings) -> Dataset:
    """A synthetic dataset with such latents of every camera."""
    dataset = synthetic_dataset(episodes, length, 8, cameras=cameras)
    made = tuple(
        replace(episode, latents={camera: Counted(number, length, **settings) for camera in cameras})
        for number, episode in enumerate(dataset.episodes)
    )
    return replace(dataset, episodes=made)


def encode(frames):
    """Latents of cells of four by four pixels: the mean colours, and how much they vary; ordered as networks may."""
    cells = frames.unfold(2, 4, 4).unfold(3, 4, 4).float().flatten(4) / 8  # t c h w pixels
    return cells.mean(-1).to(memory_format=torch.channels_last), cells.std(-1)


@dataclass(frozen=True)
class Opened:
    """An encoder that notes in a folder which process opened it."""

    folder: Path

    def __call__(self):
        (self.folder / f"opened-{os.getpid()}").touch()
        return encode
