"""The client for ordinary programs: a request is a call."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from threading import RLock
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


class Client:
    """A policy or a world behind a socket; safe to be used by several threads, whose requests wait for one another.

    Where the server was restarted, the next request connects anew (and waits for it), and its reply says
    ``session_is_new``: the server has forgotten what it was shown. It speaks to other servers of openpi's protocol too.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        wait: float = 30.0,
        timeout: float = 30.0,
    ) -> None:
        """Connects.

        Args:
            url: ``ws://HOST:PORT``.
            api_key: what the server wants to be told, if anything.
            wait: seconds that a server may take to come up, now and after it was lost.
            timeout: seconds that a reply may take, and that the server may read nothing of a request.

        Raises:
            NoServer: none came up in time, or (``NotLetIn``) it wants another API key.
        """
        self.url, self.wait, self.timeout = connecting.checked_url(url), wait, timeout
        self._settings = connecting.settings(api_key)
        self._lock = RLock()
        self._socket: Any = None
        self._desk: Desk | None = None
        self._watched: int | None = None  # the request whose imagined frames are kept
        self._parts: deque[dict[str, Any]] = deque()
        self._closed = False
        self._connected()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server said of itself; what is ours stands under "ideomotor"."""
        assert self._desk is not None
        return self._desk.metadata

    def infer(self, observation: Mapping[str, Any], extras: Extras = PLAIN) -> Reply:
        """Returns the policy's actions for an observation.

        Args:
            observation: as the metadata want it, such as ``{"images": {"main": uint8 (h, w, 3)}, "state": (p,),
                "prompt": "open the drawer"}``.
            extras: what is asked beside it.

        Raises:
            Refused: the server says what is wrong with the request.
            ConnectionLost: the server went away meanwhile; ask again.
            ReplyTimeout: it took too long.
        """
        return reply_of(*self._ask(observation, extras, "infer"))

    def reset(self, session: str = "") -> None:
        """Tells the server that an episode begins: a policy's session forgets what it saw."""
        with self._lock:
            if self._connected().ours is None:
                return  # openpi's servers keep nothing
            self._reset({}, session)

    def reset_world(self, images: Mapping[str, np.ndarray], session: str = "") -> None:
        """Sets a world to where these frames lead, uint8 ``(context, h, w, 3)`` by camera."""
        with self._lock:
            self._reset({"images": dict(images)}, session)

    def step_world(self, action: np.ndarray, session: str = "") -> WorldReply:
        """Returns what a world shows after an action ``(width,)``, for which it has to have been reset.

        Raises:
            Refused: e.g. because the server came back and knows of no reset.
        """
        message = {"actions": np.asarray(action, dtype=np.float32)}
        return world_reply_of(*self._ask(message, Extras(session=session), "step"))

    def imagined(self, reply: Reply) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields the frames that belong to a reply asked for with ``imagine``, part after part: uint8 (t, h, w, 3).

        Those of the newest such request are kept; asking for others drops them.
        """
        last = reply.request_id is None or reply.request_id != self._watched
        while not last:
            with self._lock:
                until = time.monotonic() + self.timeout
                while not self._parts:
                    key, message = self._read(until)
                    if key == self._watched:
                        self._parts.append(message)
                message = self._parts.popleft()
            last = "error" in message or bool(message[OURS].get("last"))
            self._watched = None if last else self._watched
            raise_error(message)
            yield message["imagined"]

    def close(self) -> None:
        """Ends the connection; a request that waits for its reply in another thread gets ``ConnectionLost``."""
        self._closed = True
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> Desk:
        """Returns the book of the present connection, made anew where it was lost; the lock is held."""
        if self._closed:
            raise ValueError("this client was closed: make a new one")
        state = connecting.library("websockets.protocol").State
        if self._desk is not None and self._socket is not None and self._socket.protocol.state is state.OPEN:
            return self._desk
        self._socket = None
        before = self._desk
        self._socket, metadata = self._wait()
        if self._closed:  # meanwhile, by another thread
            self._lose()
            raise ConnectionLost(f"the client of {self.url} was closed while it waited for the server")
        if before is not None:
            try:
                refuse_another(before.metadata, metadata, self.url)
            except ServingError:
                self._lose()
                raise
        self._desk, self._watched = Desk(metadata), None
        self._parts.clear()
        return self._desk

    def _wait(self) -> tuple[Any, Mapping[str, Any]]:
        """Returns a connection and what the server said of itself, trying until one comes up or time is up."""
        connect = connecting.library("websockets.sync.client").connect
        attempts = connecting.Attempts(self.url, self.wait)
        while True:
            try:
                # By its context manager, as newer releases want it; what closes it is `close`.
                socket = ExitStack().enter_context(connect(self.url, **self._settings))
                try:
                    connecting.limit_sending(socket.socket, self.timeout)
                    return socket, parse(socket.recv(timeout=connecting.OPEN_S))
                except BaseException:
                    socket.close()
                    raise
            except connecting.failures() as error:
                pause = attempts.pause(error)
            time.sleep(pause)

    def _lose(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _reset(self, message: Mapping[str, Any], session: str) -> None:
        self._connected().forget(session)
        try:
            answer, *_ = self._ask(message, Extras(session=session), "reset")
        except ConnectionLost:  # asking twice for a new beginning does no harm
            answer, *_ = self._ask(message, Extras(session=session), "reset")
        raise_error(answer)

    def _ask(self, message: Mapping[str, Any], extras: Extras, op: str) -> tuple[dict[str, Any], Asked, float]:
        """Returns the answer to a request, the request's receipt, and how many milliseconds it took."""
        with self._lock:
            desk = self._connected()
            asked, data = desk.write(message, extras, op)
            if extras.imagine:
                self._watched = asked.key
                self._parts.clear()
            began = time.perf_counter()
            try:
                self._socket.send(data)
            except connecting.library("websockets.exceptions").ConnectionClosed as error:
                raise self._lost(error) from error
            answer = self._answer(asked)
            if "error" not in answer:
                desk.answered(asked)
            return answer, asked, 1000 * (time.perf_counter() - began)

    def _answer(self, asked: Asked) -> dict[str, Any]:
        """Returns the message that answers a request; frames that come before it are kept, late replies dropped."""
        until = time.monotonic() + self.timeout
        while True:
            try:
                key, message = self._read(until)
            except ReplyTimeout:
                if asked.key is None:
                    self._lose()  # without ids a late reply would pass for the next one
                raise
            if "imagined" not in message and (key == asked.key or (key is None and "error" in message)):
                return message
            if key is not None and key == self._watched:
                self._parts.append(message)

    def _read(self, until: float) -> tuple[int | None, dict[str, Any]]:
        """Returns the next message and the request that it belongs to."""
        if self._socket is None:
            raise ConnectionLost(f"the connection to {self.url} was lost")
        try:
            data = self._socket.recv(timeout=max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            raise ReplyTimeout(f"{self.url} did not reply within {self.timeout:g} s") from error
        except connecting.library("websockets.exceptions").ConnectionClosed as error:
            raise self._lost(error) from error
        try:
            message = parse(data)
        except Refused:
            raise
        except ServingError:
            self._lose()  # what comes next cannot be trusted either
            raise
        return key_of(message), message

    def _lost(self, error: Exception) -> ServingError:
        self._socket = None
        return connecting.lost(error, self.url)
