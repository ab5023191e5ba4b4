"""What is looked at while it happens: each session's newest picture, imagined video and actions, for a page at ``/``.

Nobody waits for a viewer. The newest of each session is kept by reference, and only while somebody watches; pictures
are painted in a thread, at most ten times a second and with a bounded share of its time; who reads slowly gets fewer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Template
from typing import Any

import numpy as np

from ideomotor.data.pictures import encode_png
from ideomotor.evaluation.page import template
from ideomotor.extras import require
from ideomotor.serving.batching import Answer
from ideomotor.serving.gate import Gate
from ideomotor.serving.journal import note
from ideomotor.serving.metrics import Metrics

_EVERY, _NOTHING_NEW = 0.1, 1.0
_REST = 4.0
"""Times as long as it painted, the painter rests: a fifth of a core at most, however many pictures there are."""
_MOST_SESSIONS, _MOST_FRAMES, _MOST_STEPS, _MOST_WIDTH = 12, 12, 64, 320
_MOST_DRAWN = 1e6
_KEY_SECONDS, _WRONG_KEY_SECONDS = 5.0, 1.0
KEY_WANTED = 4401
"""The code with which a viewer is closed that has to show the API key, as its first message."""


@dataclass(kw_only=True, eq=False)
class _Session:
    """The newest of one session; ``version`` counts its changes, ``painted`` is the one that ``text`` shows."""

    client: int
    name: str
    live: dict[str, np.ndarray] = field(default_factory=dict)
    imagined: dict[str, np.ndarray] = field(default_factory=dict)
    actions: np.ndarray | None = None
    figures: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    version: int = 0
    painted: int = 0
    text: str = ""


class Viewers:
    """Everybody who watches, and what they are shown."""

    def __init__(self, metrics: Metrics, most: int) -> None:
        self.most, self._metrics = most, metrics
        self.sockets: set[Any] = set()
        self._sessions: dict[tuple[int, str], _Session] = {}
        self._painter: asyncio.Task[None] | None = None

    @property
    def watched(self) -> bool:
        """Whether there is anybody for whom to keep what happens."""
        return bool(self.sockets)

    def is_full(self) -> bool:
        """Returns whether no further viewer is taken."""
        return len(self.sockets) >= self.most

    def answered(self, client: int, name: str, message: Mapping[str, Any], answer: Answer, seconds: float) -> None:
        """Shows a request that was answered, instead of what was shown of its session before."""
        session = self._session(client, name)
        reply = answer.reply
        if session is None or reply is None:
            return
        session.live = _newest(message.get("images")) or session.live
        frames = _newest(reply.get("frames"))  # a world's answer is what it imagines
        session.imagined = {camera: frame[None] for camera, frame in frames.items()} or session.imagined
        actions = reply.get("actions")
        if isinstance(actions, np.ndarray) and actions.ndim == 2:
            session.actions = actions[:_MOST_STEPS]
        session.requests += 1
        session.figures = {
            "total_ms": seconds * 1000,
            "infer_ms": answer.infer_ms,
            "queue_ms": answer.queue_ms,
            "batch": answer.batch,
        }
        session.version += 1

    def imagined(self, client: int, name: str, part: Mapping[str, np.ndarray], first: bool) -> None:
        """Shows a part of an imagined video, the first instead of the video before."""
        session = self._session(client, name)
        if session is None:
            return
        for camera, frames in part.items():
            before = session.imagined.get(camera)
            whole = frames if first or before is None else np.concatenate([before, frames])
            session.imagined[camera] = whole[-4 * _MOST_FRAMES :]
        session.version += 1

    def left(self, client: int) -> None:
        """Shows none of a client's sessions any more."""
        self._sessions = {key: session for key, session in self._sessions.items() if key[0] != client}

    async def welcome(self, socket: Any, gate: Gate) -> None:
        """Shows a viewer what happens until it has gone, once it has shown the API key where there is one."""
        closed = require("websockets.exceptions", "serve").ConnectionClosed
        self.sockets.add(socket)
        try:
            if await self._lets_in(socket, gate):
                if self._painter is None or self._painter.done():
                    self._painter = asyncio.create_task(self._paint())
                note("viewer connected", address=socket.remote_address)
                await self._show(socket)
        except closed:
            pass  # it has gone
        finally:
            self.sockets.discard(socket)
            if not self.sockets:
                self._sessions.clear()

    def stop(self) -> None:
        """Paints no more."""
        if self._painter is not None:
            self._painter.cancel()

    async def _lets_in(self, socket: Any, gate: Gate) -> bool:
        """Whether the viewer may watch; a browser cannot send the header, so its first message is the key."""
        if gate.knows(socket.request.headers.get("Authorization", "")):
            return True
        try:
            said = await asyncio.wait_for(socket.recv(), _KEY_SECONDS)
        except TimeoutError:
            said = ""
        if isinstance(said, str) and said and gate.is_key(said):
            return True
        if said:
            self._metrics.rejected("unauthorized")
            await asyncio.sleep(_WRONG_KEY_SECONDS)  # as few places as there are, keys cannot be tried through
        await socket.close(KEY_WANTED, "the API key is wanted")
        return False

    def _session(self, client: int, name: str) -> _Session | None:
        if not self.sockets:
            return None
        session = self._sessions.get((client, name))
        if session is None and len(self._sessions) < _MOST_SESSIONS:
            session = self._sessions[client, name] = _Session(client=client, name=name)
        return session

    async def _paint(self) -> None:
        while self.sockets:
            began = time.monotonic()
            for session in list(self._sessions.values()):
                version = session.version
                if session.painted != version:
                    live, imagined = dict(session.live), dict(session.imagined)
                    pictures = await asyncio.to_thread(_pictures, live, imagined)
                    session.text, session.painted = _described(session, pictures), version
            await asyncio.sleep(max(_EVERY, _REST * (time.monotonic() - began)))

    async def _show(self, socket: Any) -> None:
        shown: dict[tuple[int, str], int] = {}
        said = -_NOTHING_NEW
        while True:
            now = dict(self._sessions)
            new = {key: session for key, session in now.items() if session.text and shown.get(key) != session.painted}
            gone = [f"{client} {name}" for client, name in shown if (client, name) not in now]
            if new or gone or time.monotonic() - said > _NOTHING_NEW:
                server = json.dumps({"gone": gone, "recent": self._metrics.recent()})
                texts = ",".join(session.text for session in new.values())
                shown = {key: shown[key] for key in shown if key in now} | {key: new[key].painted for key in new}
                await socket.send(f'{{"server":{server},"sessions":[{texts}]}}')
                said = time.monotonic()
            await asyncio.sleep(_EVERY)


