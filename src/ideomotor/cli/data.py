"""ideomotor data ...: what is in a data set, and other people's formats turned into npz episodes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ideomotor.data.conversion import bair, rlds, robonet, teleop, vp2
from ideomotor.data.conversion.writing import Recording, write_recordings
from ideomotor.files import sole_writer

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Says what is in a data set and what is wrong with it.

    It reads folders of videos, LeRobot v3, annotated JSON, npz episodes, and lists of picture folders.
    """

    path: tyro.conf.Positional[Path]
    """Folder (or file) to look at."""
    deep: bool = False
    """Decode every frame, to find damage that headers do not show."""
    format: str | None = None
    """Name of the reader, where it should not be guessed: lerobot, annotated_json, frame_lists, npz,
    folder."""
    json: Path | None = None
    """Also write the findings to this file."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.data.formats import open_dataset
        from ideomotor.data.inspection import inspect

        found = inspect(open_dataset(self.path, self.format, allow_empty=True), deep=self.deep)
        for line in found.lines():
            console.print(line, markup=False, highlight=False)
        if self.json is not None:
            self.json.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Writes a published data set as npz episodes (uint8 pictures, compressed). Stopped at any point, it goes on.

    bair: TFRecord files of BAIR robot pushing. oxe: an Open X-Embodiment set as TensorFlow Datasets keeps it (RLDS).
    robonet, vp2: HDF5 files; they need the extra "convert". No TensorFlow is needed for any. teleop: recordings of
    one's own robot, HDF5 as VPP's robot or ALOHA and ACT write it.
    """

    source: tyro.conf.Positional[Literal["bair", "oxe", "robonet", "vp2", "teleop"]]
    """What it is."""
    path: tyro.conf.Positional[Path]
    """The folder that holds it."""
    out: Path
    """Folder of the episodes; called as in a named mix, e.g. data/bair_robot_pushing, a mix finds it."""
    cameras: tuple[str, ...] = ()
    """oxe: pictures to keep, e.g. image (default: all in colour). vp2: the one to keep. teleop: those to keep, e.g.
    cam_high cam_left cam_right (default: those of the first recording)."""
    test: Path | None = None
    """robonet: a file that names the trajectories held out for testing, one a line."""
    limit: int | None = None
    """Stop after this many episodes."""
    teleop: Annotated[teleop.Teleop, tyro.conf.arg(name="")] = field(default_factory=teleop.Teleop)

    def run(self) -> None:
        """Does it."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is no folder: give the one that holds the data set")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; wanted 1 or more, or leave it out to convert all")
        found, cameras = self._recordings()
        self.out.mkdir(parents=True, exist_ok=True)
        columns = (SpinnerColumn(), TextColumn("{task.completed} episodes"), TimeElapsedColumn())
        with sole_writer(self.out), Progress(*columns, console=Console(stderr=True)) as bar:
            if self.source == "teleop":
                teleop.note(self.out, self.teleop, cameras)
            task = bar.add_task("episodes", total=None)
            done = write_recordings(found, self.out, self.limit, lambda count: bar.update(task, completed=count))
        for entry in done.left_out:
            console.print(f"left out: {entry.path} {entry.reason}", markup=False, highlight=False)
        said = f"{done.written} episodes written to {self.out}, {done.kept} were there, {len(done.left_out)} left out"
        console.print(said, markup=False, highlight=False)
        if self.source == "teleop" and done.written:
            said = (
                f"colours were taken as {self.teleop.colors}: look at a picture; where red and blue are swapped, give"
            )
            console.print(f"{said} the other --colors and another --out", markup=False, highlight=False)
        if not done.written + done.kept:
            raise ValueError(f"none of the {len(done.left_out)} episodes of {self.path} could be converted")

    def _recordings(self) -> tuple[Iterable[Recording], tuple[str, ...]]:
        """What is to be converted, and the cameras that were chosen."""
        for option, given, sources in (
            ("cameras", bool(self.cameras), ("oxe", "vp2", "teleop")),
            ("test", self.test is not None, ("robonet",)),
            *((name, True, ("teleop",)) for name in self.teleop.given()),
        ):
            if given and self.source not in sources:
                raise ValueError(f"--{option} is for {' and '.join(sources)}; {self.source} takes none")
        cameras = self.cameras
        if self.source == "bair":
            return bair.recordings(self.path), cameras
        if self.source == "oxe":
            return rlds.recordings(self.path, cameras), cameras
        if self.source == "robonet":
            held_out = self.test.read_text(encoding="utf-8").split() if self.test else ()
            return robonet.recordings(self.path, held_out), cameras
        if self.source == "teleop":
            if not cameras:
                cameras, told = teleop.first_cameras(self.path)
                console.print(told, markup=False, highlight=False)
            return teleop.recordings(self.path, self.teleop, cameras), cameras
        if len(cameras) > 1:
            raise ValueError(f"vp2 keeps one camera; {', '.join(cameras)} were given")
        return vp2.recordings(self.path, *cameras), cameras


@dataclass(frozen=True)
class DataVerbs:
    """Data sets: inspect one, convert a published one."""

    command: Annotated[
        Annotated[Inspect, tyro.conf.subcommand("inspect")] | Annotated[Convert, tyro.conf.subcommand("convert")],
        tyro.conf.arg(name=""),
    ]
