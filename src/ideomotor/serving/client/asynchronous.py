"""The client for programs on asyncio: many requests may be on their way at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from . import connecting
from .errors import ConnectionLost, Refused, ReplyTimeout, ServingError
from .messages import (
    OURS,
    PLAIN,
    Asked,
    Desk,
    Extras,
    Reply,
    WorldReply,
    key_of,
    parse,
    raise_error,
    refuse_another,
    reply_of,
    world_reply_of,
)

_WATCHED = 8
"""Requests whose imagined frames are kept until they are read."""


class _Link:
    """One connection: its book, who waits for which reply, and the task that reads."""

    def __init__(self, socket: Any, desk: Desk, url: str) -> None:
        self.socket, self.desk, self.url = socket, desk, url
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.in_order: deque[asyncio.Future[dict[str, Any]]] = deque()  # of servers that know no ids
        self.parts: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self.lost: ServingError | None = None
        self.reader = asyncio.ensure_future(self._read())

    def watch(self, key: int) -> None:
        """Keeps the imagined frames of a request; of so many that nobody reads, those of the oldest are dropped."""
        while len(self.parts) >= _WATCHED:
            dropped = self.parts.pop(next(iter(self.parts)))
            dropped.put_nowait(
                {"error": {"message": f"frames were asked for {_WATCHED} times since, and these dropped"}}
            )
        self.parts[key] = asyncio.Queue()

    async def _read(self) -> None:
        try:
            while True:
                try:
                    self._hand_out(parse(await self.socket.recv()))
                except Refused as error:  # a text, by which only requests without ids are answered
                    self._oldest_gets(error)
        except connecting.library("websockets.exceptions").ConnectionClosed as error:
            self.lost = connecting.lost(error, self.url)
        except ServingError as error:
            self.lost = error
            await self.socket.close()
        finally:
            self.lost = self.lost or ConnectionLost(f"the connection to {self.url} was closed")
            for future in (*self.waiting.values(), *self.in_order):
                if not future.done():
                    future.set_exception(self.lost)
            for queue in self.parts.values():
                queue.put_nowait({"error": {"message": str(self.lost)}})

    def _hand_out(self, message: dict[str, Any]) -> None:
        key = key_of(message)
        if key is None and "error" in message:
            self._oldest_gets(_refused(message))
        elif key is None and self.in_order:
            _answer(self.in_order.popleft(), message)
        elif key in self.waiting and "imagined" not in message:
            _answer(self.waiting.pop(key), message)
        elif key in self.parts:
            self.parts[key].put_nowait(message)

    def _oldest_gets(self, error: Refused) -> None:
        if self.in_order:
            future = self.in_order.popleft()
        elif self.waiting:
            future = self.waiting.pop(next(iter(self.waiting)))
        else:
            return
        if not future.done():
            future.set_exception(error)


def _answer(future: asyncio.Future[dict[str, Any]], message: dict[str, Any]) -> None:
    if not future.done():
        future.set_result(message)


def _refused(message: Mapping[str, Any]) -> Refused:
    try:
        raise_error(message)
    except Refused as error:
        return error
    return Refused(str(message.get("error")))


class AsyncClient:
    """A policy or a world behind a socket, for asyncio; as ``Client``, and several requests may wait at once.

    ``async with AsyncClient(url) as client`` connects; without it the first request does.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        wait: float = 30.0,
        timeout: float = 30.0,
    ) -> None:
        """Takes the same settings as ``Client``, and connects later."""
        self.url, self.wait, self.timeout = connecting.checked_url(url), wait, timeout
        self._settings = connecting.settings(api_key)
        self._link: _Link | None = None
        self._joining: asyncio.Future[_Link] | None = None
        self._closed = False

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server said of itself.

        Raises:
            ValueError: nobody has connected yet.
        """
        if self._link is None:
            raise ValueError("this client has not connected yet: `async with` it, or await a request first")
        return self._link.desk.metadata

    async def infer(self, observation: Mapping[str, Any], extras: Extras = PLAIN) -> Reply:
        """Returns the policy's actions for an observation; see ``Client.infer``."""
        return reply_of(*await self._ask(observation, extras, "infer"))

    async def reset(self, session: str = "") -> None:
        """Tells the server that an episode begins: a policy's session forgets what it saw."""
        if (await self._connected()).desk.ours is not None:
            await self._reset({}, session)

    async def reset_world(self, images: Mapping[str, np.ndarray], session: str = "") -> None:
        """Sets a world to where these frames lead, uint8 ``(context, h, w, 3)`` by camera."""
        await self._reset({"images": dict(images)}, session)

    async def step_world(self, action: np.ndarray, session: str = "") -> WorldReply:
        """Returns what a world shows after an action ``(width,)``, for which it has to have been reset."""
        message = {"actions": np.asarray(action, dtype=np.float32)}
        return world_reply_of(*await self._ask(message, Extras(session=session), "step"))

    async def imagined(self, reply: Reply) -> AsyncIterator[Mapping[str, np.ndarray]]:
        """Yields the frames that belong to a reply asked for with ``imagine``, part after part: uint8 (t, h, w, 3).

        Those of the newest eight such requests are kept.
        """
        link = self._link
        if link is None or reply.request_id not in link.parts:
            return
        queue, last = link.parts[reply.request_id], False
        try:
            while not last:
                try:
                    message = await asyncio.wait_for(queue.get(), self.timeout)
                except asyncio.TimeoutError as error:
                    raise ReplyTimeout(f"{self.url} sent no imagined frames within {self.timeout:g} s") from error
                raise_error(message)
                last = bool(message[OURS].get("last"))
                yield message["imagined"]
        finally:
            link.parts.pop(reply.request_id, None)

    async def close(self) -> None:
        """Ends the connection; requests that wait get ``ConnectionLost``."""
        self._closed = True
        if self._link is not None:
            await self._link.socket.close()
            await self._link.reader

    async def __aenter__(self) -> AsyncClient:
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _connected(self) -> _Link:
        if self._closed:
            raise ValueError("this client was closed: make a new one")
        if self._link is not None and self._link.lost is None:
            return self._link
        if self._joining is None or self._joining.done():
            self._joining = asyncio.ensure_future(self._join())
        return await asyncio.shield(self._joining)  # for all who wait for it

    async def _join(self) -> _Link:
        socket, metadata = await self._wait()
        if self._closed:  # meanwhile
            await socket.close()
            raise ConnectionLost(f"the client of {self.url} was closed while it waited for the server")
        if self._link is not None:
            try:
                refuse_another(self._link.desk.metadata, metadata, self.url)
            except ServingError:
                await socket.close()
                raise
        self._link = _Link(socket, Desk(metadata), self.url)
        return self._link

    async def _wait(self) -> tuple[Any, Mapping[str, Any]]:
        """Returns a connection and what the server said of itself, trying until one comes up or time is up."""
        connect = connecting.library("websockets.asyncio.client").connect
        attempts = connecting.Attempts(self.url, self.wait)
        while True:
            try:
                socket = await connect(self.url, **self._settings)
                try:
                    return socket, parse(await asyncio.wait_for(socket.recv(), connecting.OPEN_S))
                except BaseException:
                    await socket.close()
                    raise
            except connecting.failures() as error:
                pause = attempts.pause(error)
            await asyncio.sleep(pause)

    async def _reset(self, message: Mapping[str, Any], session: str) -> None:
        (await self._connected()).desk.forget(session)
        try:
            answer, *_ = await self._ask(message, Extras(session=session), "reset")
        except ConnectionLost:  # asking twice for a new beginning does no harm
            answer, *_ = await self._ask(message, Extras(session=session), "reset")
        raise_error(answer)

    async def _ask(self, message: Mapping[str, Any], extras: Extras, op: str) -> tuple[dict[str, Any], Asked, float]:
        """Returns the answer to a request, the request's receipt, and how many milliseconds it took."""
        link = await self._connected()
        asked, data = link.desk.write(message, extras, op)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if asked.key is None:
            link.in_order.append(future)
        else:
            link.waiting[asked.key] = future
            if extras.imagine:
                link.watch(asked.key)
        began = time.perf_counter()
        stuck = asyncio.get_running_loop().call_later(self.timeout, link.socket.transport.abort)
        try:
            await link.socket.send(data)
            stuck.cancel()
            answer = await asyncio.wait_for(future, self.timeout)
        except connecting.library("websockets.exceptions").ConnectionClosed as error:
            raise connecting.lost(error, self.url) from error
        except asyncio.TimeoutError as error:
            if asked.key is None:
                await link.socket.close()  # without ids a late reply would pass for the next one
            raise ReplyTimeout(f"{self.url} did not reply within {self.timeout:g} s") from error
        finally:
            stuck.cancel()
            if asked.key is not None:
                link.waiting.pop(asked.key, None)
        if "error" not in answer:
            link.desk.answered(asked)
        return answer, asked, 1000 * (time.perf_counter() - began)
