"""Latents that tests can work out: those of frame t are t + 1000 times the episode's number, deviation 0.5."""

from dataclasses import dataclass, replace

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
