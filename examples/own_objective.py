"""Your own network and your own loss, trained by the engine: logs, averages, resume to the bit come with it.

    python examples/own_objective.py [OUT]

A small network looks at two frames of a disc and says where it goes next. You see the loss, then its mean error on new
discs beside that of always answering the mean. What you write is a module: ``forward`` takes a Clip, returns Losses.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from ideomotor import Agent, Clip, Losses
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.windows import WindowConfig
from ideomotor.training import OptimConfig, Run, load_model


class SmallPolicy(nn.Module):
    """Frames of 32 px to one action. It is built from one dataclass, which is saved beside its weights."""

    def __init__(self, window: WindowConfig) -> None:
        super().__init__()
        first, second = nn.Conv2d(3 * window.context, 32, 4, stride=4), nn.Conv2d(32, 32, 4, stride=4)
        self.net = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Flatten(), nn.Linear(128, 2))

    def act(self, context: Clip) -> Tensor:
        """Makes it an Agent, which any world can try."""
        return self.net(context.frames["main"].flatten(1, 2) / 127.5 - 1)[:, None]  # b chunk action


class Cloning(nn.Module):
    """The objective: it owns what it trains. What it only uses, it would hold as ``Borrowed(module)``."""

    def __init__(self, policy: SmallPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, clip: Clip) -> Losses:
        error = (self.policy.act(clip) - clip.actions).float()
        return Losses(total=error.square().mean(), terms={"mean_error": error.detach().abs().mean()})


out, steps = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/own"), 250
window = WindowConfig(context=2, horizon=0, stride=2, chunk=1)
seen, new = (Source(dataset=synthetic_dataset(60, seed=seed), window=window) for seed in (0, 1))
with Run(out, seed=0, config=window) as run:  # kill it: the same command goes on
    policy = SmallPolicy(window)
    learner = run.learner(Cloning(policy), OptimConfig(lr=3e-3, warmup=20, ema=0.99), steps)
    run.fit(lambda step: ClipLoader([seen], 32, 0, start=step), learner, steps=steps)
    run.save(policy, window, "policy")
policy, clip = load_model(out / "policy", SmallPolicy, WindowConfig), ClipLoader([new], 256, 0).batch(0)
with torch.no_grad():
    error, spread = (policy.act(clip) - clip.actions).abs(), (clip.actions - clip.actions.mean(0)).abs()
print(f"an Agent: {isinstance(policy, Agent)}; mean error {error.mean():.4f}, of the mean {spread.mean():.4f}")
