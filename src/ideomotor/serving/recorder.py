"""What a robot saw and did, recorded as a LeRobotDataset v3.0: to learn from, to look at, to try policies on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float, UInt8

from ideomotor.data.formats.lerobot_writer import LeRobotWriter


class Recorder:
    """Takes one step after another, and stores an episode when it ends; a kill loses at most the episode under way.

    As a context manager it turns what was recorded into the finished dataset at the end; an error leaves the episodes
    on disk, and ``resume=True`` goes on after them. An episode is held in memory until it ends (an hour at 20 Hz of a
    camera of 96x96 pixels is 2 GB), and storing it takes a moment: end it when the robot rests.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: int,
        action_names: Sequence[str] | None = None,
        state_names: Sequence[str] | None = None,
        robot_type: str = "unknown",
        resume: bool = False,
    ) -> None:
        """Opens a recording; cameras and widths are those of the first step.

        Args:
            path: where the finished dataset will be.
            fps: steps a second.
            action_names: what the numbers of an action are called; counted by default.
            state_names: what the numbers of a state are called; counted by default.
            robot_type: free text.
            resume: go on after the episodes of an interrupted recording.

        Raises:
            FileExistsError: the dataset is there already, or unfinished episodes are and ``resume`` is False.
            ValueError: the interrupted recording was begun at other steps a second.
        """
        self.path, self.fps, self.robot_type, self.resume = Path(path), fps, robot_type, resume
        self.action_names, self.state_names = action_names, state_names
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already: remove it or record to another place")
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        if self.partial.exists() and not resume:
            raise FileExistsError(
                f"{self.partial} holds an unfinished recording: go on with resume=True, or remove the folder"
            )
        # Without settings it was killed before its first step was there.
        self._writer = self._reopened() if (self.partial / "recording.json").exists() else None
        self._text: str | None = None
        self._frames: dict[str, list[np.ndarray]] = {}
        self._actions: list[np.ndarray] = []
        self._states: list[np.ndarray] = []
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def stored(self) -> int:
        """How many episodes are safe on disk."""
        return 0 if self._writer is None else len(self._writer.stored)

    @property
    def steps(self) -> int:
        """How many steps the episode under way has."""
        return len(self._actions)

    def begin(self, text: str) -> None:
        """Begins an episode of a task.

        Raises:
            ValueError: another one is under way.
        """
        if self._text is not None:
            raise ValueError(f"the episode {self._text!r} is under way: end or drop it first")
        self._text = text

    def step(
        self,
        images: Mapping[str, UInt8[np.ndarray, "h w 3"]],
        action: Float[np.ndarray, " action"],
        state: Float[np.ndarray, " state"] | None = None,
    ) -> None:
        """Adds what was seen and what was then done.

        Raises:
            ValueError: no episode was begun, a number is not finite, or something is of another size than before.
        """
        if self._text is None:
            raise ValueError("no episode was begun: begin(text) first")
        action = np.array(action, dtype=np.float32)
        vectors = {"action": action} if state is None else {"action": action, "state": np.array(state, np.float32)}
        for name, values in vectors.items():
            if values.ndim != 1 or not np.isfinite(values).all():
                raise ValueError(f"the {name} is {values}; wanted one row of finite numbers")
        for name, frame in images.items():
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                came = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
                raise ValueError(f"camera {name!r} showed {came}; wanted uint8 (h, w, 3)")
        shapes = {f"camera {name!r}": np.shape(frame) for name, frame in images.items()}
        shapes |= {name: values.shape for name, values in vectors.items()}
        if self._shapes and shapes != self._shapes:
            raise ValueError(f"this step has {shapes}; those before it {self._shapes}")
        if self._writer is None:
            self._writer = self._opened(images, vectors)
        self._shapes = shapes
        for name, frame in images.items():
            self._frames.setdefault(name, []).append(np.array(frame))
        self._actions.append(action)
        if state is not None:
            self._states.append(vectors["state"])

    def end(self, outcome: str = "") -> int:
        """Stores the episode and returns its number; it is on disk when this returns.

        Args:
            outcome: "success", "failure", or "" where unknown.

        Raises:
            ValueError: it has no step, or does not fit the episodes before it; it is still there and can be dropped.
        """
        if self._writer is None or self._text is None or not self._actions:
            raise ValueError("no step was recorded: begin an episode and record steps first")
        number = self._writer.add_episode(
            {name: np.stack(frames).transpose(0, 3, 1, 2) for name, frames in self._frames.items()},
            np.stack(self._actions),
            np.stack(self._states) if self._states else None,
            text=self._text,
            outcome=outcome,
        )
        self._clear()
        return number

    def drop(self) -> None:
        """Forgets the episode under way."""
        self._clear()

    def finalize(self) -> Path:
        """Turns the stored episodes into the finished dataset and returns its path; one under way is stored first.

        Raises:
            ValueError: there is no episode.
        """
        if self._actions:
            self.end()
        if self._writer is None:
            raise ValueError(f"nothing was recorded for {self.path}; record an episode before finalize")
        return self._writer.finalize()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        elif self._actions:
            self.end()  # what led to an error is worth looking at

    def _clear(self) -> None:
        self._text = None
        self._frames, self._actions, self._states, self._shapes = {}, [], [], {}

    def _opened(self, images: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray]) -> LeRobotWriter:
        names = {"action": self.action_names, "state": self.state_names}
        counted = {name: names[name] or [f"{name}_{k}" for k in range(len(values))] for name, values in vectors.items()}
        return LeRobotWriter(
            self.path,
            fps=self.fps,
            cameras={name: (frame.shape[0], frame.shape[1]) for name, frame in images.items()},
            action_names=counted["action"],
            state_names=counted.get("state"),
            robot_type=self.robot_type,
            resume=self.resume,
        )

    def _reopened(self) -> LeRobotWriter:
        """The interrupted recording's writer, of the settings that it was begun with."""
        settings: dict[str, Any] = json.loads((self.partial / "recording.json").read_text())
        if settings["fps"] != self.fps:
            raise ValueError(
                f"{self.partial} was begun at {settings['fps']} steps a second, now {self.fps}: give its own"
            )
        return LeRobotWriter(
            self.path,
            fps=self.fps,
            cameras=settings["cameras"],
            action_names=settings["action_names"],
            state_names=settings["state_names"],
            robot_type=settings["robot_type"],
            resume=self.resume,
        )
