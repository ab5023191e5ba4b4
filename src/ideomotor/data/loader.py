"""The loader: from the sources of a mixture to an endless stream of clips."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt64
from torch import Tensor

from ideomotor.data.crop_jitter import CropJitterConfig, crop_and_jitter
from ideomotor.data.feature_cache import FeatureCache
from ideomotor.data.latent_windows import Draw, read_latents, vae_of
from ideomotor.data.mixture import Mixture, Source
from ideomotor.data.signals import read_actions, read_proprio, read_rewards, refuse_other_widths
from ideomotor.data.token_cache import TokenCache, windows_key
from ideomotor.data.windows import WindowIndex, rewards_in
from ideomotor.types import Clip, domain_id

_Signal = Float32[np.ndarray, "t width"]
_Cache = TypeVar("_Cache", TokenCache, FeatureCache)


class ClipLoader:
    """Batches of a mixture, without end; the batch of a step is a pure function of its arguments and the seed.

    There is no state: begun at ``start``, it goes on exactly as one that was begun at 0. Which samples make the batch
    of a step does not depend on how many processes share it.

    Args:
        sources: with the same number of frames, and of actions, a window.
        batch_size: samples a step, over all processes together.
        seed: of the order.
        world_size: processes that share the batch; each gets ``batch_size / world_size`` samples of it.
        rank: which of them this is.
        start: the first step that iterating yields.
        with_frames: False leaves ``frames`` empty, for training on tokens alone.
        token_cache: caches of the windows of every source and camera, in any order; they become ``tokens``.
        feature_cache: the same, of what a predictor sees in their newest frames; they become ``features``.
        latents: "mean" or "sample" (another each time a window comes) gives clips the ``latents`` of every camera.
        actions: False for video that may not have any: clips then have neither actions nor ``proprio``. With actions
            they have ``proprio`` where every episode of every source recorded it.
        rewards: every episode must have them; clips then have what each of their actions, or of those that would be
            theirs, brought.
        prefetch: batches made ahead by a thread; 0 makes each when it is asked for.
        pin: makes them in page-locked memory, for a GPU.
        augment: crops and colours frames at random, each sample otherwise each time it comes; not beside a cache.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        start: int = 0,
        with_frames: bool = True,
        token_cache: TokenCache | Sequence[TokenCache] | None = None,
        latents: Draw | None = None,
        actions: bool = True,
        rewards: bool = False,
        prefetch: int = 2,
        pin: bool = False,
        feature_cache: Sequence[FeatureCache] | None = None,
        augment: CropJitterConfig | None = None,
    ) -> None:
        """Reads the actions, states and rewards of every episode, and no frame.

        Raises:
            ValueError: the sources do not fit one another, an episode lacks actions or rewards or has damaged ones, a
                cache or latents are missing, or the batch cannot be shared evenly.
        """
        if world_size < 1 or not 0 <= rank < world_size or batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} for rank {rank} of world_size {world_size}: the batch of all processes "
                "together must be a multiple of their number, and ranks count from 0"
            )
        if start < 0 or prefetch < 0:
            raise ValueError(f"start={start}, prefetch={prefetch}: both are 0 or more")
        if not sources:
            raise ValueError("no sources were given: a loader needs at least one")
        if augment is not None and (token_cache is not None or feature_cache is not None):
            raise ValueError("tokens and features in a cache stand for unchanged frames: augment, or load from a cache")
        caches = [token_cache] if isinstance(token_cache, TokenCache) else token_cache
        self._readers = [
            _SourceReader(source, actions, rewards, with_frames, caches, latents, feature_cache, augment)
            for source in sources
        ]
        _refuse_unequal(self._readers, actions, rewards)
        self._with_proprio = all(reader.states is not None for reader in self._readers)
        self.mixture = Mixture([s.weight for s in sources], [len(reader.index) for reader in self._readers], seed)
        self.batch_size, self.world_size, self.rank, self.start = batch_size, world_size, rank, start
        self._prefetch, self._pin = prefetch, pin

    def __iter__(self) -> Iterator[Clip]:
        """Yields this rank's part of the batches of steps ``start``, ``start + 1``, ... for ever.

        An error in the thread that works ahead is raised here, at the batch that it belongs to.
        """
        if self._prefetch == 0:
            yield from map(self.batch, itertools.count(self.start))
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clips")
        try:
            steps = itertools.count(self.start)
            ahead = deque(pool.submit(self.batch, step) for step in itertools.islice(steps, self._prefetch))
            for step in steps:
                clip = ahead.popleft().result()
                ahead.append(pool.submit(self.batch, step))
                yield clip
        finally:
            # Without waiting: a forgotten iterator may be collected in that very thread, which cannot wait for itself.
            pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, step: int) -> Clip:
        """Returns this rank's part of the batch of a step."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        numbers, windows = self.mixture.samples(first, share)
        draws = self.mixture.draws(first, share)
        parts, rows = [], []
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            parts.append(self._readers[number].read(windows[mine], draws[mine], self._with_proprio))
            rows.append(mine)
        clip = _joined(parts, np.concatenate(rows))
        return clip.pin_memory() if self._pin else clip


class _SourceReader:
    """Windows of one source as clips; its actions, states and rewards are in memory."""

    def __init__(
        self,
        source: Source,
        actions: bool,
        rewards: bool,
        with_frames: bool,
        caches: Sequence[TokenCache] | None,
        latents: Draw | None,
        features: Sequence[FeatureCache] | None,
        augment: CropJitterConfig | None,
    ) -> None:
        self.augment = augment
        self.source, self.with_frames, self.latents = source, with_frames, latents
        self.index = WindowIndex(source.dataset, source.window)
        self.cameras = source.camera_names()
        if with_frames:
            _refuse_no_video(source)
        self.vaes = {vae_of(source.dataset, camera) for camera in self.cameras.values()} if latents else set()
        self.actions = self._read_actions() if actions else None
        self.states = self._read_states() if actions else None
        self.rewards = [read_rewards(each) for each in source.dataset.episodes] if rewards else None
        self.tokens = None if caches is None else self._fitting(caches, "token")
        self.features = None if features is None else self._fitting(features, "feature")

    @property
    def name(self) -> str:
        return self.source.dataset.name

    @property
    def action_width(self) -> int | None:
        return None if self.actions is None else self.actions[0].shape[1]

    @property
    def state_width(self) -> int | None:
        return None if self.states is None else self.states[0].shape[1]

    def read(self, windows: Int64[np.ndarray, " b"], draws: UInt64[np.ndarray, " b"], with_proprio: bool) -> Clip:
        wanted, config, episodes = windows.tolist(), self.source.window, self.source.dataset.episodes
        drawn = draws.tolist()
        places = [(*self.index.locate(window), draw) for window, draw in zip(wanted, drawn, strict=True)]
        frames: dict[str, Tensor] = {}
        if self.with_frames:
            size = self.source.size
            frames = {name: self.index.read(wanted, camera, size, drawn) for name, camera in self.cameras.items()}
            frames = frames if self.augment is None else _augmented(frames, self.augment, drawn)
        actions, mask, proprio, rewards = None, None, None, None
        if self.actions is not None:
            chunks = [config.actions(self.actions[number], anchor, draw) for number, anchor, draw in places]
            actions = torch.from_numpy(np.stack([chunk for chunk, _ in chunks]))
            mask = torch.from_numpy(np.stack([recorded for _, recorded in chunks]))
        if self.rewards is not None:
            brought = [rewards_in(config, self.rewards[number], anchor, draw) for number, anchor, draw in places]
            rewards = torch.from_numpy(np.stack(brought))
        if with_proprio and self.states is not None:
            now = [config.frame_indices(at, episodes[n].length, draw)[config.context - 1] for n, at, draw in places]
            proprio = torch.from_numpy(np.stack([self.states[p[0]][row] for p, row in zip(places, now, strict=True)]))
        return Clip(
            frames=frames,
            latents=self._read_latents(wanted, drawn),
            text=tuple(episodes[number].text for number, _, _ in places),
            actions=actions,
            action_mask=mask,
            rewards=rewards,
            proprio=proprio,
            tokens=None if self.tokens is None else {name: cache.read(wanted) for name, cache in self.tokens.items()},
            features=None if self.features is None else {n: cache.read(wanted) for n, cache in self.features.items()},
            domain=torch.full((len(wanted),), domain_id(self.source.domain)),
        )

    def _read_latents(self, windows: list[int], draws: list[int]) -> dict[str, Tensor] | None:
        if self.latents is None:
            return None
        kind = self.latents
        return {n: read_latents(self.index, windows, camera, draws, kind) for n, camera in self.cameras.items()}

    def _read_actions(self) -> list[_Signal]:
        actions = [read_actions(episode) for episode in self.source.dataset.episodes]
        refuse_other_widths(self.source.dataset, "actions", [values.shape[1] for values in actions])
        return actions

    def _read_states(self) -> list[_Signal] | None:
        states = [read_proprio(episode) for episode in self.source.dataset.episodes]
        recorded = [values for values in states if values is not None]
        if len(recorded) < len(states):
            return None
        refuse_other_widths(self.source.dataset, "proprio", [values.shape[1] for values in recorded])
        return recorded

    def _fitting(self, caches: Sequence[_Cache], what: str) -> dict[str, _Cache]:
        """The cache of each camera's windows."""
        found: dict[str, _Cache] = {}
        for name, camera in self.cameras.items():
            key = windows_key(self.index, camera, self.source.size)
            fitting = [cache for cache in caches if cache.windows == key]
            if len(fitting) != 1:
                raise ValueError(
                    f"{len(fitting)} of {len(caches)} {what} caches fit the windows of source {self.name!r}, camera "
                    f"{camera!r}; wanted one: build it from the same dataset, window and camera, with one model"
                )
            found[name] = fitting[0]
        return found


