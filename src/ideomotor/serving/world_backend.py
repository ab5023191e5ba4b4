"""A learned world served: a session begins with frames that were seen, and each action brings the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from ideomotor.serving.contract import numbers_of
from ideomotor.serving.limits import Refused
from ideomotor.training.learner import seed_of
from ideomotor.types import WorldModel


class SeededWorld(WorldModel, Protocol):
    """A world whose draws can be begun anew."""

    def seed(self, seed: int) -> None:
        """Begins the draws anew."""


@dataclass(frozen=True, kw_only=True)
class ServedWorld:
    """A world, and what is known of it.

    Attributes:
        system: its name.
        world: what imagines.
        camera: what a client calls its one view.
        size: side of its square frames in pixels.
        reward: whether it foretells rewards.
        stride: frames of the recordings from one of its frames to the next; None where it is not known.
        notes: for who writes a client.
    """

    system: str
    world: SeededWorld
    camera: str
    size: int
    reward: bool
    stride: int | None = None
    notes: str = ""


class WorldSession:
    """Where one session's imagination stands.

    Attributes:
        begun: a reset was asked for; it may not have been computed yet.
        state: None before it was.
        steps: since the reset.
    """

    def __init__(self) -> None:
        self.begun = False
        self.state: Any = None
        self.steps = 0


class Move(NamedTuple):
    """A prepared request: the first frames of an imagination, or an action (None in a world that nobody acts in)."""

    session: WorldSession
    frames: UInt8[np.ndarray, "context h w 3"] | None
    action: Float32[np.ndarray, " action"] | None


class WorldBackend:
    """A world behind the server (see ``serving.backend.Backend``): ``op`` "reset" with ``images``, then "step"s.

    Sessions share the networks and nothing else; their steps are computed one after another, not as a batch, because
    each has a memory of its own length. Draws are seeded by the backend's seed and the step: the same frames and
    actions bring the same imagination, whoever else is served.
    """

    max_batch = 1

    def __init__(self, served: ServedWorld, seed: int = 0) -> None:
        self.served, self.seed = served, seed

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a reset wants, and what a step wants and brings."""
        served, world = self.served, self.served.world
        observation = {
            "images": {served.camera: {"height": served.size, "width": served.size, "dtype": "uint8"}},
            "context": world.context,
            "stride": served.stride,
            "reward": served.reward,
        }
        about = {
            "version": 1,
            "kind": "world",
            "system": served.system,
            "observation": observation,
            "actions": {"chunk": 1, "execute": 1, "width": world.action_width, "rate_hz": None},
            "extensions": ["world"],
        }
        return {"ideomotor": about | ({"notes": served.notes} if served.notes else {})}

    def session(self) -> WorldSession:
        """Returns a session whose imagination has not begun."""
        return WorldSession()

    def prepare(self, session: WorldSession, message: dict[str, Any]) -> Move:
        """Returns the request; see the protocol.

        Raises:
            ValueError: saying what came, what was wanted, and the way out.
        """
        op = (message.get("ideomotor") or {}).get("op", "infer")
        if op == "reset":
            frames = self._frames(message.get("images"))
            session.begun = True
            return Move(session, frames, None)
        if op != "step":
            raise ValueError(f'op is {op!r}; this is a world: wanted "reset" with images, then "step" with actions')
        if not session.begun:
            raise ValueError(f'a step came before a reset; send "op": "reset" with {self._wanted()} first')
        return Move(session, None, self._action(message.get("actions")))

    def infer(self, batch: Sequence[Move]) -> list[dict[str, Any]]:
        """Returns the reply to each request, one after another."""
        return [self._answer(move) for move in batch]

    def imagine(self, prepared: Move) -> Iterator[Mapping[str, UInt8[np.ndarray, "t h w 3"]]]:
        """Is never asked: a world's very answer is what it imagines."""
        raise ValueError("a world imagines step by step: ask for steps")

    @torch.inference_mode()
    def _answer(self, move: Move) -> dict[str, Any]:
        session, world = move.session, self.served.world
        if move.frames is not None:
            seen = torch.from_numpy(np.ascontiguousarray(move.frames.transpose(0, 3, 1, 2)))[None]
            session.state, session.steps = world.reset(seen), 0
            return {}
        if session.state is None:
            message = (
                "this session has no imagination to go on from: its reset expired or failed, or a step did; reset it"
            )
            raise Refused("bad_observation", message)
        world.seed(seed_of(self.seed, session.steps))
        # A step uses a state up; one that fails leaves none, so that nobody goes on from half a frame.
        state, session.state = session.state, None
        imagined = world.step(state, None if move.action is None else torch.from_numpy(move.action)[None])
        session.state, session.steps = imagined.state, session.steps + 1
        frame = np.ascontiguousarray(imagined.frames[0].permute(1, 2, 0).cpu().numpy())
        reward = None if imagined.reward is None else float(imagined.reward[0])
        return {"frames": {self.served.camera: frame}, "reward": reward}

    def _wanted(self) -> str:
        context, size = self.served.world.context, self.served.size
        return f'"images": {{"{self.served.camera}": uint8 ({context}, {size}, {size}, 3)}}'

    def _frames(self, images: Any) -> UInt8[np.ndarray, "context h w 3"]:
        camera, size = self.served.camera, self.served.size
        if not isinstance(images, Mapping) or set(images) != {camera}:
            came = ", ".join(map(str, images)) if isinstance(images, Mapping) else "no"
            raise ValueError(f"{came} images came; an imagination begins with {self._wanted()}")
        frames = images[camera]
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3):
            came = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise ValueError(
                f"{came} came; an imagination begins with {self._wanted()}: scale frames to that size, the newest last"
            )
        if len(frames) != self.served.world.context:
            raise ValueError(f"{len(frames)} frames came; an imagination begins with {self._wanted()}, the newest last")
        return frames.copy()

    def _action(self, action: Any) -> Float32[np.ndarray, " action"] | None:
        width = self.served.world.action_width
        if not width:
            return None
        what = f'"actions", {width} numbers, what is done now'
        if action is None:
            raise ValueError(f"no action came; send {what}")
        numbers = numbers_of(action, what)
        if numbers.shape != (width,):
            raise ValueError(f"an action of shape {numbers.shape} came; wanted {what}")
        return numbers
