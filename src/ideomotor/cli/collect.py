"""ideomotor collect ...: scripts act in a simulator; demonstrations and video without actions remain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class CollectMetaWorld:
    """Records Meta-World episodes of scripted experts: demonstrations, and video without actions.

    Two LeRobot v3 data sets are written, OUT/demonstrations and OUT/video (expert, noisy and failed episodes).
    Same seed, same bytes; a killed run goes on.
    """

    out: Path = Path("data/metaworld")
    """Folder of the two data sets."""
    tasks: tuple[str, ...] = ("button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide")
    """Task names without "-v3"; easy, middle and hard for the tasks of a level, "all" for the 50."""
    demonstrations: int = 20
    """Episodes a task with actions."""
    expert: int = 20
    """Actionless expert episodes a task."""
    noisy: int = 12
    """Actionless episodes a task of an expert whose hand is pushed about."""
    failed: int = 8
    """Actionless episodes a task that do not succeed."""
    cameras: tuple[str, ...] = ("corner2",)
    """topview, corner, corner2, corner3, corner4, behindGripper, gripperPOV."""
    size: int = 96
    """Height and width of the frames in pixels."""
    look: Literal["fast", "default"] = "fast"
    """"fast" leaves out shadows, reflections and multisampling (about ten times quicker)."""
    seed: int = 0
    """Seed of goals and noise."""
    workers: int = 2
    """Simulator processes."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.collection import CollectionConfig, collect_with_progress

        collect_with_progress(
            CollectionConfig(
                tasks=self.tasks,
                demonstrations=self.demonstrations,
                expert=self.expert,
                noisy=self.noisy,
                failed=self.failed,
                cameras=self.cameras,
                size=self.size,
                look=self.look,
                seed=self.seed,
                workers=self.workers,
                out=self.out,
            )
        )


@dataclass(frozen=True, kw_only=True)
class CollectPlayTable:
    """Records scripts that do CALVIN's 34 tasks on our own play table: demonstrations, and video without actions.

    Two LeRobot v3 data sets are written, OUT/demonstrations (sentence, actions, state) and OUT/video (another hand that
    trembles more, whatever comes of it), each with both cameras. Same seed, same bytes; a killed run goes on.
    """

    out: Path = Path("data/play_table")
    """Folder of the two data sets."""
    tasks: tuple[str, ...] = ("all",)
    """Names of tasks, such as open_drawer, or "all"."""
    demonstrations: int = 20
    """Episodes a task with actions; 0 for none."""
    video: int = 20
    """Actionless episodes a task; 0 for none."""
    noise: float = 0.1
    """How much the hand trembles, as a standard deviation of actions, which reach 1."""
    seed: int = 0
    """Seed of scenes, sentences and noise."""
    workers: int = 2
    """Simulator processes."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.play_table_collection import PlayTableCollectionConfig, collect_with_progress

        wanted = {"demonstrations": self.demonstrations, "video": self.video}
        if min(wanted.values()) < 0 or not any(wanted.values()):
            raise ValueError(
                f"demonstrations is {self.demonstrations}, video {self.video}: wanted 0 or more of each, and some"
            )
        collect_with_progress(
            [
                PlayTableCollectionConfig(
                    out=self.out / name,
                    tasks=self.tasks,
                    demonstrations=count,
                    noise=self.noise,
                    actionless=name == "video",
                    seed=self.seed,
                    workers=self.workers,
                )
                for name, count in wanted.items()
                if count
            ]
        )


@dataclass(frozen=True)
class CollectVerbs:
    """Records a simulator: metaworld, or play_table (CALVIN's tasks in a world of our own)."""

    command: Annotated[
        Annotated[CollectMetaWorld, tyro.conf.subcommand("metaworld")]
        | Annotated[CollectPlayTable, tyro.conf.subcommand("play_table")],
        tyro.conf.arg(name=""),
    ]
