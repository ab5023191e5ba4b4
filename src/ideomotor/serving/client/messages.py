"""Requests and replies, as both clients write and read them: the protocol without a socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import packing
from .errors import Refused, ServerChanged, ServingError

OURS = "ideomotor"
"""The one key of requests, replies and metadata that openpi's protocol does not know."""


@dataclass(frozen=True)
class Reply:
    """What a policy answered.

    Attributes:
        actions: ``(chunk, width)``, float32, in the units of the environment; row 0 is for the observation's own step.
        session_is_new: the first reply of its session on this connection: nothing that was sent before counts.
        request_id: by which ``imagined`` finds the frames that belong to this reply; None of a foreign server.
        batch: how many requests were computed together; 1 where a server does not say.
        queue_ms: how long the request waited for its batch.
        infer_ms: how long the batch took.
        round_trip_ms: from sending to having, measured by the client.
        raw: the whole reply, for what is not listed here.
    """

    actions: np.ndarray
    session_is_new: bool
    request_id: int | None
    batch: int
    queue_ms: float
    infer_ms: float
    round_trip_ms: float
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class WorldReply:
    """What a world answered to one action.

    Attributes:
        frames: by camera, uint8 ``(h, w, 3)``.
        reward: of that action; None where the world foretells none.
        session_is_new: True where this connection has never reset the world.
        round_trip_ms: from sending to having, measured by the client.
        raw: the whole reply.
    """

    frames: Mapping[str, np.ndarray]
    reward: float | None
    session_is_new: bool
    round_trip_ms: float
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Asked:
    """A request that is on its way.

    Attributes:
        key: by which its reply is known; None of a foreign server, whose replies come in the order of requests.
        session: its session's name.
        is_new: nothing was asked in that session on this connection before.
    """

    key: int | None
    session: str
    is_new: bool


@dataclass(frozen=True)
class Extras:
    """What may be asked beside an observation, of a server that announces it.

    Attributes:
        session: several robots may share a connection, each by a name of its own.
        step: the step of control at which the observation was made; by default as many after the last one as a policy
            executes of a chunk.
        prefix: ``(k, width)``, the actions that will be carried out whatever the reply says.
        deadline_ms: the server drops the request where it did not get to it in that time.
        imagine: frames that the policy imagines come after the reply.
        reset: forget this session's earlier observations first.
    """

    session: str = ""
    step: int | None = None
    prefix: np.ndarray | None = None
    deadline_ms: float | None = None
    imagine: bool = False
    reset: bool = False

    def message(self) -> dict[str, Any]:
        """Returns what of it goes into the request: nothing that was not asked for."""
        asked: dict[str, Any] = {"reset": True} if self.reset else {}
        if self.step is not None:
            asked["step"] = int(self.step)
        if self.prefix is not None:
            asked["prefix"] = np.asarray(self.prefix, dtype=np.float32)
        if self.deadline_ms is not None:
            asked["deadline_ms"] = float(self.deadline_ms)
        if self.imagine:
            asked["imagine"] = True
        if self.session:
            asked["session"] = self.session
        return asked


PLAIN = Extras()
"""Nothing beside the observation."""