def page() -> bytes:
    """Returns the page: in the house's frame, with its own script, and allowed to ask nobody but this server."""
    text, policy = template("viewer_page.html", "ideomotor.serving")
    filled = Template(text).substitute(
        policy=f"{policy}; connect-src 'self'", mark="ideomotor", title="What is seen, foretold and done"
    )
    return filled.encode()


def _newest(images: Any) -> dict[str, np.ndarray]:
    """The last frame of each camera that can be shown."""
    if not isinstance(images, Mapping):
        return {}
    frames = {
        camera: frame[-1] if getattr(frame, "ndim", 0) == 4 and len(frame) else frame
        for camera, frame in images.items()
    }
    return {
        str(camera): frame
        for camera, frame in frames.items()
        if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    }


def _pictures(live: Mapping[str, np.ndarray], imagined: Mapping[str, np.ndarray]) -> dict[str, Any]:
    chosen = {
        camera: frames[np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).astype(int)]
        for camera, frames in imagined.items()
        if len(frames)
    }
    return {
        "live": {camera: _picture(frame) for camera, frame in live.items()},
        "imagined": {camera: [_picture(frame) for frame in frames] for camera, frames in chosen.items()},
    }


def _picture(frame: np.ndarray) -> str:
    """The frame as PNG in base64, of every second or third pixel where it is large."""
    every = -(-max(frame.shape[:2]) // _MOST_WIDTH) or 1
    return base64.b64encode(encode_png(frame[::every, ::every])).decode()


def _described(session: _Session, pictures: Mapping[str, Any]) -> str:
    actions = np.zeros((0, 0)) if session.actions is None else session.actions
    drawn = np.clip(np.nan_to_num(actions.astype(float)), -_MOST_DRAWN, _MOST_DRAWN).round(4)
    return json.dumps(
        {
            "id": f"{session.client} {session.name}",
            "client": session.client,
            "name": session.name,
            "requests": session.requests,
            "figures": session.figures,
            "actions": drawn.tolist(),
            **pictures,
        }
    )
