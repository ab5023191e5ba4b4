"""A backend of a few lines of NumPy, for tests of the server."""

import threading
import time
from typing import Any

import numpy as np


class Doubling:
    """Answers twice the state, ``chunk`` times; keeps count of a session's messages; can be slow, or fail on demand."""

    def __init__(self, max_batch: int = 8, seconds: float = 0.0) -> None:
        self.max_batch, self.seconds = max_batch, seconds
        self.metadata = {"ideomotor": {"kind": "policy", "actions": {"chunk": 4}, "extensions": ["imagine"]}}
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def session(self) -> dict[str, int]:
        return {"count": 0}

    def prepare(self, session: dict[str, int], message: dict[str, Any]) -> Any:
        state = message.get("state")
        if message["ideomotor"].get("op") == "reset" and state is None:
            return None
        if not isinstance(state, np.ndarray) or state.ndim != 1 or not np.isfinite(state).all():
            raise ValueError("the state has to be a finite array of one axis under 'state'")
        if state.shape == (13,):
            raise RuntimeError("secret: a fault of the backend while it prepares")
        session["count"] += 1
        return state.astype(np.float32), session["count"]

    def infer(self, batch: Any) -> Any:
        self.gate.wait(10)
        time.sleep(self.seconds)
        if any(state.shape == (66,) for state, _ in batch):
            raise RuntimeError("secret: a fault of the backend while it infers")
        self.batches.append(len(batch))
        return [{"actions": np.tile(2 * state, (4, 1)), "count": count} for state, count in batch]

    def imagine(self, prepared: Any) -> Any:
        state, _ = prepared
        if state.shape == (7,):
            raise RuntimeError("secret: a fault of the backend while it imagines")
        for part in range(3):
            yield {"main": np.full((2, 4, 4, 3), part, np.uint8)}
