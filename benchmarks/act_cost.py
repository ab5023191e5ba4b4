"""What one environment step costs: the published VPDD against the fast one at each position of the imagine dial.

CPU-seconds of one process on one thread, fp32 for the published model; it takes 100 denoising steps of both networks
and plans anew at every environment step. The fast one carries out several actions of each chunk. Rendering and physics
are not counted; weights and frames are random, since the cost depends on sizes alone. Targets, as shares of the
published cost: "none" 1/1500, "features" 1/500, "full" (with a decoded video) 1/200; the published model itself at most
65 CPU-seconds.
"""

from __future__ import annotations

import os
import time
from typing import get_args

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import torch

from ideomotor import Clip
from ideomotor.policies.actions import QuantileBins
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy, GPTDiffusionPolicyConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor
from ideomotor.systems.vpdd import VIEW, Dial, fast
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_published import PublishedVPDD
from ideomotor.systems.vpdd_published_agent import PublishedAgent
from ideomotor.systems.vpdd_stages import text_encoder
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.types import Agent


def published(steps: int) -> PublishedAgent:
    """Returns the published Meta-World policy at full size, with random weights."""
    torch.manual_seed(0)
    config = PublishedVPDD(steps=steps, dropout_acting=False)
    assert isinstance(config.policy, GPTDiffusionPolicyConfig)
    bins = QuantileBins(config.policy.classes, 4)
    bins.fit(torch.randn(1000, 4))
    vectors = torch.randn(2, config.predictor.text_width)
    return PublishedAgent(
        config,
        GPTDiffusionPolicy(config.policy),
        PerceiverDiffusionPredictor(config.predictor),
        AxialVQVAE(AxialVQVAEConfig()).eval(),
        lambda sentences: vectors[: len(sentences)],
        bins,
    )


def cost(agent: Agent, clip: Clip, calls: int, execute: int) -> float:
    """Returns CPU-seconds an environment step."""
    began = time.process_time()
    for _ in range(calls):
        agent.act(clip)
    return (time.process_time() - began) / calls / execute


def main() -> None:
    """Measures both in one run."""
    args = _table.parse(__doc__ or "")
    torch.set_num_threads(1)
    config = fast()
    frames = torch.randint(0, 256, (1, config.window.context, 3, 96, 96), dtype=torch.uint8)
    clip = Clip(frames={VIEW: frames}, text=("press the button from the top",))
    steps = 2 if args.tiny else 100
    paper = cost(published(steps), clip, 1, 1) * 100 / steps
    facts = {"threads": 1, "load": os.getloadavg()[0]}
    rows = [{"policy": "published", "executed": 1, "CPU-s a step": paper, "published over this": 1.0, **facts}]
    torch.manual_seed(0)
    policy, predictor = DiscreteDiffusionPolicy(config.policy), DiscreteDiffusionPredictor(config.predictor)
    agent = VPDDAgent(config, policy, predictor, VQVAE3D(config.tokenizer), text_encoder(config))
    for dial in get_args(Dial):
        agent.dial = dial
        cost(agent, clip, 3, 1)
        mine = cost(agent, clip, 3 if args.tiny else 100, config.execute)
        facts["load"] = os.getloadavg()[0]
        rows.append(
            {
                "policy": f"fast, dial at {dial}",
                "executed": config.execute,
                "CPU-s a step": mine,
                "published over this": paper / mine,
                **facts,
            }
        )
    _table.publish("act_cost", rows, args)


if __name__ == "__main__":
    main()
