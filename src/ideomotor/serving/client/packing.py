"""Messages to bytes and back: MessagePack, with arrays as openpi's clients and servers write them.

An array is a map ``{b"__ndarray__": True, b"data": bytes, b"dtype": str, b"shape": [...]}``, a single number of numpy's
``{b"__npgeneric__": True, b"data": number, b"dtype": str}``. Everything else is plain MessagePack, of which the
extension types are refused. Our own small codec, so that a robot's computer needs nothing but numpy.

Source: the MessagePack specification; openpi's ``msgpack_numpy`` for the two maps.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Callable

import numpy as np

MOST_NESTED = 32
"""How deep containers may stand in one another."""
DTYPE = re.compile(r"[<>|=]?[biufSU][1-9][0-9]{0,5}")
"""Of an array: bool, whole and real numbers, text of fixed length. openpi refuses void, objects, complex too."""


def pack(value: Any) -> bytes:
    """Returns the bytes of a message: None, bool, int, float, str, bytes, lists, dicts and numpy arrays of these.

    Raises:
        ValueError: an integer beyond 64 bits, an array of objects, void or complex numbers, or too many levels.
        TypeError: a value of another type; it is named.
    """
    out = bytearray()
    _pack(value, out, 0)
    return bytes(out)


def unpack(data: bytes) -> Any:
    """Returns the message in bytes; arrays are the caller's own, sequences are lists.

    Raises:
        ValueError: the bytes are no message, are cut short, go on behind it, or hold what ``pack`` refuses.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.place != len(data):
        raise ValueError(f"{len(data) - reader.place} bytes stand behind the message; wanted one message and no more")
    return value


def _pack(value: Any, out: bytearray, depth: int) -> None:
    if depth > MOST_NESTED:
        raise ValueError(f"the message is nested deeper than {MOST_NESTED} levels")
    if value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        encoded = value.encode()
        _pack_size(len(encoded), out, (0xA0, 31), (0xD9, 0xDA, 0xDB))
        out += encoded
    elif isinstance(value, (bytes, bytearray)):
        _pack_size(len(value), out, None, (0xC4, 0xC5, 0xC6))
        out += value
    elif isinstance(value, (list, tuple)):
        _pack_size(len(value), out, (0x90, 15), (None, 0xDC, 0xDD))
        for item in value:
            _pack(item, out, depth + 1)
    elif isinstance(value, dict):
        _pack_size(len(value), out, (0x80, 15), (None, 0xDE, 0xDF))
        for key, item in value.items():
            if not isinstance(key, (str, bytes)):
                raise TypeError(f"the key {key!r} of a dict is of type {type(key).__name__}; wanted a text")
            _pack(key, out, depth + 1)
            _pack(item, out, depth + 1)
    elif isinstance(value, (np.ndarray, np.generic)):
        _pack(_described(value), out, depth)
    else:
        raise TypeError(
            f"a {type(value).__module__}.{type(value).__name__} cannot be sent: make it a numpy array first"
        )


def _pack_int(value: int, out: bytearray) -> None:
    """Writes an integer in the fewest bytes, as the reference codec does."""
    if -32 <= value < 128:
        out += struct.pack(">b", value)
        return
    forms = (">BB", 0xCC), (">BH", 0xCD), (">BI", 0xCE), (">BQ", 0xCF)
    if value < 0:
        forms = (">Bb", 0xD0), (">Bh", 0xD1), (">Bi", 0xD2), (">Bq", 0xD3)
    for form, code in forms:
        try:
            out += struct.pack(form, code, value)
            return
        except struct.error:
            continue
    raise ValueError(f"the integer {value} does not fit in 64 bits")


def _pack_size(size: int, out: bytearray, small: Any, codes: tuple[Any, ...]) -> None:
    """Writes how long a text, bytes or a container is; ``small`` is the one-byte form and the most it holds."""
    if small is not None and size <= small[1]:
        out.append(small[0] | size)
        return
    for code, form, most in zip(codes, (">BB", ">BH", ">BI"), (0xFF, 0xFFFF, 0xFFFFFFFF)):
        if code is not None and size <= most:
            out += struct.pack(form, code, size)
            return
    raise ValueError(f"{size} bytes or items are more than a message can hold (4 GiB)")


