"""The server: a backend behind a websocket that speaks openpi's protocol, with health, metrics and a graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ideomotor.extras import require
from ideomotor.serving.asked import EXTENSIONS, KEY
from ideomotor.serving.backend import Backend
from ideomotor.serving.batching import Batcher
from ideomotor.serving.connection import Connection
from ideomotor.serving.doors import Doors
from ideomotor.serving.gate import CLIENT, VIEWER, Gate, is_loopback
from ideomotor.serving.journal import note, writing_journal
from ideomotor.serving.limits import Limits
from ideomotor.serving.metrics import Metrics
from ideomotor.serving.service import Service
from ideomotor.serving.viewer import Viewers, page
from ideomotor.serving.wire import Codec

_GOING_AWAY, _TRY_AGAIN_LATER = 1001, 1013
_CLOSE_SECONDS = 5.0
_SETTLE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the server listens, and whom it lets in.

    Attributes:
        host: address to listen at; the default is reached from this machine alone.
        port: 0 takes one that is free.
        api_key: what clients have to show; None lets everyone in who reaches the address.
        debug: whether an error tells the client a traceback.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    debug: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ""):
            raise ValueError(
                "the API key has to be a text of ASCII letters without blanks around it; leave it out for none"
            )
        if not 0 <= self.port < 2**16:
            raise ValueError(f"the port is {self.port}; it has to lie in 0..{2**16 - 1}")


class Server:
    """Serves a backend from ``start`` to ``stop``."""

    def __init__(self, backend: Backend, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self.metrics = Metrics()
        self._backend = backend
        limits = self.config.limits
        self._doors = Doors(2 * (limits.connections + limits.viewers), limits.send_seconds)
        self._clients: set[Connection] = set()
        self._viewers = Viewers(self.metrics, limits.viewers)
        full = {CLIENT: self._is_full, VIEWER: self._viewers.is_full}
        self._gate = Gate(self.config.api_key, self.metrics, page(), full)
        self._codec = Codec(self.config.limits)
        self._metadata = _announced(backend, limits)
        self._service: Service | None = None
        self._listener: Any = None

    @property
    def url(self) -> str:
        """Where clients connect, once it was started."""
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            ValueError: the address cannot be had.
        """
        limits, host = self.config.limits, self.config.host
        self._service = self._begin()
        quiet = logging.getLogger("ideomotor.serving.websockets")
        quiet.setLevel(logging.ERROR)
        listening = require("websockets.asyncio.server", "serve").serve(
            self._welcome,
            host,
            self.config.port,
            process_request=self._gate,
            compression=None,  # a few bytes could unfold to all that a message may have, and pictures hardly shrink
            max_size=limits.message_bytes,
            max_queue=4,
            open_timeout=limits.open_seconds,
            ping_interval=limits.ping_seconds,
            ping_timeout=limits.ping_seconds,
            close_timeout=_CLOSE_SECONDS,
            server_header=None,
            logger=quiet,
            create_connection=self._doors.connection_class(),
        )
        try:
            self._listener = await listening
        except OSError as error:
            self._service.batcher.stop(_CLOSE_SECONDS)
            raise ValueError(f"cannot listen at {host}:{self.config.port} ({error.strerror}): take another") from error
        note("listening", url=self.url, api_key=self.config.api_key is not None, limits=vars(limits))
        if self.config.api_key is None and not is_loopback(host):
            note("open to everyone", logging.WARNING, host=host, advice="set an API key, or listen at 127.0.0.1")

    async def stop(self) -> None:
        """Finishes and answers what is in flight, refuses what comes meanwhile, and closes all connections."""
        assert self._service is not None
        limits, service = self.config.limits, self._service
        service.stopping = True
        self._listener.close(close_connections=False)
        note("stopping", waiting=service.waiting)
        await asyncio.sleep(_SETTLE_SECONDS)  # what has arrived is read, and answered
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(service.idle.wait(), limits.drain_seconds)
        left = service.waiting
        sockets = [*(client.socket for client in self._clients), *self._viewers.sockets]
        await asyncio.gather(*(socket.close(_GOING_AWAY, "the server stops") for socket in sockets))
        self._viewers.stop()
        self._doors.shut()
        await self._listener.wait_closed()
        ended = await asyncio.to_thread(service.batcher.stop, 1.0)
        note("stopped", unanswered=left, worker_ended=ended)

    def _begin(self) -> Service:
        extensions = self._metadata[KEY]["extensions"]
        idle = asyncio.Event()
        idle.set()
        service = Service(
            backend=self._backend,
            codec=self._codec,
            limits=self.config.limits,
            batcher=Batcher(self._backend, asyncio.get_running_loop(), self.metrics.batch),
            metrics=self.metrics,
            viewers=self._viewers,
            hello=self._codec.pack(self._metadata),
            imagines="imagine" in extensions,
            debug=self.config.debug,
            idle=idle,
        )
        self.metrics.show(lambda: len(self._clients), lambda: service.waiting, lambda: service.waiting_bytes)
        return service

    def _is_full(self) -> bool:
        return len(self._clients) >= self.config.limits.connections

    async def _welcome(self, socket: Any) -> None:
        if socket.request.path.split("?")[0] == VIEWER:
            await self._viewers.welcome(socket, self._gate)
            return
        if self._is_full():  # several came through the gate at once
            await socket.close(_TRY_AGAIN_LATER, "the server has all clients it takes")
            return
        assert self._service is not None
        client = Connection(socket, self._service)
        self._clients.add(client)
        try:
            await client.run()
        finally:
            self._clients.discard(client)


def serve(backend: Backend, config: ServerConfig | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight; a second signal ends it at once.

    What happens is written to stderr, one JSON object a line.

    Raises:
        ValueError: the address cannot be had.
    """
    with writing_journal():
        asyncio.run(_serve(Server(backend, config)))


async def _serve(server: Server) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    await server.start()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, told.set)
    await told.wait()
    before = {}
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(name)
        before[name] = signal.signal(name, signal.SIG_DFL)  # from now on it ends, without Python's traceback
    try:
        await server.stop()
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Runs the server in a thread of its own while the block runs, and gives its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="ideomotor-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server.url
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _announced(backend: Backend, limits: Limits) -> dict[str, Any]:
    """The backend's metadata with what the server can itself, and how much it takes."""
    metadata = dict(backend.metadata)
    own = dict(metadata.get(KEY, {}))
    extensions = [*EXTENSIONS, *own.get("extensions", ())]
    most = {"message_bytes": limits.message_bytes}
    metadata[KEY] = {**own, "version": 1, "extensions": extensions, "limits": most}
    return metadata
