"""Mixtures: which window of which source is sample k of a stream, as a pure function of (seed, k).

There is no state to save: a loader that starts at sample k, or takes only some of the samples, sees what one that began
at 0 and took all would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from jaxtyping import Int64, UInt64

from ideomotor.data.cache import first_camera
from ideomotor.data.windows import Window, WindowConfig
from ideomotor.types import Dataset, domain_id

_ROUNDS = 6


@dataclass(frozen=True)
class Source:
    """A dataset's part in a mixture.

    Attributes:
        dataset: best one from ``cached``; any other is decoded window by window.
        weight: its share of the samples, relative to the other sources' weights.
        window: of its windows; the stride may differ between the sources of a mixture.
        cameras: the dataset's camera for each name in the clips; its first camera, as "main", by default.
        size: height and width that frames are scaled to cover and cut to, for a dataset that is not cached.
        domain: what its video is of; one of ``types.DOMAINS``.
    """

    dataset: Dataset
    weight: float = 1.0
    window: Window = field(default_factory=WindowConfig)
    cameras: Mapping[str, str] | None = None
    size: tuple[int, int] | None = None
    domain: str = "unknown"

    def __post_init__(self) -> None:
        domain_id(self.domain)  # refuses an unknown name
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(
                f"source {self.dataset.name!r} has weight {self.weight}; weights are positive: leave out "
                "what is not wanted"
            )
        if self.cameras is not None and not self.cameras:
            raise ValueError(f"source {self.dataset.name!r} has no cameras: name one, e.g. {{'main': 'corner2'}}")
        wanted = self.camera_names().values()
        for episode in self.dataset.episodes:
            for camera in wanted:
                if camera not in episode.frames:
                    raise ValueError(
                        f"episode {episode.id!r} of source {self.dataset.name!r} has no camera {camera!r}; it has "
                        f"{', '.join(map(repr, episode.frames))}"
                    )

    def camera_names(self) -> dict[str, str]:
        """Returns the dataset's camera for each name in the clips."""
        return {"main": first_camera(self.dataset)[0]} if self.cameras is None else dict(self.cameras)


class Mixture:
    """An endless order of samples over several sources.

    Sources take turns as evenly as their weights allow: after any k samples, each of n sources has had its exact share
    to within n samples, and ``count`` says how many. Within a source, windows come in permutations: each once, in an
    order of its own for every epoch, before any comes again.
    """

    def __init__(self, weights: Sequence[float], windows: Sequence[int], seed: int) -> None:
        """Takes the weight of each source, and its number of windows."""
        if not weights or len(weights) != len(windows):
            raise ValueError(
                f"{len(weights)} weights and {len(windows)} sources; a mixture needs one each of one or more"
            )
        if min(weights) <= 0 or min(windows) < 1:
            raise ValueError(f"weights {list(weights)}, windows {list(windows)}; a source needs more than 0 of both")
        self.windows, self.seed = tuple(windows), seed
        exact = [Fraction(weight) for weight in weights]
        # Source by source: its share of what the sources before it have left.
        self._shares = [share / sum(exact[number:]) for number, share in enumerate(exact)]

    def count(self, source: int, samples: int) -> int:
        """Returns how many of the first ``samples`` samples come from a source."""
        for number, share in enumerate(self._shares):
            taken = _floor(samples, share)
            if number == source:
                return taken
            samples -= taken
        raise IndexError(f"source {source} of {len(self._shares)}")

    def sample(self, k: int) -> tuple[int, int]:
        """Returns the source of sample k, and its place in that source's own stream."""
        for number, share in enumerate(self._shares):
            taken = _floor(k, share)
            if _floor(k + 1, share) > taken:
                return number, taken
            k -= taken
        raise AssertionError("the last source takes all that is left")

    def samples(self, start: int, count: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
        """Returns the source and the window of samples ``start .. start + count - 1``."""
        if start < 0:
            raise ValueError(f"samples from {start} on were asked for; a stream begins at 0")
        pairs = [self.sample(k) for k in range(start, start + count)]
        sources, places = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
        windows = np.empty(count, dtype=np.int64)
        for source in np.unique(sources).tolist():
            rows = sources == source
            epochs, indices = np.divmod(places[rows], self.windows[source])
            windows[rows] = permuted(indices, self.windows[source], self.seed, source, epochs)
        return sources.copy(), windows


def permuted(
    indices: Int64[np.ndarray, " k"], length: int, seed: int, stream: int, epochs: Int64[np.ndarray, " k"]
) -> Int64[np.ndarray, " k"]:
    """Returns where permutations of ``0..length-1`` put these indices: one permutation for each (seed, stream, epoch).

    A Feistel network over the next even power of two, walked until it lands inside: no table, so any place of any
    epoch is found at once, and no library's shuffle, so the order is the same for ever.
    """
    half = np.uint64(max((length - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    start = _mixed(_mixed(np.full(len(indices), seed % (1 << 64), dtype=np.uint64)) + np.uint64(stream))
    keys = [_mixed(_mixed(start + epochs.astype(np.uint64)) + np.uint64(turn)) for turn in range(_ROUNDS)]
    values = indices.astype(np.uint64)
    walking = np.ones(len(indices), dtype=bool)
    while walking.any():
        left, right = values[walking] >> half, values[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key[walking]) & mask)
        values[walking] = (left << half) | right
        walking = values >= np.uint64(length)
    return values.astype(np.int64)


def _floor(samples: int, share: Fraction) -> int:
    return samples * share.numerator // share.denominator


def _mixed(values: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Scrambles 64-bit numbers one to one: the finalizer of SplitMix64.

    Source:
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
