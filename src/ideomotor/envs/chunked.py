"""A world acted on in chunks: several actions a step, and the last few frames at a fixed stride to look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")


class Chunked(gym.Wrapper[dict[str, Any], np.ndarray, dict[str, Any], np.ndarray]):
    """A step is a chunk of actions ``(k, a)``; an observation, the last ``context`` frames, ``stride`` steps apart.

    The frames of an observation are those of steps ``now - (context - 1) * stride, ..., now``; before the episode's
    first frame, that one is repeated. Only frames that some observation needs are drawn: with ``k`` a multiple of
    ``stride``, one in ``stride``. All chunks of an episode have one length, else frames that are needed now may not
    have been drawn.

    A step stops at success or at the horizon; its observation then holds, for older frames that were not drawn, the
    nearest before them. Rewards are summed. ``info`` gains ``executed``, the actions taken in this step.
    """

    def __init__(self, env: gym.Env[Any, Any], *, context: int = 4, stride: int = 4, chunk: int = 8) -> None:
        if min(context, stride, chunk) < 1:
            raise ValueError(f"context={context}, stride={stride}, chunk={chunk}; each must be at least 1")
        for half in ("advance", "observe"):
            if not hasattr(env, half):
                raise TypeError(
                    f"{type(env).__name__} has no {half}(); chunks are for worlds such as ToyEnv, MetaWorldEnv"
                )
        super().__init__(env)
        self.context, self.stride = context, stride
        inner, actions = env.observation_space, env.action_space
        assert isinstance(inner, gym.spaces.Dict) and isinstance(actions, gym.spaces.Box)
        pictures = inner["frames"]
        assert isinstance(pictures, gym.spaces.Dict)
        stacked: dict[str, gym.Space[Any]] = {}
        for camera, space in pictures.items():
            stacked[camera] = gym.spaces.Box(0, 255, (context, *(space.shape or ())), np.uint8)
        self.observation_space = gym.spaces.Dict({"frames": gym.spaces.Dict(stacked), "proprio": inner["proprio"]})
        low, high = (np.broadcast_to(edge, (chunk, *actions.shape)) for edge in (actions.low, actions.high))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self._drawn: dict[int, dict[str, np.ndarray]] = {}
        self._now, self._done = 0, True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; options are the world's own."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._drawn, self._now, self._done = {0: observation["frames"]}, 0, False
        return self._stack(observation["proprio"]), info | {"executed": 0}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes the chunk's actions in order until it, the horizon or success is reached."""
        if self._done:
            raise RuntimeError("the episode is over, or none has begun: call reset() before step()")
        if np.ndim(action) != 2 or len(action) < 1:
            raise ValueError(f"a chunk has shape {np.shape(action)}; wanted (k, a) with at least one action")
        world: Any = self.env
        # Steps that this or a later observation shows; none in between where one frame is all that is shown.
        every = math.gcd(self.stride, len(action)) if self.context > 1 else len(action)
        total, info, terminated, truncated, executed = 0.0, {}, False, False, 0
        for executed, single in enumerate(action, start=1):
            reward, terminated, truncated, info = world.advance(single)
            total, self._now = total + reward, self._now + 1
            self._done = terminated or truncated
            if self._done:
                break
            if executed % every == 0 and executed < len(action):
                self._drawn[self._now] = world.observe()["frames"]
        observation = world.observe()
        self._drawn[self._now] = observation["frames"]
        return self._stack(observation["proprio"]), total, terminated, truncated, info | {"executed": executed}

    def _stack(self, proprio: np.ndarray) -> dict[str, Any]:
        steps = [max(0, self._now - back * self.stride) for back in reversed(range(self.context))]
        for place, step in enumerate(steps):
            if step in self._drawn:
                continue
            if not self._done:
                raise ValueError(
                    f"frame {step} is needed at step {self._now} but was not drawn: give all chunks of an episode one "
                    f"length, best a multiple of the stride {self.stride}"
                )
            steps[place] = max(drawn for drawn in self._drawn if drawn <= step)
        self._drawn = {step: frames for step, frames in self._drawn.items() if step >= steps[0]}
        frames = {camera: np.stack([self._drawn[step][camera] for step in steps]) for camera in self._drawn[steps[-1]]}
        return {"frames": frames, "proprio": proprio}
