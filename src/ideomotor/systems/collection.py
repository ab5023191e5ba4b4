"""Recipe: scripted experts act in a simulator, and two datasets remain, demonstrations and video without actions."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ideomotor.data.formats.lerobot_writer import LeRobotWriter
from ideomotor.envs.worker import Worker
from ideomotor.files import write_text
from ideomotor.systems.collection_episodes import TRIES, EpisodeMaker, Job, Kind, Take
from ideomotor.systems.collection_worlds import WORLDS, make_world, named_tasks, world_config
from ideomotor.systems.progress import bar

Progress = Callable[[int, int, str], None]

_KINDS: dict[str, tuple[Kind, ...]] = {"demonstrations": ("demonstration",), "video": ("expert", "noisy", "failed")}
_FORMAT = 1  # raise it when the same settings give other episodes
_TIMEOUT = 300.0  # seconds for one episode


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    """Settings of ``collect``.

    Attributes:
        out: folder that gets ``demonstrations`` and ``video``, both LeRobotDataset v3.
        world: "metaworld", or "toy" for trying things out in seconds.
        tasks: names; ("all",), or Meta-World's levels, stand for theirs (``named_tasks``).
        demonstrations: successful expert episodes a task, recorded with actions.
        expert: successful expert episodes a task, as video without actions.
        noisy: episodes of an expert whose hand shakes, as video without actions; they may succeed.
        failed: episodes that do not succeed, as video without actions.
        cameras: names of the world's cameras; () takes its first: corner2 of Meta-World, main of the toy world.
        size: side of the square pictures, in pixels.
        look: "fast" or "default", Meta-World only.
        crop: "vpdd" or None, Meta-World only.
        seed: of everything that is drawn at random.
        workers: processes; they change the time it takes and nothing else.
    """

    out: Path
    world: Literal["metaworld", "toy"] = "metaworld"
    tasks: tuple[str, ...] = ("button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide")
    demonstrations: int = 20
    expert: int = 20
    noisy: int = 12
    failed: int = 8
    cameras: tuple[str, ...] = ()
    size: int = 96
    look: Literal["fast", "default"] = "fast"
    crop: Literal["vpdd"] | None = "vpdd"
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("demonstrations", "expert", "noisy", "failed", "seed")}
        wrong = [f"{name}={count}" for name, count in counts.items() if count < 0]
        if wrong or self.workers < 1:
            raise ValueError(
                f"{', '.join(wrong) or f'workers={self.workers}'}: counts are 0 or more, workers 1 or more"
            )
        if not self.tasks or not (self.demonstrations or self.expert or self.noisy or self.failed):
            raise ValueError("nothing to collect: name at least one task and at least one episode")
        if self.size % 2:
            raise ValueError(f"size is {self.size} px; video files need an even one")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What ``collect`` leaves.

    Attributes:
        demonstrations: folder of the episodes with actions; None where none were asked for.
        video: folder of the episodes without actions; None where none were asked for.
        episodes: how many each folder holds, by its name.
        missing: one line for each episode that no goal could be found for.
    """

    demonstrations: Path | None
    video: Path | None
    episodes: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def collect(config: CollectionConfig, progress: Progress | None = None) -> Collected:
    """Makes both datasets and returns where they are.

    The same settings and seed give the same bytes whatever the number of workers. Killed at any point, the same call
    goes on with the episodes that are missing. Only goals of the training split are used. Demonstrations and expert
    episodes are successful and failed ones are not, each checked in the simulator; where an expert fails, other goals
    are tried, and an episode that is given up after that is named in ``missing``.

    Args:
        config: what to collect, and where to.
        progress: called after each episode with how many are done, how many there will be, and the last one's name.

    Raises:
        ValueError: an unknown task or camera, or ``out`` was begun with other settings.
        RuntimeError: nothing can be drawn on this machine, a worker died, or no episode of a dataset could be made.
    """
    config = _complete(config)
    given_up = _claim(config)
    jobs = list(_jobs(config))
    writers = _writers(config)
    pending = [job for job in jobs if job.folder in writers and job.place not in writers[job.folder].stored]
    # Datasets that were finished by an earlier call keep their lines; the others' episodes have just been tried again.
    missing = [line for line in given_up if line.split(":")[0] not in writers]
    missing += _record(config, pending, writers, len(jobs), progress)
    _note(config, missing)
    for name, writer in writers.items():
        if not writer.stored:
            raise RuntimeError(f"not one episode of {config.out / name} could be made: {'; '.join(missing)}")
        writer.finalize()
    wanted = {name: sum(job.folder == name for job in jobs) for name in _KINDS}
    lost = {name: sum(line.startswith(f"{name}:") for line in missing) for name in _KINDS}
    folders = {name: config.out / name if wanted[name] else None for name in _KINDS}
    return Collected(
        demonstrations=folders["demonstrations"],
        video=folders["video"],
        episodes={name: wanted[name] - lost[name] for name in _KINDS},
        missing=tuple(missing),
    )


def collect_with_progress(config: CollectionConfig) -> Collected:
    """Collects with a progress bar on screen, and says at the end what is missing."""
    console = Console()
    with bar("collect") as tell:
        collected = collect(config, tell)
    for text in collected.missing:
        console.print(f"missing: {text}", markup=False)
    for name in _KINDS:
        if collected.episodes[name]:
            console.print(f"{config.out / name}: {collected.episodes[name]} episodes", markup=False)
    return collected