def _described(value: Any) -> dict[bytes, Any]:
    """An array or a single number of numpy's as openpi's map."""
    if not DTYPE.fullmatch(value.dtype.str):
        raise ValueError(f"an array of {value.dtype} cannot be sent; wanted numbers, bool or text of fixed length")
    if isinstance(value, np.ndarray):
        data = value.tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


class _Reader:
    """Goes through the bytes of one message; no size is believed before that many bytes are seen to be there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def value(self, depth: int) -> Any:
        """Returns the value at the present place, and moves on behind it."""
        if depth > MOST_NESTED:
            raise ValueError(f"the message is nested deeper than {MOST_NESTED} levels")
        code = self._take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0x90:
            return self._map(code & 0x0F, depth)
        if code < 0xA0:
            return self._list(code & 0x0F, depth)
        if code < 0xC0:
            return self._text(code & 0x1F)
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if code not in _SIZED:
            raise ValueError(f"byte 0x{code:02x} begins an extension type or nothing at all; wanted plain MessagePack")
        form, kind = _SIZED[code]
        size = self._number(form)
        if kind == "bytes":
            return self._take(size)
        return self._text(size) if kind == "text" else (self._list if kind == "list" else self._map)(size, depth)

    def _take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise ValueError(
                f"the message is cut short: {size} bytes were announced, {len(self.data) - self.place} left"
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, size: int) -> str:
        return self._take(size).decode()  # UnicodeDecodeError is a ValueError

    def _expect(self, items: int) -> None:
        if items > len(self.data) - self.place:  # each is a byte at least
            raise ValueError(
                f"the message is cut short: {items} items were announced, {len(self.data) - self.place} left"
            )

    def _list(self, size: int, depth: int) -> list[Any]:
        self._expect(size)
        return [self.value(depth + 1) for _ in range(size)]

    def _map(self, size: int, depth: int) -> Any:
        self._expect(2 * size)
        found: dict[Any, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, (str, bytes)):
                raise ValueError(f"a map has a key of type {type(key).__name__}; wanted texts")
            found[key] = self.value(depth + 1)
        if b"__ndarray__" in found:
            return _sound(_array, found)
        return _sound(_generic, found) if b"__npgeneric__" in found else found


_CONSTANTS: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_SIZED = {
    0xC4: (">B", "bytes"), 0xC5: (">H", "bytes"), 0xC6: (">I", "bytes"),
    0xD9: (">B", "text"), 0xDA: (">H", "text"), 0xDB: (">I", "text"),
    0xDC: (">H", "list"), 0xDD: (">I", "list"), 0xDE: (">H", "map"), 0xDF: (">I", "map"),
}  # fmt: skip


def _sound(make: Callable[[dict[Any, Any]], Any], found: dict[Any, Any]) -> Any:
    try:
        return make(found)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"an array of the message is not one: {type(error).__name__} {error}") from error


def _dtype(name: Any) -> np.dtype:
    # Not any text: numpy parses some as if they were source code.
    if not isinstance(name, str) or not DTYPE.fullmatch(name):
        raise ValueError(f"an array of dtype {name!r} came; wanted numbers, bool or text of fixed length")
    return np.dtype(name)


def _array(found: dict[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(found[b"dtype"]), tuple(found[b"shape"]), found[b"data"]
    items = 1
    for side in shape:
        if not isinstance(side, int) or isinstance(side, bool) or side < 0:
            raise ValueError(f"an array of shape {shape} came; wanted whole numbers of 0 or more")
        items *= side
    if items * dtype.itemsize != len(data):
        raise ValueError(f"an array of {dtype} {shape} came with {len(data)} bytes; wanted {items * dtype.itemsize}")
    return np.ndarray(shape, dtype, buffer=data).copy()


def _generic(found: dict[Any, Any]) -> Any:
    with np.errstate(over="ignore"):
        return _dtype(found[b"dtype"]).type(found[b"data"])
