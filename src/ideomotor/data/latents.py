"""Latents on disk: what a VAE says of every frame of a dataset, in shards that survive a kill and tell of damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ideomotor.data.cache import Progress
from ideomotor.data.draft import description, digest, locked, read_index
from ideomotor.data.latent_encoding import VERSION, Fit, LatentSpec, OpenEncoder, fill
from ideomotor.files import sha256
from ideomotor.types import Dataset, Latents, Moments, Quarantined

_AGAIN = "delete the cache's folder and prepare it again"


@dataclass(frozen=True, kw_only=True)
class CachedLatents:
    """One camera's latents of one episode in a cache (a ``types.Latents``)."""

    shards: Shards
    shard: int
    number: int
    shape: tuple[int, int, int, int]
    vae: str

    def read(self, indices: Sequence[int]) -> Moments:
        """Returns mean and deviation of those frames' latents, not scaled, as float32, in the order asked for.

        Raises:
            IndexError: an index is outside ``0..t-1``.
            ValueError: the shard is damaged; the message names it.
        """
        wrong = [index for index in indices if not 0 <= index < self.shape[0]]
        if wrong:
            raise IndexError(f"latent {wrong[0]} of an episode with {self.shape[0]} frames")
        low, high = min(indices, default=0), max(indices, default=0) + 1  # no more of a long episode is read
        file, rows = self.shards.opened(self.shard), torch.as_tensor(list(indices), dtype=torch.long) - low
        mean, std = (file.get_slice(f"{self.number}.{name}")[low:high][rows].float() for name in ("mean", "std"))
        return Moments(mean, std)


