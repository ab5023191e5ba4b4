"""One worker thread that computes what waits: all of it that fits is the next batch, whenever the last one is done."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ideomotor.serving.backend import Backend
from ideomotor.serving.journal import LOGGER
from ideomotor.serving.limits import Refused

GATHERING = 0.2
"""Share of the last batch's time for which those who were answered by it are waited for, where they came back as soon
the last time: what has to be computed for any batch is then computed once for them and for who waits already. Without,
groups of clients alternate, and one is answered while the other waits."""
PATIENCE = 0.5
"""Seconds for which a part of an imagined video lets requests go first."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a job: a reply, or the reason why there is none.

    Attributes:
        batch: how many were computed together; 0 where nothing was.
        failure: the backend's own exception, where it was that.
    """

    reply: Mapping[str, Any] | None = None
    refused: Refused | None = None
    failure: Exception | None = None
    batch: int = 0
    queue_ms: float = 0.0
    infer_ms: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A request that waits for its answer.

    Attributes:
        owner: whose it is; owners take turns.
        arrived: by ``time.perf_counter``.
        done: is called with the answer, in the event loop.
    """

    owner: Hashable
    prepared: Any
    arrived: float
    done: Callable[[Answer], None]
    deadline_ms: float = math.inf


@dataclass(kw_only=True, eq=False)
class Dream:
    """An imagined video that is sent in parts; of a part it must be known whether it is the last, so one is held back.

    Attributes:
        part: is called in the event loop with a part and whether it is the last, or with what went wrong; the next
            part is made once the dream is given to the batcher again.
    """

    owner: Hashable
    prepared: Any
    part: Callable[[Mapping[str, np.ndarray], bool, Exception | None], None]
    since: float = 0.0
    parts: Iterator[Mapping[str, np.ndarray]] | None = None
    held: Mapping[str, np.ndarray] | None = field(default=None, repr=False)


