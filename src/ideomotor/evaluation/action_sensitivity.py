"""Whether a world model listens to actions: its error with the true ones against wrong ones, video by video.

A model can foretell well and ignore what is done in it, by repeating what usually happens; a policy learned or planned
inside it then learns nothing. The gap of errors is what no such model can have.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.evaluation.statistics import Estimate, mean_of_clips


class ActionSensitivity(NamedTuple):
    """Errors in the unit they came in; a gap above zero, with its whole interval, says that actions are heard.

    Attributes:
        error: mean error with the true actions.
        shuffled: how much more with another video's actions.
        zero: how much more with actions of zero.
    """

    error: Estimate
    shuffled: Estimate
    zero: Estimate


def action_sensitivity(
    true: Float[Tensor, " b"],
    shuffled: Float[Tensor, " b"],
    zero: Float[Tensor, " b"],
    episodes: Sequence[Hashable] | None = None,
) -> ActionSensitivity:
    """Returns the mean gaps with bootstrap intervals of the videos' own gaps.

    Pairing takes out that some videos are harder than others. Imagine the three from the same seeds, so that luck of
    sampling is shared too. In data where all videos do the same, another video's actions are not wrong, and the gap
    tells of the data.

    Args:
        true: error of each video imagined with its own actions; lower is nearer (a squared error or LPIPS, not PSNR).
        shuffled: the same with ``exchanged`` actions.
        zero: the same with actions of zero.
        episodes: which episode each video was cut from; see ``mean_of_clips``.

    Raises:
        ValueError: not one finite error a video in each.
    """
    errors = torch.stack([_checked(true, true), _checked(shuffled, true), _checked(zero, true)]).double()
    gaps = errors - errors[0]
    return ActionSensitivity(
        mean_of_clips(errors[0].tolist(), episodes),
        mean_of_clips(gaps[1].tolist(), episodes),
        mean_of_clips(gaps[2].tolist(), episodes),
    )


def exchanged(actions: Float[Tensor, "b t action"], generator: torch.Generator) -> Float[Tensor, "b t action"]:
    """Returns every video's actions from another video of the batch; none keeps its own.

    Raises:
        ValueError: a single video has nobody to exchange with.
    """
    if len(actions) < 2:
        raise ValueError(f"{len(actions)} video cannot exchange actions; wanted a batch of at least 2")
    order = torch.randperm(len(actions), generator=generator).to(actions.device)
    result = torch.empty_like(actions)
    result[order] = actions[order.roll(1)]  # a ring: everyone gets those of the one before
    return result


def _checked(errors: Tensor, like: Tensor) -> Tensor:
    if errors.ndim != 1 or errors.shape != like.shape or not bool(errors.isfinite().all()):
        raise ValueError(
            f"errors of shape {tuple(errors.shape)} beside {tuple(like.shape)}; wanted one finite error a video, the "
            "same videos with true, shuffled and zero actions"
        )
    return errors.cpu()
