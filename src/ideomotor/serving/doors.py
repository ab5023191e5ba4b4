"""Sockets as the server accepts them: how many, and what a client may do below the level of messages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from ideomotor.extras import require
from ideomotor.serving.limits import TokenBucket

_CHUNK = 32 * 1024
"""Bytes read from a socket at a time, so that others' messages come in between a flood of tiny frames."""
_PINGS_A_SECOND, _PINGS_AT_ONCE = 10.0, 50
_FRAGMENTS = 1024
"""Frames that one message may come in; empty ones count towards no limit of bytes."""
_GAVE_UP = 1011
"""With this a connection is closed on which no answer to a ping came."""


class Doors:
    """Every open socket, those that have not shaken hands yet among them.

    Args:
        most: sockets at once; a further one is cut off.
        send_seconds: in which a client has to read what is sent to it.
    """

    def __init__(self, most: int, send_seconds: float) -> None:
        self.most, self.send_seconds = most, send_seconds
        self.sockets: set[Any] = set()

    def connection_class(self) -> type[Any]:
        """Returns the class of connections as websockets makes them, with bounds that it lacks.

        A client is cut off that does not read for ``send_seconds``, that sends pings without end (each is answered into
        a buffer, whether it reads or not), or one message in fragments without end.
        """
        websockets = require("websockets.asyncio.server", "serve")
        frames = require("websockets.frames", "serve")
        doors = self

        class Bounded(websockets.ServerConnection):  # type: ignore[misc, name-defined]
            def connection_made(self, transport: Any) -> None:
                doors.sockets.add(self)
                transport.max_size = _CHUNK
                self._stalled: asyncio.TimerHandle | None = None
                self._pings = TokenBucket(_PINGS_A_SECOND, _PINGS_AT_ONCE)
                self._fragments = 0
                super().connection_made(transport)
                if len(doors.sockets) > doors.most:
                    cut(self.transport)

            def connection_lost(self, exc: Exception | None) -> None:
                doors.sockets.discard(self)
                self._moves()
                sent = self.protocol.close_sent
                if sent is not None and sent.code == _GAVE_UP and self.protocol.close_rcvd is None:
                    _forget_unread(self.transport)
                super().connection_lost(exc)

            def pause_writing(self) -> None:
                super().pause_writing()
                loop = asyncio.get_running_loop()
                self._stalled = loop.call_later(doors.send_seconds, cut, self.transport)

            def resume_writing(self) -> None:
                self._moves()
                super().resume_writing()

            def process_event(self, event: Any) -> None:
                super().process_event(event)
                if not isinstance(event, frames.Frame):
                    return  # the handshake
                if event.opcode is frames.Opcode.PING and self._pings.take():
                    cut(self.transport)
                elif event.opcode in frames.DATA_OPCODES:
                    self._fragments = 0 if event.fin else self._fragments + 1
                    if self._fragments > _FRAGMENTS:
                        cut(self.transport)

            def _moves(self) -> None:
                if self._stalled is not None:
                    self._stalled.cancel()
                    self._stalled = None

        return Bounded

    def shut(self) -> None:
        """Cuts off whoever is still there."""
        for each in list(self.sockets):
            each.transport.abort()


def cut(transport: asyncio.Transport) -> None:
    """Ends a connection at once, and tells the other side so whether it reads or not."""
    _forget_unread(transport)
    transport.abort()


def _forget_unread(transport: asyncio.Transport) -> None:
    """Lets the system throw away what was not read when the socket is closed: it would wait for a client that never
    reads for another minute or two, and the client would not hear of the end.
    """
    with contextlib.suppress(OSError):  # it was closed already
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
