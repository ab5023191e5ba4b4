import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ideomotor.training.config import config_from_json, config_to_json, differences
from ideomotor.types import LATER


@dataclass(frozen=True, kw_only=True)
class Grid:
    size: tuple[int, int] = (8, 8)


@dataclass(frozen=True, kw_only=True)
class Ring:
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Whole:
    grid: Grid = field(default_factory=Grid)
    shape: Grid | Ring = field(default_factory=Ring)
    widths: tuple[int, ...] = (1, 2, 3)
    grids: tuple[Grid, ...] = (Grid(), Grid(size=(4, 2)))
    weights: Mapping[str, float] = field(default_factory=lambda: {"bridge": 0.5})
    kind: Literal["cosine", "constant"] = "cosine"
    ema: float | None = None
    path: Path | None = Path("a/b")
    lr: float = 1.0
    on: bool = True


def test_round_trip_keeps_types() -> None:
    config = Whole(ema=0.9)
    back = config_from_json(Whole, json.loads(json.dumps(config_to_json(config))))
    assert back == config
    assert isinstance(back.widths, tuple) and isinstance(back.grids[1], Grid) and isinstance(back.path, Path)
    assert isinstance(back.shape, Ring)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, "unknown 'widht'"),
        ({"lr": None}, r"config\.lr is None; wanted float"),
        ({"on": 1}, r"config\.on is 1; wanted bool"),
        ({"kind": "step"}, r"config\.kind is 'step'; wanted one of 'cosine', 'constant'"),
        ({"grid": {"size": [1, 2, 3]}}, r"config\.grid\.size has 3 items; wanted 2"),
        ({"grid": {"size": [1, "x"]}}, r"config\.grid\.size\[1\] is 'x'; wanted int"),
        ({"grids": [{"size": [1, 1]}, {}]}, r"config\.grids\[1\] does not fit Grid: missing 'size'"),
        ({"weights": 3}, r"config\.weights is 3; wanted a mapping"),
        ({"ema": "x"}, r"config\.ema is 'x'; wanted float"),
        ({"grid": 3}, r"config\.grid holds 3"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_json(Whole, config_to_json(Whole()) | change)


def test_missing_keys_are_never_filled_in() -> None:
    data = config_to_json(Whole())
    del data["lr"], data["grid"]
    with pytest.raises(ValueError, match="missing 'grid', 'lr'"):
        config_from_json(Whole, data)


@dataclass(frozen=True)
class Sheet:
    size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Ambiguous:
    part: Grid | Sheet = field(default_factory=Grid)


def test_a_union_that_cannot_be_told_apart_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"config\.part fits each of Grid, Sheet"):
        config_from_json(Ambiguous, config_to_json(Ambiguous()))


def test_what_json_cannot_hold_is_named() -> None:
    @dataclass(frozen=True)
    class Odd:
        dtype: torch.dtype = torch.float32

    with pytest.raises(TypeError, match=r"config\.dtype holds a dtype"):
        config_to_json(Odd())
    with pytest.raises(TypeError, match="wanted an instance of a dataclass"):
        config_to_json({"a": 1})


def test_differences_are_named_by_path() -> None:
    old, new = config_to_json(Whole()), config_to_json(Whole(grid=Grid(size=(8, 4)), lr=2.0))
    assert differences(old, new) == ["grid.size: [8, 8] -> [8, 4]", "lr: 1.0 -> 2.0"]
    assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> '(absent)'", "b: '(absent)' -> 2"]
    assert differences(old, old) == []


@dataclass(frozen=True, kw_only=True)
class Grown:
    lr: float = 1.0
    halved: bool = field(default=False, metadata=LATER)


def test_a_later_field_at_its_default_is_what_files_of_before_say() -> None:
    before = {"lr": 2.0}
    assert config_to_json(Grown(lr=2.0)) == before and config_from_json(Grown, before) == Grown(lr=2.0)
    after = config_to_json(Grown(halved=True))
    assert after == {"lr": 1.0, "halved": True} and config_from_json(Grown, after) == Grown(halved=True)
    with pytest.raises(ValueError, match="missing 'lr'"):
        config_from_json(Grown, {"halved": True})
    with pytest.raises(ValueError, match=r"config\.halved is 1; wanted bool"):
        config_from_json(Grown, before | {"halved": 1})
