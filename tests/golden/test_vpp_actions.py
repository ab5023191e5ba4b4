"""Numbers of the published VPP code: statistics and scaling of a two-armed robot's actions."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.data.sampling import StridedWindow
from ideomotor.policies.own_robots import published_bimanual
from ideomotor.policies.robot_actions import RobotActions

pytestmark = pytest.mark.golden
EPISODES = range(3)


@pytest.fixture(scope="module")
def recorded(shared):
    return load_file(shared / "golden" / "vpp" / "action_statistics.safetensors")


@pytest.fixture(scope="module")
def robot(recorded):
    episodes = [(str(n), recorded[f"episode_{n}.states"], recorded[f"episode_{n}.actions"]) for n in EPISODES]
    return RobotActions(published_bimanual()).fit(episodes, chunk=8)


def test_statistics(recorded, robot):
    for scale, name in ((robot.states, "state"), (robot.actions, "action")):
        torch.testing.assert_close(scale.low, recorded[f"{name}_01"], atol=1e-12, rtol=0.0)
        torch.testing.assert_close(scale.high, recorded[f"{name}_99"], atol=1e-12, rtol=0.0)


def test_scaling_and_back(recorded, robot):
    given = recorded["denormalise_in"]
    torch.testing.assert_close(robot.actions(given), recorded["normalise_out"], atol=1e-12, rtol=0.0)
    torch.testing.assert_close(robot.actions.inverse(given), recorded["denormalise_out"], atol=1e-12, rtol=0.0)


def test_which_frames_an_item_has(shared, recorded):
    about = json.loads((shared / "golden" / "vpp" / "action_statistics.json").read_text())
    window = StridedWindow(frames=about["sequence_length"], stride=1, start_step=1).window(1.0)
    lengths = [len(recorded[f"episode_{n}.states"]) for n in EPISODES]
    places = [(n, at) for n, length in enumerate(lengths) for at in range(window.anchors(length))]
    assert len(places) == about["n_samples"]
    for row, index in enumerate(recorded["item_index"].tolist()):
        episode, at = places[index]
        assert episode == recorded["item_episode"][row]
        assert window.frame_indices(at, lengths[episode]).tolist() == recorded["item_frame_ids"][row].tolist()


def test_items(recorded, robot):
    for row, episode in enumerate(recorded["item_episode"].tolist()):
        frames = recorded["item_frame_ids"][row]
        states = recorded[f"episode_{episode}.states"][frames[:1]]
        commands = recorded[f"episode_{episode}.actions"][frames][None]
        actions = robot.encode(commands, states)[0].float()
        torch.testing.assert_close(actions, recorded["item_actions_normalised"][row], atol=1e-6, rtol=0.0)
        torch.testing.assert_close(
            robot.proprio(states).float(), recorded["item_state_normalised"][row], atol=1e-6, rtol=0.0
        )
