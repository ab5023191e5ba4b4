"""What the commands of one's own robot are made of, and what a policy learns of them; presets of some robots.

A robot's commands and states are rows of the same layout, a list of named ``Part``s. ``robot_actions`` does the sums.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ideomotor.policies.edm_transformer import ActionGroup

Kind = Literal["position", "quaternion", "euler", "joints"]
Form = Literal["absolute", "difference", "gripper_frame", "relative_euler", "relative_quaternion"]
_WIDTHS = {"position": 3, "quaternion": 4, "euler": 3}
_FORMS: dict[Kind, tuple[Form, ...]] = {
    "position": ("absolute", "difference", "gripper_frame"),
    "quaternion": ("absolute", "difference", "relative_euler", "relative_quaternion"),
    "euler": ("absolute", "relative_euler"),
    "joints": ("absolute", "difference"),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some neighbouring numbers of a command, and of the state.

    - ``absolute``: the command itself; of a quaternion the sign that is nearer to the recorded average.
    - ``difference``: command less state. Of a quaternion number by number, as published: it depends on the sign that
      either was recorded with, and is there for comparison.
    - ``gripper_frame``: of a position, the difference as seen from the gripper, whose rotation is the next part.
    - ``relative_euler``, ``relative_quaternion``: of a rotation, the turn that is left, R_now^T R_command, as roll,
      pitch and yaw or as a quaternion of positive w.

    Attributes:
        name: in the log.
        kind: quaternions are (x, y, z, w), Euler angles roll, pitch and yaw in radians about fixed axes.
        width: how many numbers of a command; a rotation's action may have another.
        form: what the action is.
        weight: of each of these numbers in the loss, where 1 is that of a plain mean.
    """

    name: str
    kind: Kind
    form: Form
    width: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        wanted = _WIDTHS.get(self.kind, max(self.width, 1))
        if self.width != wanted or not 0 <= self.weight < math.inf:
            more = "" if self.kind in _WIDTHS else " or more"
            raise ValueError(
                f"part {self.name!r}: {self.kind} of width {self.width}, weight {self.weight}; wanted width "
                f"{wanted}{more} and a finite weight of 0 or more"
            )
        if self.form not in _FORMS[self.kind]:
            raise ValueError(
                f"part {self.name!r} is a {self.kind} and cannot be {self.form!r}: take one of "
                f"{', '.join(_FORMS[self.kind])}"
            )

    @property
    def action_width(self) -> int:
        """Numbers of the action."""
        return 3 if self.form == "relative_euler" else self.width


@dataclass(frozen=True, kw_only=True)
class OwnRobotConfig:
    """What the commands of a robot are made of.

    Attributes:
        parts: one after the other, without a gap.
        state: whether states are recorded, in the layout of the commands.
        scaled: whether actions and states are scaled by their percentiles; without, they are in the robot's units.
        canonical: whether the quaternions of states get the sign that is nearer to the recorded average; as recorded
            (and published for two arms) without.
    """

    parts: tuple[Part, ...]
    state: bool = True
    scaled: bool = True
    canonical: bool = True

    def __post_init__(self) -> None:
        if not self.parts or len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError(
                f"parts {[part.name for part in self.parts]} came; wanted at least one, each with its own name"
            )
        if not any(part.weight for part in self.parts):
            raise ValueError("every part's weight is 0, so that nothing would be learned: give one a weight above 0")
        relative = [part.name for part in self.parts if part.form != "absolute"]
        if relative and not self.state:
            raise ValueError(f"parts {relative} are relative to the state: record it, or make them absolute")
        for part, after in zip(self.parts, (*self.parts[1:], None), strict=True):
            if part.form == "gripper_frame" and (after is None or after.kind not in ("quaternion", "euler")):
                raise ValueError(
                    f"part {part.name!r} is to be seen from the gripper, but no rotation follows it: put the "
                    "gripper's rotation there, or take its difference"
                )

    @property
    def command_width(self) -> int:
        """Numbers of a command, and of a state."""
        return sum(part.width for part in self.parts)

    @property
    def state_width(self) -> int:
        """Numbers of a state; 0 where there is none."""
        return self.command_width if self.state else 0

    @property
    def action_width(self) -> int:
        """Numbers of an action."""
        return sum(part.action_width for part in self.parts)


class Place(NamedTuple):
    """Where a part lies: in a command, in an action, and among the quaternions; ``after`` is the next part."""

    part: Part
    after: Part | None
    command: slice
    action: slice
    quaternion: int


