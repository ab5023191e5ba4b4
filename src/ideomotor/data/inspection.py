"""What is in a dataset and what is wrong with it, for a person and for a program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.data.video import VideoFrames
from ideomotor.types import Dataset, Episode

_BLOCK, _BLOCK_BYTES = 64, 64 << 20  # frames, and bytes of them, held at a time where everything is decoded
_DAMAGE = (ValueError, IndexError, OSError, RuntimeError)  # what readers and decoders raise for damaged data


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Actions or states over a whole dataset: how many episodes have them, their width, and each number's range."""

    episodes: int
    widths: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What ``inspect`` found.

    Attributes:
        cameras: by name, how many episodes have which size (``"480x640"``).
        latents: by camera, how many episodes have latents of which shape (``"4x32x32"``).
        rates: frames per second, and how many episodes have them.
        texts: instructions or captions, and how many episodes have them; "" where there is none.
        outcomes: how many episodes succeeded, failed, or do not say ("").
        problems: one line for each recording that is left out or damaged.
        warnings: what is no fault and yet worth knowing.
        decoded: whether every frame was decoded.
    """

    name: str
    path: str
    format: str
    episodes: int
    frames: int
    hours: float
    shortest: int
    longest: int
    cameras: dict[str, dict[str, int]]
    rates: dict[float, int]
    texts: dict[str, int]
    outcomes: dict[str, int]
    actions: Signal | None
    proprio: Signal | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    decoded: bool = False
    latents: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the findings as JSON allows them."""
        return asdict(self) | {"rates": {f"{rate:g}": count for rate, count in self.rates.items()}}

    def lines(self) -> list[str]:
        """Returns the findings for the terminal."""
        lines = [
            f"{self.name} ({self.format}) in {self.path}",
            f"  {self.episodes} episodes, {self.frames} frames ({self.shortest} to {self.longest} each), "
            f"{self.hours:.2f} hours, at {_counted(self.rates, '{:g} frames/s')}",
        ]
        for camera, sizes in self.cameras.items():
            lines.append(f"  camera {camera!r}: {_counted(sizes)} (height x width)")
        for camera, shapes in self.latents.items():
            lines.append(f"  latents of {camera!r}: {_counted(shapes)} (channels x height x width)")
        for name, signal in (("actions", self.actions), ("proprio", self.proprio)):
            if signal is None:
                lines.append(f"  {name}: none")
                continue
            if not signal.episodes:
                lines.append(f"  {name}: none that can be read")
                continue
            lines.append(f"  {name}: in {signal.episodes} episodes, width {', '.join(map(str, signal.widths))}")
            if signal.low:
                pairs = zip(signal.low, signal.high, strict=True)
                lines.append("    from..to: " + ", ".join(f"{low:.3g}..{high:.3g}" for low, high in pairs))
        described = sum(count for text, count in self.texts.items() if text)
        lines.append(f"  text: {described} of {self.episodes} episodes, {len(set(self.texts) - {''})} different")
        lines += [f"    {count} x {text!r}" for text, count in list(self.texts.items())[:5] if text]
        if set(self.outcomes) - {""}:
            lines.append(f"  outcome: {_counted({name or 'unknown': n for name, n in self.outcomes.items()})}")
        lines += [f"  warning: {text}" for text in self.warnings]
        lines += [f"  left out: {text}" for text in self.problems]
        if not self.problems:
            lines.append(
                "  nothing was left out" + ("" if self.decoded else " (headers only; --deep decodes every frame)")
            )
        return lines


def inspect(dataset: Dataset, deep: bool = False) -> Inspection:
    """Returns what is in a dataset. Only with ``deep`` is every frame decoded and damage in it found."""
    problems = [f"{entry.path}: {entry.reason}" for entry in dataset.quarantined]
    episodes = dataset.episodes
    if deep:
        for episode in episodes:
            problems += _damage(episode)
    lengths = [episode.length for episode in episodes]
    actions = _signal([episode for episode in episodes if episode.read_actions is not None], read_actions, problems)
    proprio = _signal([episode for episode in episodes if episode.read_proprio is not None], read_proprio, problems)
    cameras: dict[str, Counter[str]] = {}
    encoded: dict[str, Counter[str]] = {}
    for episode in episodes:
        for camera, frames in episode.frames.items():
            cameras.setdefault(camera, Counter())[f"{frames.shape[2]}x{frames.shape[3]}"] += 1
        for camera, latents in episode.latents.items():
            encoded.setdefault(camera, Counter())["x".join(map(str, latents.shape[1:]))] += 1
    rates = Counter(round(episode.fps, 3) for episode in episodes)
    texts = Counter(episode.text for episode in episodes)
    return Inspection(
        name=dataset.name,
        path=str(dataset.path),
        format=dataset.format,
        episodes=len(episodes),
        frames=sum(lengths),
        hours=sum(episode.length / episode.fps for episode in episodes if episode.fps > 0) / 3600,
        shortest=min(lengths, default=0),
        longest=max(lengths, default=0),
        cameras={camera: dict(sizes.most_common()) for camera, sizes in cameras.items()},
        rates=dict(rates.most_common()),
        texts=dict(texts.most_common()),
        outcomes=dict(Counter(episode.outcome for episode in episodes)),
        actions=actions,
        proprio=proprio,
        problems=tuple(problems),
        warnings=(*_warnings(episodes, cameras, rates, texts, actions), *_video_warnings(dataset)),
        decoded=deep,
        latents={camera: dict(shapes.most_common()) for camera, shapes in encoded.items()},
    )