class Desk:
    """One connection's book of requests and sessions: writes requests, and knows whose reply came."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        ours = metadata.get(OURS)
        self.metadata, self.ours = metadata, ours if isinstance(ours, dict) else None
        self._asked = 0
        self._sessions: dict[str, bool] = {}

    def write(self, message: Mapping[str, Any], extras: Extras, op: str = "infer") -> tuple[Asked, bytes]:
        """Returns the request's receipt and its bytes.

        Raises:
            ValueError: something is asked for that the server does not announce, or the message cannot be sent.
            Refused: it is larger than the server says that it takes.
        """
        wanted = extras.message()
        if self.ours is None:
            if wanted or op != "infer":
                asked = ", ".join(sorted(wanted)) or op
                raise ValueError(f"this server speaks plain openpi and knows no {asked}: ask for actions alone")
            return Asked(None, "", not self._sessions.setdefault("", False)), packing.pack(dict(message))
        self._asked += 1
        if op != "infer":
            wanted["op"] = op
        wanted["request_id"] = self._asked
        is_new = extras.reset or not self._sessions.get(extras.session, False)
        data = packing.pack({**message, OURS: wanted})
        limits = self.ours.get("limits")
        most = limits.get("message_bytes") if isinstance(limits, Mapping) else None
        if isinstance(most, int) and len(data) > most:
            raise Refused(
                f"the request has {len(data)} bytes, and the server takes {most}: send smaller or fewer pictures, or "
                "start it with more --limits.message-bytes",
                "too_large",
            )
        return Asked(self._asked, extras.session, is_new), data

    def answered(self, asked: Asked) -> None:
        """Notes that the session of a request is known to the server from now on."""
        self._sessions[asked.session] = True

    def forget(self, session: str) -> None:
        """Notes that a session begins anew."""
        self._sessions.pop(session, None)


def key_of(message: Any) -> int | None:
    """Returns the id of the request that a message belongs to; None where it bears none."""
    ours = message.get(OURS) if isinstance(message, dict) else None
    key = ours.get("request_id") if isinstance(ours, dict) else None
    return key if isinstance(key, int) else None


def parse(data: str | bytes) -> dict[str, Any]:
    """Returns a server's message.

    Raises:
        Refused: it is a text, by which servers of openpi tell of an error.
        ServingError: it is no message of this protocol.
    """
    if isinstance(data, str):
        raise Refused(data)
    try:
        message = packing.unpack(data)
    except ValueError as error:
        raise ServingError(
            f"the server's message cannot be read ({error}): does a policy server listen there?"
        ) from error
    if not isinstance(message, dict):
        raise ServingError(f"the server's message is a {type(message).__name__}; wanted a map: is it a policy server?")
    return message


def raise_error(message: Mapping[str, Any]) -> None:
    """Raises ``Refused`` where a reply is an error."""
    error = message.get("error")
    if isinstance(error, dict):
        raise Refused(str(error.get("message", "")), str(error.get("code", "")))


def reply_of(message: Mapping[str, Any], asked: Asked, round_trip_ms: float) -> Reply:
    """Returns a policy's reply, checked for what the rest of the client relies on."""
    raise_error(message)
    actions = message.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        raise ServingError(
            f"the reply holds {sorted(map(str, message))} and no actions (T, width): a policy was expected"
        )
    timing, ours = message.get("server_timing") or {}, message.get(OURS) or {}
    return Reply(
        actions=actions.astype(np.float32, copy=False),
        session_is_new=asked.is_new,
        request_id=asked.key,
        batch=int(ours.get("batch", 1)),
        queue_ms=float(ours.get("queue_ms", 0.0)),
        infer_ms=float(timing.get("infer_ms", 0.0)),
        round_trip_ms=round_trip_ms,
        raw=message,
    )


def world_reply_of(message: Mapping[str, Any], asked: Asked, round_trip_ms: float) -> WorldReply:
    """Returns a world's reply to an action."""
    raise_error(message)
    frames, reward = message.get("frames"), message.get("reward")
    if not isinstance(frames, dict):
        raise ServingError(f"the reply holds {sorted(map(str, message))} and no frames: a world was expected")
    return WorldReply(frames, None if reward is None else float(reward), asked.is_new, round_trip_ms, message)


def refuse_another(before: Mapping[str, Any], now: Mapping[str, Any], url: str) -> None:
    """Refuses a server that came back as another: its actions could be those of another robot.

    Raises:
        ServerChanged: naming what differs.
    """
    ours, theirs = before.get(OURS) or {}, now.get(OURS) or {}
    for part in ("kind", "system", "observation", "actions"):
        if ours.get(part) != theirs.get(part):
            raise ServerChanged(
                f"what answers at {url} now has {part} {theirs.get(part)!r}, before {ours.get(part)!r}: "
                "make a new client"
            )