def _complete(config: CollectionConfig) -> CollectionConfig:
    """Names what "all", levels and the default camera stand for, and checks what only the world knows."""
    tasks = tuple(dict.fromkeys(named_tasks(config.world, config.tasks)))
    config = replace(config, tasks=tasks, cameras=tuple(config.cameras) or (WORLDS[config.world].camera,))
    for task in tasks:
        world_config(config.world, _settings(config), task)
    return config


def _settings(config: CollectionConfig) -> dict[str, Any]:
    shared = {"cameras": config.cameras, "size": config.size, "goals": "train"}
    return shared | ({"look": config.look, "crop": config.crop} if config.world == "metaworld" else {})


def _claim(config: CollectionConfig) -> list[str]:
    """Notes the settings in ``out``, or checks that they are those noted; returns what was given up before."""
    path = config.out / "collection.json"
    config.out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _note(config, [])
        return []
    begun = json.loads(path.read_text(encoding="utf-8"))
    now = _identity(config)
    other = [name for name in {**begun["settings"], **now} if begun["settings"].get(name) != now.get(name)]
    if other:
        shown = ", ".join(f"{name} was {begun['settings'].get(name)} and is {now.get(name)}" for name in other)
        raise ValueError(f"{config.out} was begun with other settings: {shown}. Give the same ones, or another folder")
    return list(begun["missing"])


def _note(config: CollectionConfig, missing: Sequence[str]) -> None:
    noted = {"settings": _identity(config), "missing": list(missing)}
    write_text(config.out / "collection.json", json.dumps(noted, indent=1))


def _identity(config: CollectionConfig) -> dict[str, Any]:
    """Everything the bytes depend on, as JSON gives it back."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "workers")}
    packages = ("metaworld", "mujoco") if config.world == "metaworld" else ()
    versions = {package: importlib.metadata.version(package) for package in packages}
    return json.loads(json.dumps(settings | versions | {"format": _FORMAT}))


def _jobs(config: CollectionConfig) -> Iterator[Job]:
    counts: dict[Kind, int] = {
        "demonstration": config.demonstrations,
        "expert": config.expert,
        "noisy": config.noisy,
        "failed": config.failed,
    }
    places = dict.fromkeys(_KINDS, 0)
    for task in config.tasks:  # task by task, because making a world takes a second
        for folder, kinds in _KINDS.items():
            for kind in kinds:
                first = config.demonstrations if kind == "expert" else 0
                for index in range(counts[kind]):
                    place = places[folder]
                    yield Job(task=task, kind=kind, index=index, first_goal=first, folder=folder, place=place)
                    places[folder] += 1


def _writers(config: CollectionConfig) -> dict[str, LeRobotWriter]:
    """Writers of the datasets that are wanted and not finished yet."""
    facts, writers = WORLDS[config.world], {}
    for folder in dict.fromkeys(job.folder for job in _jobs(config)):
        path = config.out / folder
        if path.exists():
            shutil.rmtree(config.out / f".{folder}.partial", ignore_errors=True)  # of a kill just after the end
            continue
        labelled = folder == "demonstrations"
        writers[folder] = LeRobotWriter(
            path,
            fps=facts.fps,
            cameras=dict.fromkeys(config.cameras, (config.size, config.size)),
            action_names=facts.actions if labelled else None,
            # Without the robot's state too: its differences are the actions.
            state_names=facts.states if labelled else None,
            robot_type=facts.robot,
            resume=True,
        )
    return writers


def _record(
    config: CollectionConfig,
    pending: Sequence[Job],
    writers: Mapping[str, LeRobotWriter],
    total: int,
    progress: Progress | None,
) -> list[str]:
    """Makes and stores the pending episodes; returns a line for each that was given up."""
    make = functools.partial(make_world, config.world, _settings(config))
    desk = functools.partial(EpisodeMaker, make, config.seed, ("video",))
    queue, done, missing = iter(pending), total - len(pending), []
    count = min(config.workers, len(pending))
    workers = [Worker(desk, name=f"collecting process {n}", timeout=_TIMEOUT) for n in range(count)]
    busy: dict[Any, tuple[Worker, Job]] = {}

    def give(worker: Worker) -> None:
        if (job := next(queue, None)) is not None:
            worker.send(job)
            busy[worker.connection] = (worker, job)

    try:
        for worker in workers:
            give(worker)
        while busy:
            ready = connection.wait(list(busy), timeout=_TIMEOUT)
            if not ready:
                raise TimeoutError(f"no episode was finished in {_TIMEOUT:g} s: is the machine overloaded?")
            for pipe in ready:
                worker, job = busy.pop(pipe)
                take = worker.receive()
                give(worker)
                if take is None:
                    missing.append(f"{job.folder}: {job.task} {job.kind} {job.index}: none of {TRIES} goals gave one")
                else:
                    _store(writers[job.folder], job, take, config.seed)
                done += 1
                if progress is not None:
                    progress(done, total, f"{job.task} {job.kind} {job.index}")
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()
    return sorted(missing)


def _store(writer: LeRobotWriter, job: Job, take: Take, seed: int) -> None:
    facts = {"world_task": job.task, "kind": job.kind, "seed": seed, "goal": take.goal, "attempt": take.attempt}
    writer.add_episode(
        take.frames,
        take.actions,
        take.states,
        text=take.text,
        outcome="success" if take.success else "failure",
        extra=facts,
        index=job.place,
    )
