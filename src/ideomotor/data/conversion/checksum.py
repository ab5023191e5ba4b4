"""CRC-32C, the check of TFRecord files, by numpy: fast enough not to be what a conversion waits for."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import UInt32

_POLYNOMIAL = np.uint32(0x82F63B78)  # Castagnoli's, its bits reversed
_LANES = 1024
_ONES = 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of the bytes.

    The bytes are cut into lanes that are worked on side by side. A check sum without start value is linear, so that of
    the whole is the sum of the lanes', each moved on over the zeros that stand for what follows it.

    Source:
        RFC 3720, appendix B.4, for the polynomial and the test values.
    """
    values = np.frombuffer(data, dtype=np.uint8)
    if len(values) < 4:
        return int(_run(np.array([_ONES], np.uint32), values[:, None])[0]) ^ _ONES
    steps = -(-len(values) // _LANES)
    padded = np.zeros(steps * _LANES, np.uint8)  # zeros in front change nothing where the start value is 0
    padded[len(padded) - len(values) :] = values
    padded[len(padded) - len(values) :][:4] ^= np.uint8(0xFF)  # the same as a start value of ones
    lanes = _run(np.zeros(_LANES, np.uint32), np.ascontiguousarray(padded.reshape(_LANES, steps).T))
    while len(lanes) > 1:
        lanes = _moved(_over_zeros(steps), lanes[0::2]) ^ lanes[1::2]
        steps *= 2
    return int(lanes[0]) ^ _ONES


def masked_crc32c(data: bytes) -> int:
    """Returns the CRC-32C in the disguise in which TFRecord files hold it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ONES


@lru_cache(maxsize=1)
def _table() -> UInt32[np.ndarray, 256]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & np.uint32(1), _POLYNOMIAL, np.uint32(0))
    return table


def _run(state: UInt32[np.ndarray, " lanes"], columns: np.ndarray) -> UInt32[np.ndarray, " lanes"]:
    """The states after one byte a lane for each of the columns."""
    table = _table()
    for column in columns:
        state = table[(state ^ column) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
    return state


@lru_cache(maxsize=256)
def _over_zeros(count: int) -> UInt32[np.ndarray, 32]:
    """What ``count`` zero bytes make of each bit of a state: a matrix over two elements, by its columns."""
    if count == 1:
        return _run(np.uint32(1) << np.arange(32, dtype=np.uint32), np.zeros((1, 32), np.uint8))
    half = _over_zeros(count // 2)
    both = _moved(half, half)
    return _moved(_over_zeros(1), both) if count % 2 else both


def _moved(matrix: UInt32[np.ndarray, 32], states: UInt32[np.ndarray, " lanes"]) -> UInt32[np.ndarray, " lanes"]:
    bits = (states[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)  # lanes 32
    return np.bitwise_xor.reduce(np.where(bits, matrix, np.uint32(0)), axis=1)
