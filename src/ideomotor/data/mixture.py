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
from ideomotor.data.permutation import mixed, permuted
from ideomotor.data.windows import Window, WindowConfig
from ideomotor.types import Dataset, domain_id


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
                if camera not in episode.frames and camera not in episode.latents:
                    raise ValueError(
                        f"episode {episode.id!r} of source {self.dataset.name!r} has no camera {camera!r}; it has "
                        f"{', '.join(map(repr, {**episode.frames, **episode.latents}))}"
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

    def draws(self, start: int, count: int) -> UInt64[np.ndarray, " k"]:
        """Returns a number for each of these samples, for windows that draw their frames at random."""
        numbers = np.arange(start, start + count, dtype=np.uint64)
        return mixed(mixed(np.full(count, self.seed % (1 << 64), dtype=np.uint64)) + numbers)


def _floor(samples: int, share: Fraction) -> int:
    return samples * share.numerator // share.denominator
