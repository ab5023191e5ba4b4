"""Commands to actions and back: exact, independent of signs, scaled by what was recorded; and what is refused."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from ideomotor.data.formats import open_dataset
from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.policies.actions import PercentileScale
from ideomotor.policies.edm_transformer import EDMTransformerConfig
from ideomotor.policies.own_robots import OWN_ROBOTS, OwnRobotConfig, Part, loss_groups, own_robot, places
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.policies.rotations import euler_of, inverse, product, quaternions_of_euler, same_side, turned
from ideomotor.training.checkpoint import load_model, save_model

ONE_ARM = "xarm_xhand"


def recording(config, length, seed=0):
    """States that wander, and commands a little ahead of them; quaternions near a half turn, of any sign."""
    generator = torch.Generator().manual_seed(seed)
    walk = 0.05 * torch.randn(2, length, config.command_width, generator=generator, dtype=torch.float64).cumsum(1)
    states, commands = walk[0] + 0.3, walk[0] + 0.3 + 0.1 * walk[1]
    for at in places(config):
        if at.part.kind == "quaternion":
            for rows in (states, commands):
                down = rows[:, at.command] * 0.3 + torch.tensor([1.0, 0.0, 0.0, 0.0])
                sign = torch.where(torch.rand(length, 1, generator=generator) < 0.5, -1.0, 1.0)
                rows[:, at.command] = sign * torch.nn.functional.normalize(down, dim=-1)
    return states, commands


def fitted(config, chunk=4):
    return RobotActions(config).fit([(str(n), *recording(config, 20 + n, n)) for n in range(3)], chunk)


@pytest.mark.parametrize("name", OWN_ROBOTS)
def test_commands_come_back(name):
    config = own_robot(name)
    robot = fitted(config)
    states, commands = recording(config, 30, seed=7)
    now, chunks = states[:5], commands[:20].reshape(5, 4, -1)
    actions = robot.relative(chunks, now)
    assert actions.shape == (5, 4, config.action_width)
    again = robot.absolute(actions, now)
    for at in places(config):
        wanted, found = chunks[..., at.command], again[..., at.command]
        if at.part.kind == "quaternion" and at.part.form != "difference":
            found = same_side(found, wanted)
        torch.testing.assert_close(found, wanted)
    encoded = robot.encode(chunks.float(), now.float())
    assert encoded.dtype == torch.float32 and encoded.shape == actions.shape
    if config.scaled:
        assert encoded.abs().max() <= 1
        inside = torch.rand(5, 4, config.action_width, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
        for at in places(config):
            if at.part.form in ("difference", "gripper_frame"):
                part = robot.encode(robot.decode(inside, now), now)[..., at.action]
                torch.testing.assert_close(part, inside[..., at.action], atol=1e-5, rtol=0.0)


def test_presets():
    widths = {name: (c.state_width, c.command_width, c.action_width) for name in OWN_ROBOTS for c in [own_robot(name)]}
    assert widths == {
        "calvin": (0, 7, 7),
        "end_effector": (7, 7, 7),
        "xarm_xhand": (19, 19, 18),
        "bimanual": (38, 38, 38),
        "published_bimanual": (38, 38, 38),
        "aloha": (14, 14, 14),
    }
    groups = [astuple(group) for group in loss_groups(own_robot("bimanual"))]
    assert groups[:3] == [("right_xyz", 0, 3, 2.0), ("right_rotation", 3, 4, 2.0), ("right_hand", 7, 12, 1.0)]
    assert groups[3] == ("left_xyz", 19, 3, 2.0)
    assert [astuple(group)[1:] for group in loss_groups(own_robot(ONE_ARM))] == [(0, 3, 1.0), (3, 3, 1.0), (6, 12, 1.0)]
    for config in map(own_robot, OWN_ROBOTS):
        EDMTransformerConfig(action_width=config.action_width, groups=loss_groups(config))  # refuses gaps
    commands = torch.rand(2, 3, 7) * 2 - 1  # CALVIN's are taken as they are, and need no state
    robot = RobotActions(own_robot("calvin"))
    assert robot.encode(commands).equal(commands) and robot.decode(commands).equal(commands)


@pytest.mark.parametrize("name", ["bimanual", ONE_ARM])
def test_signs_of_quaternions_do_not_matter(name):
    """They do matter to the published differences, which jump by up to 2 where one sign differs."""
    config = own_robot(name)
    robot = fitted(config)
    states, commands = recording(config, 8, seed=3)
    flipped = states.clone(), commands.clone()
    for at in places(config):
        if at.part.kind == "quaternion":
            flipped[0][::2, at.command] *= -1
            flipped[1][::3, at.command] *= -1
    chunks, other = commands[:, None], flipped[1][:, None]
    torch.testing.assert_close(robot.encode(chunks, states), robot.encode(other, flipped[0]))
    torch.testing.assert_close(robot.proprio(states), robot.proprio(flipped[0]))
    published = fitted(own_robot("published_bimanual"))
    if name == "bimanual":
        jump = published.relative(chunks, states) - published.relative(other, flipped[0])
        assert jump.abs().max() > 1
        assert not published.proprio(states).equal(published.proprio(flipped[0]))


def test_statistics_are_of_every_window():
    config = OwnRobotConfig(parts=(Part(name="joints", kind="joints", form="difference", width=2),))
    episodes = [(str(n), *recording(config, 6 + n, n)) for n in range(2)]
    robot = RobotActions(config).fit(episodes, chunk=3, stride=2, every=2)
    actions, states = [], []
    for _, now, commands in episodes:
        for start in range(0, len(now), 2):
            states.append(now[start].numpy())
            actions += [(commands[min(start + 2 * k, len(now) - 1)] - now[start]).numpy() for k in range(3)]
    for scale, rows in ((robot.actions, actions), (robot.states, states)):
        assert scale.low.numpy() == pytest.approx(np.percentile(np.stack(rows), 1, axis=0))
        assert scale.high.numpy() == pytest.approx(np.percentile(np.stack(rows), 99, axis=0))


def test_percentiles_leave_out_a_glitch():
    values = torch.cat([torch.linspace(0, 1, 1001), torch.tensor([50.0])])[:, None]
    scale = PercentileScale(1).fit(values)
    assert scale(torch.tensor([[0.5], [50.0], [-3.0]])).flatten().tolist() == pytest.approx([0, 1, -1], abs=0.02)
    assert scale.inverse(torch.tensor([[1.2]], dtype=torch.float64)).item() > scale.high.item()  # not clipped
    still = PercentileScale(1).fit(torch.full((9, 1), 0.25))
    assert still(torch.tensor([[0.25]])).item() == -1 and still.inverse(torch.tensor([[0.7]])).item() == 0.25


def test_it_is_saved_beside_a_policy(tmp_path):
    plain = RobotActions(own_robot("calvin")).fit([("a", None, torch.rand(9, 7))], 4)
    save_model(tmp_path / "plain", plain, plain.config)
    assert load_model(tmp_path / "plain", RobotActions, OwnRobotConfig).actions.high.equal(plain.actions.high)
    robot = fitted(own_robot("bimanual"))
    save_model(tmp_path, robot, robot.config)
    again = load_model(tmp_path, RobotActions, OwnRobotConfig)
    states, commands = recording(robot.config, 6, seed=5)
    assert again.config == robot.config and again.actions.low.dtype == torch.float64
    assert again.encode(commands[:, None], states).equal(robot.encode(commands[:, None], states))
    assert again.proprio(states).equal(robot.proprio(states))


# What is refused.


def test_unknown_robots_and_parts():
    with pytest.raises(
        ValueError, match=r"no robot 'xarm_xhnd'; did you mean 'xarm_xhand'\? \(robots: calvin, .*--robot mine\.json"
    ):
        own_robot("xarm_xhnd")
    with pytest.raises(ValueError, match="'p' is a position and cannot be 'relative_euler': take one of absolute"):
        Part(name="p", kind="position", form="relative_euler", width=3)
    with pytest.raises(ValueError, match=r"quaternion of width 3, weight 1\.0; wanted width 4"):
        Part(name="q", kind="quaternion", form="difference", width=3)
    with pytest.raises(ValueError, match="weight -1"):
        Part(name="j", kind="joints", form="absolute", width=2, weight=-1)
    joints = Part(name="j", kind="joints", form="difference", width=2)
    with pytest.raises(ValueError, match="each with its own name"):
        OwnRobotConfig(parts=(joints, joints))
    with pytest.raises(ValueError, match=r"\['j'\] are relative to the state: record it"):
        OwnRobotConfig(parts=(joints,), state=False)
    with pytest.raises(ValueError, match="no rotation follows it"):
        OwnRobotConfig(parts=(Part(name="p", kind="position", form="gripper_frame", width=3), joints))


def test_recordings_that_do_not_fit_are_named():
    config = own_robot(ONE_ARM)
    robot = RobotActions(config)
    states, commands = recording(config, 10)
    with pytest.raises(ValueError, match="episode 'a' has 10 states and 9 commands; wanted one of each a frame"):
        robot.fit([("a", states, commands[:-1])], 4)
    with pytest.raises(ValueError, match="episode 'a' has no states"):
        robot.fit([("a", None, commands)], 4)
    with pytest.raises(ValueError, match="episode 'a': commands of width 18 came; this robot's have width 19"):
        robot.fit([("a", states, commands[:, :18])], 4)
    for place, value, message in (
        ((4, 2), float("nan"), r"episode 'b': row \[4\] of the states is .*nan.*; wanted finite numbers"),
        (
            (4, 3),
            0.0,
            r"episode 'b': the quaternion of part 'rotation' of the states at \[4\] .*wanted unit quaternions",
        ),
    ):
        broken = states.clone()
        broken[place] = value
        with pytest.raises(ValueError, match=message):
            robot.fit([("a", states, commands), ("b", broken, commands)], 4)
    with pytest.raises(ValueError, match="0 episodes"):
        robot.fit([], 4)
    with pytest.raises(ValueError, match="chunk=0"):
        robot.fit([("a", states, commands)], 0)


def test_acting_refuses_what_it_cannot_use():
    config = own_robot(ONE_ARM)
    robot = fitted(config)
    states, commands = recording(config, 4)
    with pytest.raises(ValueError, match="relative to the state that each chunk begins at"):
        robot.encode(commands[:, None])
    with pytest.raises(ValueError, match="states of width 18"):
        robot.encode(commands[:, None], states[:, :18])
    with pytest.raises(ValueError, match=r"row \[1\] of the states"):
        robot.proprio(states.index_fill(0, torch.tensor([1]), float("inf")))
    with pytest.raises(ValueError, match=r"row \[0, 0\] of the actions"):
        robot.decode(torch.full((4, 1, 18), float("nan")), states)
    with pytest.raises(ValueError, match=r"the quaternion of part 'rotation' at \[2, 0\]"):
        robot.decode(torch.zeros(4, 1, 18), states.index_fill(0, torch.tensor([2]), 0.4).float())
    with pytest.raises(ValueError, match="a robot whose config records none"):
        RobotActions(own_robot("calvin")).proprio(states)


# Real recordings.


def rows(path):
    """Id, states and commands of every episode."""
    for episode in open_dataset(path).episodes:
        yield episode.id, torch.from_numpy(read_proprio(episode)), torch.from_numpy(read_actions(episode))


@pytest.mark.parametrize("name", ["bridge", "rt1"])
def test_published_actions_of_poses_are_what_the_gripper_sees(shared, name):
    """Their actions are the next state as seen from the gripper: R(rpy)^T dp, R^T R', and whether it is open then."""
    robot = RobotActions(own_robot("end_effector"))
    for _, states, actions in rows(shared / "data" / "real" / name):
        ours = robot.relative(states[1:, None], states[:-1])[:, 0]
        torch.testing.assert_close(ours, actions[:-1].double(), atol=1e-6, rtol=0.0)
        again = robot.absolute(actions[:-1, None], states[:-1])[:, 0]
        turn = product(inverse(quaternions_of_euler(again[:, 3:6])), quaternions_of_euler(states[1:, 3:6]))
        assert turn[:, 3].abs().min() > 1 - 1e-10
        torch.testing.assert_close(again[:, :3], states[1:, :3].double(), atol=1e-6, rtol=0.0)