def _augmented(frames: dict[str, Tensor], config: CropJitterConfig, draws: list[int]) -> dict[str, Tensor]:
    """Each sample changed as its own number says, whatever batch it comes in."""
    rows = []
    for row, draw in enumerate(draws):
        clip = Clip(frames={name: video[row : row + 1] for name, video in frames.items()}, text=("",))
        generator = torch.Generator().manual_seed(int(draw) % (1 << 63))
        rows.append(crop_and_jitter(clip, config, generator).frames)
    return {name: torch.cat([row[name] for row in rows]) for name in frames}


def _refuse_no_video(source: Source) -> None:
    cameras = source.camera_names().values()
    for episode in source.dataset.episodes:
        missing = [camera for camera in cameras if camera not in episode.frames]
        if missing:
            raise ValueError(
                f"episode {episode.id!r} of source {source.dataset.name!r} has latents of camera {missing[0]!r} and no "
                "video: load with with_frames=False"
            )


def _refuse_unequal(readers: Sequence[_SourceReader], actions: bool, rewards: bool) -> None:
    """Refuses sources whose clips cannot stand in one batch."""
    first = readers[0]
    for other in readers[1:]:
        facts: list[tuple[str, Any, Any]] = [
            ("cameras", sorted(first.cameras), sorted(other.cameras)),
            ("context", first.source.window.context, other.source.window.context),
            ("horizon", first.source.window.horizon, other.source.window.horizon),
            ("latents of the VAEs", sorted(first.vaes), sorted(other.vaes)),
        ]
        if actions or rewards:
            facts.append(("chunk", first.source.window.chunk, other.source.window.chunk))
        if actions:
            facts.append(("actions of width", first.action_width, other.action_width))
            if None not in (first.state_width, other.state_width):
                facts.append(("proprio of width", first.state_width, other.state_width))
        for name, cache in (first.tokens or {}).items():
            theirs = (other.tokens or {}).get(name, cache)
            facts.append((f"tokenizer of {name!r}", cache.tokenizer, theirs.tokenizer))
            facts.append((f"tokens of {name!r}", cache.tokens.shape[1:], theirs.tokens.shape[1:]))
        for name, held in (first.features or {}).items():
            others = (other.features or {}).get(name, held)
            facts.append((f"model of the features of {name!r}", held.model, others.model))
            facts.append((f"features of {name!r}", held.features.shape[1:], others.features.shape[1:]))
        for what, ours, theirs in facts:
            if ours != theirs:
                raise ValueError(
                    f"source {first.name!r} has {what} {ours}, source {other.name!r} {theirs}; sources of one "
                    "mixture must agree: change one, or train on them apart"
                )


def _joined(parts: Sequence[Clip], rows: Int64[np.ndarray, " b"]) -> Clip:
    """Returns one clip of those of the sources; ``rows`` is where each of their samples belongs."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(rows).tolist()

    def join(values: Sequence[Any]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], Mapping):
            return {name: join([value[name] for value in values]) for name in values[0]}
        if isinstance(values[0], tuple):
            texts = [text for value in values for text in value]
            return tuple(texts[row] for row in order)
        shapes = sorted({tuple(value.shape[1:]) for value in values})
        if len(shapes) > 1:
            raise ValueError(
                f"the sources give clips of {shapes[0]} and {shapes[1]}; a batch needs one shape: cache all "
                "sources at one size, or set the size of each"
            )
        return torch.cat(list(values))[order]

    return Clip(**{field.name: join([getattr(part, field.name) for part in parts]) for field in fields(Clip)})
