"""Values that one word of a command line stands for: a layer of the video model, and a robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ideomotor.policies.own_robots import Robot, robot_name
from ideomotor.predictors.svd_unet import Tap, tap_name
from ideomotor.systems.robot_files import read_robot


def registry() -> ConstructorRegistry:
    """Returns what reads such words, wherever a command has one."""
    known = ConstructorRegistry()

    @known.primitive_rule
    def tap(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != Tap:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="BLOCK|BLOCK.LAYER",
            instance_from_str=lambda words: tap_of(words[0]),
            is_instance=lambda value: isinstance(value, int | tuple),
            str_from_instance=lambda value: [tap_name(value)],
        )

    @known.primitive_rule
    def robot(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != Robot:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME|FILE.json",
            instance_from_str=lambda words: robot_of(words[0]),
            is_instance=lambda value: isinstance(value, Robot),
            str_from_instance=lambda value: [value if isinstance(value, str) else robot_name(value)],
        )

    return known


def tap_of(word: str) -> Tap:
    """Returns the up-block 1 of "1", and the layer 2 in it of "1.2".

    Raises:
        ValueError: the word is neither.
    """
    block, point, layer = word.partition(".")
    if not all(number.isascii() and number.isdecimal() for number in ((block, layer) if point else (block,))):
        raise ValueError(f"{word!r} names no up-block (1) and no layer in one (1.2), counted from 0")
    return (int(block), int(layer)) if point else int(block)


def robot_of(word: str) -> Robot:
    """Returns a preset's name as it is, and the robot that a JSON file describes.

    Raises:
        ValueError: the file describes none.
    """
    return read_robot(Path(word)) if word.endswith(".json") else word
