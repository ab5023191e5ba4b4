"""Many play tables, each doing one task after the other until an oracle finds it done, spread over a few processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ideomotor.envs.worker import Workers

Info = Mapping[str, Any]
Observation = dict[str, np.ndarray]


class PlayTable(Protocol):
    """A world whose ``step`` is made of two halves, because looking costs more than moving."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Puts robot and scene where ``options`` say; returns what is seen, and the state."""

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, Info]:
        """Applies one action without looking; the state comes last."""

    def observe(self) -> Observation:
        """Returns what can be seen now."""

    def close(self) -> None:
        """Frees what the world holds."""


class Oracle(Protocol):
    """Says what was done."""

    def completed(self, start: Info, end: Info, tasks: Sequence[str]) -> set[str]:
        """Returns which of the tasks were done between two states."""


Maker = Callable[[], tuple[PlayTable, Oracle]]


class Outcome(NamedTuple):
    """What a chunk led to.

    Attributes:
        observation: what is seen after it.
        executed: how many of its actions were taken.
        solved: the task was done, with the last action taken.
        film: what was seen in between, where that was asked for.
    """

    observation: Observation
    executed: int
    solved: bool
    film: list[Observation]


class SubtaskVector:
    """``n`` play tables that act together, told apart by their numbers 0 to n-1; each judges its own tasks.

    Table ``i`` lives in process ``i % workers``; with ``workers=0`` all live in this one. What a table does depends
    neither on the number of processes nor on its neighbours. calvin_env allows one table a process: give it as many
    workers as tables.

    Use it as a context manager, or call ``close``: the processes end with it, and with the process that made them.

    Args:
        makers: one a table, each returning a new table and its oracle. They travel to other processes, so no lambdas:
            ``functools.partial`` of a function at the top level of a module.
        workers: processes to spread the tables over.
        timeout: seconds to wait for a process before giving it up.
    """

    def __init__(self, makers: Sequence[Maker], *, workers: int = 2, timeout: float = 300.0) -> None:
        if not makers or workers < 0:
            raise ValueError(
                f"{len(makers)} tables, {workers} workers; wanted at least one table and no less than 0 workers"
            )
        self.num_envs = len(makers)
        count = min(workers, len(makers)) or 1
        self._groups = [list(range(worker, len(makers), count)) for worker in range(count)]
        self._workers = Workers(
            [functools.partial(_Tables, {i: makers[i] for i in group}) for group in self._groups],
            [f"the process of tables {', '.join(map(str, group))}" for group in self._groups],
            apart=workers > 0,
            timeout=timeout,
        )

    def reset(self, options: Mapping[int, dict[str, Any]]) -> dict[int, Observation]:
        """Puts those tables into the states that their options describe; returns what is seen there."""
        return self._ask("reset", options)

    def act(
        self,
        chunks: Mapping[int, np.ndarray],
        *,
        begin: Mapping[int, str],
        film: Collection[int] = (),
        stride: int = 4,
    ) -> dict[int, Outcome]:
        """Executes a chunk ``(k, a)`` in each of those tables, up to the action with which its task is done.

        Args:
            chunks: by table.
            begin: the task that begins with this chunk, in tables that begin one; the others go on with theirs.
            film: tables that are looked at in between.
            stride: every how many actions.
        """
        return self._ask("act", {i: (chunk, begin.get(i), stride * (i in film)) for i, chunk in chunks.items()})

    def close(self) -> None:
        """Ends the processes, by force where one has not ended after 5 seconds; calling it again does nothing."""
        self._workers.close()

    def __enter__(self) -> SubtaskVector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_workers"):
            self.close()

    def _ask(self, verb: str, orders: Mapping[int, Any]) -> dict[int, Any]:
        unknown = sorted(set(orders) - set(range(self.num_envs)))
        if unknown:
            raise ValueError(f"there are no tables {unknown}; there are {self.num_envs}, numbered from 0")
        answers = self._workers.ask([(verb, {i: orders[i] for i in group if i in orders}) for group in self._groups])
        return {i: outcome for answer in answers for i, outcome in answer.items()}


class _Tables:
    """Some of the tables, made when first asked for."""

    def __init__(self, makers: Mapping[int, Maker]) -> None:
        self._makers = makers
        self._made: dict[int, tuple[PlayTable, Oracle]] = {}
        self._now: dict[int, Info] = {}
        self._tasks: dict[int, tuple[str, Info]] = {}  # the one under way, and the state it began in

    def answer(self, message: tuple[str, Mapping[int, Any]]) -> dict[int, Any]:
        verb, orders = message
        one = self._reset if verb == "reset" else self._act
        answers = {}
        for i, order in orders.items():
            try:
                answers[i] = one(i, order)
            except Exception as error:
                about = f"task {self._tasks[i][0]}" if i in self._tasks else "before its first task"
                raise RuntimeError(f"table {i} failed ({about}): {type(error).__name__}: {error}") from error
        return answers

    def close(self) -> None:
        for table, _ in self._made.values():
            table.close()

    def _reset(self, i: int, options: dict[str, Any]) -> Observation:
        if i not in self._made:
            self._made[i] = self._makers[i]()
        self._tasks.pop(i, None)
        observation, self._now[i] = self._made[i][0].reset(options=options)
        return observation

    def _act(self, i: int, order: tuple[np.ndarray, str | None, int]) -> Outcome:
        chunk, begins, stride = order
        if i not in self._now:
            raise ValueError("it was not reset; reset a table before it acts")
        if np.ndim(chunk) != 2 or len(chunk) < 1:
            raise ValueError(f"its chunk has shape {np.shape(chunk)}; wanted (k, a) with at least one action")
        if begins is not None:
            self._tasks[i] = (begins, self._now[i])
        elif i not in self._tasks:
            raise ValueError("no task is under way; name the one that begins")
        (table, oracle), (task, start), film = self._made[i], self._tasks[i], []
        for executed, action in enumerate(chunk, start=1):
            *_, self._now[i] = table.advance(action)
            solved = task in oracle.completed(start, self._now[i], (task,))
            if solved or executed == len(chunk):
                break
            if stride and executed % stride == 0:
                film.append(table.observe())
        if solved:
            self._tasks.pop(i)
        return Outcome(table.observe(), executed, solved, film)
