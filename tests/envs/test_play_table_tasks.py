"""The oracle's rules on states made by hand: what counts, and what nearly does."""

import copy
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest

from ideomotor.envs.play_table_tasks import SENTENCES, TASKS, PlayTableOracle


def state(**changes):
    """Three blocks apart on the table, everything off and shut."""
    info = {
        **dict.fromkeys(("slider", "drawer", "button", "lever"), 0.0),
        "lightbulb": 0,
        "led": 0,
        "blocks": {
            name: {"place": np.array([x, -0.1, 0.46]), "quaternion": np.array([1.0, 0, 0, 0]), "speed": 0.0}
            for name, x in (("red", 0.0), ("blue", 0.1), ("pink", 0.2))
        },
        "touches": {"robot": frozenset(), **dict.fromkeys(("red", "blue", "pink"), frozenset({"table"}))},
    }
    return info | changes


def put(info, block, *, by=(0, 0, 0), turned=0.0, tilted=0.0, touches=("table",), robot=(), speed=0.0):
    """The state with one block elsewhere."""
    info = copy.deepcopy(info)
    one = info["blocks"][block]
    one["place"] = one["place"] + np.array(by)
    half = (math.radians(turned) / 2, math.radians(tilted) / 2)
    one["quaternion"] = np.array([math.cos(half[0]), 0, 0, math.sin(half[0])])
    if tilted:
        one["quaternion"] = np.array([math.cos(half[1]), math.sin(half[1]), 0, 0])
    one["speed"] = speed
    info["touches"] |= {block: frozenset(touches), "robot": frozenset(robot)}
    return info


HELD = {"by": (0, 0, 0.1), "touches": ("robot",), "robot": ("red",)}


@pytest.mark.parametrize(
    ("end", "done"),
    [
        (state(), set()),
        (state(slider=0.16), {"move_slider_left"}),
        (state(slider=0.14, drawer=0.11), set()),
        (state(drawer=0.13), {"open_drawer"}),
        (state(led=1), {"turn_on_led"}),
        (state(lightbulb=1, led=1), {"turn_on_lightbulb", "turn_on_led"}),
        (put(state(), "red", by=(0.11, 0, 0)), {"push_red_block_right"}),
        (put(state(), "red", by=(-0.11, 0, 0), touches=("table", "robot")), {"push_red_block_left"}),
        (put(state(), "red", by=(0.09, 0.2, 0)), set()),
        (put(state(), "red", by=(0.11, 0, 0), touches=("plank",)), set()),
        (put(state(), "red", **HELD), {"lift_red_block_table"}),
        (put(state(), "red", by=(0.11, 0, 0.1), touches=("robot",)), {"lift_red_block_table"}),
        (put(state(), "red", by=(0, 0, 0.1), touches=("robot", "blue")), set()),
        (put(state(), "red", by=(0, 0, 0.04), touches=("robot",)), set()),
        (put(state(), "pink", turned=70), {"rotate_pink_block_left"}),
        (put(state(), "pink", turned=-70), {"rotate_pink_block_right"}),
        (put(state(), "pink", turned=50), set()),
        (put(state(), "pink", tilted=90), set()),
        (put(state(), "pink", turned=70, touches=("robot",)), set()),
        (put(state(), "pink", turned=70, by=(0, 0.11, 0)), set()),
        (put(state(), "blue", by=(0, 0, 0.04), touches=("red",)), {"stack_block"}),
        (put(state(), "blue", by=(0, 0, 0.04), touches=("red", "robot")), set()),
        (put(state(), "blue", by=(0, 0, 0.04), touches=("red",), speed=2.0), set()),
        (put(state(), "blue", by=(0, -0.2, -0.08), touches=("drawer",)), {"push_into_drawer"}),
        (put(state(), "blue", by=(0, -0.2, -0.08), touches=("drawer", "robot")), set()),
    ],
)
def test_what_was_done_since_the_start(end, done):
    assert PlayTableOracle().completed(state(), end, TASKS) == done


def test_the_way_back():
    oracle = PlayTableOracle()
    assert oracle.completed(state(slider=0.28, drawer=0.2), state(), TASKS) == {"move_slider_right", "close_drawer"}
    assert oracle.completed(state(lightbulb=1, led=1), state(), TASKS) == {"turn_off_lightbulb", "turn_off_led"}
    stacked = put(state(), "blue", by=(0, 0, 0.04), touches=("red",))
    taken = put(stacked, "blue", by=(0, 0, 0.08), touches=("robot",), robot=("blue",))
    assert oracle.completed(stacked, taken, TASKS) == {"unstack_block"}


