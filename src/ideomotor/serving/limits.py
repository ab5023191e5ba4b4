"""How much a client may ask of the server, and the word for what is refused."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

Code = Literal[
    "bad_message", "bad_observation", "too_large", "too_many", "rate_limited", "expired", "internal", "shutting_down"
]


class Refused(Exception):
    """A request that is not answered; ``code`` and the text go to the client."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on memory and time; every one of them holds whatever a client sends.

    Attributes:
        message_bytes: of one message.
        array_elements: of one array.
        arrays: of one message.
        objects: of one message: maps, lists, keys, texts, numbers, arrays.
        depth: of maps and lists within each other.
        connections: at once.
        viewers: at once, beside the connections.
        sessions: of one connection.
        waiting: requests of one connection that are not answered yet; then no further one is read from it.
        waiting_bytes: of all connections' requests that are not answered yet.
        rate: requests a second of one connection, in the long run.
        burst: requests of one connection at once, after a pause.
        unreadable: messages in a row that cannot be read; then the connection is closed.
        open_seconds: for the handshake of a new connection.
        ping_seconds: between two signs of life that a client is asked for, and for its answer.
        send_seconds: in which a client has to read what is sent to it.
        drain_seconds: for what is in flight when the server is told to stop.
    """

    message_bytes: int = 16 * 2**20
    array_elements: int = 16 * 2**20
    arrays: int = 64
    objects: int = 4096
    depth: int = 8
    connections: int = 32
    viewers: int = 8
    sessions: int = 32
    waiting: int = 32
    waiting_bytes: int = 256 * 2**20
    rate: float = 500.0
    burst: int = 500
    unreadable: int = 16
    open_seconds: float = 10.0
    ping_seconds: float = 20.0
    send_seconds: float = 20.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the limit {name} is {value}; it has to be finite and above 0")


class TokenBucket:
    """Lets ``burst`` through at once and ``rate`` a second in the long run."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._tokens, self._looked = float(burst), time.monotonic()

    def take(self) -> float:
        """Takes a token and returns 0; where there is none, returns the seconds until there is one."""
        now = time.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._looked) * self.rate)
        self._looked = now
        if self._tokens < 1:
            return (1 - self._tokens) / self.rate
        self._tokens -= 1
        return 0.0
