"""Messages as bytes: msgpack with openpi's convention for arrays, and nothing in it that could run or outgrow a limit.

An array is the map ``{b"__ndarray__": True, b"data": bytes, b"dtype": text, b"shape": list}``, a number of a NumPy type
``{b"__npgeneric__": True, b"data": number, b"dtype": text}``. Of dtypes only bool, integers and floats up to eight
bytes are known, in little-endian order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ideomotor.extras import require
from ideomotor.serving.limits import Limits, Refused

_TYPES = (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_DTYPES = {
    name: dtype.newbyteorder("<")
    for dtype in map(np.dtype, (*_TYPES, np.float16, np.float32, np.float64))
    for name in (dtype.newbyteorder("<").str, dtype.name)
}
"""What a dtype's text may be ("<f4", "float32"), so that none is ever read by NumPy's own parser."""
_MOST_AXES = 8
_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_NUMBER_KEYS = {b"__npgeneric__", b"data", b"dtype"}

_SKIP, _LIST, _MAP, _FORBIDDEN = range(4)


def _headers() -> list[tuple[int, int, int]]:
    """Of each first byte in msgpack: the kind, how many bytes of length follow, and the length where none do."""
    made = [(_SKIP, 0, 0)] * 256  # small numbers, nil, true and false are their first byte alone
    for low in range(16):
        made[0x80 + low], made[0x90 + low] = (_MAP, 0, low), (_LIST, 0, low)
    for low in range(32):
        made[0xA0 + low] = (_SKIP, 0, low)
    made[0xC1] = (_FORBIDDEN, 0, 0)
    for power, first in enumerate((0xC4, 0xC5, 0xC6)):  # bytes, and texts 0x15 further on
        made[first] = made[first + 0x15] = (_SKIP, 2**power, 0)
    for code in (*range(0xC7, 0xCA), *range(0xD4, 0xD9)):  # extension types
        made[code] = (_FORBIDDEN, 0, 0)
    for first, lengths in ((0xCA, (4, 8)), (0xCC, (1, 2, 4, 8)), (0xD0, (1, 2, 4, 8))):  # floats, integers
        for offset, length in enumerate(lengths):
            made[first + offset] = (_SKIP, 0, length)
    made[0xDC], made[0xDD], made[0xDE], made[0xDF] = (_LIST, 2, 0), (_LIST, 4, 0), (_MAP, 2, 0), (_MAP, 4, 0)
    return made


_HEADERS = _headers()


class Codec:
    """Bytes to message and back, within limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._msgpack = require("msgpack", "serve")

    def pack(self, message: Mapping[str, Any]) -> bytes:
        """Returns the message as bytes.

        Raises:
            TypeError: it holds what the wire does not know, such as an array of objects.
        """
        packed: bytes = self._msgpack.packb(message, default=_packed, use_bin_type=True)
        return packed

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Returns the message in the bytes; its arrays are read-only.

        Raises:
            Refused: ``too_large`` or ``bad_message``; nothing larger than the bytes themselves was allocated.
        """
        check_outline(data, self.limits)
        arrays = _Arrays(self.limits)
        try:
            message = self._msgpack.unpackb(data, raw=False, strict_map_key=True, object_hook=arrays.read)
        except UnicodeDecodeError as error:
            raise Refused("bad_message", f"a text of the message is not UTF-8 ({error.reason})") from error
        except ValueError as error:
            raise Refused("bad_message", f"the message is no msgpack of this protocol: {error}") from error
        if not isinstance(message, dict):
            raise Refused("bad_message", f"the message is a {type(message).__name__}; a map of names was wanted")
        strange = next((key for key in message if not isinstance(key, str)), None)
        if strange is not None:
            raise Refused("bad_message", f"the message has the key {strange[:40]!r}; its keys have to be texts")
        return message


def check_outline(data: bytes, limits: Limits) -> None:
    """Walks over the headers of msgpack alone, before anything is made of it.

    A few bytes can declare lists of millions within each other, and a decoder makes room for what is declared.

    Raises:
        Refused: more objects or depth than the limits have, an extension type, or bytes that end too early or late.
    """
    size, position, objects = len(data), 0, 0
    missing = [1]  # objects that each open container still lacks, the innermost last
    while missing:
        if missing[-1] == 0:
            missing.pop()
            continue
        missing[-1] -= 1
        objects += 1
        if objects > limits.objects:
            raise Refused("too_large", f"the message holds more than {limits.objects} objects: send arrays, not lists")
        if position >= size:
            raise Refused("bad_message", f"the message ends after {size} bytes, in the middle of what it declares")
        kind, width, length = _HEADERS[data[position]]
        position += 1
        if width:
            length = int.from_bytes(data[position : position + width], "big")
            position += width
        if kind == _SKIP:
            position += length
        elif kind == _FORBIDDEN:
            raise Refused("bad_message", f"the message holds the extension type {data[position - 1]:#x}; none is known")
        elif len(missing) > limits.depth:
            raise Refused("too_large", f"the message is nested deeper than {limits.depth} maps and lists")
        else:
            missing.append(length if kind == _LIST else 2 * length)
    if position > size:
        raise Refused("bad_message", f"the message ends after {size} bytes, in the middle of what it declares")
    if position < size:
        raise Refused("bad_message", f"the message goes on for {size - position} bytes after its end")


class _Arrays:
    """Reads the arrays of one message and counts them."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.count = limits, 0

    def read(self, found: dict[Any, Any]) -> Any:
        """Returns the array or number that a map stands for; any other map as it is."""
        if b"__ndarray__" in found:
            self.count += 1
            if self.count > self.limits.arrays:
                raise Refused("too_large", f"the message holds more than {self.limits.arrays} arrays")
            return _array(found, self.limits)
        if b"__npgeneric__" in found:
            return _number(found)
        return found