def places(config: OwnRobotConfig) -> list[Place]:
    """Returns the parts in order, and where each lies."""
    found, command, action, quaternion = [], 0, 0, 0
    for part, after in zip(config.parts, (*config.parts[1:], None), strict=True):
        ends = command + part.width, action + part.action_width
        found.append(Place(part, after, slice(command, ends[0]), slice(action, ends[1]), quaternion))
        command, action = ends
        quaternion += part.kind == "quaternion"
    return found


def loss_groups(config: OwnRobotConfig) -> tuple[ActionGroup, ...]:
    """Returns the parts as they lie in the action, for ``EDMTransformerConfig.groups``; together they cover it."""
    return tuple(
        ActionGroup(name=at.part.name, first=at.action.start, width=at.part.action_width, weight=at.part.weight)
        for at in places(config)
    )


def calvin() -> OwnRobotConfig:
    """CALVIN's relative actions (x, y, z, roll, pitch, yaw, gripper), already in -1..1: taken as they are."""
    return OwnRobotConfig(parts=_pose("absolute", "euler", "absolute", _gripper()), state=False, scaled=False)


def end_effector() -> OwnRobotConfig:
    """Poses (x, y, z, roll, pitch, yaw, gripper) as 7 numbers: motion as seen from the gripper, and its opening.

    Of the next state as the command these are the actions that BridgeData and RT-1 are passed on with.
    """
    return OwnRobotConfig(parts=_pose("gripper_frame", "euler", "relative_euler", _gripper()))


def xarm_xhand() -> OwnRobotConfig:
    """One arm with a hand: 19 numbers (position, quaternion, 12 joints) become 18, as in VPP's release."""
    return OwnRobotConfig(parts=_pose("difference", "quaternion", "relative_euler", _hand("absolute")))


def bimanual() -> OwnRobotConfig:
    """Two arms with hands, right then left: 38 numbers, of which rotations are relative ones.

    Positions and joints are differences, and what moves the arm counts double, as in VPP's release.
    """
    return OwnRobotConfig(parts=_arms("relative_quaternion"))


def published_bimanual() -> OwnRobotConfig:
    """The same as VPP's release has it: quaternions are subtracted number by number, whatever their signs."""
    return OwnRobotConfig(parts=_arms("difference"), canonical=False)


def aloha() -> OwnRobotConfig:
    """Two arms of six joints with a gripper, left then right: 14 joints, as commanded."""
    arms = (("left_arm", 6), ("left_gripper", 1), ("right_arm", 6), ("right_gripper", 1))
    return OwnRobotConfig(
        parts=tuple(Part(name=name, kind="joints", form="absolute", width=width) for name, width in arms)
    )


OWN_ROBOTS: dict[str, Callable[[], OwnRobotConfig]] = {
    "calvin": calvin,
    "end_effector": end_effector,
    "xarm_xhand": xarm_xhand,
    "bimanual": bimanual,
    "published_bimanual": published_bimanual,
    "aloha": aloha,
}


Robot = str | OwnRobotConfig
"""A preset's name, or a robot of one's own."""


def own_robot(robot: Robot) -> OwnRobotConfig:
    """Returns the preset of that name; what is a robot already, as it is.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(robot, OwnRobotConfig):
        return robot
    name = robot
    if name not in OWN_ROBOTS:
        near = difflib.get_close_matches(name, OWN_ROBOTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"there is no robot {name!r}{hint} (robots: {', '.join(OWN_ROBOTS)}); for another, write its parts into a "
            "JSON file and give that (--robot mine.json, see docs/own_robots.md), or an OwnRobotConfig"
        )
    return OWN_ROBOTS[name]()


def robot_name(robot: Robot) -> str:
    """Returns what messages call a robot: a preset by its name, another by its parts."""
    return repr(robot) if isinstance(robot, str) else f"of {', '.join(part.name for part in robot.parts)}"


def _pose(
    position: Form, kind: Kind, rotation: Form, rest: Part, weight: float = 1.0, arm: str = ""
) -> tuple[Part, ...]:
    return (
        Part(name=f"{arm}xyz", kind="position", form=position, width=3, weight=weight),
        Part(name=f"{arm}rotation", kind=kind, form=rotation, width=_WIDTHS[kind], weight=weight),
        rest,
    )


def _gripper() -> Part:
    return Part(name="gripper", kind="joints", form="absolute", width=1)


def _hand(form: Form, arm: str = "") -> Part:
    return Part(name=f"{arm}hand", kind="joints", form=form, width=12)


def _arms(rotation: Form) -> tuple[Part, ...]:
    return tuple(
        part
        for arm in ("right_", "left_")
        for part in _pose("difference", "quaternion", rotation, _hand("difference", arm), 2.0, arm)
    )
