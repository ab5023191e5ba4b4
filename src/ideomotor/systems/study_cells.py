"""What a study is cut into, and what a recipe is that runs a piece of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ideomotor.evaluation.study import StudyRow


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A part of a study that is run at one go: an arm and a seed, on one task or on all.

    Attributes:
        settings: of the recipe, an instance of its own dataclass.
        recorded: (task, at, episode) of the rows that an earlier start left; they need not be told again.
    """

    study: str
    arm: str
    seed: int
    tasks: tuple[str, ...]
    at: tuple[int, ...]
    episodes: int
    settings: Any
    recorded: frozenset[tuple[str, int, int]] = frozenset()

    @property
    def name(self) -> str:
        """Its folder's name."""
        return "-".join([self.arm, f"seed{self.seed}", *(self.tasks if len(self.tasks) == 1 else ())])

    def row(
        self, task: str, at: int, episode: int, *, success: bool, steps: int, total_reward: float, seconds: float
    ) -> StudyRow:
        """Returns the row of one episode of this cell."""
        return StudyRow(
            study=self.study,
            arm=self.arm,
            seed=self.seed,
            task=task,
            at=at,
            episode=episode,
            success=success,
            steps=steps,
            total_reward=total_reward,
            seconds=seconds,
        )


Done = Callable[[StudyRow], None]
"""Told of each episode as it ends; an episode that was told before is passed over."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a cell is run.

    Attributes:
        settings: dataclass of what a declaration may set; every arm has an instance.
        tasks: names that a declaration may give.
        most_episodes: a task has, since each has a start of its own.
        per_task: whether each task is a cell of its own; else one cell has all.
        run: called with the cell, its folder (kept between starts), and whom to tell of episodes. Killed at any point
            it is called again, and goes on from what it left in the folder.
        reading: called with an arm's settings, once before anything runs; returns settings that follow from files which
            the arm reads (their fingerprints), and which so become part of the declaration. None: it reads none.
    """

    settings: type
    tasks: Sequence[str]
    most_episodes: int
    per_task: bool
    run: Callable[[Cell, Path, Done], None]
    reading: Callable[[Any], Mapping[str, Any]] | None = None
