"""Chunks of actions on their way to a robot: one action a step, the next chunk computed meanwhile, no jump between two.

Nothing here knows a socket: a robot's loop brings what it sees, a ``ChunkRunner`` gives the action of that step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .blending import NUMBERS, Turns, crossfade, ensemble
from .errors import ServerChanged, passes
from .messages import OURS, PLAIN, Extras


class ChunkPlan:
    """What is to be done at each coming step, put together from chunks that overlap.

    Attributes:
        step: how many actions were taken; the first of what is planned is for this step.
    """

    def __init__(self, *, blend: int = 0, decay: float | None = None, turns: Turns = NUMBERS) -> None:
        """Takes one of two ways to go from an earlier chunk to a later one.

        Args:
            blend: over how many steps the later one fades in; 0 changes over at once.
            decay: instead, the mean of all chunks that reach a step; see ``ensemble``.
            turns: which numbers are rotations.

        Raises:
            ValueError: both, or numbers without a meaning.
        """
        if blend < 0 or (blend and decay is not None) or (decay is not None and not math.isfinite(decay)):
            raise ValueError(f"blend is {blend}, decay {decay}; wanted steps of 0 or more, or instead a finite decay")
        self.blend, self.decay, self.turns = blend, decay, turns
        self.clear()

    def clear(self) -> None:
        """Forgets everything: an episode begins."""
        self.step = 0
        self._planned: np.ndarray | None = None
        self._chunks: list[tuple[int, np.ndarray]] = []

    @property
    def remaining(self) -> int:
        """How many steps are planned."""
        return 0 if self._planned is None else len(self._planned)

    def add(self, chunk: np.ndarray, start: int) -> int:
        """Plans a chunk whose row 0 was meant for step ``start``; returns how many of its rows came too late.

        Raises:
            ValueError: it begins in the future, or is no chunk.
        """
        if chunk.ndim != 2 or not 0 <= start <= self.step:
            raise ValueError(
                f"a chunk {chunk.shape} for step {start} came at step {self.step}; wanted (T, width), in time"
            )
        late = self.step - start
        if late >= len(chunk):
            return late
        new = chunk[late:].copy()
        if self.decay is not None:
            ahead = [(begun, old) for begun, old in self._chunks if self.step - begun < len(old)]
            self._chunks = [*ahead, (start, chunk)]
            new = ensemble([old[self.step - begun :] for begun, old in self._chunks], self.decay, self.turns)
        elif self._planned is not None:
            overlap = min(self.blend, len(self._planned), len(new))
            new[:overlap] = crossfade(self._planned[:overlap], new[:overlap], self.turns)
        self._planned = new
        return late

    def take(self) -> np.ndarray | None:
        """Returns the action of the present step and goes on to the next; None, and no step, where none is planned."""
        if self._planned is None or not len(self._planned):
            return None
        action, self._planned = self._planned[0], self._planned[1:]
        self.step += 1
        return action

    def ahead(self, steps: int) -> np.ndarray:
        """Returns the next ``steps`` planned actions, or as many as there are."""
        return np.zeros((0, 0), np.float32) if self._planned is None else self._planned[:steps].copy()


@dataclass(frozen=True)
class Contract:
    """What a server announces of its policy, as far as executing needs it.

    Attributes:
        chunk: actions of a chunk.
        execute: steps from one request to the next, as the policy is meant to be used.
        context: frames of an observation; they lie ``stride`` steps apart.
        prefix: whether the policy can be told which actions are under way.
        plain: the server knows openpi's protocol alone, so that requests hold nothing beside the observation.
        turns: which numbers of an action are rotations, so that they are blended as such.
    """

    chunk: int
    execute: int
    context: int = 1
    stride: int = 1
    prefix: bool = False
    plain: bool = False
    turns: Turns = NUMBERS

    def __post_init__(self) -> None:
        if min(self.execute, self.context, self.stride) < 1 or self.execute > self.chunk:
            raise ValueError(f"{self}; wanted 1 or more of each, and at most a chunk to execute")


def contract_of(metadata: Mapping[str, Any]) -> Contract:
    """Returns what a server's metadata say.

    Raises:
        ValueError: they are of a world, or of a server that announces nothing: then write the ``Contract`` yourself.
    """
    ours = metadata.get(OURS)
    if not isinstance(ours, dict) or ours.get("kind") != "policy":
        raise ValueError(
            f"the server announces {'no policy' if isinstance(ours, dict) else 'nothing of its actions'}: connect to "
            "one that `ideomotor serve` started on a policy, or write a Contract"
        )
    actions, seen = ours["actions"], ours.get("observation") or {}
    return Contract(
        chunk=int(actions["chunk"]),
        execute=int(actions["execute"]),
        context=int(seen.get("context") or 1),
        stride=int(seen.get("stride") or 1),
        prefix="prefix" in ours.get("extensions", ()),
        turns=Turns(tuple(actions.get("quaternions") or ()), tuple(actions.get("angles") or ())),
    )


class Answer(NamedTuple):
    """What came of a request: a chunk, or what went wrong."""

    actions: np.ndarray | None
    error: Exception | None


class Asker(Protocol):
    """Who asks for the next chunk while the present one is carried out; one request at a time."""

    @property
    def busy(self) -> bool:
        """Whether a request is on its way, or its answer has not been taken."""

    def submit(self, observation: Mapping[str, Any], extras: Extras) -> None:
        """Sends a request and returns at once."""

    def poll(self) -> Answer | None:
        """Returns the answer once it is there."""


@dataclass(frozen=True)
class Step:
    """What is to be done now.

    Attributes:
        action: ``(width,)``; None where nothing is planned: the first chunk is awaited, or chunks come too late.
        age: steps since the robot saw what the action rests on; of a blended one the newest of its chunks counts.
        arrived: the latency in steps of a chunk that came at this step; None where none did.
    """

    action: np.ndarray | None
    age: int
    arrived: int | None


class ChunkRunner:
    """Gives one action a step, and asks for the next chunk early enough that it is there when the present one ends.

    One request is under way at a time, so an answer may take half a chunk; the robot is held where it takes more.

    Where the policy can be told so, a request says which actions will be carried out before its answer can be there,
    so that the new chunk goes on from them. The frames of an observation are put together here, from what was seen at
    the steps that the policy wants, whenever a request happens to be made.

    Attributes:
        latencies: of the newest chunks, in steps.
        failures: requests that came to nothing since the last one that did not.
        last_error: why the newest of them failed.
    """

    def __init__(
        self, asker: Asker, contract: Contract, *, blend: int = 0, decay: float | None = None, session: str = ""
    ) -> None:
        """Takes who asks, and how a later chunk follows an earlier one: see ``ChunkPlan``."""
        self.asker, self.contract, self.session = asker, contract, session
        self.plan = ChunkPlan(blend=blend, decay=decay, turns=contract.turns)
        self.latencies: deque[int] = deque([1], maxlen=8)
        self._awaited = 0  # answers to requests from before a reset, to be thrown away
        self._begin()

    def _begin(self) -> None:
        self.plan.clear()
        self.failures = 0
        self.last_error: Exception | None = None
        self._tick = 0
        self._asked: int | None = None  # the tick of the newest request, and what was planned for it
        self._at = self._seen_at = 0
        self._frames: deque[dict[str, np.ndarray]] = deque(
            maxlen=(self.contract.context - 1) * self.contract.stride + 1
        )
        self._fresh = True

    def reset(self) -> None:
        """Begins an episode: nothing planned or seen counts any more, here and at the server."""
        self._awaited += self.asker.busy
        self._begin()

    def act(self, observation: Mapping[str, Any]) -> Step:
        """Returns what to do at this step, called once a step with what the robot sees now, single frames.

        Raises:
            Refused: the server says what is wrong with the observation.
            NotLetIn: the API key is wrong, or what listens is no policy server.
            ServerChanged: another policy answers.
        """
        self._frames.append({name: np.asarray(frame) for name, frame in observation["images"].items()})
        arrived = self._receive()
        if not self.asker.busy and self._due():
            self._ask(observation)
        action = self.plan.take()
        self._tick += 1
        return Step(action, self._tick - 1 - self._seen_at, arrived)

    @property
    def expected(self) -> int:
        """How many steps the next answer may take: as many as the slowest of the last few."""
        return max(self.latencies)

    def _due(self) -> bool:
        if self._asked is None or not self.plan.remaining:
            return True
        every = max(1, min(self.contract.execute, self.contract.chunk - self.expected))
        return self._tick - self._asked >= every

    def _ask(self, observation: Mapping[str, Any]) -> None:
        prefix = self.plan.ahead(min(self.expected, self.contract.chunk - 1)) if self.contract.prefix else None
        known = prefix if prefix is not None and len(prefix) else None
        extras = Extras(session=self.session, step=self._tick, prefix=known, reset=self._fresh)
        self._asked, self._at, self._fresh = self._tick, self.plan.step, False
        self.asker.submit({**observation, "images": self._context()}, PLAIN if self.contract.plain else extras)

    def _context(self) -> dict[str, np.ndarray]:
        """Frames as the policy wants them, the newest last; before the first, the first again."""
        if self.contract.context == 1:
            return self._frames[-1]
        newest, stride = len(self._frames) - 1, self.contract.stride
        picked = [max(0, newest - back * stride) for back in reversed(range(self.contract.context))]
        return {name: np.stack([self._frames[at][name] for at in picked]) for name in self._frames[-1]}

    def _receive(self) -> int | None:
        answer = self.asker.poll()
        if answer is None:
            return None
        if self._awaited:
            self._awaited -= 1
            return None
        if answer.actions is None:
            self._failed(answer.error)
            return None
        assert self._asked is not None
        latency = self._tick - self._asked
        self.latencies.append(latency)
        if self.plan.add(answer.actions, self._at) < len(answer.actions):
            self._seen_at = self._asked
        self.failures, self.last_error = 0, None
        return latency

    def _failed(self, error: Exception | None) -> None:
        self.failures, self.last_error, self._asked = self.failures + 1, error, None
        self._fresh = self.plan.step == 0  # the server may not have begun anew
        if error is not None and (isinstance(error, ServerChanged) or not passes(error)):
            raise error
