"""The run: one stage of a recipe in one folder, which goes on where it was stopped."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ideomotor.training.checkpoint import (
    check_writable,
    latest_state,
    load_model,
    load_state,
    read_json,
    save_model,
    save_state,
    write_json,
)
from ideomotor.training.config import config_to_json, differences
from ideomotor.training.folder import clear, lock, sweep
from ideomotor.training.learner import Learner, LearnerState, check_ownership
from ideomotor.training.log import Log
from ideomotor.training.optim import OptimConfig
from ideomotor.training.processes import PeakMemory, Processes, caught_signals
from ideomotor.types import Batch, Clip

Model = TypeVar("Model", bound=nn.Module)
Hook = Callable[[int, Mapping[str, float]], None]
Clips = Iterable[Clip] | Callable[[int], Iterable[Clip]]
Round = Iterable[tuple[Learner, Batch]]
"""The updates of one step: which learner moves, and by what batch. Asked for one by one, each after the one before."""


class Kept(Protocol):
    """What else a run saves with its learners' states, and gives back when it goes on."""

    def state(self) -> LearnerState:
        """Returns all it needs to go on; the values hold what ``identity`` gives."""

    def identity(self) -> dict[str, Any]:
        """Returns what a resumed run must have the same, as JSON values."""

    def load_state(self, state: LearnerState) -> None:
        """Goes on from ``state``."""


class Stopped(SystemExit):
    """The state is saved and the process shall end: code 143 after SIGTERM, 130 after SIGINT, 0 at ``pause_at``."""


