"""The demonstrations of VPP's stage 2, and what is learned of the robot that gave them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ideomotor.data.acting_windows import ActingWindow
from ideomotor.data.mixture import Source
from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.policies.own_robots import own_robot, robot_name
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.systems.recorded import recorded_actions, recorded_states
from ideomotor.systems.sources import Sources
from ideomotor.systems.vpp import VPP


def acting_window(config: VPP) -> ActingWindow:
    """Returns the windows of stage 2: a frame, and the chunk of actions from it on."""
    return ActingWindow(
        chunk=config.window.chunk,
        stride=config.action_stride,
        every=config.policy_stage.every,
        remain=config.remain,
    )


def fitted_robot(config: VPP, sources: Sequence[Source]) -> RobotActions | None:
    """Returns what the demonstrations tell of an own robot: scales and average rotations. None where there is none.

    Raises:
        ValueError: states and commands of different length, of another robot, or quaternions that are not unit; the
            episode is named.
    """
    if not config.robot:
        return None
    window = acting_window(config)
    episodes = []
    for episode in (episode for source in sources for episode in source.dataset.episodes):
        states = read_proprio(episode)
        commands = torch.from_numpy(read_actions(episode))
        episodes.append((episode.id, None if states is None else torch.from_numpy(states), commands))
    robot = RobotActions(own_robot(config.robot))
    return robot.fit(episodes, window.chunk, window.stride, window.every)


def refuse_other_width(config: VPP, sources: Sources) -> None:
    """Refuses demonstrations of another robot, and those without the state that the policy is to read.

    Raises:
        ValueError: naming both widths.
    """
    width = recorded_actions(sources.train).shape[1]
    if width == config.command_width:
        _refuse_other_state(config, sources)
        return
    if config.robot:
        raise ValueError(
            f"the demonstrations have actions of width {width}, the robot {robot_name(config.robot)} takes "
            f"{config.command_width}: name the robot that gave them with --robot, or leave it out"
        )
    raise ValueError(
        f"the demonstrations have actions of width {width}, the policy of {config.policy.action_width}: set "
        f"--policy.action-width {width}"
    )


def _refuse_other_state(config: VPP, sources: Sources) -> None:
    """An own robot's states are looked at where they are fitted (``fitted_robot``), others here."""
    wanted = config.policy.proprio_width
    if config.robot or not wanted:
        return
    came = recorded_states(sources.train).shape[1]
    if came != wanted:
        raise ValueError(
            f"the demonstrations have a state of width {came}, the policy is to read one of {wanted}: set "
            f"--policy.proprio-width {came}, or 0 to read none"
        )
