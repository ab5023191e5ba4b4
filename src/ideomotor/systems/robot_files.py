"""A robot of the user's own, from a JSON file: the parts of its commands (``policies.own_robots``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ideomotor.evaluation.study import check_keys
from ideomotor.policies.own_robots import OwnRobotConfig, Part
from ideomotor.training.config import config_from_json


def read_robot(path: Path) -> OwnRobotConfig:
    """Returns the robot that a JSON file describes: the fields of ``OwnRobotConfig``, those with a default at will.

    Raises:
        ValueError: there is no such file, it is no JSON, or a field is unknown, missing or of another type.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the JSON file with the parts of your robot's commands")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    whole = _completed(content, OwnRobotConfig, str(path))
    if isinstance(whole["parts"], list):
        whole["parts"] = [_completed(part, Part, f"{path}, part {n}") for n, part in enumerate(whole["parts"])]
    try:
        return config_from_json(OwnRobotConfig, whole, str(path))
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _completed(content: Any, kind: type, where: str) -> dict[str, Any]:
    """The object with the defaults of what it leaves out."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds {content!r}; wanted an object with {', '.join(f.name for f in fields(kind))}")
    check_keys(content, kind, where)
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING} | dict(content)
