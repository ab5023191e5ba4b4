"""A small world in numpy, for tests and first steps: push the disc to the goal of the named colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ideomotor.envs.world import check_action, check_settings, choose_goal, observation_space
from ideomotor.extras import require

if TYPE_CHECKING:
    import gymnasium as gym
else:
    gym = require("gymnasium", "metaworld")

INSTRUCTIONS: dict[str, str] = {
    "red": "push the disc to the red goal",
    "green": "push the disc to the green goal",
    "blue": "push the disc to the blue goal",
}
TASKS: tuple[str, ...] = tuple(INSTRUCTIONS)
CAMERAS = ("main", "close")

# Lengths are fractions of the table's side; the table is the unit square, x to the right, y upwards.
_HAND, _DISC, _GOAL, _REACHED = 0.04, 0.07, 0.09, 0.04
_TOUCH = _HAND + _DISC
_SPEED = 0.04  # farthest the hand goes in one step
_CLOSE_VIEW = 0.25  # half the side of what the camera "close" sees around the hand
_COLOURS = {"red": (220, 50, 40), "green": (40, 180, 70), "blue": (50, 90, 230)}
_TABLE, _DISC_COLOUR, _HAND_COLOUR = (205, 195, 180), (70, 70, 75), (250, 250, 250)


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Settings of ``ToyEnv``.

    Attributes:
        task: colour of the goal: "red", "green" or "blue".
        cameras: "main" sees the whole table, "close" follows the hand.
        size: side of the square pictures, in pixels.
        horizon: steps after which an episode is truncated.
        goals: the split that ``reset`` draws from where no goal is named.
        goal_seed: seed of the task's 50 layouts.
    """

    task: str = "red"
    cameras: tuple[str, ...] = ("main",)
    size: int = 32
    horizon: int = 100
    goals: Literal["train", "test"] = "train"
    goal_seed: int = 42

    def __post_init__(self) -> None:
        if self.task not in INSTRUCTIONS:
            raise ValueError(f"the toy world has no task {self.task!r}; wanted one of {', '.join(TASKS)}")
        check_settings(self.cameras, CAMERAS, self.size, self.goals)
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon} steps; an episode has at least one")


class ToyEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A hand pushes a disc on a table; two goals lie there, and success is the disc on the one that is named.

    Actions are the hand's displacement x, y in [-1, 1]. Observations, ``info``, goals and the two halves of ``step``
    are as in ``MetaWorldEnv``; ``proprio`` is the hand's place. An episode is a pure function of goal and actions.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own spelling

    def __init__(self, config: ToyConfig | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; this environment knows only 'rgb_array'")
        self.config, self.render_mode = config or ToyConfig(), render_mode
        self.text = INSTRUCTIONS[self.config.task]
        self.observation_space = observation_space(self.config.cameras, self.config.size, 0.0, 1.0, 2)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._hand = self._disc = self._target = self._other = np.full(2, np.nan)
        self._other_colour = ""
        self._steps, self._goal = 0, -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; ``options={"goal": i}`` names one of the layouts 0..49."""
        super().reset(seed=seed)
        goal = choose_goal(options, self.config.goals, self.np_random)
        self._steps, self._goal = 0, goal
        self._lay_out(np.random.Generator(np.random.Philox(key=[self.config.goal_seed, goal])))
        return self.observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Applies one action (clipped to [-1, 1]) and looks."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Applies one action without looking; returns reward, terminated, truncated and info."""
        self._begun()
        if self._steps >= self.config.horizon:
            raise RuntimeError(f"the episode ended at its horizon of {self.config.horizon} steps: call reset()")
        self._hand = np.clip(self._hand + _SPEED * check_action(action, 2, "x and y"), _HAND, 1 - _HAND)
        self._push()
        self._steps += 1
        info = self._info()
        return -self._distance(), info["success"], self._steps >= self.config.horizon, info

    def observe(self) -> dict[str, Any]:
        """Returns what can be seen now."""
        self._begun()
        return {
            "frames": {camera: self._draw(camera) for camera in self.config.cameras},
            "proprio": self._hand.astype(np.float32),
        }

    def expert_action(self) -> np.ndarray:
        """Returns what a scripted expert would do now: walk round the disc until behind it, then push."""
        self._begun()
        away = self._target - self._disc
        ahead = away / max(float(np.linalg.norm(away)), 1e-9)
        behind = self._disc - ahead * (_TOUCH + 0.01)
        lag = self._disc - self._hand
        along = float(lag @ ahead)
        aside = -(lag - along * ahead)  # from the line of pushing to the hand
        if along > 0.9 * _TOUCH and np.linalg.norm(aside) < 0.02:
            gap = max(along - _TOUCH, 0.0)
            return self._towards(ahead * min(_SPEED, gap + float(np.linalg.norm(away))) - aside)
        return self._towards(self._round(behind))

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Returns the first camera's picture (h w c) where ``render_mode`` is "rgb_array"."""
        if self.render_mode is None:
            return None
        return np.ascontiguousarray(self._draw(self.config.cameras[0]).transpose(1, 2, 0))

    def _begun(self) -> None:
        if self._goal < 0:
            raise RuntimeError("the episode has not begun: call reset() first")

    def _lay_out(self, rng: np.random.Generator) -> None:
        others = [colour for colour in TASKS if colour != self.config.task]
        self._other_colour = others[int(rng.integers(len(others)))]
        while True:
            self._disc = rng.uniform(0.3, 0.7, 2)
            self._target, self._other = rng.uniform(0.15, 0.85, (2, 2))
            self._hand = rng.uniform(0.1, 0.9, 2)
            apart = [
                np.linalg.norm(self._disc - self._target) - 0.25,
                np.linalg.norm(self._disc - self._other) - 0.2,
                np.linalg.norm(self._target - self._other) - 0.25,
                np.linalg.norm(self._disc - self._hand) - 0.2,
            ]
            if min(apart) > 0:
                return

    def _push(self) -> None:
        lag = self._disc - self._hand
        distance = float(np.linalg.norm(lag))
        if distance < _TOUCH:
            direction = lag / distance if distance > 1e-9 else np.array([1.0, 0.0])
            self._disc = np.clip(self._hand + direction * _TOUCH, _DISC, 1 - _DISC)
            # A disc against the table's edge holds the hand back.
            self._hand = np.clip(self._disc - direction * _TOUCH, _HAND, 1 - _HAND)

    def _round(self, goal: np.ndarray) -> np.ndarray:
        """The way from the hand to ``goal``, along a circle round the disc where the disc is in between."""
        way = goal - self._hand
        nearest = self._hand + way * np.clip((self._disc - self._hand) @ way / max(way @ way, 1e-9), 0, 1)
        if np.linalg.norm(nearest - self._disc) >= _TOUCH + 0.005:
            return way
        spoke = self._hand - self._disc
        here = np.arctan2(spoke[1], spoke[0])
        there = np.arctan2(*(goal - self._disc)[::-1])
        turn = (there - here + np.pi) % (2 * np.pi) - np.pi
        angle = here + np.clip(turn, -0.5, 0.5)
        return self._disc + (_TOUCH + 0.03) * np.array([np.cos(angle), np.sin(angle)]) - self._hand

    def _towards(self, way: np.ndarray) -> np.ndarray:
        action = way / _SPEED
        return (action / max(1.0, float(np.abs(action).max()))).astype(np.float32)

    def _distance(self) -> float:
        return float(np.linalg.norm(self._disc - self._target))

    def _draw(self, camera: str) -> np.ndarray:
        size = self.config.size
        centre, half = (np.array([0.5, 0.5]), 0.5) if camera == "main" else (self._hand, _CLOSE_VIEW)
        place = (np.arange(size) + 0.5) / size * 2 - 1
        x, y = centre[0] + half * place[None, :], centre[1] - half * place[:, None]
        picture = np.empty((3, size, size))
        picture[:] = np.array(_TABLE, dtype=float)[:, None, None]
        pixel = 2 * half / size
        for where, radius, colour in (
            (self._other, _GOAL, _COLOURS[self._other_colour]),
            (self._target, _GOAL, _COLOURS[self.config.task]),
            (self._disc, _DISC, _DISC_COLOUR),
            (self._hand, _HAND, _HAND_COLOUR),
        ):
            cover = np.clip((radius - np.hypot(x - where[0], y - where[1])) / pixel + 0.5, 0, 1)
            picture += cover * (np.array(colour, dtype=float)[:, None, None] - picture)
        return np.rint(picture).astype(np.uint8)

    def _info(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "task": self.config.task,
            "goal": self._goal,
            "steps": self._steps,
            "success": self._distance() < _REACHED,
        }
