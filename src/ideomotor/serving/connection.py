"""One client: what it sends is checked and handed on in its order, what comes back is written as fast as it reads."""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ideomotor.extras import require
from ideomotor.serving.asked import KEY, Asked, read_asked, read_echo
from ideomotor.serving.batching import Answer, Dream, Job
from ideomotor.serving.journal import LOGGER, note
from ideomotor.serving.limits import Refused, TokenBucket
from ideomotor.serving.service import Service

_LONGEST_ERROR = 4000
_POLICY_VIOLATION = 1008
_numbers = itertools.count(1)


@dataclass(kw_only=True, eq=False)
class _Question:
    """A message that was read and whose last answer is not written yet.

    Attributes:
        echo: what every answer repeats; None of a client that does not know our extensions.
        message: what was asked, kept for viewers where there are any.
        parts: of its imagined video that were made.
    """

    size: int
    arrived: float
    echo: Mapping[str, Any] | None = None
    message: Mapping[str, Any] | None = None
    parts: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outgoing:
    """A message that waits to be written, and what is to be done then."""

    data: bytes | str
    then: Callable[[], None]


class Connection:
    """Serves one client until it leaves.

    Its requests are computed in their order. A client that does not know our extensions could not tell the answers
    apart, so its next message is taken when the one before is answered.
    """

    def __init__(self, socket: Any, service: Service) -> None:
        self.socket, self.service = socket, service
        self.number = next(_numbers)
        self._bucket = TokenBucket(service.limits.rate, service.limits.burst)
        self._sessions: dict[str, Any] = {}
        self._open: set[_Question] = set()
        self._outbox: asyncio.Queue[_Outgoing] = asyncio.Queue()
        self._room = asyncio.Event()
        self._gone = False
        self._requests, self._unreadable, self._errors = 0, 0, Counter[str]()
        self._before_ms: float | None = None
        self._closed = require("websockets.exceptions", "serve").ConnectionClosed

    async def run(self) -> None:
        """Greets the client and answers it until it has gone."""
        began = time.monotonic()
        tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._watch())]
        note("connected", connection=self.number, address=self.socket.remote_address)
        try:
            await self.socket.send(self.service.hello)
            await self._read()
        except self._closed:
            pass  # however it ended, its code is noted below
        finally:
            self._leave()
            for task in tasks:
                task.cancel()
            seconds = round(time.monotonic() - began, 3)
            told = {"requests": self._requests, "errors": dict(self._errors), "code": self.socket.close_code}
            note("disconnected", connection=self.number, seconds=seconds, **told)

    async def _read(self) -> None:
        limits = self.service.limits
        async for data in self.socket:
            question = _Question(size=len(data), arrived=time.perf_counter())
            self._open.add(question)
            self._requests += 1
            self.service.begin(question.size)
            short = self._bucket.take()
            self._take(question, data, limited=short > 0)
            if self._unreadable >= limits.unreadable:
                await self._flush()
                await self.socket.close(_POLICY_VIOLATION, f"{self._unreadable} messages in a row could not be read")
                return
            if short:
                await asyncio.sleep(short)
            await self._wait_for_fewer(1 if question.echo is None else limits.waiting)

    async def _wait_for_fewer(self, most: int) -> None:
        while len(self._open) >= most and not self._gone:
            self._room.clear()
            await self._room.wait()

    async def _flush(self) -> None:
        await self._wait_for_fewer(1)

    async def _write(self) -> None:
        while True:
            outgoing = await self._outbox.get()
            try:
                await self.socket.send(outgoing.data)
            except self._closed:
                return
            outgoing.then()

    async def _watch(self) -> None:
        await self.socket.wait_closed()
        self._leave()

    def _leave(self) -> None:
        """Forgets what the client still waits for."""
        self._gone = True
        self.service.batcher.drop(self)
        self.service.viewers.left(self.number)
        for question in list(self._open):
            self._end(question)
        self._sessions.clear()

    def _take(self, question: _Question, data: bytes | str, *, limited: bool) -> None:
        """Hands a message on, or says why not."""
        try:
            message = self._unpack(data)
            question.echo = read_echo(message)
            if limited:
                rate = self.service.limits.rate
                raise Refused("rate_limited", f"more than {rate:g} requests a second came over this connection")
            self._ask(question, message, read_asked(message, question.echo))
        except Refused as refused:
            self._refuse(question, refused)

    def _unpack(self, data: bytes | str) -> dict[str, Any]:
        self._unreadable += 1
        if isinstance(data, str):
            raise Refused("bad_message", "a text frame came; binary frames of msgpack are wanted")
        message = self.service.codec.unpack(data)
        self._unreadable = 0
        return message

    def _ask(self, question: _Question, message: dict[str, Any], asked: Asked) -> None:
        """Lets the backend prepare the request and the batcher compute it.

        Raises:
            Refused: it cannot be computed as it is, or not now.
        """
        service = self.service
        if service.stopping:
            raise Refused("shutting_down", "the server is shutting down: connect again and ask again")
        if service.waiting_bytes > service.limits.waiting_bytes:
            raise Refused("rate_limited", f"{service.waiting_bytes} bytes of requests wait already: ask again later")
        if asked.imagine and not service.imagines:
            raise Refused("bad_message", "'imagine' was asked for; what is served here imagines no video")
        try:
            session = self._session(asked)
            prepared = service.backend.prepare(session, message)
        except Refused:
            raise
        except ValueError as error:
            raise Refused("bad_observation", str(error)) from error
        except Exception as error:
            LOGGER.error("preparing failed", exc_info=error)
            raise self._internal(error) from error
        self._sessions[asked.session] = session
        question.message = message if service.viewers.watched else None
        done = partial(self._answered, question, asked, prepared)
        if prepared is None:
            done(Answer(reply={}))
            return
        service.batcher.put(
            Job(owner=self, prepared=prepared, arrived=question.arrived, done=done, deadline_ms=asked.deadline_ms)
        )

    def _session(self, asked: Asked) -> Any:
        """The state of the session asked for; a fresh one is kept only once its first message was found good."""
        known, most = asked.session in self._sessions, self.service.limits.sessions
        if not known and len(self._sessions) >= most:
            raise Refused("too_many", f"this connection has {most} sessions already: open another connection")
        return self._sessions[asked.session] if known and not asked.reset else self.service.backend.session()

    def _answered(self, question: _Question, asked: Asked, prepared: Any, answer: Answer) -> None:
        if question not in self._open:
            return
        if answer.refused is not None:
            self._refuse(question, answer.refused)
            return
        if answer.failure is not None:
            self._refuse(question, self._internal(answer.failure))
            return
        reply = dict(answer.reply or {})
        own = reply.pop(KEY, {})
        reply["server_timing"] = {"infer_ms": answer.infer_ms}
        if self._before_ms is not None:
            reply["server_timing"]["prev_total_ms"] = self._before_ms
        if question.echo is not None:
            reply[KEY] = {**own, **question.echo, "batch": answer.batch, "queue_ms": answer.queue_ms}
        try:
            data = self.service.codec.pack(reply)
        except (TypeError, ValueError, OverflowError) as error:
            LOGGER.error("a reply could not be packed", exc_info=error)
            self._refuse(question, self._internal(error))
            return
        self._outbox.put_nowait(_Outgoing(data=data, then=partial(self._sent, question, asked, prepared, answer)))

    def _sent(self, question: _Question, asked: Asked, prepared: Any, answer: Answer) -> None:
        seconds = time.perf_counter() - question.arrived
        self._before_ms = seconds * 1000
        self.service.metrics.answered(seconds)
        if question.message is not None:
            self.service.viewers.answered(self.number, asked.session, question.message, answer, seconds)
        if asked.imagine and prepared is not None and not self._gone:
            dream = Dream(owner=self, prepared=prepared, part=lambda *made: self._part(question, asked, dream, *made))
            self.service.batcher.dream(dream)
        else:
            self._end(question)

    def _part(
        self,
        question: _Question,
        asked: Asked,
        dream: Dream,
        part: Mapping[str, np.ndarray],
        last: bool,
        failure: Exception | None,
    ) -> None:
        if question not in self._open:
            return
        self.service.viewers.imagined(self.number, asked.session, part, first=question.parts == 0)
        about = {**(question.echo or {}), "part": question.parts, "last": last}
        question.parts += 1
        if failure is not None:
            refused = self._internal(failure)
            self._count(refused)
            content: dict[str, Any] = {"error": {"code": refused.code, "message": str(refused)}}
        else:
            content = {"imagined": dict(part)}
        then = partial(self._end, question) if last else partial(self.service.batcher.dream, dream)
        self._outbox.put_nowait(_Outgoing(data=self.service.codec.pack({**content, KEY: about}), then=then))

    def _refuse(self, question: _Question, refused: Refused) -> None:
        self._count(refused)
        text = str(refused)[:_LONGEST_ERROR]
        data: bytes | str = f"{refused.code}: {text}"
        if question.echo is not None:
            data = self.service.codec.pack({"error": {"code": refused.code, "message": text}, KEY: question.echo})
        self._outbox.put_nowait(_Outgoing(data=data, then=partial(self._end, question)))

    def _count(self, refused: Refused) -> None:
        self._errors[refused.code] += 1
        self.service.metrics.error(refused.code)

    def _internal(self, error: Exception) -> Refused:
        text = "the server failed at this request; its log says why"
        if self.service.debug:
            text = "".join(traceback.format_exception(error))
        return Refused("internal", text)

    def _end(self, question: _Question) -> None:
        if question in self._open:
            self._open.discard(question)
            self.service.end(question.size)
            self._room.set()
