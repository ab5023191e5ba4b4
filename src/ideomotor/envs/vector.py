"""Many chunked worlds in lock step, spread over a few processes so that drawing uses every core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ideomotor.envs.chunked import Chunked
from ideomotor.envs.worker import Workers

Maker = Callable[[], Chunked]
Outcome = tuple[dict[str, Any], float, bool, bool, dict[str, Any]]


class ChunkedVector:
    """``n`` worlds that take a step together: a batch of chunks in, a batch of observations out.

    World ``i`` lives in process ``i % workers``; with ``workers=0`` all live in this one. What a world does depends
    neither on the number of processes nor on its neighbours. A batch is ``{"frames": {camera: uint8 (n, context, c, h,
    w)}, "proprio": float32 (n, p)}``; all worlds need the same cameras, sizes and widths.

    Use it as a context manager, or call ``close``: the processes end with it, and with the process that made them.

    Args:
        makers: one a world, each returning a new ``Chunked``. They travel to other processes, so no lambdas:
            ``functools.partial`` of a function at the top level of a module.
        workers: processes to spread the worlds over.
        timeout: seconds to wait for a process before giving it up.
    """

    def __init__(self, makers: Sequence[Maker], *, workers: int = 2, timeout: float = 300.0) -> None:
        if not makers or workers < 0:
            raise ValueError(
                f"{len(makers)} worlds, {workers} workers; wanted at least one world and no less than 0 workers"
            )
        self.num_envs = len(makers)
        self._outcomes: list[Outcome | None] = [None] * len(makers)
        count = min(workers, len(makers)) or 1
        self._groups = [list(range(worker, len(makers), count)) for worker in range(count)]
        self._workers = Workers(
            [functools.partial(_Worlds, {i: makers[i] for i in group}) for group in self._groups],
            [f"the process of worlds {', '.join(map(str, group))}" for group in self._groups],
            apart=workers > 0,
            timeout=timeout,
        )
        spaces = self._workers.ask([("spaces", None)] * count)
        self.observation_space, self.action_space = spaces[0]

    def reset(
        self,
        seeds: Sequence[int | None] | None = None,
        options: Sequence[dict[str, Any] | None] | None = None,
        where: Sequence[bool] | np.ndarray | None = None,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Starts an episode in every world, or in those ``where`` says; the others stay as they are."""
        chosen = self._mask(where, [True] * self.num_envs)
        orders: dict[int, Any] = {}
        for i in np.flatnonzero(chosen).tolist():
            orders[i] = (seeds[i] if seeds is not None else None, options[i] if options is not None else None)
        self._run("reset", orders)
        observation, _, _, _, infos = self._batch()
        return observation, infos

    def step(
        self, chunks: np.ndarray, active: Sequence[bool] | np.ndarray | None = None
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Executes chunk ``i`` of ``(n, k, a)`` in world ``i`` where it is active.

        Without ``active``, those whose episode is not over are. The others do nothing, and their last observation, ends
        and info are returned again, with a reward of 0 and nothing ``executed``.

        Returns:
            observation, rewards, terminated, truncated (each ``(n,)``) and a list of infos.
        """
        chunks = np.asarray(chunks, dtype=np.float32)
        if chunks.ndim != 3 or len(chunks) != self.num_envs:
            raise ValueError(f"chunks have shape {chunks.shape}; wanted ({self.num_envs}, k, a)")
        running = [outcome is not None and not (outcome[2] or outcome[3]) for outcome in self._outcomes]
        chosen = self._mask(active, running)
        over = [i for i in np.flatnonzero(chosen).tolist() if not running[i]]
        if over:
            raise ValueError(f"worlds {over} are to act but their episodes are over or have not begun: reset them")
        for i, outcome in enumerate(self._outcomes):
            if outcome is not None and not chosen[i]:
                self._outcomes[i] = (outcome[0], 0.0, outcome[2], outcome[3], outcome[4] | {"executed": 0})
        self._run("step", {i: chunks[i] for i in np.flatnonzero(chosen).tolist()})
        return self._batch()

    def close(self) -> None:
        """Ends the processes, by force where one has not ended after 5 seconds; calling it again does nothing."""
        self._workers.close()

    def __enter__(self) -> ChunkedVector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_workers"):
            self.close()

    def _mask(self, given: Sequence[bool] | np.ndarray | None, default: list[bool]) -> np.ndarray:
        mask = np.asarray(default if given is None else given, dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"the mask has shape {mask.shape}; wanted one value for each of {self.num_envs} worlds")
        return mask

    def _run(self, verb: str, orders: dict[int, Any]) -> None:
        answers = self._workers.ask([(verb, {i: orders[i] for i in group if i in orders}) for group in self._groups])
        for answer in answers:
            for i, outcome in answer.items():
                self._outcomes[i] = outcome

    def _batch(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        missing = [i for i, outcome in enumerate(self._outcomes) if outcome is None]
        if missing:
            raise RuntimeError(f"worlds {missing} have never been reset: the first reset must be of all")
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        seen = [outcome[0] for outcome in outcomes]
        observation = {
            "frames": {camera: np.stack([one["frames"][camera] for one in seen]) for camera in seen[0]["frames"]},
            "proprio": np.stack([one["proprio"] for one in seen]),
        }
        rewards = np.array([outcome[1] for outcome in outcomes], dtype=np.float32)
        terminated, truncated = (np.array([outcome[k] for outcome in outcomes], dtype=bool) for k in (2, 3))
        return observation, rewards, terminated, truncated, [outcome[4] for outcome in outcomes]


class _Worlds:
    """Some of the worlds, and what can be asked of them."""

    def __init__(self, makers: dict[int, Maker]) -> None:
        self._makers = makers
        self._worlds: dict[int, Chunked] = {}
        self._about = dict.fromkeys(makers, "while it was made")

    def answer(self, message: tuple[str, Any]) -> Any:
        verb, orders = message
        if verb == "spaces":
            for i, make in self._makers.items():
                self._worlds[i] = self._named(i, make)
            first = next(iter(self._worlds.values()))
            return first.observation_space, first.action_space
        one = self._reset if verb == "reset" else self._step
        return {i: self._named(i, functools.partial(one, i, order)) for i, order in orders.items()}

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()

    def _reset(self, i: int, order: tuple[int | None, dict[str, Any] | None]) -> Outcome:
        seed, options = order
        task = getattr(getattr(self._worlds[i].unwrapped, "config", None), "task", "unknown")
        self._about[i] = f"task {task}, seed {seed}, options {options}"
        observation, info = self._worlds[i].reset(seed=seed, options=options)
        return observation, 0.0, False, False, info

    def _step(self, i: int, chunk: np.ndarray) -> Outcome:
        return self._worlds[i].step(chunk)

    def _named(self, i: int, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise RuntimeError(f"world {i} failed ({self._about[i]}): {type(error).__name__}: {error}") from error
