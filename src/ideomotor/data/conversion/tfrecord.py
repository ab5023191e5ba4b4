"""TFRecord files and the ``tf.train.Example`` messages in them, read without TensorFlow.

A file is a row of records: a length (8 bytes, little-endian), its check sum (4), that many bytes, their check sum (4).
An ``Example`` maps names to lists of bytes, of floats or of whole numbers, in the wire format of protocol buffers.

Source:
    TensorFlow's guide "TFRecord and tf.train.Example"; the protocol buffers' documentation of their encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ideomotor.data.conversion.checksum import masked_crc32c

Feature = list[bytes] | np.ndarray
"""Bytes, or a flat array of float32 or int64."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Record:
    """A record of a file: where its bytes are."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        """Returns its bytes.

        Raises:
            ValueError: they do not fit their check sum.
        """
        with self.path.open("rb") as file:
            file.seek(self.start)
            data, check = file.read(self.length), file.read(4)
        if len(check) < 4 or struct.unpack("<I", check)[0] != masked_crc32c(data):
            raise ValueError(f"{self.path}: the record at byte {self.start} does not fit its check sum: it is damaged")
        return data


def records(path: Path) -> Iterator[Record]:
    """Yields the records of a file; only their lengths are read.

    Raises:
        ValueError: the file is no TFRecord file, or damaged where it says how long a record is.
    """
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(12)
            if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                raise ValueError(
                    f"{path} is damaged at byte {place}, or no TFRecord file (compressed ones are not read)"
                )
            record = Record(path, place + 12, struct.unpack("<Q", head[:8])[0])
            place = record.start + record.length + 4
            if place > size:
                raise ValueError(
                    f"{path} is cut short: the record at byte {record.start} ends at {place}, it at {size}"
                )
            yield record


def parse_example(data: bytes) -> dict[str, Feature]:
    """Returns the features of an ``Example`` by name.

    Raises:
        ValueError: the bytes are none.
    """
    found: dict[str, Feature] = {}
    try:
        for features in _messages(memoryview(data), 1):
            for entry in _messages(features, 1):
                (key,) = _messages(entry, 1)
                found[bytes(key).decode()] = _feature(next(_messages(entry, 2), memoryview(b"")))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"no tf.train.Example of {len(data)} bytes ({error})") from error
    return found


def _feature(message: memoryview) -> Feature:
    for number, kind in ((1, bytes), (2, np.float32), (3, np.int64)):
        for values in _messages(message, number):
            if kind is bytes:
                return [bytes(value) for value in _messages(values, 1)]
            # Numbers stand packed in one field, or each in a field of its own; writers may do either, or both.
            parts = [_floats(part) if kind is np.float32 else _varints(part) for part in _fields(values, 1)]
            return np.concatenate([np.zeros(0, kind), *parts])
    return []


def _floats(part: memoryview) -> np.ndarray:
    return np.frombuffer(part, "<f4")


def _varints(part: memoryview) -> Int64[np.ndarray, " n"]:
    """Whole numbers of seven bits a byte, the lowest first; the eighth bit says that another byte follows."""
    values = np.frombuffer(part, np.uint8)
    ends = np.flatnonzero(values < 128)
    if not len(values):
        return np.zeros(0, np.int64)
    if not len(ends) or ends[-1] != len(values) - 1:
        raise IndexError("a number is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 9:
        raise IndexError("a number has more than 64 bits")
    return np.add.reduceat((values & np.uint8(127)).astype(np.uint64) << (7 * places).astype(np.uint64), starts).view(
        np.int64
    )


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of that number that hold bytes."""
    return _fields(message, wanted, (_BYTES,))


def _fields(
    message: memoryview, wanted: int, kinds: tuple[int, ...] = (_VARINT, _BYTES, _FIXED32)
) -> Iterator[memoryview]:
    """The bytes of each field of that number; other fields are passed over."""
    place = 0
    while place < len(message):
        tag, place = _number(message, place)
        kind = tag & 7
        start = place
        if kind == _VARINT:
            _, place = _number(message, place)
        elif kind == _BYTES:
            length, start = _number(message, place)
            place = start + length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise IndexError(f"a field of unknown kind {kind}")
        if place > len(message):
            raise IndexError("a field is cut short")
        if tag >> 3 == wanted and kind in kinds:
            yield message[start:place]


def _number(message: memoryview, place: int) -> tuple[int, int]:
    """The whole number at that place, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
