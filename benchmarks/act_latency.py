"""What a chunk of actions costs a client, with and without the server, and what many clients at once gain.

"alone" is the policy called in this process; "served" is a client in another process of this machine, over loopback;
"overhead" is each request's round trip less its own inference. Targets: overhead of at most 2 ms (p50) at 96 px, 8
clients at once served 3 times as fast as one (fast policy, "features"), and the best served of them at most 1.5 times
as often as the worst. Networks have random weights where no ``--run`` names a trained folder; costs do not depend on
them. VPDD's published form is left out: a chunk takes half a minute (``act_cost.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import numpy as np
import torch

from _asking import observation
from act import random_agent
from ideomotor.policies.actor_critic import ActorCritic
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.serving.contract import Contract
from ideomotor.serving.limits import Limits
from ideomotor.serving.policy_backend import PolicyBackend, Served
from ideomotor.serving.server import Server, ServerConfig, running
from ideomotor.systems import dream
from ideomotor.systems.serving import Serving, keep_memory, open_backend, pixel_backend, vpdd_backend, vpp_backend
from ideomotor.systems.vpdd import fast, tiny
from ideomotor.systems.vpp import VPP, Foreseeing, Looking
from ideomotor.systems.vpp_agent import VPPAgent
from ideomotor.systems.vpp_presets import cpu
from ideomotor.systems.vpp_presets import tiny as tiny_vpp
from ideomotor.systems.vpp_text import goal_encoder, token_encoder
from ideomotor.tokenizers.patch_pca import PatchPCA
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig

ASKING = Path(__file__).with_name("_asking.py")
CLIENTS = 8


def idle() -> PolicyBackend:
    """Returns a backend that computes nothing: four pictures of 96 px to eight actions of zeros."""
    contract = Contract(cameras=("main",), size=96, context=4, stride=4, chunk=8, width=4, execute=4)
    served = Served(system="nothing", contract=contract, act=lambda context, *_: torch.zeros(len(context), 8, 4))
    return PolicyBackend(served)


def vpp(config: VPP) -> PolicyBackend:
    """Returns VPP of those sizes with random weights."""
    torch.manual_seed(0)
    sizes = replace(config.vae, scale=1.0)
    vae = (SVDVAE(sizes) if isinstance(sizes, SVDVAEConfig) else PatchPCA(sizes)).eval()
    foreseeing = Foreseeing(config, vae, LatentDiffusion(config.video).eval(), token_encoder(config))
    agent = VPPAgent(config, Looking(config), EDMTransformer(config.head), foreseeing, goal_encoder(config))
    return vpp_backend(agent, Serving())


def policies(small: bool, runs: Sequence[Path]) -> dict[str, Callable[[], Any]]:
    """Returns what is measured, by name."""
    form, video, agent = (tiny(), tiny_vpp(), dream.smallest()) if small else (fast(), cpu(), dream.small())
    network = agent.learning.real.agent.network
    found: dict[str, Callable[[], Any]] = {
        "none (zeros)": idle,
        "vpdd, features": lambda: vpdd_backend(random_agent(form, True), Serving()),
        "vpdd, pixels only": lambda: vpdd_backend(random_agent(form, False), Serving()),
        "vpdd, full": lambda: vpdd_backend(random_agent(form, True), Serving(dial="full")),
        "vpp": lambda: vpp(video),
        "ivideogpt agent": lambda: pixel_backend(ActorCritic(network), Serving()),
    }
    return found | {str(run): partial(open_backend, run) for run in runs}


def alone(backend: Any, seconds: float) -> list[float]:
    """Returns the milliseconds of each chunk, observations checked and joined as for a client."""
    session, seen = backend.session(), observation(backend.metadata, 0) | {"ideomotor": {}}
    took, until = [], time.perf_counter() + seconds
    while len(took) < 5 or time.perf_counter() < until:
        began = time.perf_counter()
        backend.infer([backend.prepare(session, seen)])
        took.append(1000 * (time.perf_counter() - began))
    return took[2:]


def asked(url: str, clients: int, seconds: float) -> list[list[tuple[float, float, int]]]:
    """Returns what the clients of another process met."""
    words = [sys.executable, str(ASKING), url, str(clients), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the clients failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def latency(name: str, direct: Sequence[float], met: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Returns the row of one client."""
    row: dict[str, Any] = {"policy": name, "clients": 1, "requests": len(met)}
    trips = [trip for trip, _, _ in met]
    overhead = [trip - infer for trip, infer, _ in met]
    for what, values in (("alone", direct), ("served", trips), ("overhead", overhead)):
        for share in (50, 95, 99):
            row[f"{what} p{share} ms"] = float(np.percentile(values, share))
    return row


def throughput(
    name: str, seconds: float, single: int, met: Sequence[Sequence[tuple[float, float, int]]]
) -> dict[str, Any]:
    """Returns the row of many clients; ``single`` is what one client was answered in as many seconds."""
    counts = [len(each) for each in met]
    every = [request for each in met for request in each]
    return {
        "policy": name,
        "clients": len(met),
        "requests": len(every),
        "served p50 ms": float(np.percentile([trip for trip, _, _ in every], 50)),
        "served p95 ms": float(np.percentile([trip for trip, _, _ in every], 95)),
        "served p99 ms": float(np.percentile([trip for trip, _, _ in every], 99)),
        "requests/s": len(every) / seconds,
        "over one client": len(every) / max(1, single),
        "mean batch": float(np.mean([batch for _, _, batch in every])),
        "max/min served": max(counts) / max(1, min(counts)),
    }


def measured(name: str, backend: Any, seconds: float) -> list[dict[str, Any]]:
    """Returns the rows of one client and of many; load as it was between them."""
    limits = Limits(rate=1e6, burst=1_000_000)
    direct = alone(backend, seconds)
    with running(Server(backend, ServerConfig(port=0, limits=limits))) as url:
        before = asked(url, 1, seconds / 2)[0]
        many = asked(url, CLIENTS, seconds)
        after = asked(url, 1, seconds / 2)[0]
    load = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    one = [*before, *after]
    return [latency(name, direct, one) | load, throughput(name, seconds, len(one), many) | load]


def main() -> None:
    """Measures every policy."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a trained folder, measured beside them")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    args = parser.parse_args()
    torch.set_num_threads(1)  # this and the next as `ideomotor serve` does
    keep_memory()
    rows = []
    for name, make in policies(args.tiny, args.run).items():
        rows += measured(name, make(), 0.5 if args.tiny else args.seconds)
    _table.publish("act_latency", rows, args)


if __name__ == "__main__":
    main()
