"""Asking a server in a thread of its own, so that a robot's loop never waits for an answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from .blocking import Client
from .execution import Answer, ChunkRunner, Contract, contract_of
from .messages import Extras


class BackgroundAsker:
    """Asks a client for chunks in a thread; see ``Asker``. The client is not closed with it.

    Attributes:
        round_trips_ms: of the newest 10,000 answers.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.busy = False
        self.round_trips_ms: deque[float] = deque(maxlen=10_000)
        self._requests: SimpleQueue[tuple[Mapping[str, Any], Extras] | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ideomotor-asker", daemon=True)
        self._thread.start()

    def submit(self, observation: Mapping[str, Any], extras: Extras) -> None:
        """Sends a request and returns at once; the observation must not be changed until its answer is there."""
        if self.busy:
            raise ValueError("a request is on its way; poll for its answer before the next one")
        self.busy = True
        self._requests.put((observation, extras))

    def poll(self) -> Answer | None:
        """Returns the answer once it is there."""
        if self._answers.empty():
            return None
        self.busy = False
        return self._answers.get()

    def close(self) -> None:
        """Ends the thread once its request is answered."""
        self._requests.put(None)

    def _work(self) -> None:
        while True:
            request = self._requests.get()
            if request is None:
                return
            try:
                reply = self.client.infer(*request)
                self.round_trips_ms.append(reply.round_trip_ms)
                answer = Answer(reply.actions, None)
            except Exception as error:  # noqa: BLE001 - whatever it was, the loop has to hear it: it waits for an answer
                answer = Answer(None, error)
            self._answers.put(answer)


def run_chunks(
    client: Client, *, blend: int = 0, decay: float | None = None, contract: Contract | None = None
) -> ChunkRunner:
    """Returns a runner that asks this client in the background.

    Args:
        client: connected to a policy.
        blend: steps over which a later chunk fades in.
        decay: instead, temporal ensembling; see ``ensemble``.
        contract: for a server that announces none.
    """
    return ChunkRunner(BackgroundAsker(client), contract or contract_of(client.metadata), blend=blend, decay=decay)
