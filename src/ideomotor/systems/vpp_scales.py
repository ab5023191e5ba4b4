"""The scales of a published two-arm policy: percentiles that its release keeps beside the checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ideomotor.policies.edm_transformer import EDMTransformerConfig
from ideomotor.policies.own_robots import own_robot
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.training.checkpoint import read_json

ROBOT = "published_bimanual"
_NAMES = ("state_01", "state_99", "action_01", "action_99")


def robot_of(policy: EDMTransformerConfig, scales: Path | None) -> RobotActions:
    """Returns what the commands of a policy's robot are made with.

    Args:
        policy: of a published policy that acts elsewhere than in CALVIN.
        scales: the release's ``traindata.json``, or a JSON file with the four lists of its YAML: state_01, state_99,
            action_01 and action_99.

    Raises:
        ValueError: it acts on another robot, or the scales are missing or no such file.
    """
    config = own_robot(ROBOT)
    if (policy.action_width, policy.proprio_width) != (config.action_width, config.state_width):
        raise ValueError(
            f"the policy gives actions of width {policy.action_width} and reads a state of {policy.proprio_width}; "
            f"known are CALVIN's policies and those of two arms ({config.action_width} and {config.state_width}): "
            "leave --video out to import its parts"
        )
    if scales is None:
        raise ValueError(
            "a two-arm policy's actions and states are scaled by percentiles, which its checkpoint does not hold. Give "
            f"--scales, a JSON file with the lists {', '.join(_NAMES)} of its YAML (traindata.json of the release's "
            "own preparation), or leave --video out to import its parts"
        )
    robot = RobotActions(config)
    places = (robot.states.low, robot.states.high, robot.actions.low, robot.actions.high)
    for place, value in zip(places, read_scales(scales, config.action_width), strict=True):
        place.copy_(value)
    return robot


def read_scales(path: Path, width: int) -> list[Tensor]:
    """Returns 1st and 99th percentile of the state, then of the action.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks one, or holds one of another width, not finite, or with the 99th below the 1st.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the JSON file with {', '.join(_NAMES)}")
    content = read_json(path)
    found = []
    for name in _NAMES:
        try:
            found.append(torch.tensor(content[name], dtype=torch.float64).flatten())
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no list of {width} numbers {name!r}: give one each for {', '.join(_NAMES)}"
            ) from error
        if len(found[-1]) != width or not found[-1].isfinite().all():
            raise ValueError(f"{name} in {path} holds {len(found[-1])} numbers; wanted {width}, all finite")
    for low, high, kind in ((found[0], found[1], "state"), (found[2], found[3], "action")):
        if (high < low).any():
            raise ValueError(f"{kind}_99 in {path} is below {kind}_01 at {int((high < low).nonzero()[0])}: swapped?")
    return found