def test_a_real_hand(shared):
    """State and command have opposite signs in both clips: relative turns are small, published differences near 2."""
    episodes = list(rows(shared / "data" / "real" / "xhand"))
    robot = RobotActions(own_robot(ONE_ARM)).fit(episodes, chunk=8)
    arm = Part(name="rotation", kind="quaternion", form="difference", width=4)
    compared = replace(own_robot(ONE_ARM), parts=(own_robot(ONE_ARM).parts[0], arm, own_robot(ONE_ARM).parts[2]))
    for _, states, commands in episodes:
        actions = robot.relative(commands[:, None], states)[:, 0]
        assert actions[:, :3].abs().max() < 0.02 and actions[:, 3:6].abs().max() < 0.06  # metres, radians
        assert RobotActions(compared).relative(commands[:, None], states)[:, 0, 3].abs().min() > 1.8
        assert (states[:, 3] < 0).all() and (commands[:, 3] > 0).all()
        begun = states.double()
        turn = quaternions_of_euler(actions[:, 3:6])
        reached = product(same_side(begun[:, 3:7], robot.sides[0]), turn)
        torch.testing.assert_close(same_side(reached, commands[:, 3:7]), commands[:, 3:7].double(), atol=1e-6, rtol=0.0)
        scaled = robot.encode(commands[:, None], states)[:, 0]
        back = robot.decode(scaled[:, None], states)[:, 0]
        kept = torch.arange(19)[[*range(3), *range(7, 19)]], torch.arange(18)[[*range(3), *range(6, 18)]]
        error, inside = (back - commands)[:, kept[0]].abs(), scaled[:, kept[1]].abs() < 1
        assert inside.float().mean() > 0.7 and error[inside].max() < 1e-5  # a hand at rest is at a bound
        assert error.mean() < 1e-3  # of metres and radians, what is clipped too
        assert (robot.proprio(states)[:, 3:7].abs() <= 1).all()
    sides = [states[0, 3:7] for _, states, _ in episodes]
    assert robot.sides[0] @ sides[0].double() < -0.9  # the average's largest part is positive


def test_turning_of_vectors_and_eulers_agree_on_a_real_arm(shared):
    """What the wrist moves as seen from itself is as long as what it moves in the world."""
    for _, states, _ in rows(shared / "data" / "real" / "bridge"):
        step = (states[1:, :3] - states[:-1, :3]).double()
        seen = turned(inverse(quaternions_of_euler(states[:-1, 3:6])), step)
        torch.testing.assert_close(seen.norm(dim=-1), step.norm(dim=-1))
        angles = euler_of(quaternions_of_euler(states[:, 3:6]))
        torch.testing.assert_close(angles, states[:, 3:6].double(), atol=1e-6, rtol=0.0)