class Batcher:
    """The queue of jobs and dreams, and the thread that works it off.

    Owners take turns (one job each, the longest waiting owner first), so none starves however much another sends; jobs
    of one owner are computed in their order. What is made in the thread is delivered in the event loop.

    Args:
        computed: is told the size of each batch and the seconds that it took, in the thread.
    """

    def __init__(
        self, backend: Backend, loop: asyncio.AbstractEventLoop, computed: Callable[[int, float], None]
    ) -> None:
        self.backend, self._loop, self._computed = backend, loop, computed
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._turns: deque[Hashable] = deque()
        self._dreams: deque[Dream] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._last_seconds = 0.0  # what the last batch took
        self._computing: set[Hashable] = set()  # owners of the batch under way
        self._answered: dict[Hashable, float] = {}  # owners who have not asked again, and since when
        self._pauses: dict[Hashable, float] = {}  # seconds after which an owner asked again, the last time
        self._thread = threading.Thread(target=self._work, name="ideomotor-serving", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Lets a job wait for its turn."""
        with self._changed:
            answered = self._answered.pop(job.owner, None)
            if answered is not None:
                self._pauses[job.owner] = time.perf_counter() - answered
            waiting = self._waiting.get(job.owner)
            if waiting is None:
                self._waiting[job.owner] = deque((job,))
                self._turns.append(job.owner)
            else:
                waiting.append(job)
            self._changed.notify()

    def dream(self, dream: Dream) -> None:
        """Has the next part of a dream made when nothing more urgent waits."""
        dream.since = time.perf_counter()
        with self._changed:
            self._dreams.append(dream)
            self._changed.notify()

    def drop(self, owner: Hashable) -> None:
        """Forgets what waits for an owner who has gone; nobody is told."""
        with self._changed:
            if self._waiting.pop(owner, None) is not None:
                self._turns.remove(owner)
            self._computing.discard(owner)
            self._answered.pop(owner, None)
            self._pauses.pop(owner, None)
            self._changed.notify()
            self._dreams = deque(dream for dream in self._dreams if dream.owner is not owner)

    def stop(self, timeout: float) -> bool:
        """Ends the thread after the batch it is at; returns whether it ended in time."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Waits for work and does some; False once it was told to stop."""
        with self._changed:
            while not (self._turns or self._dreams or self._stopped):
                self._changed.wait()
            if self._turns and not self._stopped:
                self._gather()
            if self._stopped:
                return False
            batch, late = self._take()
            dream = self._due(bool(batch))
            self._computing = {job.owner for job in (*batch, *late)}
        if batch or late:
            answers = [*self._compute(batch), *((job, _expired(job)) for job in late)]
            with self._changed:
                self._answered |= dict.fromkeys(self._computing - self._waiting.keys(), time.perf_counter())
            self._tell(_deliver, answers)
        if dream is not None:
            self._tell(dream.part, *self._imagine(dream))
        return True

    def _tell(self, what: Callable[..., None], *about: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: this batch took longer than the server's end
            self._loop.call_soon_threadsafe(what, *about)

    def _gather(self) -> None:
        """Waits a moment for those who were answered just now and are quick to ask again."""
        window = GATHERING * self._last_seconds
        quick = {owner for owner in self._answered if self._pauses.get(owner, 0.0) <= window}
        while len(self._turns) < self.backend.max_batch and not self._stopped:
            now = time.perf_counter()
            left = max((self._answered[owner] + window - now for owner in quick & self._answered.keys()), default=0.0)
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> tuple[list[Job], list[Job]]:
        """The next batch, and the jobs that came before it whose deadline has passed."""
        batch: list[Job] = []
        late: list[Job] = []
        now = time.perf_counter()
        while self._turns and len(batch) < self.backend.max_batch:
            owner = self._turns.popleft()
            waiting = self._waiting[owner]
            job = waiting.popleft()
            if waiting:
                self._turns.append(owner)
            else:
                del self._waiting[owner]
            passed = (now - job.arrived) * 1000 > job.deadline_ms
            (late if passed else batch).append(job)
        return batch, late

    def _due(self, busy: bool) -> Dream | None:
        if self._dreams and (not busy or time.perf_counter() - self._dreams[0].since > PATIENCE):
            return self._dreams.popleft()
        return None

    def _compute(self, batch: Sequence[Job]) -> list[tuple[Job, Answer]]:
        """The answers to a batch; where several fail together, each is tried alone."""
        if not batch:
            return []
        began = time.perf_counter()
        try:
            replies = self.backend.infer([job.prepared for job in batch])
            if len(replies) != len(batch):
                raise RuntimeError(f"the backend gave {len(replies)} replies to a batch of {len(batch)}")
        except Exception as error:  # noqa: BLE001 - whatever a backend raises is one request's end, not the server's
            if len(batch) > 1:
                return [answer for job in batch for answer in self._compute([job])]
            if isinstance(error, Refused):
                return [(batch[0], Answer(refused=error))]
            LOGGER.error("inference failed", exc_info=error)
            return [(batch[0], Answer(failure=error))]
        took = (time.perf_counter() - began) * 1000
        self._computed(len(batch), took / 1000)
        self._last_seconds = took / 1000
        return [
            (job, Answer(reply=reply, batch=len(batch), queue_ms=(began - job.arrived) * 1000, infer_ms=took))
            for job, reply in zip(batch, replies, strict=True)
        ]

    def _imagine(self, dream: Dream) -> tuple[Mapping[str, np.ndarray], bool, Exception | None]:
        """The dream's next part, and whether it is the last; what went wrong ends it."""
        try:
            if dream.parts is None:
                dream.parts = iter(self.backend.imagine(dream.prepared))
                dream.held = next(dream.parts, None)
            part, dream.held = dream.held, next(dream.parts, None)
        except Exception as error:  # noqa: BLE001 - as above
            LOGGER.error("imagination failed", exc_info=error)
            return {}, True, error
        return part or {}, dream.held is None, None


def _deliver(answers: Sequence[tuple[Job, Answer]]) -> None:
    loop = asyncio.get_running_loop()
    for job, answer in answers:
        loop.call_soon(job.done, answer)  # each by itself: a fault with one must not keep the others from theirs


def _expired(job: Job) -> Answer:
    waited = (time.perf_counter() - job.arrived) * 1000
    message = f"the request waited {waited:.0f} ms; it was to begin within deadline_ms = {job.deadline_ms:.0f}"
    return Answer(refused=Refused("expired", message), queue_ms=waited)
