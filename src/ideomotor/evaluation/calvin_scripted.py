"""No simulator and no policy: a scripted table of symbols and a scripted agent, to try CALVIN's evaluation itself.

The table knows what each task does (``calvin_tasks``) and nothing of physics; its first action number says which task
is done, its pictures are grey. The agent does as many tasks of each sequence as its script says. Figures made with them
say nothing of any policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.evaluation.calvin_protocol import SEQUENCE_LENGTH, read_scene
from ideomotor.evaluation.calvin_tasks import INSTRUCTIONS, TASKS, TableState, successors
from ideomotor.types import Clip

ACTION = 7
_SIZES = {"rgb_static": 200, "rgb_gripper": 84}


class ScriptedTable:
    """A table of symbols that answers as CALVIN's would, to actions ``(number of a task, 0, ...)``; -1 does nothing.

    Args:
        scale: pictures are that many times smaller than CALVIN's.
    """

    def __init__(self, scale: int = 1) -> None:
        self._pictures = {
            name: np.full((size // scale, size // scale, 3), 128, np.uint8) for name, size in _SIZES.items()
        }
        self._state: TableState | None = None
        self._robot, self._scene = np.zeros(15), np.zeros(24)
        self._done: Counter[str] = Counter()
        self.looks = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts in the state that ``scene_obs`` of the options shows."""
        if set(options or ()) != {"robot_obs", "scene_obs"}:
            raise ValueError(f"reset options are {sorted(options or ())}; wanted robot_obs and scene_obs")
        assert options is not None
        self._robot, self._scene = np.array(options["robot_obs"]), np.array(options["scene_obs"])
        self._state, self._done = read_scene(self._scene), Counter()
        return self.observe(), self.info()

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Does the task that the action names, where that is possible in exactly one way."""
        assert self._state is not None
        task = TASKS[number] if (number := round(float(action[0]))) >= 0 else None
        ends = successors(self._state, task) if task else []
        if task and len(ends) == 1:
            self._state = ends[0]
            self._done[task] += 1
        return 0.0, False, False, self.info()

    def observe(self) -> dict[str, np.ndarray]:
        """Returns grey pictures and the state at the start."""
        self.looks += 1
        return self._pictures | {"robot_obs": self._robot, "scene_obs": self._scene}

    def info(self) -> dict[str, Any]:
        """Returns how often each task was done."""
        return {"done": dict(self._done)}

    def close(self) -> None:
        """There is nothing to free."""


class ScriptedOracle:
    """Finds done what a ``ScriptedTable`` counted."""

    def completed(self, start: Mapping[str, Any], end: Mapping[str, Any], tasks: Sequence[str]) -> set[str]:
        """Returns which of the tasks were done between two infos."""
        return {task for task in tasks if end["done"].get(task, 0) > start["done"].get(task, 0)}


class ScriptedAgent:
    """Does the tasks that it is told to do, as far into each sequence as its script says, and then nothing.

    Args:
        script: how many tasks it does, by number of the sequence.
        wait: actions before it does one.
        chunk: actions that it answers with.
    """

    def __init__(self, script: Mapping[int, int], *, wait: int = 0, chunk: int = 10) -> None:
        if wait >= chunk:
            raise ValueError(f"wait is {wait}; a chunk of {chunk} actions leaves at most {chunk - 1}")
        self._script, self._wait, self._chunk = script, wait, chunk
        self._tasks = {sentence: float(TASKS.index(task)) for task, sentence in INSTRUCTIONS.items()}
        self._able: dict[int, bool] = {}

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Looks up whether these tasks will be done."""
        for slot, seed in zip(slots, seeds, strict=True):
            sequence, place = divmod(seed, SEQUENCE_LENGTH)
            self._able[slot] = place < self._script[sequence]

    def act(self, context: Clip, slots: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        """Returns chunks with one action that does the task, or none."""
        actions = torch.zeros(len(slots), self._chunk, ACTION)
        actions[:, :, 0] = -1.0
        able = [self._tasks[text] if self._able[slot] else -1.0 for slot, text in zip(slots, context.text, strict=True)]
        actions[:, self._wait, 0] = torch.tensor(able)
        return actions
