"""What a policy wants of an observation: messages are checked against it, and single frames joined to what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

Frame = UInt8[np.ndarray, "h w 3"]
State = Float32[np.ndarray, " state"]
Actions = Float32[np.ndarray, "known action"]
Check = Callable[[State | None, Actions | None], None]
"""Refuses, with ``ValueError``, a state and a prefix that are no robot's, such as quaternions of another length."""
_LAST_STEP = 2**53  # beyond it a step is no count of anything


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a policy wants of an observation, and what it gives.

    Attributes:
        cameras: by the policy's own names.
        size: side of the square frames in pixels.
        context, stride: frames of an observation, and how many control steps they are apart.
        chunk, width: actions of a chunk, and numbers of an action.
        execute: actions of a chunk that are carried out before looking again.
        state: numbers of the robot's state; 0 where it is not read, and then whatever comes is left aside.
        state_needed: False for a policy that acts without as well.
        prompt: whether it is told a sentence.
        prefix: whether a chunk can begin with actions that are under way.
        check: of states and prefixes; None where any numbers will do.
        recorded_as: what the data that the policy learned from call its cameras, where that is known.
        quaternions: first columns of the quaternions in an action, so that clients do not average them as numbers.
        angles: its columns in radians that begin anew after a whole turn.
    """

    cameras: tuple[str, ...]
    size: int
    context: int
    stride: int
    chunk: int
    width: int
    execute: int
    state: int = 0
    state_needed: bool = True
    prompt: bool = True
    prefix: bool = False
    check: Check | None = None
    recorded_as: Mapping[str, str] = field(default_factory=dict)
    quaternions: tuple[int, ...] = ()
    angles: tuple[int, ...] = ()

    def observation(self) -> dict[str, Any]:
        """Returns what is wanted, as a client reads it on connecting."""
        frame = {"height": self.size, "width": self.size, "dtype": "uint8"}
        return {
            "images": {name: frame | {"recorded_as": self.recorded_as.get(name)} for name in self.cameras},
            "context": self.context,
            "stride": self.stride,
            "state": self.state,
            "state_needed": self.state > 0 and self.state_needed,
            "prompt": self.prompt,
        }

    def actions(self, rate_hz: float | None) -> dict[str, Any]:
        """Returns what comes back, as a client reads it on connecting."""
        told = {"chunk": self.chunk, "execute": self.execute, "width": self.width, "rate_hz": rate_hz}
        turns = {"quaternions": list(self.quaternions), "angles": list(self.angles)}
        return told | {name: columns for name, columns in turns.items() if columns}


class Observation(NamedTuple):
    """What one session sees now, found good.

    Attributes:
        frames: of each camera the whole context, the newest last.
        steps: at which these frames were seen; they are as far apart as the contract says wherever such frames came.
        prefix: the actions under way; None where there are none.
    """

    frames: Mapping[str, UInt8[np.ndarray, "context h w 3"]]
    steps: tuple[int, ...]
    text: str
    state: State | None
    prefix: Actions | None


class History:
    """The newest frames of a session, by the step at which each was seen; before the first, the first is repeated.

    Where no frame came for a step that is looked at, the one nearest to it stands for it (of two, the older), so that a
    late observation stops no robot; ``Observation.steps`` tells.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.now: int | None = None
        self._seen: dict[int, Mapping[str, Frame]] = {}

    def read(self, message: Mapping[str, Any]) -> Observation:
        """Returns the observation in a message, and remembers its frames; one that is not good changes nothing.

        Raises:
            ValueError: saying what came, what was wanted, and the way out.
        """
        contract = self.contract
        asked = message.get("ideomotor") or {}
        images = _images(contract, message)
        step = self._step(asked.get("step"))
        text = _text(contract, message.get("prompt"))
        state = _state(contract, message.get("state"))
        prefix = _prefix(contract, asked.get("prefix"))
        if contract.check is not None:
            contract.check(state, prefix)
        self._keep(step, images)
        steps = self._wanted(step)
        frames = {name: np.stack([self._seen[at][name] for at in steps]) for name in contract.cameras}
        return Observation(frames, steps, text, state, prefix)

    def _step(self, told: Any) -> int:
        if told is None:
            return 0 if self.now is None else self.now + self.contract.execute
        if not isinstance(told, int | np.integer) or isinstance(told, bool) or not 0 <= told < _LAST_STEP:
            raise ValueError(f"step is {told!r}; wanted a whole number, the control steps since the episode began")
        if self.now is not None and told < self.now:
            raise ValueError(
                f"step {told} came after step {self.now}; steps of an episode only rise: reset the session "
                '("reset": true) where another begins'
            )
        return int(told)

    def _keep(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        context, stride = self.contract.context, self.contract.stride
        whole = next(iter(images.values())).ndim == 4
        if whole:  # it says all that is known
            self._seen = {
                step - back * stride: {name: video[context - 1 - back].copy() for name, video in images.items()}
                for back in reversed(range(context))
            }
        else:
            self._seen[step] = {name: frame.copy() for name, frame in images.items()}
        self.now = step
        # What is older than the oldest frame of this and every later observation is read no more, but for the newest.
        oldest = step - (context - 1) * stride
        before = max((at for at in self._seen if at <= oldest), default=oldest)
        self._seen = {at: frames for at, frames in sorted(self._seen.items()) if at >= before}

    def _wanted(self, step: int) -> tuple[int, ...]:
        context, stride = self.contract.context, self.contract.stride
        known = list(self._seen)
        wanted = (step - back * stride for back in reversed(range(context)))
        return tuple(min(known, key=lambda at: (abs(at - place), at)) for place in wanted)


def _images(contract: Contract, message: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The cameras' frames as they came, all single or all whole contexts."""
    images = message.get("images")
    if not isinstance(images, Mapping):
        came = ", ".join(sorted(str(key) for key in message if key != "ideomotor")) or "nothing"
        raise ValueError(
            f'the observation holds {came}; wanted "images", a dict of the cameras {", ".join(contract.cameras)} to '
            "their frames"
        )
    absent = [name for name in contract.cameras if name not in images]
    unknown = [str(name) for name in images if name not in contract.cameras]
    if absent or unknown:
        wrong = [f"lacks {', '.join(absent)}"] * bool(absent) + [f"knows no {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(
            f"images of the cameras {', '.join(map(str, images)) or 'none'} came; the policy {' and '.join(wrong)}: "
            f"send {', '.join(_camera(contract, name) for name in contract.cameras)}, and no others"
        )
    for name in contract.cameras:
        _refuse_frames(contract, name, images[name])
    dims = {name: images[name].ndim for name in contract.cameras}
    if len(set(dims.values())) > 1:
        raise ValueError(
            f"of some cameras a single frame came and of some a whole context ({dims}): send all alike, one frame each "
            f"or {contract.context}"
        )
    return {name: images[name] for name in contract.cameras}


def _camera(contract: Contract, name: str) -> str:
    recorded = contract.recorded_as.get(name)
    return f"{name} (recorded as {recorded})" if recorded else name


def _refuse_frames(contract: Contract, name: str, frames: Any) -> None:
    size, context = contract.size, contract.context
    wanted = f"uint8 ({size}, {size}, 3), or with the whole context ({context}, {size}, {size}, 3)"
    if not isinstance(frames, np.ndarray):
        raise ValueError(f"camera {name!r} sent {type(frames).__name__}; wanted an array, {wanted}")
    if frames.dtype != np.uint8:
        raise ValueError(
            f"camera {name!r} sent {frames.dtype}; wanted {wanted}: colours are whole numbers of 0 to 255, and are "
            "scaled here"
        )
    if frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise ValueError(f"camera {name!r} sent shape {frames.shape}; wanted {wanted}: colours come last")
    if frames.shape[-3:-1] != (size, size):
        raise ValueError(
            f"camera {name!r} sent frames of {frames.shape[-3]}x{frames.shape[-2]} pixels; wanted {wanted}: scale "
            "them, and cut their middle out, as the frames that the policy learned from were"
        )
    if frames.ndim == 4 and len(frames) != context:
        raise ValueError(
            f"camera {name!r} sent {len(frames)} frames; wanted {context} of them, {contract.stride} steps apart, the "
            "newest last, or a single one: then the server keeps the earlier ones"
        )


def _text(contract: Contract, prompt: Any) -> str:
    if not contract.prompt:
        return ""
    if not isinstance(prompt, str):
        came = "none" if prompt is None else f"a {type(prompt).__name__}"
        raise ValueError(f'the policy is told what to do, and {came} came: send "prompt", a sentence, "" for none')
    return prompt


def _state(contract: Contract, state: Any) -> State | None:
    if not contract.state or (state is None and not contract.state_needed):
        return None
    what = f'"state", {contract.state} numbers of the robot'
    if state is None:
        raise ValueError(f"no state came; the policy reads one: send {what}, as in the data that it learned from")
    numbers = numbers_of(state, what)
    if numbers.shape != (contract.state,):
        raise ValueError(f"a state of shape {numbers.shape} came; wanted {what}")
    return numbers


def _prefix(contract: Contract, prefix: Any) -> Actions | None:
    if prefix is None:
        return None
    if not contract.prefix:
        raise ValueError('a prefix came; this policy cannot begin a chunk with given actions: leave "prefix" out')
    what = f'"prefix", up to {contract.chunk - 1} actions of {contract.width} numbers that are under way'
    numbers = numbers_of(prefix, what)
    if not numbers.size:
        return None
    if numbers.ndim != 2 or numbers.shape[1] != contract.width or len(numbers) >= contract.chunk:
        raise ValueError(
            f"a prefix of shape {numbers.shape} came; wanted {what}: it is the beginning of a chunk of {contract.chunk}"
        )
    return numbers


def numbers_of(value: Any, what: str) -> Float32[np.ndarray, ...]:
    """Returns a value from outside as float32; plain lists of numbers will do.

    Raises:
        ValueError: it holds anything but finite numbers; the message ends with ``what`` was wanted.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different length
        raise ValueError(f"{str(value)[:80]} came; wanted {what}") from error
    if array.size and array.dtype.kind not in "fiu":
        raise ValueError(f"{array.dtype} came; wanted {what}")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise ValueError(
            f"number {', '.join(map(str, place))} is {array[place]}; wanted {what}, all finite: check its sensors"
        )
    return numbers
