"""Recipe: scripts do the 34 tasks on our play table, and a dataset remains: sentence, actions, state, both cameras."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ideomotor.data.formats.lerobot_writer import LeRobotWriter
from ideomotor.envs.worker import Workers
from ideomotor.files import write_text
from ideomotor.systems.progress import bar

if TYPE_CHECKING:
    from ideomotor.envs.play_table_walk import Waypoint

FPS = 30
SIZES = {"rgb_static": (200, 200), "rgb_gripper": (84, 84)}
"""The cameras, by the names that CALVIN's own data and evaluation use."""
ACTIONS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
STATES = (
    *("x", "y", "z", "roll", "pitch", "yaw", "opening"),
    *(f"joint_{number}" for number in range(7)),
    "gripper",
)

_TRIES = 5  # scenes tried for one episode before it is given up
_SHAKIER = 0.4  # by how much more the hand of actionless video may tremble
_LINGER = 5  # steps recorded after success, so that windows hold what success looks like
_AWAY = np.array([0.15, 0.10, 0.05, 0.4])  # how far from its usual pose the gripper may start: x, y, z, yaw
_TIMEOUT = 300.0
_AFTER = 0.5  # share of episodes that begin where another task ended
_FORMAT = 2  # raise it when the same settings give other episodes

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class PlayTableCollectionConfig:
    """Settings of ``collect_play_table``.

    Attributes:
        out: the dataset's folder, a LeRobotDataset v3.
        tasks: names, or ("all",).
        demonstrations: episodes a task, all successful; of actionless video, whatever comes of them.
        noise: standard deviation of what is added to the script's actions before they are executed and recorded, the
            gripper's apart; the script corrects it as it goes. Of actionless video, the least: each episode has its own
            up to 0.4 above.
        actionless: record no actions and no state, and other episodes than those with them.
        seed: of everything that is drawn at random.
        workers: processes, 0 for none; they change the time it takes and nothing else.
    """

    out: Path
    tasks: tuple[str, ...] = ("all",)
    demonstrations: int = 20
    noise: float = 0.1
    actionless: bool = False
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        if self.demonstrations < 1 or self.workers < 0 or self.seed < 0 or not 0 <= self.noise <= 1 or not self.tasks:
            raise ValueError(
                f"demonstrations={self.demonstrations}, workers={self.workers}, seed={self.seed}, noise={self.noise}, "
                f"{len(self.tasks)} tasks; wanted at least one task and demonstration, noise in 0..1, nothing below 0"
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to be made; ``place`` is its index in the dataset."""

    task: str
    index: int
    place: int


@dataclass(kw_only=True)
class Take:
    """A recorded episode; ``actions[i]`` and ``states[i]`` belong to frame ``i`` of each camera."""

    text: str
    attempt: int
    success: bool = False
    frames: dict[str, Any] = field(default_factory=dict)
    actions: Any = None
    states: Any = None


def collect_play_table(config: PlayTableCollectionConfig, progress: Progress | None = None) -> Path:
    """Makes the dataset and returns its folder.

    The same settings give the same bytes whatever the number of workers. Killed at any point, the same call goes on
    with the episodes that are missing; a dataset that is there already is left as it is. Half of the episodes begin
    where another task has just been done, among things, as tasks in a row do. Neither that one is recorded, nor the
    taking of a block where a task begins with one in the hand.

    Args:
        config: what to collect, and where to.
        progress: called after each episode with how many are done, how many there will be, and the last one's task.

    Raises:
        ValueError: an unknown task, or the folder was begun with other settings.
        RuntimeError: a worker died, nothing can be drawn on this machine, or a task could not be done in five tries.
    """
    jobs = list(_jobs(config))
    note = config.out.with_name(f"{config.out.name}.collection.json")
    settings = {"format": _FORMAT} | {k: v for k, v in asdict(config).items() if k not in ("out", "workers")}
    _claim(note, json.loads(json.dumps(settings)))
    if config.out.exists():
        return config.out
    writer = LeRobotWriter(
        config.out,
        fps=FPS,
        cameras=SIZES,
        # Without the robot's state too: its differences are the actions.
        action_names=None if config.actionless else ACTIONS,
        state_names=None if config.actionless else STATES,
        robot_type="play_table",
        resume=True,
    )
    pending = [job for job in jobs if job.place not in writer.stored]
    done = len(jobs) - len(pending)
    for job, take in _made(config, pending):
        facts = {"world_task": job.task, "seed": config.seed, "attempt": take.attempt}
        signals = (None, None) if config.actionless else (take.actions, take.states)
        outcome = "success" if take.success else "failure"
        writer.add_episode(take.frames, *signals, text=take.text, outcome=outcome, extra=facts, index=job.place)
        done += 1
        if progress is not None:
            progress(done, len(jobs), job.task)
    return writer.finalize()


def collect_with_progress(configs: Sequence[PlayTableCollectionConfig]) -> None:
    """Collects one dataset after the other with a bar on screen, and says what there is."""
    console = Console(soft_wrap=True)
    for config in configs:
        with bar(f"collect {config.out.name}") as tell:
            collect_play_table(config, tell)
        console.print(f"{config.out}: {len(list(_jobs(config)))} episodes", markup=False)


def _jobs(config: PlayTableCollectionConfig) -> Iterator[Job]:
    from ideomotor.envs.play_table_contract import check_known
    from ideomotor.envs.play_table_tasks import TASKS

    tasks = TASKS if tuple(config.tasks) == ("all",) else tuple(dict.fromkeys(config.tasks))
    check_known(tasks, TASKS)
    for number, task in enumerate(tasks):
        for index in range(config.demonstrations):
            yield Job(task=task, index=index, place=number * config.demonstrations + index)


def _claim(note: Path, settings: dict[str, Any]) -> None:
    """Notes the settings beside the dataset, or checks that they are those noted."""
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(settings, indent=1))
        return
    begun = json.loads(note.read_text(encoding="utf-8"))
    other = sorted(name for name in begun | settings if begun.get(name) != settings.get(name))
    if other:
        shown = ", ".join(f"{name} was {begun.get(name)} and is {settings.get(name)}" for name in other)
        raise ValueError(f"{note} tells of other settings: {shown}. Give the same ones, or another folder")


def _made(config: PlayTableCollectionConfig, pending: list[Job]) -> Iterator[tuple[Job, Take]]:
    count = max(1, min(config.workers, len(pending)))
    maker = functools.partial(EpisodeMaker, config.seed, config.noise, config.actionless)
    names = [f"collecting process {number}" for number in range(count)]
    workers = Workers([maker] * count, names, apart=config.workers > 0, timeout=_TIMEOUT)
    try:
        for first in range(0, len(pending), count):
            jobs = pending[first : first + count]
            takes = workers.ask([*jobs, *[None] * (count - len(jobs))])
            yield from zip(jobs, takes, strict=False)
    finally:
        workers.close()


class EpisodeMaker:
    """Makes one episode after another in a worker; an episode is a pure function of the settings and the job."""

    def __init__(self, seed: int, noise: float, actionless: bool = False) -> None:
        from ideomotor.envs.play_table import PlayTableEnv
        from ideomotor.envs.play_table_tasks import PlayTableOracle

        self._seed, self._noise, self._actionless = seed, noise, actionless
        self._table, self._oracle = PlayTableEnv(), PlayTableOracle()

    def answer(self, job: Job | None) -> Take | None:
        """Returns the episode, or None for no job."""
        if job is None:
            return None
        for attempt in range(_TRIES):
            kind = "video/" if self._actionless else ""
            digest = hashlib.sha256(f"{kind}{job.task}/{job.index}/{attempt}".encode()).digest()
            rng = np.random.Generator(np.random.Philox(key=[self._seed, int.from_bytes(digest[:8], "little")]))
            take = self._try(job, attempt, rng)
            if take.success or self._actionless:
                return take
        raise RuntimeError(f"{job.task} {job.index} was not done in {_TRIES} tries with noise {self._noise}: take less")

    def close(self) -> None:
        """Closes the table."""
        self._table.close()

    def _try(self, job: Job, attempt: int, rng: np.random.Generator) -> Take:
        from ideomotor.envs.play_table_scripts import script
        from ideomotor.envs.play_table_tasks import SENTENCES
        from ideomotor.envs.play_table_walk import Walk

        sentences = SENTENCES[job.task]
        take = Take(text=sentences[int(rng.integers(len(sentences)))], attempt=attempt)
        start = self._begin(job.task, rng)
        state = self._table.state()
        plan = script(job.task, state["robot_obs"], state["scene_obs"])
        if plan.before:
            start = self._walk(plan.before, start, ())
        noise = self._noise + (float(rng.uniform(0, _SHAKIER)) if self._actionless else 0.0)
        walk, after = Walk(plan.task), 0
        seen, actions = [], []
        while after <= _LINGER and not (walk.done and not take.success):
            seen.append(self._table.observe())
            actions.append(_shaken(walk.action(seen[-1]["robot_obs"]), noise, rng))
            _, _, _, info = self._table.advance(actions[-1])
            take.success = take.success or bool(self._oracle.completed(start, info, (job.task,)))
            after += take.success
        take.frames = {name: np.stack([one[name] for one in seen]).transpose(0, 3, 1, 2) for name in SIZES}
        take.actions, take.states = np.stack(actions), np.stack([one["robot_obs"] for one in seen])
        return take

    def _begin(self, task: str, rng: np.random.Generator) -> Any:
        """Puts everything where the task is to do, half of the time by doing another first; returns what the table
        tells.
        """
        from ideomotor.envs.play_table_scripts import script
        from ideomotor.envs.play_table_starts import earlier_tasks, scene_for

        scene = scene_for(task, rng)
        _, info = self._table.reset(options={"scene_obs": scene, "robot_obs": _start(rng)})
        earlier = earlier_tasks(task, scene)
        if rng.random() >= _AFTER:
            return info
        other, state = earlier[int(rng.integers(len(earlier)))], self._table.state()
        return self._walk(script(other, state["robot_obs"], state["scene_obs"]).task, info, (other,))

    def _walk(self, waypoints: Sequence[Waypoint], info: Any, tasks: tuple[str, ...]) -> Any:
        """Walks unseen to the end, or until one of the tasks is done; returns what the table tells then."""
        from ideomotor.envs.play_table_walk import Walk

        walk, start = Walk(waypoints), info
        while not walk.done and not self._oracle.completed(start, info, tasks):
            _, _, _, info = self._table.advance(walk.action(self._table.state()["robot_obs"]))
        return info


def _start(rng: np.random.Generator) -> np.ndarray:
    """The usual pose in half of the episodes, else one near it: later tasks of a sequence begin anywhere."""
    from ideomotor.envs.play_table import START

    pose = np.array(START)
    if rng.random() < 0.5:
        pose[[0, 1, 2, 5]] += rng.uniform(-_AWAY, _AWAY)
    return pose


def _shaken(action: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    shaken = np.clip(action + noise * rng.standard_normal(action.shape), -1, 1).astype(np.float32)
    shaken[-1] = action[-1]
    return shaken
