"""Clips that a stage held out, to score a model on: which they are, and which of them are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.formats import open_dataset
from ideomotor.data.mixture import Source
from ideomotor.data.segments import SegmentWindow
from ideomotor.data.signals import read_rewards
from ideomotor.data.whole_clips import WholeClip
from ideomotor.data.windows import WindowIndex, rewards_in
from ideomotor.systems.sources import DataFacts, console, read_facts

WHOLE = "whole clip"  # in the name of such a clip, in place of its first frame


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Clips that no model has learned from.

    Attributes:
        frames: context first, then what happened.
        actions: row ``k`` is done at frame ``k`` and leads to the next; None for video without actions.
        rewards: row ``k`` is what that action brought; None where an episode has none.
        episodes: which episode each clip was cut from.
        texts: instruction or caption.
        names: data set, episode, camera and first frame of each clip; of a whole one that it is whole.
    """

    frames: UInt8[Tensor, "b t c h w"]
    actions: Float[Tensor, "b t a"] | None
    rewards: Float[Tensor, "b t"] | None
    episodes: list[str]
    texts: list[str]
    names: list[str]


def held_out_clips(folder: Path, data: Sequence[Path], window: SegmentWindow, size: int, count: int) -> HeldOut:
    """Returns clips spread evenly over what the stage held out, or over the data sets that are named.

    Where the stage took whole clips, these are whole too. Clips of a mix are shared out by its weights, at least one of
    each data set; one without video is left out, which is told. Every camera that the stage looked through gives clips
    of its own; of data sets that are named it is the first.

    Raises:
        ValueError: the stage held nothing out, or its data are gone.
    """
    noted = read_facts(folder)
    if data:
        return clips_of([Source(open_dataset(path), window=_shown(noted, path, window)) for path in data], size, count)
    found = [(facts, list(_held_out(facts, window))) for facts in noted if facts.held_out]
    if not found:
        raise ValueError(f"{folder} held out no episode: name data sets with --data, or train with --validation 0.1")
    if any(facts.weight is None for facts, _ in found):
        return clips_of([source for _, sources in found for source in sources], size, count)
    seen = [(facts, sources) for facts, sources in found if all(_without_video(source) is None for source in sources)]
    for facts, _ in found if seen else ():
        if facts not in [one for one, _ in seen]:
            console.print(f"no clips are taken of {facts.path}: it has latents alone", markup=False)
    return _by_weight(seen or found, size, count)


def _held_out(facts: DataFacts, window: SegmentWindow) -> Iterator[Source]:
    if not Path(facts.path).exists():
        raise FileNotFoundError(
            f"{facts.path}, of which the stage held out {len(facts.held_out)} episodes, is gone: where it moved, run "
            "the stage's own command with its new --data, which notes the place and trains nothing anew; or name "
            "other data sets with --data"
        )
    dataset = open_dataset(Path(facts.path))
    kept = tuple(episode for episode in dataset.episodes if episode.id in set(facts.held_out))
    for camera in facts.camera.split(","):
        yield Source(replace(dataset, episodes=kept), window=_window(facts, window), cameras={"main": camera})


def _window(facts: DataFacts, window: SegmentWindow) -> SegmentWindow | WholeClip:
    return WholeClip(frames=window.frames) if facts.whole else replace(window, stride=facts.stride)


def _shown(noted: Sequence[DataFacts], path: Path, window: SegmentWindow) -> SegmentWindow | WholeClip:
    return WholeClip(frames=window.frames) if whole_clips(noted, path) else window


def whole_clips(noted: Sequence[DataFacts], path: Path) -> bool:
    """Says whether clips of a data set are whole: the stage took such of it, or does not know it and took no others."""
    known = [facts for facts in noted if facts.path == str(path.resolve())] or noted
    return bool(known) and all(facts.whole for facts in known)