@pytest.mark.parametrize(("surface", "task"), [("plank", "place_in_slider"), ("drawer", "place_in_drawer")])
def test_placing_begins_with_the_block_in_the_hand_and_ends_without(surface, task):
    oracle, held = PlayTableOracle(), put(state(), "red", **HELD)
    placed = put(state(), "red", by=(0, 0.2, 0), touches=(surface,))
    assert oracle.completed(held, placed, TASKS) == {task}
    assert not oracle.completed(held, put(placed, "red", touches=(surface, "robot"), robot=("red",)), [task])
    assert not oracle.completed(state(), placed, [task])


def test_only_what_is_asked_for_is_judged():
    oracle = PlayTableOracle()
    assert oracle.completed(state(), state(led=1), ["open_drawer"]) == set()
    with pytest.raises(ValueError, match="fly are unknown"):
        oracle.completed(state(), state(), ["fly"])


def test_there_are_34_tasks_each_with_words_of_its_own():
    assert len(TASKS) == 34 and set(PlayTableOracle().tasks) == set(TASKS)
    said = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    assert len(said) == len(set(said)) and min(len(sentences) for sentences in SENTENCES.values()) >= 2


# Against calvin_env's own oracle, where the user has one.

UIDS = {"robot": 0, "red": 2, "blue": 3, "pink": 4, "world": 6}
LINKS = {"table": -1, "button": 0, "lever": 1, "slider": 2, "drawer": 3, "plank": 6}


def told_as_calvin_env_does(info):
    """Our state in calvin_env's words; a contact is a tuple with the other's number at 2 and its link at 4."""

    def contacts(name):
        others = info["touches"][name]
        return [(0, 0, UIDS.get(other, 5), -1, LINKS.get(other, -1)) for other in others]

    blocks = {
        f"block_{name}": {
            "uid": UIDS[name],
            "current_pos": tuple(block["place"]),
            "current_orn": (*block["quaternion"][1:], block["quaternion"][0]),
            "current_lin_vel": (block["speed"], 0, 0),
            "current_ang_vel": (0, 0, 0),
            "contacts": contacts(name),
        }
        for name, block in info["blocks"].items()
    }
    links = {f"{name}_link": link for name, link in LINKS.items()} | {"base_link": LINKS["table"]}
    scene = {
        "movable_objects": blocks,
        "fixed_objects": {"table": {"uid": 5, "links": links}},
        "doors": {f"base__{'slide' if n == 'slider' else n}": {"current_state": info[n]} for n in ("slider", "drawer")},
        "lights": {name: {"logical_state": info[name]} for name in ("lightbulb", "led")},
    }
    return {"scene_info": scene, "robot_info": {"uid": UIDS["robot"], "contacts": contacts("robot")}}


@pytest.mark.sim
def test_calvin_envs_own_oracle_agrees_on_every_pair_of_states_seen():
    home = os.environ.get("IDEOMOTOR_CALVIN_ENV")
    if not home:
        pytest.skip("IDEOMOTOR_CALVIN_ENV does not name the root of your own calvin_env (it is on no registry)")
    pytest.importorskip("mujoco")
    from ideomotor.envs.calvin import CalvinOracle
    from ideomotor.envs.play_table import PlayTableConfig, PlayTableEnv
    from ideomotor.envs.play_table_scripts import script
    from ideomotor.envs.play_table_starts import scene_for
    from ideomotor.envs.play_table_walk import Walk

    theirs, ours, table = CalvinOracle(Path(home)), PlayTableOracle(), PlayTableEnv(PlayTableConfig(cameras=()))
    found = set()
    for task in TASKS:
        _, info = table.reset(options={"scene_obs": scene_for(task, np.random.default_rng(1))})
        now, seen = table.state(), [info]
        plan = script(task, now["robot_obs"], now["scene_obs"])
        walk = Walk((*plan.before, *plan.task))
        while not walk.done:
            seen.append(table.advance(walk.action(table.state()["robot_obs"]))[3])
        for start, end in itertools.combinations(seen[::8], 2):
            done = ours.completed(start, end, TASKS)
            assert done == theirs.completed(told_as_calvin_env_does(start), told_as_calvin_env_does(end), TASKS)
            found |= done
    assert found == set(TASKS)
