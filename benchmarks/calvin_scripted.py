"""Scripted controllers in CALVIN's four scenes, through the user's own calvin_env: does the loop close?

Each task is tried in scenes in which it is to do (block and other objects placed by the seed), with relative actions
alone and nothing drawn; calvin_env's own oracle says whether it was done within the 360 steps that CALVIN allows. The
controllers know where things are: they show that adapter, actions and oracle fit together, and say nothing about
learned policies. With ``--tiny``, one try of one task in one scene.

    python benchmarks/calvin_scripted.py --home ~/calvin_env --json calvin_scripted.json
"""

from __future__ import annotations

import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import numpy as np

from ideomotor.envs.calvin import CalvinConfig, CalvinEnv, CalvinOracle
from ideomotor.envs.play_table_walk import Walk, Waypoint, grasp_yaw

STEPS = 360
SCALE = 0.8  # calvin_env loads its tables at this size
ABOVE = 0.62  # a height at which nothing is in the way
TABLE_TOP = 0.46  # where the middle of a block on the table is
SLIDER_OPEN, DRAWER_OPEN, SWITCH_ON = 0.25, 0.2, 0.088
PLACES = {"A": 0.05, "B": -0.1, "C": 0.15, "D": 0.15}
"""x around which a block is put on the table, away from the button."""

Home = dict[str, np.ndarray]
Waypoints = list[Waypoint]


def push_button(at: Home, obs: dict[str, np.ndarray]) -> Waypoints:
    """Down onto the button with closed fingers, and up again."""
    x, y, _ = at["button"]
    return [
        Waypoint(place=(x, y, 0.54), grip=-1, near=0.012),
        Waypoint(place=(x, y, 0.44), grip=-1, patience=40, speed=0.5),
        Waypoint(place=(x, y, 0.54), grip=-1),
    ]


def move_drawer(at: Home, obs: dict[str, np.ndarray]) -> Waypoints:
    """Closed fingers hooked behind the handle, or before it, then along y; the handle is a bar across."""
    x, drawer = at["drawer"][0], obs["scene_obs"][1]
    opening = drawer < DRAWER_OPEN / 2
    start = (-0.205 if opening else -0.30) - drawer
    end = start - 0.2 if opening else start + 0.2
    return [
        Waypoint(place=(x, start, 0.5), grip=-1, near=0.015),
        Waypoint(place=(x, start, 0.37), grip=-1, patience=60),
        Waypoint(place=(x, end, 0.37), grip=-1, speed=0.5, patience=120),
    ]


def move_slider(at: Home, obs: dict[str, np.ndarray]) -> Waypoints:
    """Closed fingers beside the handle, a leaning bar 14 cm right of the joint's origin, then along x."""
    slider = obs["scene_obs"][0]
    left = slider < SLIDER_OPEN / 2
    handle, side = at["slide"][0] + 0.14 - slider, 1 if left else -1
    start, end = handle + side * 0.06, handle - side * 0.2
    return [
        Waypoint(place=(start, -0.06, 0.58), grip=-1, near=0.02),
        Waypoint(place=(start, 0.0, 0.55), grip=-1, patience=60),
        Waypoint(place=(end, 0.0, 0.55), grip=-1, speed=0.5, patience=150),
    ]


def move_switch(at: Home, obs: dict[str, np.ndarray]) -> Waypoints:
    """The lever's bar slides up and back on a slope: pushed back it goes up, drawn to the front it comes down."""
    x, up = at["switch"][0], obs["scene_obs"][3]
    back = up < SWITCH_ON / 2
    front_y, height = 0.02 + up * 0.5, 0.53 + up * 0.87
    start = front_y - 0.05 if back else front_y + 0.035
    end = start + 0.13 if back else start - 0.13
    lift = 0.06 if back else -0.06
    return [
        Waypoint(place=(x, start, height + 0.1), grip=-1, near=0.015),
        Waypoint(place=(x, start, height), grip=-1, patience=60),
        Waypoint(place=(x, end, height + lift), grip=-1, speed=0.5, patience=100),
    ]


def lift_block(block: str, names: Sequence[str]) -> Callable[[Home, dict[str, np.ndarray]], Waypoints]:
    """Fingers across the block's short side, closed, and up."""

    def plan(at: Home, obs: dict[str, np.ndarray]) -> Waypoints:
        pose = obs["scene_obs"][6:].reshape(3, 6)[list(names).index(block)]
        x, y, z = pose[:3]
        yaw = grasp_yaw(float(pose[5]), float(obs["robot_obs"][5]))
        return [
            Waypoint(place=(x, y, z + 0.1), yaw=yaw, near=0.01, patience=120),
            Waypoint(place=(x, y, z), yaw=yaw, near=0.006, hold=4, speed=0.5),
            Waypoint(place=(x, y, z), yaw=yaw, grip=-1, hold=12, near=0.02),
            Waypoint(place=(x, y, z + 0.15), yaw=yaw, grip=-1, speed=0.5),
        ]

    return plan


