"""What tokenizers are compared on: Meta-World episodes with masks of the movable objects, and real clips.

An episode is a function of task, goal and length, and is kept in a file, so it is made once. Goals of training and of
held-out episodes are those that Meta-World splits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ideomotor.data.cache import first_camera
from ideomotor.data.formats import open_dataset
from ideomotor.data.windows import read_frames
from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv
from ideomotor.envs.world import GOALS
from ideomotor.files import replacing

SIZE, LENGTH = 96, 4  # pixels of a side, and frames of a clip
STRIDE = 4  # Meta-World's steps from one frame of a clip to the next, as in the quickstart
SPAN = STRIDE * (LENGTH - 1)
CAMERA = "corner2"
TASKS = ("button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide")
_NOISE = 0.3  # of the expert's hand: an action cannot be guessed from where the hand is
_REAL = ("bridge", "rt1", "xhand", "npz", "sthv2")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode: ``actions[i]`` is what was done at ``frames[i]``."""

    frames: UInt8[Tensor, "t c h w"]
    masks: Bool[Tensor, "t h w"]
    actions: Float[Tensor, "t action"]

    def starts(self, every: int) -> range:
        """Returns the first frames of the clips that fit in."""
        return range(0, len(self.frames) - SPAN, every)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of four frames.

    Attributes:
        masks: where the movable objects are; None where unknown.
        actions: mean action of the clip; None where unknown.
    """

    frames: UInt8[Tensor, "b t c h w"]
    masks: Bool[Tensor, "b t h w"] | None = None
    actions: Float[Tensor, "b action"] | None = None


def metaworld(
    folder: Path, tasks: Sequence[str], train: int, held_out: int, steps: int
) -> tuple[list[Recording], list[Recording]]:
    """Returns training and held-out episodes, so many a task; what ``folder`` does not hold yet is made."""
    folder.mkdir(parents=True, exist_ok=True)
    goals = (GOALS["train"][:train], GOALS["test"][:held_out])
    parts: tuple[list[Recording], list[Recording]] = ([], [])
    for task in tasks:
        world = MetaWorldEnv(MetaWorldConfig(task=task, cameras=(CAMERA,), size=SIZE, horizon=steps))
        for part, chosen in zip(parts, goals, strict=True):
            part += [_episode(folder, world, goal) for goal in chosen]
        world.close()
    return parts


def clips_of(recordings: Sequence[Recording], every: int) -> Clips:
    """Returns the clips that start at every how many frames."""
    places = [(recording, start) for recording in recordings for start in recording.starts(every)]
    steps = [(recording, range(start, start + SPAN + 1, STRIDE)) for recording, start in places]
    return Clips(
        frames=torch.stack([recording.frames[list(chosen)] for recording, chosen in steps]),
        masks=torch.stack([recording.masks[list(chosen)] for recording, chosen in steps]),
        actions=torch.stack([recording.actions[start : start + SPAN].mean(0) for recording, start in places]),
    )


def random_clips(recordings: Sequence[Recording], batch: int, seed: int) -> Iterator[UInt8[Tensor, "b t c h w"]]:
    """Yields batches of clips without end, each starting anywhere."""
    rng = np.random.default_rng(seed)
    places = [(recording, start) for recording in recordings for start in recording.starts(1)]
    while True:
        chosen = [places[place] for place in rng.integers(len(places), size=batch)]
        yield torch.stack([recording.frames[start : start + SPAN + 1 : STRIDE] for recording, start in chosen])


def real() -> dict[str, Clips]:
    """Returns the real clips by data set, neighbouring frames; none where IDEOMOTOR_SHARED is not set."""
    shared = os.environ.get("IDEOMOTOR_SHARED")
    if not shared:
        print("IDEOMOTOR_SHARED is not set: the table has no real clips")
        return {}
    made = {}
    for name in _REAL:
        dataset = open_dataset(Path(shared) / "data" / "real" / name)
        frames = [
            read_frames(episode, first_camera(dataset)[0], range(start, start + LENGTH), (SIZE, SIZE))
            for episode in dataset.episodes
            for start in range(0, episode.length - LENGTH + 1, LENGTH)
        ]
        made["bair" if name == "npz" else name] = Clips(frames=torch.stack(frames))
    return made


def _episode(folder: Path, world: MetaWorldEnv, goal: int) -> Recording:
    path = folder / f"{world.config.task}-{goal}-{world.config.horizon}.npz"
    if not path.exists():
        arrays = _record(world, goal)
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)
    with np.load(path) as arrays:
        return Recording(**{name: torch.from_numpy(arrays[name]) for name in ("frames", "masks", "actions")})


def _record(world: MetaWorldEnv, goal: int) -> dict[str, np.ndarray]:
    """The expert with a trembling hand, from start to the horizon: success does not end it."""
    rng = np.random.default_rng([goal, *world.config.task.encode()])
    world.reset(options={"goal": goal})
    frames, masks, actions = [], [], []
    for _ in range(world.config.horizon):
        frames.append(world.observe()["frames"][CAMERA])
        masks.append(world.objects()[CAMERA])
        action = world.expert_action() + _NOISE * rng.standard_normal(4)
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        world.advance(actions[-1])
    return {"frames": np.stack(frames), "masks": np.stack(masks), "actions": np.stack(actions)}