class Run:
    """One stage in one folder. The same command goes on where it was stopped, and does nothing once it has finished.

    Use it as a context: entering seeds the global random state, so that modules built inside have the same first
    weights every time; leaving it without an error writes ``done.json``.

    Args:
        dir: holds run.json, state/, metrics.jsonl, tensorboard/, done.json and the saved models.
        seed: of everything random in the stage.
        config: dataclass of all that decides the result; a resumed run must have the same.
        fresh: removes what an earlier run left in the folder.
        save_seconds: a state is saved when so much time has passed since the last,
        save_steps: or so many steps, whichever comes first.
        log_steps: steps that are averaged in a row of the log.
        pause_at: saves after this step and raises ``Stopped`` with code 0 (for tests of resume, and time slices).
        device: where to train; CUDA where there is any, else the CPU.

    Raises:
        SaveError: the folder cannot be written.
        ValueError: the folder holds a run of another config or seed, or another process trains in it.
    """

    def __init__(
        self,
        dir: Path | str,
        *,
        seed: int = 0,
        config: Any = None,
        fresh: bool = False,
        save_seconds: float = 120.0,
        save_steps: int = 1000,
        log_steps: int = 20,
        pause_at: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.dir, self.seed, self.step = Path(dir), seed, 0
        self.save_seconds, self.save_steps, self.log_steps, self.pause_at = (
            save_seconds,
            save_steps,
            log_steps,
            pause_at,
        )
        self.processes = Processes(device)
        self.device = self.processes.device
        self.learners: dict[str, Learner] = {}
        self._kept: dict[str, Kept] = {}
        self._fitted = False
        self._began, self._before = time.monotonic(), 0.0
        self._saved_at, self._saved_step = self._began, 0
        if self.processes.is_main:
            check_writable(self.dir)
            with ExitStack() as undo:
                self._lock = undo.enter_context(lock(self.dir))
                sweep(self.dir)
                if fresh:
                    clear(self.dir)
                self._guard({"seed": seed, "world_size": self.processes.world_size, "config": config})
                undo.pop_all()  # from here on the lock is held until the run is left
        self.processes.wait()
        self._was_finished = self.finished

    def __enter__(self) -> Run:
        torch.manual_seed(self.seed)
        self._memory = PeakMemory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = self._memory.end()
        if self.processes.is_main:
            if error is None and not self._was_finished:
                self._finish(peak)
            elif error is not None and self._claimed and latest_state(self.dir / "state") is None:
                (self.dir / "run.json").unlink(missing_ok=True)  # nothing was trained, so other settings may follow
            self._lock.close()

    @property
    def finished(self) -> bool:
        """True where the stage has come to its end: a caller may skip it whole."""
        return (self.dir / "done.json").is_file()

    @property
    def seconds(self) -> float:
        """Time spent in this stage so far, over all its resumes (what a kill threw away is not counted)."""
        return self._before + time.monotonic() - self._began

    def learner(
        self, objective: nn.Module, config: OptimConfig, steps: int, name: str | None = None, *, start: int = 0
    ) -> Learner:
        """Returns a learner of this run, for a ``fit`` of ``steps`` steps.

        It is left out of the steps before ``start`` (a critic that waits for pictures worth judging); its schedule is
        spread over the others.

        Raises:
            ValueError: the name (by default that of the objective's class) is taken, a weight has another owner, or no
                step is left after ``start``.
        """
        learner = Learner(
            objective, config, steps - start, name=name, seed=self.seed, processes=self.processes, start=start
        )
        if learner.name in self.learners:
            raise ValueError(f"this run already has a learner {learner.name!r}: give one of them another name=")
        check_ownership([*self.learners.values(), learner])
        self.learners[learner.name] = learner
        return learner

    def keep(self, name: str, thing: Kept) -> None:
        """Saves the thing's state with those of the learners from now on, and loads it when the run goes on.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._kept or name in self.learners:
            raise ValueError(f"this run already keeps a state {name!r}: give the thing another name")
        self._kept[name] = thing

    def fit(
        self,
        clips: Clips,
        *learners: Learner,
        steps: int,
        held_out: Sequence[Clip] = (),
        hooks: Iterable[Hook] = (),
    ) -> None:
        """Trains up to ``steps`` steps in all, from where the folder's state stands; at the end returns at once.

        Args:
            clips: batches, the first for step 0; or a function of the step to start at (a loader that can jump there).
            learners: updated in this order with each batch; all that the run has made.
            steps: of the whole stage.
            held_out: batches that are not learned from; their mean loss is logged ten times, and at the last step.
            hooks: called as ``hook(step, metrics)`` after each step, in the main process and after the state is saved.

        Raises:
            Stopped: SIGTERM, SIGINT or ``pause_at``; the state is saved.
            ValueError: the data ended too early, or the saved state is of other learners or settings.
        """
        self._check_learners(learners)
        self._check_schedules(learners, steps)

        def validated(step: int, metrics: dict[str, float]) -> None:
            if held_out and (step % math.ceil(steps / 10) == 0 or step >= steps):
                for learner in learners:
                    if step > learner.start:
                        metrics |= learner.validate(held_out)

        def rounds(start: int) -> Iterator[Round]:
            for step, batch in enumerate(self._batches(clips, start), start):
                yield [(learner, batch) for learner in learners if step >= learner.start]

        self._train(rounds, learners, steps, hooks, validated)

    def loop(
        self, rounds: Callable[[int], Iterable[Round]], *learners: Learner, steps: int, hooks: Iterable[Hook] = ()
    ) -> None:
        """Trains up to ``steps`` rounds in all, of whatever updates each asks for; resumes and stops as ``fit`` does.

        Args:
            rounds: a function of the step to start at. A state is saved between two rounds, so all that a round
                changes must be in a learner, in what is kept, or follow from the step.
            learners: all that the run has made; each has a schedule of its own length.
            steps: of the whole stage.
            hooks: as of ``fit``.

        Raises:
            Stopped: SIGTERM, SIGINT or ``pause_at``; the state is saved.
            ValueError: the rounds ended too early, or the saved state is of other learners or settings.
        """
        self._check_learners(learners)
        self._train(rounds, learners, steps, hooks)

    def _train(
        self,
        rounds: Callable[[int], Iterable[Round]],
        learners: tuple[Learner, ...],
        steps: int,
        hooks: Iterable[Hook],
        before_log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ) -> None:
        parts: dict[str, Learner | Kept] = {learner.name: learner for learner in learners} | self._kept
        self._restore(parts)
        if self.step >= steps:
            return
        hooks = tuple(hooks) if self.processes.is_main else ()
        with self._log(steps) as log, caught_signals() as caught:
            for updates in rounds(self.step):
                metrics: dict[str, float] = {}
                for learner, batch in updates:
                    metrics |= learner.update(batch)
                self.step += 1
                before_log(self.step, metrics)
                log(self.step, metrics)
                signum = self._signal(caught)
                if self.step >= steps or signum or self.step == self.pause_at or self._due():
                    self._save_state(parts)
                for hook in hooks:
                    hook(self.step, metrics)
                if signum or self.step == self.pause_at:
                    log.say(f"stopped after step {self.step} of {steps}; its state is saved: the same command goes on")
                    raise Stopped(128 + signum if signum else 0)
                if self.step >= steps:
                    return
        raise ValueError(f"the data ended after {self.step} of {steps} steps; repeat the loader")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, all objectives hold their averaged weights, where their learners keep them: what ``save`` saves."""
        with ExitStack() as stack:
            for learner in self.learners.values():
                stack.enter_context(learner.averaged())
            yield

    def save(
        self, model: nn.Module, config: Any, name: str, *, meta: Mapping[str, Any] | None = None, averaged: bool = True
    ) -> Path:
        """Saves a model as ``<dir>/<name>`` and returns that folder.

        Where its learner keeps averaged weights, these are saved; ``averaged=False`` saves the last ones.

        Raises:
            SaveError: the disk is full, or the folder may not be written.
            ValueError: something else has that name ("state", "tensorboard", a file of yours).
        """
        folder = self.dir / name
        if folder.exists() and not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is there and holds no saved model: give the model another name than {name!r}")
        with self.averaged() if averaged else nullcontext():
            if self.processes.is_main:
                about = {"run": {"seed": self.seed, "steps": self.step}, **(meta or {})}
                save_model(folder, model, config, about)
        self.processes.wait()
        return folder

    def load(self, cls: Callable[[Any], Model], config_cls: type[Any], path: Path | str) -> Model:
        """Returns a saved model on this run's device, in eval mode."""
        return load_model(Path(path), cls, config_cls, self.device)

    def _check_learners(self, learners: tuple[Learner, ...]) -> None:
        if self._fitted:
            raise ValueError(
                "this run has already fitted: a stage is one fit, so give the next one a Run of its own folder"
            )
        self._fitted = True
        idle = set(self.learners) - {learner.name for learner in learners}
        if idle or not learners:
            raise ValueError(
                f"fit was given {len(learners)} learners and would leave out {sorted(idle)}: give it all of this run"
            )
        check_ownership(learners)

    def _check_schedules(self, learners: tuple[Learner, ...], steps: int) -> None:
        for learner in learners:
            if learner.start + learner.steps != steps:
                raise ValueError(
                    f"learner {learner.name!r} has a schedule of {learner.start + learner.steps} steps, and fit runs "
                    f"{steps}: give both the same"
                )

    def _restore(self, parts: Mapping[str, Learner | Kept]) -> None:
        saved = load_state(self.dir / "state")
        if saved is None:
            if self._was_finished:
                raise ValueError(
                    f"{self.dir} is finished, but its state folder is gone: take its saved models with load, "
                    "or train again (--fresh)"
                )
            return
        values, states = saved
        found = {name: _settings(state) for name, state in states.items()}
        self._check_same(found, {name: part.identity() for name, part in parts.items()})
        for name, part in parts.items():
            part.load_state(states[name])
        self.step = self._saved_step = int(values["step"])
        self._before = float(values["seconds"])
        self.processes.wait()  # rank 0 must not replace the files while others read them

    def _batches(self, clips: Clips, start: int) -> Iterator[Clip]:
        return iter(clips(start)) if callable(clips) else islice(clips, start, None)

    def _log(self, steps: int) -> Log:
        return Log(
            self.dir,
            steps=steps,
            start=self.step,
            seconds=self.seconds,
            every=self.log_steps,
            main=self.processes.is_main,
            mean=self.processes.mean,
        )

    def _signal(self, caught: list[int]) -> int:
        """Returns the signal after which all processes stop at this very step, or 0."""
        if not self.processes.any(bool(caught)):
            return 0
        return caught[0] if caught else signal.SIGTERM

    def _due(self) -> bool:
        waited = time.monotonic() - self._saved_at >= self.save_seconds
        return waited or self.step - self._saved_step >= self.save_steps

    def _save_state(self, parts: Mapping[str, Learner | Kept]) -> None:
        if self.processes.is_main:
            states = {name: part.state() for name, part in parts.items()}
            save_state(self.dir / "state", {"step": self.step, "seconds": self.seconds}, states)
        self._saved_at, self._saved_step = time.monotonic(), self.step

    def _guard(self, settings: dict[str, Any]) -> None:
        if settings["config"] is not None:
            settings["config"] = config_to_json(settings["config"])
        path = self.dir / "run.json"
        self._claimed = not path.is_file()
        if self._claimed:
            write_json(path, settings)
        else:
            self._check_same(read_json(path), settings)

    def _check_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        changed = differences(old, new)
        if changed:
            raise ValueError(
                f"{self.dir} holds a run of other settings (there -> now): {'; '.join(changed)}. Give the settings "
                "it was begun with, another --out, or --fresh to throw it away and begin anew"
            )

    def _finish(self, peak_rss_bytes: int) -> None:
        done = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": peak_rss_bytes,
            "steps": self.step,
            "seed": self.seed,
            "world_size": self.processes.world_size,
        }
        write_json(self.dir / "done.json", done)


def _settings(state: LearnerState) -> dict[str, Any]:
    return {key: value for key, value in state.values.items() if key != "step"}
