"""How one episode of a collection is made: a goal, an expert, noise or failure, checked against what was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["demonstration", "expert", "noisy", "failed"]
MakeWorld = Callable[[str], Any]

TRIES = 10  # goals tried for one episode before it is given up
_LINGER = 5  # steps recorded after success, so that windows hold what success looks like
_VARIED = 0.1  # noise that makes two episodes of one goal differ without changing what they look like
_NOISY = (0.4, 1.0)  # actions reach 1: at the upper end an expert needs about twice as long
_GOALS = 30  # the training split of every world


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to be made.

    Attributes:
        index: counts within task and kind.
        first_goal: where in the task's shuffled goals this kind begins, so that kinds share goals as late as possible.
        folder: the dataset it goes to.
        place: its index there.
    """

    task: str
    kind: Kind
    index: int
    first_goal: int
    folder: str
    place: int


@dataclass(kw_only=True)
class Take:
    """One recorded episode; ``actions[i]`` and ``states[i]`` belong to ``frames[camera][i]``."""

    text: str
    goal: int
    attempt: int
    success: bool = False
    frames: dict[str, Any] = field(default_factory=dict)
    actions: Any = None
    states: Any = None


class EpisodeMaker:
    """Makes one episode after another in a worker; an episode is a pure function of seed and job.

    Args:
        make: task to a new world.
        seed: of the collection.
        actionless: folders whose episodes are returned without actions and states.
    """

    def __init__(self, make: MakeWorld, seed: int, actionless: tuple[str, ...]) -> None:
        self._make, self._seed, self._actionless = make, seed, actionless
        self._world: Any = None
        self._task = ""

    def answer(self, job: Job) -> Take | None:
        """Returns the episode, or None where no goal of ten tried gave one of the kind that was asked for."""
        try:
            for attempt in range(TRIES):
                take = self._try(job, attempt)
                if job.kind == "noisy" or take.success == (job.kind != "failed"):
                    return take
        except Exception as error:
            where = f"task {job.task}, {job.kind} {job.index}, seed {self._seed}"
            raise RuntimeError(f"collection failed ({where}): {type(error).__name__}: {error}") from error
        return None

    def close(self) -> None:
        """Closes the world."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _try(self, job: Job, attempt: int) -> Take:
        if self._task != job.task:
            self.close()
            self._world, self._task = self._make(job.task), job.task
        rng = _rng(self._seed, job.task, job.kind, job.index, attempt)
        goal, noise = self._choose(job, attempt, rng)
        driver = self._failing(goal, rng) if job.kind == "failed" else _Expert(self._world, noise, rng)
        take = self._record(goal, driver)
        take.attempt = attempt
        if job.folder in self._actionless:
            take.actions = take.states = None
        return take

    def _choose(self, job: Job, attempt: int, rng: np.random.Generator) -> tuple[int, float]:
        if job.kind in ("demonstration", "expert") and attempt == 0:
            position = job.first_goal + job.index
            goal = int(_rng(self._seed, job.task, "goals").permutation(_GOALS)[position % _GOALS])
            return goal, 0.0 if job.kind == "demonstration" and position < _GOALS else _VARIED
        goal = int(rng.integers(_GOALS))
        return goal, float(rng.uniform(*_NOISY)) if job.kind == "noisy" else _VARIED

    def _failing(self, goal: int, rng: np.random.Generator) -> _Interrupted | _Misled:
        horizon = self._world.config.horizon
        if rng.random() < 0.5:
            stop, end = (int(rng.uniform(*share) * horizon) for share in ((0.05, 0.2), (0.3, 0.55)))
            return _Interrupted(self._world, stop, end, rng)
        other = (goal + int(rng.integers(1, _GOALS))) % _GOALS
        self._world.reset(options={"goal": other})
        plan, done = [], False
        while not done:
            plan.append(self._world.expert_action())
            _, success, truncated, _ = self._world.advance(plan[-1])
            done = success or truncated
        return _Misled(plan, rng)

    def _record(self, goal: int, driver: _Expert | _Interrupted | _Misled) -> Take:
        observation, info = self._world.reset(options={"goal": goal})
        take = Take(text=info["text"], goal=goal, attempt=0)
        seen: list[dict[str, Any]] = []
        actions: list[np.ndarray] = []
        after, truncated = 0, False
        while not truncated and after <= _LINGER:
            action = driver.act(len(actions))
            if action is None:
                break
            seen.append(observation)
            actions.append(action)
            observation, _, success, truncated, _ = self._world.step(action)
            take.success = take.success or success
            after += take.success
        take.frames = {camera: np.stack([one["frames"][camera] for one in seen]) for camera in seen[0]["frames"]}
        take.actions, take.states = np.stack(actions), np.stack([one["proprio"] for one in seen])
        return take


class _Expert:
    """The expert, its hand trembling."""

    def __init__(self, world: Any, noise: float, rng: np.random.Generator) -> None:
        self._world, self._noise, self._rng = world, noise, rng

    def act(self, step: int) -> np.ndarray | None:
        return _shaken(self._world.expert_action(), self._noise, self._rng)


class _Interrupted:
    """The expert for a while, then somebody who wanders about."""

    def __init__(self, world: Any, stop: int, end: int, rng: np.random.Generator) -> None:
        self._world, self._stop, self._end, self._rng = world, stop, end, rng
        self._drift: np.ndarray = np.zeros(world.action_space.shape)

    def act(self, step: int) -> np.ndarray | None:
        if step >= self._end:
            return None
        if step < self._stop:
            return _shaken(self._world.expert_action(), _VARIED, self._rng)
        if (step - self._stop) % 12 == 0:
            self._drift = np.asarray(self._rng.uniform(-0.6, 0.6, self._drift.shape))
        return _shaken(self._drift, _VARIED, self._rng)


class _Misled:
    """The expert's movements for another goal, made here without looking."""

    def __init__(self, plan: list[np.ndarray], rng: np.random.Generator) -> None:
        self._plan, self._rng = plan, rng

    def act(self, step: int) -> np.ndarray | None:
        return _shaken(self._plan[step], _VARIED, self._rng) if step < len(self._plan) else None


def _shaken(action: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(action + noise * rng.standard_normal(action.shape), -1, 1).astype(np.float32)


def _rng(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for each episode, so that order and workers do not matter."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=[seed, int.from_bytes(digest[:8], "little")]))
