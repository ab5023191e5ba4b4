"""Chunks of a robot's commands to actions that a policy learns, and back.

Actions are relative to the state that their chunk begins at, as each ``Part`` says, and scaled to about -1..1 by what
was recorded.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.policies.actions import PercentileScale
from ideomotor.policies.own_robots import OwnRobotConfig, Place, places
from ideomotor.policies.rotations import (
    average,
    euler_of,
    inverse,
    product,
    quaternions_of_euler,
    same_side,
    turned,
    units,
)

_NO_TURN = (0.0, 0.0, 0.0, 1.0)


class RobotActions(nn.Module):
    """Chunks of commands to actions that a policy learns, and back, with the statistics that this takes.

    It is saved beside a policy as any model is: its config as JSON, percentiles and average rotations as tensors.
    """

    sides: Tensor

    def __init__(self, config: OwnRobotConfig) -> None:
        super().__init__()
        self.config = config
        self.actions = PercentileScale(config.action_width)
        self.states = PercentileScale(config.state_width)
        quaternions = sum(part.kind == "quaternion" for part in config.parts)
        self.register_buffer("sides", torch.tensor(_NO_TURN, dtype=torch.float64).repeat(quaternions, 1))

    def fit(
        self,
        episodes: Iterable[tuple[str, Float[Tensor, "t state"] | None, Float[Tensor, "t command"]]],
        chunk: int,
        stride: int = 1,
        every: int = 1,
    ) -> "RobotActions":
        """Learns the scale of actions and states over every window of every episode, and the average rotations.

        Past the end of an episode its last command is repeated.

        Args:
            episodes: the id, states and commands of each, of as many rows.
            chunk: commands of a window.
            stride: frames from one of them to the next.
            every: frames from the start of one window to that of the next.

        Raises:
            ValueError: no episode; or one whose states and commands differ in length, are of another width, not
                finite, or hold a quaternion that is none. It is named.
        """
        recorded = list(self._checked(episodes))
        if not recorded or min(chunk, stride, every) < 1:
            raise ValueError(
                f"{len(recorded)} episodes, chunk={chunk}, stride={stride}, every={every}: wanted at least 1 of each"
            )
        self._average(torch.cat([rows for pair in recorded for rows in pair if rows is not None]))
        states, actions = [], []
        for now, commands in recorded:
            starts = torch.arange(0, len(commands), every)
            rows = (starts[:, None] + stride * torch.arange(chunk)).clamp(max=len(commands) - 1)
            begun = None if now is None else now[starts]
            actions.append(self.relative(commands[rows], begun).flatten(0, 1))
            if begun is not None:
                states.append(self.sided(begun))
        self.actions.fit(torch.cat(actions))
        if states:
            self.states.fit(torch.cat(states))
        return self

    def encode(
        self, commands: Float[Tensor, "b chunk command"], states: Float[Tensor, "b state"] | None = None
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the actions of chunks that begin at ``states``, scaled to [-1, 1] where the config says so."""
        actions = self.relative(commands, states)
        return (self.actions(actions) if self.config.scaled else actions).to(commands.dtype)

    def decode(
        self, actions: Float[Tensor, "b chunk action"], states: Float[Tensor, "b state"] | None = None
    ) -> Float[Tensor, "b chunk command"]:
        """Returns the commands for a robot that stands in ``states``, in its units."""
        _refuse(actions, self.config.action_width, "actions")
        unscaled = self.actions.inverse(actions.double()) if self.config.scaled else actions
        return self.absolute(unscaled, states).to(actions.dtype)

    def proprio(self, states: Float[Tensor, "b state"]) -> Float[Tensor, "b state"]:
        """Returns states as a policy reads them, scaled to [-1, 1] where the config says so."""
        sided = self.sided(states)
        return (self.states(sided) if self.config.scaled else sided).to(states.dtype)

    def sided(self, states: Float[Tensor, "*b state"]) -> Float[Tensor, "*b state"]:
        """Returns the states, as float64, their quaternions nearer to the recorded average where the config says so.

        Raises:
            ValueError: as ``relative``.
        """
        if not self.config.state:
            raise ValueError("states came for a robot whose config records none: set state=True")
        _refuse(states, self.config.state_width, "states")
        if not self.config.canonical:
            return states.double()
        return torch.cat([self._sided(at, states) for at in places(self.config)], -1)

    def relative(
        self, commands: Float[Tensor, "b chunk command"], states: Float[Tensor, "b state"] | None = None
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the actions in the robot's units, as float64.

        Raises:
            ValueError: no state where one is needed, another width, numbers that are not finite, or a quaternion that
                is none.
        """
        _refuse(commands, self.config.command_width, "commands")
        now = self._now(states)
        return torch.cat([self._relative(at, commands.double(), now) for at in places(self.config)], -1)

    def absolute(
        self, actions: Float[Tensor, "b chunk action"], states: Float[Tensor, "b state"] | None = None
    ) -> Float[Tensor, "b chunk command"]:
        """Returns the commands that ``relative`` made these of, as float64; a quaternion's sign may be the other.

        Raises:
            ValueError: as ``relative``.
        """
        _refuse(actions, self.config.action_width, "actions")
        now = self._now(states)
        return torch.cat([self._absolute(at, actions.double(), now) for at in places(self.config)], -1)

    def _now(self, states: Float[Tensor, "b state"] | None) -> Float[Tensor, "b 1 state"] | None:
        if not any(part.form != "absolute" for part in self.config.parts):
            return None
        if states is None:
            raise ValueError("no states came; these actions are relative to the state that each chunk begins at")
        _refuse(states, self.config.state_width, "states")
        return states.double()[:, None]

    def _relative(self, at: Place, commands: Tensor, now: Tensor | None) -> Float[Tensor, "b chunk part"]:
        wanted, form = commands[..., at.command], at.part.form
        if now is None or form == "absolute":
            return self._sided(at, commands)
        here = now[..., at.command]
        if form == "difference":
            return wanted - here
        if form == "gripper_frame":
            return turned(inverse(_rotation(at, now, 1)), wanted - here)
        left = same_side(product(inverse(_rotation(at, now)), _rotation(at, commands)), wanted.new_tensor(_NO_TURN))
        return euler_of(left) if form == "relative_euler" else left

    def _absolute(self, at: Place, actions: Tensor, now: Tensor | None) -> Float[Tensor, "b chunk part"]:
        action, form = actions[..., at.action], at.part.form
        if now is None or form == "absolute":
            return nn.functional.normalize(action, dim=-1) if at.part.kind == "quaternion" else action
        here = now[..., at.command]
        if form == "difference":
            return action + here
        if form == "gripper_frame":
            return here + turned(_rotation(at, now, 1), action)
        left = quaternions_of_euler(action) if form == "relative_euler" else nn.functional.normalize(action, dim=-1)
        wanted = product(_rotation(at, now), left)
        return euler_of(wanted) if at.part.kind == "euler" else wanted

    def _sided(self, at: Place, rows: Tensor) -> Float[Tensor, "*b part"]:
        numbers = rows[..., at.command].double()
        if at.part.kind != "quaternion":
            return numbers
        return same_side(units(numbers, f"part {at.part.name!r}"), self.sides[at.quaternion])

    def _average(self, rows: Float[Tensor, "n command"]) -> None:
        for at in places(self.config):
            if at.part.kind == "quaternion":
                self.sides[at.quaternion] = average(rows[:, at.command])

    def _checked(
        self, episodes: Iterable[tuple[str, Tensor | None, Tensor]]
    ) -> Iterator[tuple[Float[Tensor, "t state"] | None, Float[Tensor, "t command"]]]:
        for name, states, commands in episodes:
            kept = states if self.config.state else None
            if self.config.state and (states is None or len(states) != len(commands)):
                count = "no" if states is None else len(states)
                raise ValueError(
                    f"episode {name!r} has {count} states and {len(commands)} commands; wanted one of each a frame: "
                    "leave it out, or repeat what was not recorded at its last frame"
                )
            try:
                for rows, what in ((kept, "states"), (commands, "commands")):
                    if rows is not None:
                        self._refuse_rows(rows, what)
            except ValueError as error:
                raise ValueError(f"episode {name!r}: {error}") from error
            yield None if kept is None else kept.double(), commands.double()

    def _refuse_rows(self, rows: Tensor, what: str) -> None:
        _refuse(rows, self.config.command_width, what)
        for at in places(self.config):
            if at.part.kind == "quaternion" and at.part.form != "difference":
                units(rows[..., at.command], f"part {at.part.name!r} of the {what}")


def _rotation(at: Place, rows: Tensor, ahead: int = 0) -> Float[Tensor, "*b 4"]:
    """The rotation that is this part, or the one that follows it, as unit quaternions."""
    part, place = at.part, at.command
    if ahead:
        assert at.after is not None
        part, place = at.after, slice(at.command.stop, at.command.stop + at.after.width)
    if part.kind == "euler":
        return quaternions_of_euler(rows[..., place])
    return units(rows[..., place], f"part {part.name!r}")


def _refuse(rows: Tensor, width: int, what: str) -> None:
    if rows.shape[-1] != width:
        raise ValueError(
            f"{what} of width {rows.shape[-1]} came; this robot's have width {width}: give those of the robot that "
            "the config describes"
        )
    finite = rows.isfinite().all(-1)
    if not finite.all():
        place = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"row {list(place)} of the {what} is {rows[place].tolist()}; wanted finite numbers: repair the recording "
            "or leave it out"
        )
