"""What a request asks beside its observation: the map under the reserved key, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ideomotor.serving.limits import Refused

KEY = "ideomotor"
"""The one key of requests, replies and metadata that openpi's protocol does not have."""
EXTENSIONS = ("sessions", "reset", "request_ids", "deadlines", "batching")
"""What the server can for every backend."""
OPERATIONS = ("infer", "reset", "step")
_LONGEST_NAME = 128


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a request is to be treated.

    Attributes:
        echo: what stands under the key in every answer; None for a client that does not know the key.
        deadline_ms: how long after its arrival the request may begin to be computed.
    """

    echo: Mapping[str, Any] | None = None
    session: str = "default"
    reset: bool = False
    deadline_ms: float = math.inf
    imagine: bool = False


def read_echo(message: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what every answer to this message repeats: its id and session, as far as they can be repeated; puts an
    empty map under the key where the client sent none, and then returns None.

    Raises:
        Refused: what stands under the key is no map.
    """
    found = message.setdefault(KEY, None)
    if found is None:
        message[KEY] = {}
        return None
    if not isinstance(found, dict):
        raise Refused("bad_message", f"{KEY!r} is a {_kind(found)}; a map was wanted")
    strange = next((key for key in found if not isinstance(key, str)), None)
    if strange is not None:
        raise Refused("bad_message", f"{KEY!r} has the key {strange[:40]!r}; its keys have to be texts")
    found.update({key: value.item() for key, value in found.items() if isinstance(value, np.generic)})
    echo = {"request_id": found.get("request_id"), "session": found.get("session", "default")}
    return {name: value for name, value in echo.items() if _is_name(value) or type(value) is int}


def read_asked(message: dict[str, Any], echo: dict[str, Any] | None) -> Asked:
    """Returns what the message asks for; ``echo`` is what ``read_echo`` returned.

    Raises:
        Refused: something under the key is of the wrong kind.
    """
    found = message[KEY]
    if echo is None:
        return Asked()
    if found.get("request_id") is not None and "request_id" not in echo:
        raise _wrong("request_id", found["request_id"], f"a whole number or a text of at most {_LONGEST_NAME} letters")
    session = found.get("session", "default")
    if not _is_name(session):
        raise _wrong("session", session, f"a text of at most {_LONGEST_NAME} letters")
    operation = found.get("op", "infer")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise _wrong("op", operation, " or ".join(map(repr, OPERATIONS)))
    deadline = found.get("deadline_ms")
    if deadline is None:
        deadline = math.inf
    elif isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline >= 0:
        raise _wrong("deadline_ms", deadline, "a number of milliseconds")
    step = found.get("step")
    if step is not None and (type(step) is not int or step < 0):
        raise _wrong("step", step, "a whole number from 0")
    for flag in ("reset", "imagine"):
        if not isinstance(found.get(flag, False), bool):
            raise _wrong(flag, found[flag], "true or false")
    return Asked(
        echo=echo,
        session=session,
        reset=operation == "reset" or found.get("reset", False),
        deadline_ms=float(deadline),
        imagine=found.get("imagine", False),
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME


def _wrong(name: str, value: Any, wanted: str) -> Refused:
    came = repr(value)[:60] if isinstance(value, str | int | float) else f"a {_kind(value)}"
    return Refused("bad_message", f"{name!r} under {KEY!r} is {came}; wanted is {wanted}")


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "map" if isinstance(value, dict) else type(value).__name__