def joint_places(home: Path, scene: str) -> Home:
    """Returns where the joints of a scene's table are, by name without "base__"."""
    root = ElementTree.parse(home / f"data/calvin_table_{scene}/urdf/calvin_table_{scene}.urdf").getroot()
    places = {}
    for joint in root.iter("joint"):
        origin = joint.find("origin")
        assert origin is not None
        numbers = [float(number) for number in origin.attrib["xyz"].split()]
        places[joint.attrib["name"].removeprefix("base__")] = SCALE * np.array(numbers)
    return places


STARTS: dict[str, dict[int, float]] = {
    "turn_on_led": {5: 0},
    "turn_off_led": {5: 1},
    "open_drawer": {1: 0},
    "close_drawer": {1: DRAWER_OPEN},
    "move_slider_left": {0: 0},
    "move_slider_right": {0: SLIDER_OPEN},
    "turn_on_lightbulb": {3: 0, 4: 0},
    "turn_off_lightbulb": {3: SWITCH_ON, 4: 1},
    "lift_red_block_table": {},
    "lift_blue_block_table": {},
    "lift_pink_block_table": {},
}
"""What of ``scene_obs`` a task begins with; blocks that are to be lifted are put on the table."""


def attempt(env: CalvinEnv, oracle: CalvinOracle, task: str, seed: int, at: Home) -> dict[str, Any]:
    """Tries one task once; returns whether and when it was done."""
    observation, info = env.reset(seed=seed)
    names = list(info["scene_info"]["movable_objects"])
    scene = observation["scene_obs"].copy()
    for place, value in STARTS[task].items():
        scene[place] = value
    plans = {"led": push_button, "drawer": move_drawer, "slider": move_slider, "lightbulb": move_switch}
    kind = next((name for name in plans if name in task), None)
    if kind is None:
        block = f"block_{task.split('_')[1]}"
        rng = np.random.default_rng(seed)
        pose = [PLACES[env.config.scene] + rng.uniform(-0.05, 0.05), rng.uniform(-0.13, -0.05), TABLE_TOP, 0, 0]
        _clear(scene, names.index(block), at)
        scene[6:].reshape(3, 6)[names.index(block)] = [*pose, rng.uniform(-np.pi, np.pi)]
        plan = lift_block(block, names)
    else:
        _clear(scene, None, at)
        plan = plans[kind]
    observation, start = env.reset(seed=seed, options={"scene_obs": scene})
    walk, steps, done = Walk(plan(at, observation)), 0, False
    while steps < STEPS and not done and not walk.done:
        _, _, _, info = env.advance(walk.action(env.state()["robot_obs"]))
        steps += 1
        done = bool(oracle.completed(start, info, [task]))
    return {"done": done, "steps": steps}


def _clear(scene: np.ndarray, kept: int | None, at: Home) -> None:
    """Puts the other blocks to the back of the table's cabinet, where no controller passes."""
    for other, x in zip((i for i in range(3) if i != kept), (-0.2, 0.15, 0.03), strict=False):
        scene[6:].reshape(3, 6)[other] = [at["plank"][0] + x, 0.11, TABLE_TOP, 0, 0, 0]


def measure(home: Path, scenes: Sequence[str], tasks: Sequence[str], tries: int) -> list[dict[str, Any]]:
    """Returns one row a task, and one for the speed."""
    oracle = CalvinOracle(home)
    rows: dict[str, dict[str, Any]] = {task: {"task": task} for task in tasks}
    ran, took = 0, 0.0
    for scene in scenes:
        env, at = CalvinEnv(CalvinConfig(scene=scene, cameras=(), path=home)), joint_places(home, scene)  # type: ignore[arg-type]
        for task in tasks:
            began = time.perf_counter()
            outcomes = [attempt(env, oracle, task, seed, at) for seed in range(tries)]
            took += time.perf_counter() - began
            ran += sum(outcome["steps"] for outcome in outcomes)
            rows[task][scene] = f"{sum(outcome['done'] for outcome in outcomes)} of {tries}"
            rows[task].setdefault("steps", []).extend(outcome["steps"] for outcome in outcomes if outcome["done"])
            print(scene, task, rows[task][scene], flush=True)
        env.close()
    for row in rows.values():
        won = row.pop("steps")
        total = sum(int(row[scene].split()[0]) for scene in scenes)
        row |= {"all": f"{total} of {tries * len(scenes)}", "median_steps": int(np.median(won)) if won else None}
    commit = subprocess.run(["git", "-C", str(home), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    speed = f"control steps a second, nothing drawn (calvin_env {commit.stdout.strip()})"
    return [*rows.values(), {"task": speed, "median_steps": round(ran / took)}]


def main() -> None:
    """Runs the benchmark."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--home", type=Path, required=True, help="root of your calvin_env repository")
    parser.add_argument("--tries", type=int, default=5, help="scenes a task and table")
    parser.add_argument("--scenes", nargs="+", default=list("ABCD"))
    parser.add_argument("--tasks", nargs="+", default=list(STARTS), choices=list(STARTS))
    args = parser.parse_args()
    if args.tiny:
        args.tries, args.scenes, args.tasks = 1, ["D"], ["turn_on_led"]
    _table.publish("calvin_scripted", measure(args.home, args.scenes, args.tasks, args.tries), args)


if __name__ == "__main__":
    main()
