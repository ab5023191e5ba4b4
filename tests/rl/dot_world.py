"""A world small enough to be learned from pixels in seconds; run as a script, a training that can be killed."""

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np

from ideomotor.data.replay import ReplayConfig
from ideomotor.evaluation.episodes import EpisodeSpec
from ideomotor.policies.actor_critic import ActorCriticConfig
from ideomotor.rl.drqv2 import PUBLISHED, DrQv2Config
from ideomotor.rl.model_free import ModelFreeConfig, train
from ideomotor.training import Run

SIZE, STEPS = 16, 12


class DotWorld(gym.Env):
    """A bright dot on a dark square is to be moved to the middle; the reward is minus its distance."""

    observation_space = gym.spaces.Box(0, 255, (2, 3, SIZE, SIZE), np.uint8)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(0, 1, 2), 0
        self.frames = [self.look()] * 2
        return np.stack(self.frames), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.15 * np.asarray(action), 0, 1)
        self.steps += 1
        self.frames = [self.frames[-1], self.look()]
        distance = float(np.linalg.norm(self.place - 0.5))
        return np.stack(self.frames), -distance, False, self.steps == STEPS, {"success": distance < 0.15}

    def look(self):
        y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1)
        light = np.exp(-((x - self.place[0]) ** 2 + (y - self.place[1]) ** 2) / 0.02)
        return np.broadcast_to((255 * light).astype(np.uint8), (3, SIZE, SIZE))


def config(**changes):
    network = ActorCriticConfig(stack=2, size=SIZE, actions=2, filters=8, features=16, hidden=64)
    optim = replace(PUBLISHED, lr=2e-3)
    agent = DrQv2Config(network=network, optim=optim, noise=((0, 1.0), (200, 0.2)), follow=0.05, shift=0)
    settings = {"steps": 400, "random_steps": 100, "batch": 32, "evaluate_every": 400, "updates": 2}
    replay = ReplayConfig(stack=2, discount=0.8)
    return ModelFreeConfig(task="dot", agent=agent, replay=replay, **(settings | changes))


TRIALS = [EpisodeSpec(task="dot", seed=1000 + i, goal=0) for i in range(20)]


def run(folder, settings, trials=(), **options):
    with Run(folder, seed=0, config=settings, device="cpu", **options) as stage:
        return train(stage, settings, DotWorld(), DotWorld(), trials)


if __name__ == "__main__":
    out, steps, pause = sys.argv[1:]
    import ideomotor.rl.model_free as loop

    taken = loop._round

    def told(step, *rest):
        print(f"step {step}", flush=True)
        return taken(step, *rest)

    loop._round = told
    run(Path(out), config(steps=int(steps), random_steps=13, batch=8), save_steps=int(pause))
