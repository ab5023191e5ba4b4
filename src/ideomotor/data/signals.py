"""What is recorded beside the frames of an episode: actions, what they brought, and the robot's own state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32

from ideomotor.types import Dataset, Episode


def read_actions(episode: Episode) -> Float32[np.ndarray, "t action"]:
    """Returns the action taken at each frame.

    Raises:
        ValueError: the episode has none, as many as not to fit its frames, or some that are not finite numbers.
    """
    if episode.read_actions is None:
        raise ValueError(
            f"episode {episode.id!r} has no actions: load with actions=False, or keep only the episodes that have them"
        )
    return _checked(episode, "actions", episode.read_actions)


def read_proprio(episode: Episode) -> Float32[np.ndarray, "t state"] | None:
    """Returns the robot's state at each frame, None where it was not recorded.

    Raises:
        ValueError: there are as many as not to fit the frames, or some that are not finite numbers.
    """
    return None if episode.read_proprio is None else _checked(episode, "proprio", episode.read_proprio)


def read_rewards(episode: Episode) -> Float32[np.ndarray, " t"]:
    """Returns what the action taken at each frame brought.

    Raises:
        ValueError: the episode has none, as many as not to fit its frames, or some that are not finite numbers.
    """
    if episode.read_rewards is None:
        raise ValueError(
            f"episode {episode.id!r} has no rewards: load with rewards=False, or keep only the episodes that have them"
        )
    read = episode.read_rewards
    return _checked(episode, "rewards", lambda: np.asarray(read())[:, None])[:, 0]


def all_actions(dataset: Dataset) -> Float32[np.ndarray, "n action"]:
    """Returns the actions of every episode, one after the other, e.g. to place quantile bins.

    Raises:
        ValueError: an episode has no actions, damaged ones, or ones of another width than the first; it is named.
    """
    if not dataset.episodes:
        raise ValueError(f"dataset {dataset.name!r} has no episodes, so it has no actions: check {dataset.path}")
    parts = [read_actions(episode) for episode in dataset.episodes]
    refuse_other_widths(dataset, "actions", [part.shape[1] for part in parts])
    return np.concatenate(parts)


def all_proprio(dataset: Dataset) -> Float32[np.ndarray, "n state"]:
    """Returns the robot's state of every frame of every episode, e.g. to learn its scale.

    Raises:
        ValueError: an episode has none, damaged ones, or ones of another width than the first; it is named.
    """
    parts = []
    for episode in dataset.episodes:
        states = read_proprio(episode)
        if states is None:
            raise ValueError(
                f"episode {episode.id!r} of dataset {dataset.name!r} has no proprioception: train on images only "
                "(a state width of 0), or on data that has it"
            )
        parts.append(states)
    refuse_other_widths(dataset, "proprio", [part.shape[1] for part in parts])
    return np.concatenate(parts)


def refuse_other_widths(dataset: Dataset, what: str, widths: list[int]) -> None:
    """Refuses episodes whose signals differ in width from the first's.

    Raises:
        ValueError: naming the first such episode.
    """
    for episode, width in zip(dataset.episodes, widths, strict=True):
        if width != widths[0]:
            raise ValueError(
                f"episode {episode.id!r} of dataset {dataset.name!r} has {what} of width {width}, episode "
                f"{dataset.episodes[0].id!r} of width {widths[0]}: make them one, or split the dataset"
            )


def _checked(
    episode: Episode, what: str, read: Callable[[], Float[np.ndarray, "t width"]]
) -> Float32[np.ndarray, "t width"]:
    values = np.asarray(read(), dtype=np.float32)
    if values.ndim != 2 or len(values) != episode.length:
        raise ValueError(
            f"episode {episode.id!r} has {what} of shape {values.shape} for {episode.length} frames; wanted one row "
            "a frame"
        )
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if broken.size:
        raise ValueError(
            f"episode {episode.id!r} has {what} that are not finite in {broken.size} of {episode.length} frames, first "
            f"in frame {broken[0]}: repair the recording or leave it out"
        )
    return values
