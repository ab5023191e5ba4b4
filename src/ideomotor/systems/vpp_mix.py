"""A mix of data sets as what VPP learns single views from: each data set sampled as its table in a file says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ideomotor.data.cache import first_camera
from ideomotor.data.formats import open_dataset
from ideomotor.data.mix_files import Part, find_mix, packaged_mixes, read_mix
from ideomotor.data.mixture import Source
from ideomotor.data.sampling import Sampling, StridedWindow, sampled_sources
from ideomotor.data.whole_clips import WholeClip
from ideomotor.data.windows import refuse_still, split
from ideomotor.systems.sources import DataFacts, DataOptions, Sources, console, decoded, report_quarantine
from ideomotor.systems.stages import look
from ideomotor.training.config import config_to_json
from ideomotor.types import Dataset


@dataclass(frozen=True, kw_only=True)
class SampledOptions(DataOptions):
    """Data sets one by one, or a mix of them."""

    data: tuple[Path, ...] = ()
    """One or more data sets: LeRobot v3, annotated JSON, npz, or a folder of videos (see `ideomotor data inspect`). Or
    else --mix."""
    mix: str | None = None
    """A mix in place of --data: published (that of the release: sthv2, bridge, rt1, calvin, below --root), or your own
    file, e.g. mine.toml, with a table for each data set: path, window (whole or strided), cameras, weight, domain (see
    docs/data.md)."""
    root: Path | None = None
    """Folder that the paths in the mix are relative to; by default that of its file."""

    def __post_init__(self) -> None:
        if self.mix is None:
            super().__post_init__()
        elif self.weights or self.strides or self.cameras or self.domains:
            raise ValueError(
                "a mix sets weights, windows, cameras and domains, each data set's in its table: leave --weights, "
                "--strides, --cameras and --domains out"
            )

    def chosen(self, frames: int) -> DataOptions:
        """Returns the data sets that are named, or those of the mix, in windows of so many frames.

        Raises:
            ValueError: both or neither, or what ``open_mix`` refuses.
        """
        refuse_both(self.data, self.mix, self.root)
        if self.mix is None:
            return self
        parts = open_mix(self.mix, self.root, frames)
        return SampledData(
            data=tuple(part.path for part in parts),
            parts=tuple(parts),
            validation=self.validation,
            cache=self.cache,
        )


@dataclass(frozen=True, kw_only=True)
class SampledData(DataOptions):
    """The data sets of a mix, and how each is sampled."""

    parts: tuple[Part, ...]


def refuse_both(data: Sequence[Path], mix: str | None, root: Path | None) -> None:
    """Refuses anything but either data sets or a mix.

    Raises:
        ValueError: naming the options.
    """
    if (mix is None) == (not data):
        raise ValueError("wanted data sets (--data A B) or a mix of them (--mix FILE.toml): give one")
    if mix is None and root is not None:
        raise ValueError("--root says where the data sets of a mix lie: give --mix too, or leave it out")


def open_mix(mix: str, root: Path | None, frames: int = 16) -> list[Part]:
    """Returns the tables of a mix, whose data sets are all there.

    Raises:
        ValueError: there is no such mix, its file is wrong, or data sets are missing; all of them are named.
    """
    file = find_mix(mix)
    parts = read_mix(file, root, frames)
    if root is None and file in packaged_mixes().values():
        raise ValueError(
            f"the mix {mix!r} is of the data sets {', '.join(part.name for part in parts)}: say with --root FOLDER "
            "where they lie"
        )
    missing = [f"[{part.name}] {part.path}" for part in parts if not part.path.exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(parts)} data sets of the mix {mix} are not there: {', '.join(missing)}. Paths are "
            f"relative to {file.parent if root is None else root} (--root); or take their tables out of a file of "
            "your own"
        )
    return parts


def looked(data: DataOptions) -> dict[str, str]:
    """Returns the fingerprints of the data sets, and how each of a mix is sampled: what a resumed run must have."""
    found = look(data)
    for part in data.parts if isinstance(data, SampledData) else ():
        found |= _flat(f"[{part.name}]", config_to_json(part.sampling))
    return found


def _flat(where: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Each value by the way to it, so that what differs is told alone."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= _flat(f"{where} {key}", value) if isinstance(value, Mapping) else {f"{where} {key}": str(value)}
    return found


class Opened(NamedTuple):
    """A data set, how it is sampled (every camera is named), and its table in a mix ("" where it is of none)."""

    path: Path
    dataset: Dataset
    sampling: Sampling
    table: str = ""

    @contextmanager
    def named(self) -> Iterator[None]:
        """Inside, an error names the table."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.table}: {error}" if self.table else str(error)) from error


