"""Waiting for a server: which failures pass, which do not, and what is said when time is up."""

from __future__ import annotations

import importlib
import socket as net
import struct
import sys
import time
from asyncio import TimeoutError as AsyncTimeout  # the builtin one since Python 3.11
from itertools import chain, repeat
from typing import Any

from .errors import ConnectionLost, NoServer, NotLetIn, Refused, ServingError

OPEN_S = 10.0
"""The longest that one attempt may take."""
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Between attempts; the last one is repeated."""
_FAULTS = {1003: "bad_message", 1007: "bad_message", 1008: "bad_message", 1009: "too_large"}
"""Codes with which a connection is closed for what this client sent, and what is the matter."""


def library(module: str) -> Any:
    """Returns a module of ``websockets``, which nothing here imports before a server is wanted.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "websockets":
            raise
        raise ModuleNotFoundError(
            "this needs the package 'websockets', which is not installed: pip install ideomotor-client, "
            'or pip install "ideomotor[serve]"',
            name="websockets",
        ) from error


def checked_url(url: str) -> str:
    """Returns the address, ``ws://`` put before a bare host.

    Raises:
        ValueError: it is no address of a websocket.
    """
    if "://" not in url:
        url = f"ws://{url}"
    if not url.startswith(("ws://", "wss://")):
        raise ValueError(f"the address is {url!r}; wanted ws://HOST:PORT, or wss://HOST:PORT for an encrypted one")
    return url


def settings(api_key: str | None) -> dict[str, Any]:
    """Returns what both kinds of connections are opened with; pictures are not worth compressing on a local network.

    Raises:
        ValueError: no header can hold the key.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
        raise ValueError(
            "the API key has to be a text of ASCII letters without blanks around it: strip a file's last line"
        )
    headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
    return {"additional_headers": headers, "compression": None, "max_size": None, "open_timeout": OPEN_S}


def limit_sending(socket: Any, seconds: float) -> None:
    """Lets writing to a blocking socket fail where the other side reads nothing for so long; reading may wait on."""
    micros = max(1, round(1e6 * min(seconds, 1e6)))
    windows = sys.platform == "win32"  # which counts milliseconds, the others struct timeval
    told = struct.pack("@L", -(-micros // 1000)) if windows else struct.pack("@ll", *divmod(micros, 10**6))
    socket.setsockopt(net.SOL_SOCKET, net.SO_SNDTIMEO, told)


def failures() -> tuple[type[Exception], ...]:
    """Returns what an attempt may fail with."""
    return OSError, AsyncTimeout, EOFError, library("websockets.exceptions").WebSocketException


def passing(error: Exception, url: str) -> str:
    """Returns why an attempt failed, where another one may succeed: nobody listens yet, or the server is starting.

    Raises:
        NotLetIn: another attempt would fail in the same way.
        ValueError: the address cannot be one.
    """
    exceptions = library("websockets.exceptions")
    if isinstance(error, exceptions.InvalidURI):
        raise ValueError(f"the address is {url!r}; wanted ws://HOST:PORT") from error
    if isinstance(error, exceptions.InvalidStatus):
        status = error.response.status_code
        if status in (401, 403):
            raise NotLetIn(f"the server at {url} lets nobody in without the right API key (HTTP {status})") from error
        if status not in (429, 502, 503, 504):
            raise NotLetIn(f"what listens at {url} is no policy server (HTTP {status}): check the address") from error
        return f"HTTP {status}"
    return str(error) or type(error).__name__


class Attempts:
    """How often a server is tried, and how long until the next time."""

    def __init__(self, url: str, wait: float) -> None:
        self.url, self.wait = url, wait
        self._until = time.monotonic() + wait
        self._pauses = chain(PAUSES_S, repeat(PAUSES_S[-1]))

    def pause(self, error: Exception) -> float:
        """Returns the seconds to let pass after an attempt that failed with one of ``failures``.

        Raises:
            NoServer: time is up, or (``NotLetIn``) another attempt would fail in the same way.
            ValueError: the address cannot be one.
        """
        reason, pause = passing(error, self.url), next(self._pauses)
        if time.monotonic() + pause > self._until:
            raise NoServer(
                f"no server answered at {self.url} within {self.wait:g} s (last: {reason}): start one with "
                "`ideomotor serve DIR`, or give its address"
            )
        return pause


def lost(error: Any, url: str) -> ServingError:
    """Returns what a request ends with when its connection does, by websockets' ``ConnectionClosed``: the server went
    away, or will not read what this client sends, and would not the next time either.
    """
    code = error.rcvd.code if error.rcvd is not None else 0
    if code in _FAULTS:
        way_out = "send smaller or fewer pictures" if code == 1009 else "see what it wants in the metadata"
        return Refused(f"{url} closed the connection because of what was sent ({error}): {way_out}", _FAULTS[code])
    return ConnectionLost(f"{url} went away ({error}): ask again, and the next request connects anew")
