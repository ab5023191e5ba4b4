"""Does a robot's loop hold its rate while a policy computes beside it? The fast policy behind its server, in a process,
a loop of 20 Hz in another, as on a robot's computer of two cores.

The weights are random and so are the pictures: neither changes what a step costs. Chunks are asked for while others are
carried out (``ideomotor.serving.client.run_chunks``); a loop without an action for a step would hold the robot, and is
counted. Target: 20 Hz are held for 10 minutes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing import get_context

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import numpy as np

from ideomotor.serving.client import Client, Limits, Pacer, SafetyFilter, contract_of, run_chunks
from ideomotor.serving.client.pacing import percentiles
from ideomotor.serving.client.runner import BackgroundAsker


def serve_fast(port: int, foresight: bool, tiny: bool) -> None:
    """What the server's process runs: the fast policy (or the tiny one), with random weights."""
    import torch

    from act import random_agent
    from ideomotor.serving.server import ServerConfig, serve
    from ideomotor.systems.serving import Serving, vpdd_backend
    from ideomotor.systems.vpdd import fast
    from ideomotor.systems.vpdd import tiny as tiny_preset

    torch.set_num_threads(1)
    config = tiny_preset() if tiny else fast()
    serve(vpdd_backend(random_agent(config, foresight), Serving()), ServerConfig(port=port))


@contextlib.contextmanager
def served(foresight: bool, tiny: bool) -> Iterator[str]:
    """Inside, the policy is served by a process of its own at the address that this yields."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = get_context("spawn").Process(target=serve_fast, args=(port, foresight, tiny), daemon=True)
    process.start()
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join(10)


def measured(url: str, hz: float, seconds: float) -> dict[str, object]:
    """Returns one row: what rate was held, and what came of the chunks."""
    with Client(url, wait=300) as client:
        contract, seen = contract_of(client.metadata), client.metadata["ideomotor"]["observation"]
        width = client.metadata["ideomotor"]["actions"]["width"]
        draw = np.random.default_rng(0)
        shapes = {name: (about["height"], about["width"], 3) for name, about in seen["images"].items()}
        frames = {name: draw.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
        observation = {"images": frames, "state": np.zeros(seen["state"], np.float32), "prompt": "press the button"}
        chunks, safe = run_chunks(client, blend=2), SafetyFilter(Limits(low=-1, high=1, jump=0.5), width)
        asker = chunks.asker
        assert isinstance(asker, BackgroundAsker)
        while len(asker.round_trips_ms) < 5:  # the first calls of a process are slow
            chunks.act(observation)
            time.sleep(1 / hz)
        asker.round_trips_ms.clear()
        pacer, latencies, ages, held = Pacer(hz), [], [], 0
        own, load = time.process_time(), os.getloadavg()[0]
        while pacer.ticks + pacer.missed < seconds * hz:
            pacer.wait()
            step = chunks.act(observation)
            held += safe.check(step.action).fault != ""
            ages.append(step.age)
            latencies += [] if step.arrived is None else [step.arrived]
        report, own = pacer.report(), time.process_time() - own
        asker.close()
    return {
        "hz": hz,
        "held hz": report.held_hz,
        "steps": report.ticks,
        "missed": report.missed,
        **{f"late ms {name}": value for name, value in report.late_ms.items()},
        **{f"jitter ms {name}": value for name, value in report.jitter_ms.items()},
        "steps without an action": held,
        "chunks": len(latencies),
        "execute": contract.execute,
        "chunk": contract.chunk,
        "latency steps max": max(latencies, default=None),
        "age steps max": max(ages),
        **{f"answer ms {name}": value for name, value in percentiles(np.array(asker.round_trips_ms) / 1000).items()},
        "loop CPU-ms a step": 1000 * own / report.ticks,
        "load before": load,
        "load after": os.getloadavg()[0],
        "niceness": os.nice(0),
    }


def main() -> None:
    """Measures the fast policy, looking and acting as it was built to."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--hz", type=float, default=20.0, help="rate of the loop")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is held")
    parser.add_argument("--pixels-only", action="store_true", help="a policy without foresight")
    args = parser.parse_args()
    seconds = 3.0 if args.tiny else 60 * args.minutes
    with served(not args.pixels_only, args.tiny) as url:
        row = measured(url, args.hz, seconds)
    name = "tiny" if args.tiny else "fast"
    _table.publish("control_loop", [{"policy": name + (", pixels only" if args.pixels_only else ""), **row}], args)


if __name__ == "__main__":
    main()
