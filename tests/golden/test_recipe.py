"""The rule that gives weights by name."""

import json

import pytest
from recipe import hashed, tensor

pytestmark = pytest.mark.golden


def test_check_values(shared):
    rule, same = (
        json.loads((shared / "golden" / name / "weights_recipe.json").read_text()) for name in ("vpdd", "vpp")
    )
    assert rule == same
    for name, values in rule["first_eight_k"].items():
        assert hashed(name, 8).tolist() == values
    check = rule["long_tensor_check"]
    assert hashed(check["name"], 20_971_520)[check["position_of_value"]].tolist() == check["k"]
    assert tensor("latents", (2, 2), 1.0, 0.5).tolist() == [
        [1 - 60.5 / 128, 1 - 18.5 / 128],
        [1 - 16.5 / 128, 1 - 5.5 / 128],
    ]
