"""A robot of the user's own, from a JSON file: what may be left out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ideomotor.policies.own_robots import OwnRobotConfig, Part, own_robot
from ideomotor.systems.robot_files import read_robot
from ideomotor.training.config import config_to_json

LIFT = {"name": "lift", "kind": "joints", "form": "difference", "width": 1}


def test_a_file_says_what_is_not_usual(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"parts": [LIFT], "scaled": False}))
    lift = Part(name="lift", kind="joints", form="difference", width=1)
    assert read_robot(path) == OwnRobotConfig(parts=(lift,), scaled=False)
    whole = own_robot("bimanual")
    path.write_text(json.dumps(config_to_json(whole)))
    assert read_robot(path) == whole
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_robot(path) == whole


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{'parts': []}", "mine.json is no JSON (Expecting property name"),
        ([LIFT], "wanted an object with parts, state, scaled, canonical"),
        ({}, "mine.json: 'parts' is missing"),
        ({"parts": [LIFT], "scale": True}, "there is no key 'scale'; did you mean 'scaled'?"),
        ({"parts": [LIFT | {"knd": "joints"}]}, "mine.json, part 0: there is no key 'knd'; did you mean 'kind'?"),
        ({"parts": [LIFT, {"name": "turn"}]}, "mine.json, part 1: 'kind', 'form', 'width' is missing"),
        ({"parts": [LIFT | {"width": "1"}]}, "mine.json.parts[0].width is '1'; wanted int"),
        ({"parts": {"lift": LIFT}}, "wanted a list"),
        ({"parts": ["lift"]}, "mine.json, part 0 holds 'lift'; wanted an object with name, kind"),
        ({"parts": [LIFT | {"kind": "arm"}]}, "wanted one of 'position', 'quaternion', 'euler', 'joints'"),
        ({"parts": [LIFT | {"width": 0}]}, "of width 0, weight 1.0; wanted width 1 or more and a finite weight"),
        ({"parts": [LIFT | {"weight": float("inf")}]}, "weight inf; wanted width 1 or more and a finite weight"),
        ({"parts": [LIFT | {"weight": 0}]}, "every part's weight is 0"),
        ({"parts": [LIFT], "state": False}, "mine.json: parts ['lift'] are relative to the state"),
    ],
)
def test_what_describes_no_robot_is_refused(content: Any, why: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as refused:
        read_robot(path)
    assert why in str(refused.value) and str(path) in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*mine\.json"):
        read_robot(tmp_path / "mine.json")
