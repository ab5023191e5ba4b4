"""Clips with known dynamics: a coloured disc that moves at constant speed and bounces in a box.

Everything about them has a closed form, so a test can say what a frame, a state or an action must be. Nothing is read
from disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from ideomotor.types import Dataset, Episode

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 50, 40),
    "green": (50, 200, 70),
    "blue": (60, 90, 240),
    "yellow": (240, 210, 50),
}
BACKGROUND = (24, 24, 32)


@dataclass(frozen=True, kw_only=True)
class BouncingDisc:
    """A disc in the box [-1, 1] x [-1, 1]: x to the right, y downwards, times in frames.

    Attributes:
        start: the centre at frame 0.
        velocity: box units a frame, before the first bounce.
        colour: a name in ``COLOURS``.
        radius: in box units; the centre stays in ``radius - 1 .. 1 - radius``.
    """

    start: tuple[float, float]
    velocity: tuple[float, float]
    colour: str
    radius: float = 0.25

    def position(self, times: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t 2"]:
        """Returns the centre (x, y) at each time: the straight line, folded back at the walls."""
        reach = 1.0 - self.radius
        straight = np.asarray(self.start) + np.asarray(times, dtype=np.float64)[:, None] * np.asarray(self.velocity)
        return reach - np.abs((straight + reach) % (4 * reach) - 2 * reach)  # a triangle wave of period 4 * reach

    def step(self, times: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t 2"]:
        """Returns the way from each time to the next frame: the velocity, folded within the frame of a bounce."""
        times = np.asarray(times, dtype=np.float64)
        return self.position(times + 1) - self.position(times)

    def render(self, times: Float[np.ndarray, " t"], size: tuple[int, int], turns: int = 0) -> UInt8[Tensor, "t c h w"]:
        """Returns pictures of ``size`` (height, width), turned by ``turns`` quarter turns.

        The rim is blended over one pixel, so that motion of less than a pixel is visible.
        """
        height, width = size if turns % 2 == 0 else size[::-1]
        centre = self.position(times)
        x = (np.arange(width) + 0.5) * 2 / width - 1
        y = (np.arange(height) + 0.5) * 2 / height - 1
        distance = np.hypot(x[None, None, :] - centre[:, 0, None, None], y[None, :, None] - centre[:, 1, None, None])
        cover = np.clip((self.radius - distance) * min(height, width) / 2 + 0.5, 0, 1)[:, None]  # t 1 h w
        ink, paper = (
            np.asarray(rgb, dtype=np.float64)[None, :, None, None] for rgb in (COLOURS[self.colour], BACKGROUND)
        )
        picture = np.rint(paper + cover * (ink - paper)).astype(np.uint8)  # t c h w
        return torch.from_numpy(np.ascontiguousarray(np.rot90(picture, turns, axes=(2, 3))))


@dataclass(frozen=True, kw_only=True)
class SyntheticFrames:
    """One camera's view of a disc (a ``types.Frames``), drawn when asked for, at any size."""

    disc: BouncingDisc
    length: int
    size: int
    turns: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, colours, height and width."""
        return (self.length, 3, self.size, self.size)

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t c h w"]:
        """Returns those frames, in the order asked for, drawn at ``size`` (height, width).

        Raises:
            IndexError: an index is outside ``0..length-1``.
        """
        for index in indices:
            if not 0 <= index < self.length:
                raise IndexError(f"frame {index} of an episode with {self.length} frames: ask for 0..{self.length - 1}")
        return self.disc.render(np.asarray(indices, dtype=np.float64), size or (self.size, self.size), self.turns)


def synthetic_disc(index: int, seed: int) -> BouncingDisc:
    """Returns the disc of episode ``index``: a pure function of its arguments."""
    random = np.random.Generator(np.random.Philox(key=[seed, index]))
    angle, speed = random.uniform(0, 2 * np.pi), random.uniform(0.04, 0.12)
    x, y = random.uniform(-0.75, 0.75, size=2)
    colour = tuple(COLOURS)[index % len(COLOURS)]
    velocity = (float(speed * np.cos(angle)), float(speed * np.sin(angle)))
    return BouncingDisc(start=(float(x), float(y)), velocity=velocity, colour=colour)


def synthetic_dataset(
    episodes: int = 8,
    length: int = 32,
    size: int = 32,
    seed: int = 0,
    actions: bool = True,
    cameras: Sequence[str] = ("video",),
) -> Dataset:
    """Returns ``episodes`` recordings of one bouncing disc each, ``length`` frames of ``size`` x ``size`` at 10 fps.

    The proprioceptive state is the disc's centre and the action its way to the next frame, so that
    ``proprio[t + 1] == proprio[t] + action[t]``; both are 2-d, in box units. Camera k sees the box turned by k quarter
    turns. With ``actions=False`` it is video alone: neither actions nor state.
    """
    if episodes < 1 or length < 1 or size < 1 or not cameras:
        raise ValueError(
            f"{episodes} episodes of {length} frames of {size} pixels and {len(cameras)} cameras: 1 or more of each"
        )
    made = tuple(_episode(index, length, size, seed, actions, tuple(cameras)) for index in range(episodes))
    description = repr(("synthetic", 1, episodes, length, size, seed, actions, tuple(cameras)))
    fingerprint = hashlib.sha256(description.encode()).hexdigest()
    name = f"synthetic-{seed}"
    return Dataset(name=name, path=Path(name), format="synthetic", episodes=made, fingerprint=fingerprint)


def _episode(index: int, length: int, size: int, seed: int, actions: bool, cameras: tuple[str, ...]) -> Episode:
    disc = synthetic_disc(index, seed)
    frames = {
        camera: SyntheticFrames(disc=disc, length=length, size=size, turns=turns)
        for turns, camera in enumerate(cameras)
    }
    return Episode(
        id=f"disc-{seed}-{index:04d}",
        text=f"the {disc.colour} disc moves",
        fps=10.0,
        length=length,
        frames=frames,
        read_actions=partial(_steps, disc, length) if actions else None,
        read_proprio=partial(_positions, disc, length) if actions else None,
        outcome="success",
    )


def _positions(disc: BouncingDisc, length: int) -> Float32[np.ndarray, "t 2"]:
    return disc.position(np.arange(length, dtype=np.float64)).astype(np.float32)


def _steps(disc: BouncingDisc, length: int) -> Float32[np.ndarray, "t 2"]:
    return disc.step(np.arange(length, dtype=np.float64)).astype(np.float32)