def _array(found: dict[Any, Any], limits: Limits) -> np.ndarray:
    if found.keys() != _ARRAY_KEYS:
        raise Refused("bad_message", "an array has to have the keys __ndarray__, data, dtype and shape (as bytes)")
    dtype, data, shape = _dtype(found[b"dtype"]), found[b"data"], found[b"shape"]
    if not isinstance(data, bytes):
        raise Refused("bad_message", f"an array's data are a {type(data).__name__}; bytes were wanted")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(type(axis) is int for axis in shape):
        raise Refused("bad_message", f"an array's shape has to be a list of at most {_MOST_AXES} whole numbers")
    if any(axis < 0 for axis in shape):
        raise Refused("bad_message", f"an array's shape is {shape}; no axis can be below 0")
    if any(axis > limits.array_elements for axis in shape) or math.prod(shape) > limits.array_elements:
        raise Refused("too_large", f"an array's shape is {shape}; it may have {limits.array_elements} elements")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Refused(
            "bad_message",
            f"an array's shape {shape} of {dtype.name} takes {math.prod(shape) * dtype.itemsize} bytes; "
            f"it came with {len(data)}",
        )
    if dtype.kind == "b" and data.strip(b"\0\1"):
        raise Refused("bad_message", "an array of bool holds bytes that are neither 0 nor 1")
    return np.ndarray(shape, dtype, buffer=data)


def _number(found: dict[Any, Any]) -> np.generic:
    if found.keys() != _NUMBER_KEYS:
        raise Refused("bad_message", "a number has to have the keys __npgeneric__, data and dtype (as bytes)")
    dtype, value = _dtype(found[b"dtype"]), found[b"data"]
    fitting = {"b": bool, "i": int, "u": int, "f": int | float}[dtype.kind]
    if not isinstance(value, fitting) or (isinstance(value, bool) and dtype.kind != "b"):
        raise Refused("bad_message", f"a number of {dtype.name} came with a {type(value).__name__}")
    if isinstance(value, int) and dtype.kind in "iu" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise Refused("bad_message", f"the number {value} does not fit {dtype.name}")
    with np.errstate(over="ignore"):
        number: np.generic = dtype.type(value)
    return number


def _dtype(text: Any) -> np.dtype[Any]:
    known = _DTYPES.get(text) if isinstance(text, str) else None
    if known is None:
        said = text[:40] if isinstance(text, str | bytes) else type(text).__name__
        raise Refused(
            "bad_message", f"an array's dtype is {said!r}; bool, integers and floats in little-endian order are taken"
        )
    return known


def _packed(value: Any) -> dict[bytes, Any]:
    """What msgpack writes in place of an array or a number of NumPy."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.name not in _DTYPES:
            raise TypeError(
                f"an array of {value.dtype} cannot be sent: only bool, integers and floats up to 8 bytes can"
            )
        ordered = value.dtype.newbyteorder("<")
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": ordered.str}
        content = np.ascontiguousarray(value, dtype=ordered)
        return {b"__ndarray__": True, b"data": content.data, b"dtype": ordered.str, b"shape": value.shape}
    raise TypeError(f"a {type(value).__name__} cannot be sent")
