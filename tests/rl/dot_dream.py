"""A learned world of the dot, small enough to be learned in a second; as a script, a training that can be killed."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from dot_world import SIZE, DotWorld, config
from torch import nn

from ideomotor.rl.mbpo import MBPOConfig, WorldPart, train
from ideomotor.training import Run
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Borrowed, Clip, Imagined, Losses

OPTIM = OptimConfig(lr=3e-3, warmup=0, schedule="constant")


class Seen(NamedTuple):
    frames: torch.Tensor  # b context c h w


class DotDream(nn.Module):
    """Two frames and an action to the next frame; what it foretells of rewards is read from the foretold frame."""

    context, action_width = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Linear(2 * SIZE**2 + 2, 64), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, SIZE**2))
        self.reward = nn.Sequential(nn.Linear(SIZE**2 + 2, 64), nn.ReLU(), nn.Linear(64, 1))
        self.generator = torch.Generator()

    def foretell(self, frames: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.picture(torch.cat([frames[:, :, 0].flatten(1).float() / 255, action], 1))

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def reset(self, frames: torch.Tensor) -> Seen:
        return Seen(frames[:, -2:])

    @torch.no_grad()
    def step(self, state: Seen, action: torch.Tensor | None = None) -> Imagined:
        assert not self.training, "dropout is off in imagination"
        light = self.foretell(state.frames, action)
        reward = self.reward(torch.cat([light, action], 1))[:, 0]
        light = light + 0.02 * torch.randn(light.shape, generator=self.generator)
        frame = (255 * light.clamp(0, 1)).to(torch.uint8).view(-1, 1, SIZE, SIZE).expand(-1, 3, -1, -1)
        return Imagined(frame, reward, Seen(torch.stack([state.frames[:, 1], frame], 1)))

    def fork(self, state: Seen, times: int) -> Seen:
        return Seen(state.frames.repeat_interleave(times, 0))


class Painted(nn.Module):
    """Owns the picture part: the next frame of each pair."""

    def __init__(self, dream: DotDream) -> None:
        super().__init__()
        self.picture, self.dream = dream.picture, Borrowed(dream)

    def forward(self, clip: Clip) -> Losses:
        video, total = clip.frames["main"], torch.zeros(())
        for t in range(1, video.shape[1] - 1):
            light = self.picture(torch.cat([video[:, t - 1 : t + 1, 0].flatten(1) / 255, clip.actions[:, t]], 1))
            total = total + (light - video[:, t + 1, 0].flatten(1) / 255).square().mean()
        return Losses(total=total)


class Rewarded(nn.Module):
    """Owns the reward part: frame k + 1 comes with the reward of row k."""

    def __init__(self, dream: DotDream) -> None:
        super().__init__()
        self.reward = dream.reward

    def forward(self, clip: Clip) -> Losses:
        video, total = clip.frames["main"], torch.zeros(())
        for t in range(1, video.shape[1] - 1):
            said = self.reward(torch.cat([video[:, t + 1, 0].flatten(1) / 255, clip.actions[:, t]], 1))[:, 0]
            total = total + (said - clip.rewards[:, t]).square().mean()
        return Losses(total=total)


def clip_of(segments, seed) -> Clip:
    text = ("",) * len(segments.frames)
    return Clip(frames={"main": segments.frames}, text=text, actions=segments.actions, rewards=segments.rewards)


def settings(**changes) -> MBPOConfig:
    real = config(steps=26, random_steps=13, batch=8, evaluate_every=20)
    small = {"world_start": 14, "world_initial": 4, "world_batch": 4, "horizon": 4, "imagine_initial": 3}
    small |= {"imagine_every": 2, "imagine_batch": 3, "keep": 3, "validate_every": 1}
    return MBPOConfig(**({"real": real} | small | changes))


def run(folder, settings, trials=(), world=DotWorld, **options):
    with Run(folder, seed=0, config=settings, device="cpu", **options) as stage:
        dream = DotDream()
        parts = [
            WorldPart(learner=stage.learner(Painted(dream), OPTIM, 1), every=2, batch=clip_of),
            WorldPart(learner=stage.learner(Rewarded(dream), OPTIM, 1), every=1, batch=clip_of),
        ]
        return train(stage, settings, world(), world(), dream.eval(), parts, trials)


if __name__ == "__main__":
    import ideomotor.rl.mbpo as loop

    taken = loop._Loop.round

    def told(self, number):
        print(f"round {number}", flush=True)
        return taken(self, number)

    loop._Loop.round = told
    run(Path(sys.argv[1]), settings(), save_steps=int(sys.argv[2]))
