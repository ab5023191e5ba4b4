"""What is served: the protocol through which the server meets a policy or a world. The server knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Backend(Protocol):
    """A policy or a world as the server sees it: messages in, replies out, one state a session.

    ``session`` and ``prepare`` are called in the event loop and have to be quick (well below a millisecond: check and
    keep, no network of weights). ``infer`` and ``imagine`` run in the server's one worker thread, never two at a time.
    What was prepared first in a session is inferred first, so a prepared world step may hold its session and move it on
    in ``infer``; it is left out, and its session stays as it is, where its deadline passed or its client went away.
    """

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a client reads on connecting; the server adds what it can itself to ``["ideomotor"]["extensions"]``."""

    @property
    def max_batch(self) -> int:
        """The most requests that ``infer`` takes at once; 1 where requests are computed one after another."""

    def session(self) -> Any:
        """Returns the fresh state of a session. Called at its first message, and wherever the message asks for
        ``reset`` or is the operation ``reset``, before ``prepare``.
        """

    def prepare(self, session: Any, message: dict[str, Any]) -> Any:
        """Returns one request that was found good and keeps what the session needs of it, such as the newest frames.

        Args:
            session: this session's state, which may be changed.
            message: the observation as it came, and under ``"ideomotor"`` a dict (empty where the client sent none)
                of what was asked beside it: ``op`` ("infer" where it was not said), ``step``, ``prefix``...
                Its arrays are read-only views of the message's bytes, so what is kept is copied.

        Returns:
            What ``infer`` takes; None where there is nothing to compute (a mere reset), which is answered at once.

        Raises:
            ValueError: the client's fault; its text goes to the client (what came, what was wanted, the way out), and
                the session must be as it was before.
        """

    def infer(self, batch: Sequence[Any]) -> Sequence[dict[str, Any]]:
        """Returns a reply to each of at most ``max_batch`` prepared requests, from one forward pass.

        A reply is what the wire takes: a dict of names to arrays of numbers, numbers, texts, None, lists and such dicts
        (``{"actions": float32 (T, A)}``). The server adds ``server_timing``, and to what stands under ``ideomotor`` its
        own facts; clients that did not send that key are not sent it. Where a batch of several
        raises, each of it is tried again alone, so that one request cannot spoil the others': what moves its sessions
        on in ``infer`` takes one at a time.

        Raises:
            Refused: the client's fault that shows only now, such as a step after a reset that was not computed; its
                text goes to the client. Of any other error the client is told nothing.
        """

    def imagine(self, prepared: Any) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields parts of the video imagined for a request, after it was inferred: uint8 ``(t, h, w, 3)`` by camera.

        A client that asks for it of a backend whose metadata do not list "imagine" under ``extensions`` is refused.
        """
