"""Orders at random that need no table and no library's generator: the same for ever, and any place found at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 6


def permuted(
    indices: Int64[np.ndarray, " k"], length: int, seed: int, stream: int, epochs: Int64[np.ndarray, " k"]
) -> Int64[np.ndarray, " k"]:
    """Returns where permutations of ``0..length-1`` put these indices: one permutation for each (seed, stream, epoch).

    A Feistel network over the next even power of two, walked until it lands inside: no table, so any place of any
    epoch is found at once, and no library's shuffle, so the order is the same for ever.
    """
    half = np.uint64(max((length - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    start = mixed(mixed(np.full(len(indices), seed % (1 << 64), dtype=np.uint64)) + np.uint64(stream))
    keys = [mixed(mixed(start + epochs.astype(np.uint64)) + np.uint64(turn)) for turn in range(_ROUNDS)]
    values = indices.astype(np.uint64)
    walking = np.ones(len(indices), dtype=bool)
    while walking.any():
        left, right = values[walking] >> half, values[walking] & mask
        for key in keys:
            left, right = right, left ^ (mixed(right + key[walking]) & mask)
        values[walking] = (left << half) | right
        walking = values >= np.uint64(length)
    return values.astype(np.int64)


def mixed(values: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Returns 64-bit numbers scrambled one to one: the finalizer of SplitMix64.

    Source:
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
