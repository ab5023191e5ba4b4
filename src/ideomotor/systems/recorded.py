"""What was recorded beside the frames of a stage's sources: all actions, all states, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.data.mixture import Source
from ideomotor.data.signals import all_actions, all_proprio
from ideomotor.types import Dataset


def recorded_actions(sources: Sequence[Source]) -> Float[Tensor, "n action"]:
    """Returns the actions of all the sources' episodes, one after the other."""
    return _recorded(sources, "actions", all_actions)


def recorded_states(sources: Sequence[Source]) -> Float[Tensor, "n state"]:
    """Returns the robot's states of all the sources' episodes, one after the other."""
    return _recorded(sources, "states", all_proprio)


def _recorded(
    sources: Sequence[Source], what: str, read: Callable[[Dataset], Float[np.ndarray, "n width"]]
) -> Float[Tensor, "n width"]:
    parts = [(source.dataset.name, read(source.dataset)) for source in sources]
    if len({values.shape[1] for _, values in parts}) > 1:
        widths = ", ".join(f"{name!r} of width {values.shape[1]}" for name, values in parts)
        raise ValueError(f"the data sets have {what} {widths}: give data sets of one robot")
    return torch.from_numpy(np.concatenate([values for _, values in parts]))
