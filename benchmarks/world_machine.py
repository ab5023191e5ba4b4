"""What a machine reaches, and what a step inside the learned world must at least take on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from ideomotor.layers.int8 import Int8Linear, to_int8
from ideomotor.layers.linear import Linear
from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import AutoregressivePredictor

Row = dict[str, Any]
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine reaches: bytes a second read, and multiply-adds' operations a second by precision."""

    bandwidth: float
    operations: dict[str, float]


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Returns CPU-seconds of one call, the least of so many."""
    least = float("inf")
    for _ in range(times):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return max(least, 1e-6)


def measure_machine(tiny: bool) -> Machine:
    """Measures bandwidth by summing numbers that no cache holds, and the rate of matrix products of a prefix's size."""
    many = torch.ones((1 if tiny else 64) * 2**20)
    rates = {name: rate(dtype, tiny) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    return Machine(bandwidth=many.nbytes / seconds(many.sum, 7), operations=rates | {"int8": rates["bf16"]})


@torch.no_grad()
def rate(dtype: torch.dtype, tiny: bool) -> float:
    """Returns operations a second of a matrix product in that precision."""
    side = 64 if tiny else 1024
    linear, x = Linear(side, 4 * side, bias=False).to(dtype), torch.randn(512, side).to(dtype)
    return 2 * linear.weight.numel() * len(x) / seconds(lambda: linear(x), 5)


def floor(
    predictor: AutoregressivePredictor, machine: Machine, weights: str, batch: int, passes: Sequence[tuple[int, int]]
) -> float:
    """Returns the seconds below which those passes cannot be: each of (positions, positions before them)."""
    config = predictor.config
    maps = [part for part in predictor.trunk.modules() if isinstance(part, Linear | Int8Linear)]
    head = predictor.head.weight[: config.dynamics_codes]
    stored = sum(part.weight.nbytes for part in maps) + head.nbytes
    count = sum(part.weight.numel() for part in maps)
    place = 2 * config.trunk.layers * config.trunk.width * 4  # keys and values, float32
    total = 0.0
    for new, before in passes:
        read = (stored + batch * (new + before) * place) / machine.bandwidth
        worked = 2 * batch * (new * count + head.numel()) / machine.operations[weights]
        total += max(read, worked)
    return total


def reduced(predictor: AutoregressivePredictor, weights: str) -> AutoregressivePredictor:
    """Returns the predictor with such weights, a copy where they are other ones."""
    if weights == "fp32":
        return predictor
    copy = deepcopy(predictor)
    if weights == "int8":
        to_int8(copy)
    return copy.bfloat16() if weights == "bf16" else copy
