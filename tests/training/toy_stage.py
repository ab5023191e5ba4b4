"""A toy stage with everything that makes resume hard: dropout, noise, batch norm, averages, accumulation, two learners.

As a script: ``python toy_stage.py FOLDER STEPS [HANG_AT]`` prints each step, and after step HANG_AT waits to be killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ideomotor.training import OptimConfig, Run
from ideomotor.types import Borrowed, Clip, Losses


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 8
    dropout: float = 0.1


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, config.width),
            nn.BatchNorm1d(config.width),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Regression(nn.Module):
    """Noised actions -> actions."""

    def __init__(self, model: nn.Module, noise: float = 0.1) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, clip: Clip) -> Losses:
        wanted = clip.actions[:, 0]
        error = self.model(wanted + self.noise * torch.randn_like(wanted)).float() - wanted
        loss = error.square().mean()
        return Losses(total=loss, terms={"mse": loss.detach()})


class Judging(nn.Module):
    """Tells the borrowed model's output from its input: a second learner."""

    def __init__(self, judge: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.judge, self.model = judge, Borrowed(model)

    def forward(self, clip: Clip) -> Losses:
        real = clip.actions[:, 0]
        logits = self.judge(torch.cat([real, self.model(real)]))[:, 0]
        truth = torch.cat([torch.ones(len(real)), torch.zeros(len(real))])
        return Losses(total=nn.functional.binary_cross_entropy_with_logits(logits.float(), truth))


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    model: ToyConfig = field(default_factory=ToyConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-2, warmup=2, ema=0.9, accumulate=2))
    steps: int = 4


def clip(step: int, samples: int = 8) -> Clip:
    generator = torch.Generator().manual_seed(step)
    return Clip(text=("",) * samples, actions=torch.randn(samples, 1, 4, generator=generator))


def clips(start: int) -> Iterator[Clip]:
    while True:
        yield clip(start)
        start += 1


def stage(folder: Path, config: StageConfig, hooks=(), held_out=(), **settings) -> dict[str, Tensor]:
    """Trains, saves, and returns a copy of all state of both learners."""
    with Run(folder, seed=3, config=config, **settings) as run:
        model, judge = Toy(config.model), Toy(config.model)
        learners = [
            run.learner(Regression(model), config.optim, config.steps),
            run.learner(Judging(judge, model), OptimConfig(lr=1e-3, warmup=0, schedule="constant"), config.steps),
        ]
        run.fit(clips, *learners, steps=config.steps, held_out=held_out, hooks=hooks)
        run.save(model, config.model, "model")
        return {f"{one.name}.{k}": v.clone() for one in learners for k, v in one.state().tensors.items()}


def main(folder: str, steps: str, hang_at: str = "0") -> None:
    def tell(step: int, metrics: Mapping[str, float]) -> None:
        print("step", step, flush=True)
        if step == int(hang_at):
            time.sleep(600)

    stage(Path(folder), StageConfig(steps=int(steps)), hooks=[tell], save_steps=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
