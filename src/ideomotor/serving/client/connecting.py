"""Waiting for a server: which failures pass, which do not, and what is said when time is up."""

from __future__ import annotations

import importlib
from asyncio import TimeoutError as AsyncTimeout  # the builtin one since Python 3.11
from typing import Any

from .errors import NoServer

OPEN_S = 10.0
"""The longest that one attempt may take."""
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Between attempts; the last one is repeated."""


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


def failures() -> tuple[type[Exception], ...]:
    """Returns what an attempt may fail with."""
    return OSError, AsyncTimeout, EOFError, library("websockets.exceptions").WebSocketException


def passing(error: Exception, url: str) -> str:
    """Returns why an attempt failed, where another one may succeed: nobody listens yet, or the server is starting.

    Raises:
        NoServer: another attempt would fail in the same way.
        ValueError: the address cannot be one.
    """
    exceptions = library("websockets.exceptions")
    if isinstance(error, exceptions.InvalidURI):
        raise ValueError(f"the address is {url!r}; wanted ws://HOST:PORT") from error
    if isinstance(error, exceptions.InvalidStatus):
        status = error.response.status_code
        if status in (401, 403):
            raise NoServer(f"the server at {url} lets nobody in without the right API key (HTTP {status})") from error
        if status not in (429, 502, 503, 504):
            raise NoServer(f"what listens at {url} is no policy server (HTTP {status}): check the address") from error
        return f"HTTP {status}"
    return str(error) or type(error).__name__


def too_late(url: str, wait: float, reason: str) -> NoServer:
    """Returns the error that says what was waited for."""
    return NoServer(
        f"no server answered at {url} within {wait:g} s (last: {reason}): start one with `ideomotor serve DIR`, or "
        "give its address"
    )