def open_part(part: Part) -> Opened:
    """Returns a data set of a mix.

    Raises:
        ValueError: it cannot be read, or an episode lacks a camera; the table is named.
    """
    opened = Opened(part.path, open_dataset(part.path), part.sampling, f"[{part.name}]")
    cameras = part.sampling.cameras or dict.fromkeys(first_camera(opened.dataset), 1.0)
    with opened.named():
        refuse_missing(opened.dataset, list(cameras))
    return opened._replace(sampling=replace(part.sampling, cameras=cameras))


def refuse_missing(dataset: Dataset, cameras: Sequence[str]) -> None:
    """Refuses cameras of which an episode has no video; of a data set without any, latents are looked for elsewhere.

    Raises:
        ValueError: naming the first.
    """
    for episode in dataset.episodes if dataset.episodes[0].frames else ():
        lost = [camera for camera in cameras if camera not in episode.frames]
        if lost:
            raise ValueError(
                f"episode {episode.id!r} of {dataset.name!r} has no camera {lost[0]!r}; it has "
                f"{', '.join(map(repr, episode.frames)) or 'none'}: name cameras that every episode has"
            )


def sampled(opened: Sequence[Opened], validation: float, ready: Callable[[Opened], Dataset]) -> Sources:
    """Returns what is learned from and what is held out of each data set; every camera is a source of its own.

    Args:
        opened: the data sets.
        validation: share of the episodes to hold out.
        ready: returns the data set with all that training reads of it; asked once nothing is left to refuse.

    Raises:
        ValueError: a data set has no episode short enough, none longer than its stride, too few to hold some out, or
            of several rates where a pace is said in seconds.
    """
    for one in opened:
        _sides(one, validation)  # hours may pass in ``ready``
    train: list[Source] = []
    validated: list[Source] = []
    noted: list[DataFacts] = []
    for one in opened:
        one = one._replace(dataset=ready(one))
        report_quarantine(one.dataset)
        learned, held = _sides(one, validation)
        train += learned
        validated += held
        noted.append(_facts(one, learned[0], held))
    return Sources(train, validated, noted)


def _sides(one: Opened, validation: float) -> tuple[list[Source], list[Source]]:
    """What is learned from, and what is held out: a source for each camera."""
    with one.named():
        dataset = _short_enough(one.dataset, one.sampling.window)
        sides = split(dataset, validation) if validation else (dataset,)
        learned, *held = (sampled_sources(side, one.sampling) for side in sides)
        refuse_still(dataset, learned[0].window)
    return learned, held[0] if held else []


def _short_enough(dataset: Dataset, window: WholeClip | StridedWindow) -> Dataset:
    """The episodes that give a clip, so that none is held out, or counted, that does not."""
    if isinstance(window, StridedWindow) or not dataset.episodes:
        return dataset
    kept = tuple(episode for episode in dataset.episodes if window.anchors(episode.length))
    if not kept:
        raise ValueError(
            f"all {len(dataset.episodes)} episodes of {dataset.name!r} are longer than longest = {window.longest}, the "
            f"shortest of {min(episode.length for episode in dataset.episodes)} frames: raise it, or take the table out"
        )
    return replace(dataset, episodes=kept)


def _facts(one: Opened, learned: Source, held: Sequence[Source]) -> DataFacts:
    """What is noted of a data set; episodes that are too long are told of."""
    kept = [episode for source in (learned, *held[:1]) for episode in source.dataset.episodes]
    lost, window = len(one.dataset.episodes) - len(kept), one.sampling.window
    if lost and isinstance(window, WholeClip):
        console.print(
            f"left out of {one.dataset.name}: {lost} of {lost + len(kept)} episodes, longer than {window.longest} "
            f"frames ({one.table} longest)",
            markup=False,
        )
    return DataFacts(
        path=str(one.path.resolve()),
        camera=",".join(one.sampling.cameras),
        stride=learned.window.stride,
        learned=len(learned.dataset.episodes),
        held_out=[episode.id for episode in held[0].dataset.episodes] if held else [],
        left_out=[asdict(entry) for entry in one.dataset.quarantined],
        domain=one.sampling.domain,
        whole=isinstance(window, WholeClip),
        weight=one.sampling.weight if one.table else None,
    )


def frame_sources(data: SampledData, size: int) -> Sources:
    """Decodes what is not in the cache yet (a bar), and splits by episode: what an autoencoder learns from.

    Raises:
        ValueError: a data set was published without video, or what ``sampled`` refuses.
    """
    opened = [open_part(part) for part in data.parts]
    for one in opened:
        if not one.dataset.episodes[0].frames:
            raise ValueError(
                f"{one.table}: {one.dataset.name!r} was published as latents, without video, and an autoencoder learns "
                "from video: take its table out of the mix for this stage"
            )

    def ready(one: Opened) -> Dataset:
        return decoded(one.dataset, data.cache, size, tuple(one.sampling.cameras))

    return sampled(opened, data.validation, ready)
