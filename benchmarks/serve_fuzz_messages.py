"""Messages that a server of policies should survive: seeded, of a named kind, nearly good or not good at all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

SIZE = 16
"""Rows and columns of the picture that the server wants."""
STATE = 4
Generator = np.random.Generator


def observation(rng: Generator) -> dict[str, Any]:
    """Returns an observation that is good."""
    picture = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    state = rng.normal(size=STATE).astype(np.float32)
    return {"images": {"main": array(picture)}, "state": array(state), "prompt": "open the drawer"}


def array(value: np.ndarray) -> dict[bytes, Any]:
    """Returns an array as openpi's protocol writes it."""
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def good(rng: Generator) -> bytes:
    """An observation, sometimes with an id and a session."""
    more = {"ideomotor": {"request_id": int(rng.integers(9)), "session": "s"}} if rng.random() < 0.5 else {}
    return _bytes(observation(rng) | more)


def truncated(rng: Generator) -> bytes:
    """The beginning of an observation."""
    whole = good(rng)
    return whole[: int(rng.integers(len(whole)))]


def flipped(rng: Generator) -> bytes:
    """An observation with a few bytes changed, most of them where the structure is."""
    damaged = bytearray(good(rng))
    for _ in range(int(rng.integers(1, 6))):
        reach = len(damaged) if rng.random() < 0.2 else 80
        at = int(rng.integers(reach)) if rng.random() < 0.5 else len(damaged) - 1 - int(rng.integers(reach))
        damaged[at] = int(rng.integers(256))
    return bytes(damaged)


def noise(rng: Generator) -> bytes:
    """Bytes that mean nothing."""
    return rng.bytes(int(rng.integers(0, 400)))


def wrong_dtype(rng: Generator) -> bytes:
    """Arrays of objects, texts, records, complex numbers, and of no dtype at all."""
    names = (
        "|O",
        "object",
        "O",
        "V8",
        "<c8",
        "<U4",
        "|S4",
        ">f4",
        "<f16",
        "<M8[us]",
        "f4,i4",
        "(9,9)f8",
        "",
        "🤖",
        "i" * 999,
    )
    odd: list[Any] = [*names, 7, None, ["<f4"], {"a": 1}, b"<f4"]
    return _bytes(_with(rng, {b"dtype": odd[int(rng.integers(len(odd)))]}))


def objects(rng: Generator) -> bytes:
    """Arrays of objects with a pickle for their bytes, and a pickle alone."""
    bomb = pickle.dumps(np.array([{"a": 1}, print], dtype=object))
    if rng.random() < 0.5:
        return bomb
    return _bytes(_with(rng, {b"dtype": "|O", b"data": bomb, b"shape": [2]}))


def huge_shape(rng: Generator) -> bytes:
    """Shapes of more than there is, below nothing, and of what is no number."""
    odd = (
        [2**40],
        [2**62, 2**62],
        [-1],
        [0, 2**60],
        [2**31] * 8,
        [1] * 40,
        [True, 4],
        [4.0],
        "4",
        None,
        [[4]],
        [2**63],
    )
    return _bytes(_with(rng, {b"shape": odd[int(rng.integers(len(odd)))]}))


def declared(rng: Generator) -> bytes:
    """Headers of lists, maps, texts and bytes far longer than the message, within each other."""
    header = (
        b"\xdd\x7f\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdc\xff\xff",
    )
    return b"".join(header[int(i)] for i in rng.integers(len(header), size=int(rng.integers(1, 2000))))


def nested(rng: Generator) -> bytes:
    """Lists and maps within each other, deeper than any recursion goes."""
    depth = int(rng.integers(9, 60_000))
    return (b"\x81\xa1a" if rng.random() < 0.5 else b"\x91") * depth + b"\x01"


def many(rng: Generator) -> bytes:
    """More objects or arrays than a message may have."""
    if rng.random() < 0.5:
        return _bytes(observation(rng) | {"more": [[] for _ in range(5000)]})
    return _bytes(observation(rng) | {"more": [array(np.zeros(1, np.uint8)) for _ in range(100)]})


def missing(rng: Generator) -> bytes:
    """An observation without one of its parts, or with a part of another kind."""
    message = observation(rng)
    name = list(message)[int(rng.integers(len(message)))]
    odd = [None, 3, "x", [], {}, array(np.zeros(0, np.float32)), array(np.zeros((3, 3), np.uint8))]
    if rng.random() < 0.5:
        del message[name]
    else:
        message[name] = odd[int(rng.integers(len(odd)))]
    return _bytes(message)


def not_finite(rng: Generator) -> bytes:
    """A state with a NaN or an infinity."""
    state = np.ones(STATE, np.float32)
    state[int(rng.integers(STATE))] = (np.nan, np.inf, -np.inf)[int(rng.integers(3))]
    return _bytes(observation(rng) | {"state": array(state)})


def wrongly_asked(rng: Generator) -> bytes:
    """An observation, and beside it nonsense under the reserved key."""
    odd = [None, -1, 1.5, "x" * 500, [], {}, float("nan"), 2**64 - 1, True, array(np.zeros(2)), b"bytes"]
    names = ("request_id", "session", "reset", "deadline_ms", "imagine", "step", "op", "prefix", "unknown")
    asked: Any = {name: odd[int(rng.integers(len(odd)))] for name in names if rng.random() < 0.3}
    return _bytes(observation(rng) | {"ideomotor": odd[int(rng.integers(len(odd)))] if rng.random() < 0.2 else asked})


def extension(rng: Generator) -> bytes:
    """Extension types of msgpack, timestamps too."""
    return _bytes(observation(rng) | {"more": msgpack.ExtType(int(rng.integers(-1, 128)) % 128, rng.bytes(12))})


def text(rng: Generator) -> str:
    """A text frame."""
    return ("{}", "", "hello", '{"state": [1]}', "x" * 5000)[int(rng.integers(5))]


def too_large(rng: Generator) -> bytes:
    """A message of more bytes than the server takes, and one of a few less."""
    return _bytes(observation(rng) | {"more": bytes(2**18 + int(rng.integers(-3000, 1000)))})


KINDS: dict[str, Callable[[Generator], bytes | str]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        *(good, truncated, flipped, noise, wrong_dtype, objects, huge_shape, declared, nested, many, missing),
        *(not_finite, wrongly_asked, extension, text, too_large),
    )
}


def _with(rng: Generator, changed: dict[bytes, Any]) -> dict[str, Any]:
    """An observation with one of its arrays changed so."""
    message = observation(rng)
    if rng.random() < 0.5:
        message["state"].update(changed)
    else:
        message["images"]["main"].update(changed)
    return message


def _bytes(message: Any) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed
