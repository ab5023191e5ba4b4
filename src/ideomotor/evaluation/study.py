"""What a study is: arms by seeds, tasks and episodes, declared in one file before anything runs, and its rows."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

Metric = Literal["success", "total_reward"]


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """How one episode of a study went.

    Attributes:
        study: the declaration's digest.
        at: environment steps that had been learned from.
        episode: 0 up to the declared number; the same number is the same start in every arm and seed.
        steps: actions taken.
        total_reward: sum of rewards, not discounted.
        seconds: of wall-clock time.
    """

    study: str
    arm: str
    seed: int
    task: str
    at: int
    episode: int
    success: bool
    steps: int
    total_reward: float
    seconds: float

    @property
    def identity(self) -> tuple[str, int, str, int, int]:
        """What no other row of the study has."""
        return self.arm, self.seed, self.task, self.at, self.episode


@dataclass(frozen=True, kw_only=True)
class Study:
    """A declared study.

    Attributes:
        title: a line for the page.
        question: what it is to answer, in a sentence.
        recipe: what runs a cell.
        seeds: training seeds, the same for every arm.
        tasks: names of tasks, the same for every arm.
        episodes: an evaluation of one task has.
        arms: each arm's settings of the recipe, over ``settings``.
        control: the arm that the others are compared with.
        settings: of the recipe, shared by all arms.
        at: environment steps after which an arm is evaluated; the last is what is claimed about. [0] alone is for
            arms that do not learn in the world.
        metric: what is compared.
    """

    title: str
    question: str
    recipe: str
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    episodes: int
    arms: Mapping[str, Mapping[str, Any]]
    control: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    at: tuple[int, ...] = (0,)
    metric: Metric = "success"

    def __post_init__(self) -> None:
        for name, values, kind in (("seeds", self.seeds, int), ("at", self.at, int), ("tasks", self.tasks, str)):
            if not values or len(set(values)) < len(values) or any(type(value) is not kind for value in values):
                raise ValueError(f"{name} is {list(values)}; wanted at least one {kind.__name__}, and none twice")
        if min(self.seeds) < 0 or min(self.at) < 0 or list(self.at) != sorted(self.at):
            raise ValueError(
                f"seeds are {list(self.seeds)}, at {list(self.at)}; wanted 0 or more, and `at` in ascending order"
            )
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; wanted 1 or more")
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric is {self.metric!r}; wanted one of {', '.join(get_args(Metric))}")
        for arm in self.arms:
            if not arm.isprintable() or not arm.strip() or set(arm) & set("/\\"):
                raise ValueError(f"an arm is called {arm!r}; wanted a name that a folder can have")
        if len(self.arms) < 2 or self.control not in self.arms:
            raise ValueError(
                f"control is {self.control!r}, the arms are {', '.join(map(repr, self.arms))}; wanted two arms or "
                "more, and the control to be one of them"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration; the file's comments, order and layout do not count."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    @property
    def num_rows(self) -> int:
        """How many episodes the whole study has."""
        return len(self.arms) * len(self.seeds) * len(self.tasks) * len(self.at) * self.episodes

    def keys(
        self, arms: Collection[str], seeds: Collection[int], tasks: Collection[str]
    ) -> list[tuple[str, int, str, int, int]]:
        """Returns the identities of the rows that a part of the grid is to have, in order."""
        return [
            (arm, seed, task, at, episode)
            for arm in arms
            for seed in seeds
            for at in self.at
            for task in tasks
            for episode in range(self.episodes)
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns the declaration as JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))


def read_study(path: Path) -> Study:
    """Returns the study that a TOML file declares.

    Raises:
        ValueError: the file is no TOML, or a key is unknown, missing, or of another type; the message names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    check_keys(values, Study, str(path))
    if not isinstance(values["arms"], dict) or not all(isinstance(arm, dict) for arm in values["arms"].values()):
        raise ValueError(f"{path}: arms are {values['arms']!r}; wanted a table [arms.NAME] for each arm")
    for name, kind in (("title", str), ("question", str), ("recipe", str), ("control", str), ("episodes", int)):
        if type(values[name]) is not kind:
            raise ValueError(f"{path}: {name} is {values[name]!r}; wanted {kind.__name__}")
    if not isinstance(values.get("settings", {}), dict):
        raise ValueError(f"{path}: settings are {values['settings']!r}; wanted a table [settings]")
    for name in ("seeds", "tasks", "at"):
        if not isinstance(values.get(name, []), list):
            raise ValueError(f"{path}: {name} is {values[name]!r}; wanted a list, e.g. {name} = [{values[name]!r}]")
    try:
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Study(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_keys(values: Mapping[str, Any], kind: type, where: str) -> None:
    """Raises ValueError where a key is no field of the dataclass, with the nearest one, or a field has no value."""
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: there is no key {key!r}{hint} (keys: {', '.join(known)})")
    lacking = [
        name
        for name, f in known.items()
        if name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if lacking:
        raise ValueError(f"{where}: {', '.join(map(repr, lacking))} is missing")


def check_rows(study: Study, rows: Sequence[StudyRow], where: str) -> None:
    """Raises ValueError where a row is of another declaration, or of no place in this one's grid."""
    wanted = set(study.keys(study.arms, study.seeds, study.tasks))
    for row in rows:
        if row.study != study.digest or row.identity not in wanted:
            raise ValueError(
                f"{where} holds a row of another study: {row.identity} of {row.study[:12]}, this one is "
                f"{study.digest[:12]}. Name another folder with --out, or begin anew with --fresh"
            )