def _by_weight(found: Sequence[tuple[DataFacts, list[Source]]], size: int, count: int) -> HeldOut:
    """Clips of each data set by its weight: always the next of that which is furthest behind its share."""
    windows = [sum(len(WindowIndex(source.dataset, source.window)) for source in sources) for _, sources in found]
    taken = [0] * len(found)
    for _ in range(min(count, sum(windows))):
        left = [number for number, there in enumerate(windows) if taken[number] < there]
        taken[min(left, key=lambda number: taken[number] / (found[number][0].weight or 1.0))] += 1
    parts = [clips_of(sources, size, some) for (_, sources), some in zip(found, taken, strict=True) if some]
    return _joined(parts)


def clips_of(sources: Sequence[Source], size: int, count: int) -> HeldOut:
    """Returns ``count`` clips, or as many as there are, spread evenly over the windows of all sources.

    Raises:
        ValueError: none is asked for, an episode has no video, or the sources have actions of different widths.
    """
    if count < 1:
        raise ValueError(f"clips is {count}; wanted at least 1")
    for source in sources:
        _refuse_without_video(source)
    indices = [WindowIndex(source.dataset, source.window) for source in sources]
    places = [(number, window) for number, index in enumerate(indices) for window in range(len(index))]
    taken = min(count, len(places))
    chosen = [places[(2 * k + 1) * len(places) // (2 * taken)] for k in range(taken)]
    frames, actions, rewards, episodes, texts, names = [], [], [], [], [], []
    for number, window in chosen:
        source, index = sources[number], indices[number]
        (camera,) = source.camera_names().values()
        frames.append(index.read([window], camera, (size, size)))
        of, anchor = index.locate(window)
        episode = source.dataset.episodes[of]
        episodes.append(f"{source.dataset.name}/{episode.id}")
        texts.append(episode.text)
        pace = WHOLE if isinstance(source.window, WholeClip) else f"frame {anchor}"
        names.append(f"{episodes[-1]}, {camera}, {pace}")
        if episode.read_actions is not None:
            actions.append(torch.from_numpy(source.window.actions(episode.read_actions(), anchor)[0]))
        if episode.read_rewards is not None:
            rewards.append(torch.from_numpy(rewards_in(source.window, read_rewards(episode), anchor)))
    if len({tuple(rows.shape) for rows in actions}) > 1:
        raise ValueError(
            f"the data sets have actions of widths {sorted({rows.shape[1] for rows in actions})}: score on data sets "
            "of one robot"
        )
    return HeldOut(
        frames=torch.cat(frames),
        actions=torch.stack(actions) if len(actions) == len(chosen) else None,
        rewards=torch.stack(rewards) if len(rewards) == len(chosen) else None,
        episodes=episodes,
        texts=texts,
        names=names,
    )


def _joined(parts: Sequence[HeldOut]) -> HeldOut:
    """The clips of all parts; actions and rewards are not joined, as robots differ."""
    return HeldOut(
        frames=torch.cat([part.frames for part in parts]),
        actions=None,
        rewards=None,
        episodes=[episode for part in parts for episode in part.episodes],
        texts=[text for part in parts for text in part.texts],
        names=[name for part in parts for name in part.names],
    )


def _without_video(source: Source) -> str | None:
    """The first episode that has no video of the source's camera."""
    (camera,) = source.camera_names().values()
    return next((episode.id for episode in source.dataset.episodes if camera not in episode.frames), None)


def _refuse_without_video(source: Source) -> None:
    (camera,) = source.camera_names().values()
    without = _without_video(source)
    if without is not None:
        raise ValueError(
            f"episode {without!r} of {source.dataset.path} has no video of camera {camera!r}, only latents, and what "
            "is foretold is held against video: name data sets that have it with --data"
        )


def shown(clips: HeldOut, count: int) -> list[int]:
    """Returns which clips are shown: of the livelier half, evenly spaced, so none is chosen for how well it went."""
    last = clips.frames[:, :1].int()
    moved = (clips.frames.int() - last).abs().amax(2).gt(20).float().mean((1, 2, 3))
    lively = moved.argsort(descending=True)[: max(count, len(moved) // 2)].sort().values.tolist()
    return lively[:: max(1, len(lively) // count)][:count]