class Shards:
    """The files of a cache, opened when first read from; what each holds is checked by its digest then."""

    def __init__(self, folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
        """Looks at the files' sizes.

        Raises:
            ValueError: files are missing or cut short; all of them are named.
        """
        self.folder, self.entries = folder, entries
        self._files: dict[int, Any] = {}
        self._refuse([wrong for number in range(len(entries)) if (wrong := self._size(number))])

    def opened(self, shard: int) -> Any:
        """Returns the handle of a shard.

        Raises:
            ValueError: its content is not what was written.
        """
        if shard not in self._files:
            self._refuse([wrong] if (wrong := self._content(shard)) else [])
            try:
                self._files[shard] = safe_open(self.folder / str(self.entries[shard]["file"]), framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / str(self.entries[shard]['file'])}: {error}: {_AGAIN}") from error
        return self._files[shard]

    def verify(self, progress: Progress | None = None) -> None:
        """Reads every file; ``progress`` is called with files done and to be done.

        Raises:
            ValueError: some are damaged; all of them are named.
        """
        wrong = []
        for number in range(len(self.entries)):
            wrong.append(self._content(number))
            if progress is not None:
                progress(number + 1, len(self.entries))
        self._refuse([each for each in wrong if each])

    def _size(self, number: int) -> str:
        """What is wrong with a shard's size; "" where nothing is."""
        name, wanted = self.entries[number]["file"], self.entries[number]["bytes"]
        path = self.folder / str(name)
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        return f"{name} has {size} bytes instead of {wanted}" if size != wanted else ""

    def _content(self, number: int) -> str:
        name = self.entries[number]["file"]
        return self._size(number) or (
            "" if sha256(self.folder / str(name)) == self.entries[number]["sha256"] else f"{name} was changed"
        )

    def _refuse(self, wrong: Sequence[str]) -> None:
        if wrong:
            raise ValueError(f"the latents in {self.folder} are damaged: {'; '.join(wrong)}: {_AGAIN}")


class LatentCache:
    """One camera of a dataset as latents, in a finished folder; read only and shared between processes.

    Attributes:
        latents: by the episode's id.
        quarantined: the episodes that did not decode, and why.
        vae: fingerprint of the VAE that made them.
        scale: what its latents are multiplied by to have about unit variance.
        dtype: in which they are stored, "float16" or "bfloat16".
    """

    def __init__(self, folder: Path) -> None:
        """Opens a finished cache; sizes of the shards are checked, what they hold when it is read.

        Raises:
            FileNotFoundError: there is none in ``folder``.
            ValueError: it is damaged (every damaged shard is named), or of another version.
        """
        index = read_index(folder, "latents", VERSION)
        self.folder, self.camera, self.vae = folder, str(index["camera"]), str(index["vae"])
        self.scale, self.dtype = float(index["scale"]), str(index["dtype"])
        self.shards = Shards(folder, index["shards"])
        self.quarantined = tuple(Quarantined(**entry) for entry in index["quarantined"])
        z, height, width = index["shape"]
        self.latents: dict[str, Latents] = {
            entry["id"]: CachedLatents(
                shards=self.shards,
                shard=entry["shard"],
                number=entry["number"],
                shape=(entry["length"], z, height, width),
                vae=self.vae,
            )
            for entry in index["episodes"]
        }

    @classmethod
    def build(
        cls,
        dataset: Dataset,
        root: Path,
        spec: LatentSpec,
        open_encoder: OpenEncoder,
        workers: int = 1,
        progress: Progress | None = None,
        shard_frames: int = 2048,
    ) -> LatentCache:
        """Returns the latents of one camera, encoding what is not on disk yet.

        A build that was killed goes on after the shards that reached the disk. An episode that does not decode is left
        out and listed in ``quarantined``.

        Args:
            dataset: with a fingerprint.
            root: the folder of caches; one is made in it.
            spec: what is encoded, by which VAE, and how it is stored.
            open_encoder: called once in every process that encodes; with several workers it must be picklable.
            workers: processes that decode and encode; 1 does it in this one.
            progress: called with frames done and to be done.
            shard_frames: a shard ends with the episode that brings it to so many frames.

        Raises:
            OSError: the disk has no room; what was encoded so far is kept for the next try.
            ValueError: an episode lacks the camera's video, the dataset has no fingerprint, nothing could be decoded,
                or latents are larger than what is stored can hold.
        """
        for episode in dataset.episodes:
            if spec.camera not in episode.frames:
                raise ValueError(
                    f"episode {episode.id!r} of dataset {dataset.name!r} has no video of camera {spec.camera!r}; it "
                    f"has {', '.join(map(repr, episode.frames)) or 'none'}"
                )
        if workers < 1 or shard_frames < 1:
            raise ValueError(f"workers={workers}, shard_frames={shard_frames}: both must be at least 1")
        final = Path(root) / f"{_stem(dataset, spec.camera, spec.size, spec.fit)}-{spec.key}"
        if not final.exists():
            with locked(final):
                if not final.exists():
                    fill(dataset, final, spec, open_encoder, workers, progress, shard_frames)
        return cls(final)

    def verify(self, progress: Progress | None = None) -> None:
        """Reads every shard and compares its digest; ``progress`` is called with shards done and to be done.

        Raises:
            ValueError: shards are damaged; all of them are named.
        """
        self.shards.verify(progress)


def with_cached_latents(
    dataset: Dataset, root: Path, cameras: Sequence[str], size: tuple[int, int], vae: str, fit: Fit = "crop"
) -> Dataset:
    """Returns the dataset with the latents that were prepared of these cameras; nothing is encoded.

    Episodes that did not decode are left out and join ``quarantined``. The fingerprint is that of dataset and latents.

    Raises:
        FileNotFoundError: they were not prepared.
        ValueError: they were prepared with another VAE than that of fingerprint ``vae``, or are damaged.
    """
    caches = {camera: _finished(dataset, root, camera, size, vae, fit) for camera in cameras}
    kept = tuple(
        replace(episode, latents={**episode.latents, **{name: one.latents[episode.id] for name, one in caches.items()}})
        for episode in dataset.episodes
        if all(episode.id in one.latents for one in caches.values())
    )
    lost = tuple(entry for one in caches.values() for entry in one.quarantined)
    made = digest([dataset.fingerprint, [[camera, cache.folder.name] for camera, cache in caches.items()]])
    return replace(dataset, episodes=kept, quarantined=dataset.quarantined + lost, fingerprint=made)


def is_prepared(dataset: Dataset, root: Path, camera: str, size: tuple[int, int], vae: str, fit: Fit = "crop") -> bool:
    """Says whether latents of this camera, by the VAE of that fingerprint, are there, in whichever precision."""
    return any(cache.vae == vae for cache in _there(dataset, root, camera, size, fit))


def _finished(dataset: Dataset, root: Path, camera: str, size: tuple[int, int], vae: str, fit: Fit) -> LatentCache:
    found = _there(dataset, root, camera, size, fit)
    what = f"latents of {dataset.name!r}, camera {camera!r}, {size[0]}x{size[1]} pixels ({fit}),"
    if not found:
        raise FileNotFoundError(f"{what} are not in {root}: prepare them first (ideomotor vpp prepare)")
    for cache in found:
        if cache.vae == vae:
            return cache
    others = ", ".join(sorted({cache.vae[:12] for cache in found}))
    raise ValueError(
        f"{what} in {root} were made by another VAE ({others}, wanted {vae[:12]}): prepare them with this one, or give "
        "the VAE that made them"
    )


def _there(dataset: Dataset, root: Path, camera: str, size: tuple[int, int], fit: Fit) -> list[LatentCache]:
    """The finished caches of this camera, of any VAE, the finer precision first."""
    stem = _stem(dataset, camera, size, fit)
    # A cache in the making ends in .partial, and gets its index just before it gets its name.
    places = sorted(path.parent for path in Path(root).glob(f"{stem}-*/index.json"))
    caches = [LatentCache(place) for place in places if place.suffix != ".partial"]
    return sorted(caches, key=lambda cache: cache.dtype != "float16")  # so that a run goes on with what it began with


def _stem(dataset: Dataset, camera: str, size: tuple[int, int], fit: Fit) -> str:
    return f"latents-{digest(['latents', camera, list(size), fit, description(dataset)])}"
