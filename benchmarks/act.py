"""What acting costs: CPU-milliseconds of the fine-tuned policy per environment step, with chunked execution.

Rendering and physics are not counted; the frames are random, since the cost depends on sizes and not on content.
Target: at most 25 CPU-ms mean per environment step, one robot at a time (batch 1).

With ``--compile`` each row is followed by that of the compiled agent, measured in the same process.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import torch

from ideomotor import Clip
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.vpdd import VIEW, VPDD, fast
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_compiled import CompiledAgent
from ideomotor.systems.vpdd_stages import load_agent, text_encoder
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.types import Agent


def measured(agent: Agent, config: VPDD, name: str, batch: int, calls: int) -> dict[str, float | str]:
    """Returns one row: the cost of a call, and of a step when ``execute`` actions are carried out a call."""
    shape = (batch, config.window.context, 3, config.size, config.size)
    clip = Clip(
        frames={VIEW: torch.randint(0, 256, shape, dtype=torch.uint8)}, text=("press the button from the top",) * batch
    )
    began = time.perf_counter()
    for _ in range(3):
        agent.act(clip)
    first = time.perf_counter() - began
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        agent.act(clip)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "policy": name,
        "batch": batch,
        "execute": config.execute,
        "calls": calls,
        "s for the first 3 calls": first,
        "CPU-ms a call": 1000 * cpu / calls,
        "wall ms a call": 1000 * wall / calls,
        "CPU-ms a step and robot": 1000 * cpu / calls / config.execute / batch,
    }


def random_agent(config: VPDD, foresight: bool) -> VPDDAgent:
    """Returns an agent of the preset's sizes with random weights."""
    torch.manual_seed(0)
    if not foresight:
        config = replace(config, policy=replace(config.policy, features=(0, 0)))
        return VPDDAgent(config, DiscreteDiffusionPolicy(config.policy), None, None, text_encoder(config))
    policy = DiscreteDiffusionPolicy(config.policy)
    predictor, tokenizer = DiscreteDiffusionPredictor(config.predictor), VQVAE3D(config.tokenizer)
    return VPDDAgent(config, policy, predictor, tokenizer, text_encoder(config))


def surroundings() -> dict[str, float]:
    """Returns what a cost depends on beside the policy."""
    return {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}


def main() -> None:
    """Measures the preset's sizes, and a trained policy where ``--policy`` names one."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--policy", type=Path, help="OUT of a fine-tuning stage, e.g. runs/quickstart/finetune")
    parser.add_argument("--compile", action="store_true", help="compiled acting, too; compiling takes minutes")
    args = parser.parse_args()
    calls = 5 if args.tiny else 100
    make = {
        "fast, with foresight": partial(random_agent, fast(), True),
        "fast, pixels only": partial(random_agent, fast(), False),
    }
    if args.policy is not None:
        make[str(args.policy)] = partial(load_agent, args.policy)
    rows = []
    for name, new in make.items():
        for batch in (1, 20):
            agent, times = new(), calls if batch == 1 else max(2, calls // 5)
            rows.append(measured(agent, agent.config, name, batch, times) | surroundings())
            if args.compile:
                row = measured(CompiledAgent(agent), agent.config, f"{name}, compiled", batch, times)
                gain = float(rows[-1]["CPU-ms a call"]) / float(row["CPU-ms a call"])
                rows.append(row | surroundings() | {"CPU, eager over compiled": gain})
    _table.publish("act", rows, args)


if __name__ == "__main__":
    main()