def _warnings(
    episodes: Sequence[Episode],
    cameras: dict[str, Counter[str]],
    rates: Counter[float],
    texts: Counter[str],
    actions: Signal | None,
) -> list[str]:
    warnings = []
    for camera, sizes in cameras.items():
        if len(sizes) > 1:
            warnings.append(
                f"camera {camera!r} has {len(sizes)} sizes; they are scaled and cut to one when learned from"
            )
        if sum(sizes.values()) < len(episodes):
            warnings.append(f"camera {camera!r} is in {sum(sizes.values())} of {len(episodes)} episodes")
    if len(rates) > 1:
        warnings.append(f"{len(rates)} frame rates; a window's stride counts frames, not seconds")
    if texts[""]:
        warnings.append(f"{texts['']} of {len(episodes)} episodes have no text")
    if actions is not None and actions.episodes < len(episodes):
        warnings.append(f"{len(episodes) - actions.episodes} of {len(episodes)} episodes have no actions")
    return warnings


def _video_warnings(dataset: Dataset) -> list[str]:
    """What the files' own clocks say: where frames are missing, and where reading is slow."""
    if dataset.format == "npz":
        return ["npz files record no frame rate; the one above is assumed"]
    videos = [f for episode in dataset.episodes for f in episode.frames.values() if isinstance(f, VideoFrames)]
    named = {"vary in frame rate, or lack frames in places": [f.path for f in videos if f.info.variable_rate]}
    named["are decoded from their start at every jump (mp4 or webm would not be)"] = [
        f.path for f in videos if not f.info.seekable
    ]
    return [
        f"{len(paths)} of {len(videos)} videos {what}, e.g. {Path(paths[0]).name}"
        for what, paths in named.items()
        if paths
    ]


def _signal(episodes: Sequence[Episode], read: Callable[[Episode], Any], problems: list[str]) -> Signal | None:
    """Reads a signal of all episodes; what cannot be read joins ``problems``."""
    if not episodes:
        return None
    parts = []
    for episode in episodes:
        try:
            parts.append(read(episode))
        except _DAMAGE as error:
            problems.append(f"{episode.id}: {error}")
    widths = Counter(part.shape[1] for part in parts)
    if len(widths) != 1:  # ranges of numbers that mean different things would say nothing
        return Signal(episodes=len(parts), widths=tuple(widths))
    low = np.min([part.min(0) for part in parts], axis=0)
    high = np.max([part.max(0) for part in parts], axis=0)
    return Signal(episodes=len(parts), widths=tuple(widths), low=tuple(low.tolist()), high=tuple(high.tolist()))


def _damage(episode: Episode) -> list[str]:
    """Decodes every frame; returns a line for each camera that does not give them all, or shows one frame only."""
    found = []
    for camera, frames in episode.frames.items():
        first, moved, done = None, False, 0
        count = max(1, min(_BLOCK, _BLOCK_BYTES // math.prod(frames.shape[1:])))
        try:
            for start in range(0, episode.length, count):
                block = frames.read(range(start, min(start + count, episode.length)))
                first = block[:1] if first is None else first
                moved = moved or bool((block != first).any())
                done += len(block)
        except _DAMAGE as error:
            found.append(f"{episode.id}, camera {camera!r}: {error} (after {done} of {episode.length} frames)")
            continue
        if not moved and episode.length > 1:
            found.append(f"{episode.id}, camera {camera!r}: all {episode.length} frames are the same picture")
    return found


def _counted(counts: dict[Any, int], form: str = "{}") -> str:
    if len(counts) == 1:
        return form.format(next(iter(counts)))
    return ", ".join(f"{form.format(value)} ({count})" for value, count in counts.items())
