"""Who gets in: the paths that the server knows, the API key, and where a browser's page may come from."""

from __future__ import annotations

import hmac
import http
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ideomotor.serving.metrics import Metrics

CLIENT, VIEWER = "/", "/viewer"


class Gate:
    """Answers plain requests, and lets a websocket through or says why not.

    A websocket at ``/`` is a client, one at ``/viewer`` watches; a viewer's key is asked for once it is open, since a
    browser cannot send it before. A browser tells the page that opens a websocket (``Origin``); it has to be this
    server's own, so that no page of another site can drive a robot through its visitor's browser; without a key the
    address has to be a number or localhost too, because a name can be made to point at this machine.

    Args:
        page: what is shown at ``/`` to who opens no websocket there.
        full: by path, says whether no further websocket is taken.
    """

    def __init__(
        self, api_key: str | None, metrics: Metrics, page: bytes, full: Mapping[str, Callable[[], bool]]
    ) -> None:
        self._api_key, self._metrics, self._page, self._full = api_key, metrics, page, full

    def __call__(self, connection: Any, request: Any) -> Any:
        """Returns a response to a plain request or to one that is refused; None where a websocket is opened."""
        path, upgrade = request.path.split("?")[0], "Upgrade" in request.headers
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path in self._full and upgrade:
            return self._websocket(connection, request, path)
        if path == "/":
            return respond(connection, self._page, "text/html; charset=utf-8")
        if path == "/metrics" and not upgrade:
            if not self.knows(request.headers.get("Authorization", "")):
                return self._refuse(connection, http.HTTPStatus.UNAUTHORIZED, "the API key is missing or wrong")
            body, kind = self._metrics.text()
            return respond(connection, body, kind)
        return connection.respond(http.HTTPStatus.NOT_FOUND, "there is nothing here\n")

    def knows(self, authorization: str) -> bool:
        """Returns whether a header ``Authorization`` ("Api-Key KEY" or "Bearer KEY") lets its sender in."""
        if self._api_key is None:
            return True
        scheme, _, key = authorization.partition(" ")
        return scheme.lower() in ("api-key", "bearer") and self.is_key(key.strip())

    def is_key(self, key: str) -> bool:
        """Returns whether this is the API key, after a time that does not tell how much of it is right."""
        # A header's bytes beyond ASCII come as surrogates
        shown = key.encode(errors="surrogateescape")
        return self._api_key is None or hmac.compare_digest(shown, self._api_key.encode())

    def _websocket(self, connection: Any, request: Any, path: str) -> Any:
        headers = request.headers
        pages = headers.get_all("Origin")
        if len(pages) > 1 or not self._own_page(next(iter(pages), None), headers.get("Host", "")):
            return self._refuse(connection, http.HTTPStatus.FORBIDDEN, "the page that asks is not this server's")
        if path != VIEWER and not self.knows(request.headers.get("Authorization", "")):
            return self._refuse(connection, http.HTTPStatus.UNAUTHORIZED, "the API key is missing or wrong")
        if self._full[path]():
            return self._refuse(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "the server has all clients it takes")
        return None

    def _own_page(self, origin: str | None, host: str) -> bool:
        if origin is None:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:  # such as "http://[::1"
            return False
        return page.netloc == host and (self._api_key is not None or _is_address(page.hostname or ""))

    def _refuse(self, connection: Any, status: http.HTTPStatus, why: str) -> Any:
        self._metrics.rejected(status.phrase.lower().replace(" ", "_"))
        return connection.respond(status, f"{why}\n")


def respond(connection: Any, body: bytes, kind: str) -> Any:
    """Returns a response with that body and content type."""
    response = connection.respond(http.HTTPStatus.OK, "")
    headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    for name, value in (headers | {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}).items():
        response.headers.pop(name, None)
        response.headers[name] = value
    response.body = body
    return response


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches that address."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
