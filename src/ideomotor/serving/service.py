"""What all connections of a server share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ideomotor.serving.backend import Backend
from ideomotor.serving.batching import Batcher
from ideomotor.serving.limits import Limits
from ideomotor.serving.metrics import Metrics
from ideomotor.serving.viewer import Viewers
from ideomotor.serving.wire import Codec


@dataclass(kw_only=True, eq=False)
class Service:
    """The parts that answer a request, and a count of those that are being answered.

    Attributes:
        hello: the metadata, packed.
        imagines: whether the backend's metadata say that it imagines video.
        debug: whether a client may read a traceback.
        idle: set while no request waits.
        stopping: no further request is taken.
        waiting_bytes: of the messages of requests that are not answered yet.
    """

    backend: Backend
    codec: Codec
    limits: Limits
    batcher: Batcher
    metrics: Metrics
    viewers: Viewers
    hello: bytes
    imagines: bool
    debug: bool
    idle: asyncio.Event
    stopping: bool = False
    waiting: int = 0
    waiting_bytes: int = 0

    def begin(self, size: int) -> None:
        """Counts a message that was read."""
        self.metrics.request()
        self.waiting += 1
        self.waiting_bytes += size
        self.idle.clear()

    def end(self, size: int) -> None:
        """Counts its last answer as written, or not wanted any more."""
        self.waiting -= 1
        self.waiting_bytes -= size
        if self.waiting == 0:
            self.idle.set()
