"""Clients that ask a served policy as fast as they are answered, without torch: `_asking.py URL CLIENTS SECONDS`.

Prints what they met as JSON: of each client its requests, and of each request round trip, inference and batch.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ideomotor.serving.client import AsyncClient

WARM_UP = 3


def observation(metadata: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns random pictures of the wanted sizes, a state and a sentence."""
    wanted, rng = metadata["ideomotor"]["observation"], np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (frame["height"], frame["width"], 3), np.uint8)
        for name, frame in wanted["images"].items()
    }
    state = rng.normal(size=wanted["state"]).astype(np.float32)
    return {"images": images, "state": state, "prompt": "press the button from the top"}


async def one(client: AsyncClient, seed: int, together: asyncio.Barrier, seconds: float) -> list[tuple[float, ...]]:
    """Returns round trip and inference in ms, and the size of the batch, of each request that ended in time; of one
    where none did, on a machine too slow for ``seconds``.
    """
    seen = observation(client.metadata, seed)
    for _ in range(WARM_UP):
        await client.infer(seen)
    await together.wait()
    until, met = time.perf_counter() + seconds, []
    while True:
        reply = await client.infer(seen)
        if met and time.perf_counter() > until:
            return met
        met.append((reply.round_trip_ms, reply.infer_ms, reply.batch))


async def ask(url: str, clients: int, seconds: float) -> list[list[tuple[float, ...]]]:
    """Returns what each of the clients met; they begin together."""
    together = asyncio.Barrier(clients)

    async def asking(seed: int) -> list[tuple[float, ...]]:
        async with AsyncClient(url, timeout=300.0) as client:
            return await one(client, seed, together, seconds)

    return list(await asyncio.gather(*(asking(seed) for seed in range(clients))))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
