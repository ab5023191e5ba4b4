"""No action leaves its limits, whatever comes in."""

import math

import numpy as np
import pytest

from ideomotor.serving.client.safety import Limits, SafetyFilter, SafetyStop


def test_within_the_limits_nothing_is_changed() -> None:
    safe = SafetyFilter(Limits(low=-1, high=1, jump=0.5, age_s=1), 2)
    for action in ([0.2, -0.3], [0.5, 0.1]):
        checked = safe.check(np.array(action, np.float32), 0.5)
        assert np.allclose(checked.action, action) and checked.action.dtype == np.float32
        assert not (checked.clipped or checked.slowed or checked.fault)


def test_bounds_and_jumps_dimension_by_dimension() -> None:
    safe = SafetyFilter(Limits(low=[-1, 0], high=[1, 5], jump=[0.5, 2]), 2, start=np.array([0.0, 0.0]))
    checked = safe.check(np.array([3.0, -1.0]))
    assert checked.action.tolist() == [0.5, 0] and checked.clipped and checked.slowed
    assert safe.check(np.array([3.0, 1.0])).action.tolist() == [1, 1]
    checked = safe.check(np.array([1.0, 4.0]))
    assert checked.action.tolist() == [1, 3] and checked.slowed and not checked.clipped


def test_anything_at_all_stays_within_the_limits() -> None:
    """A thousand steps of nonsense: what is sent is finite, in bounds and without a jump."""
    draw = np.random.default_rng(0)
    safe, last = SafetyFilter(Limits(low=-1, high=2, jump=0.3), 3, start=np.zeros(3)), np.zeros(3)
    faults = 0
    for _ in range(1000):
        action = draw.normal(size=3) * 10 ** draw.uniform(-2, 3)
        action[draw.random(3) < 0.05] = draw.choice([np.nan, np.inf, -np.inf])
        checked = safe.check(None if draw.random() < 0.05 else action)
        assert np.isfinite(checked.action).all() and (checked.action >= -1).all() and (checked.action <= 2).all()
        assert (np.abs(checked.action - last) <= 0.3 + 1e-6).all()
        faults += bool(checked.fault)
        assert not checked.fault or np.allclose(checked.action, last)
        last = checked.action
    assert 100 < faults < 400


@pytest.mark.parametrize(
    ("action", "age", "said"),
    [
        (None, 0.0, "no action is planned"),
        ([0.0, math.nan], 0.0, "dimension 1 of the action is nan"),
        ([math.inf, 0.0], 0.0, "dimension 0 of the action is inf"),
        ([0.0], 0.0, r"shape \(1,\)"),
        ([0.0, 0.0], 0.6, "0.6 s old, 0.5 s are allowed"),
        ([0.0, 0.0], math.nan, "nan s old"),
    ],
)
def test_faults_hold_the_robot_and_then_stop_it(action, age: float, said: str) -> None:
    action = None if action is None else np.array(action)
    safe = SafetyFilter(Limits(age_s=0.5, hold_steps=2), 2)
    assert safe.check(action, age).action is None  # nothing to hold it by yet
    safe.check(np.array([0.5, 0.5]))
    for _ in range(2):
        checked = safe.check(action, age)
        assert checked.action.tolist() == [0.5, 0.5] and checked.fault
    safe.check(np.array([0.5, 0.5]))  # what is sound begins the count anew
    safe.check(action, age), safe.check(action, age)
    with pytest.raises(SafetyStop, match=said):
        safe.check(action, age)
    with pytest.raises(SafetyStop, match=r"release\(\)"):
        safe.check(np.array([0.5, 0.5]))
    safe.release()
    assert safe.check(np.array([0.5, 0.5])).fault == ""


def test_a_robot_of_relative_actions_is_held_by_zeros() -> None:
    safe = SafetyFilter(Limits(jump=0.1), 1, still=np.zeros(1))
    safe.check(np.array([0.05]))
    assert safe.check(None).action.tolist() == [0]
    assert safe.check(np.array([1.0])).action.tolist() == pytest.approx([0.1])  # from standing still


def test_a_robot_that_stands_out_of_bounds_is_led_back_step_by_step() -> None:
    safe = SafetyFilter(Limits(low=-1, high=1, jump=0.5), 2, start=np.array([2.2, 0.0]))
    led = [safe.check(np.array([0.9, 0.1])) for _ in range(4)]
    assert [float(checked.action[0]) for checked in led] == pytest.approx([1.7, 1.2, 0.9, 0.9])
    assert [checked.slowed for checked in led] == [True, True, False, False]
    safe.release(np.array([-3.0, 0.0]))  # moved by hand
    assert safe.check(None).action.tolist() == [-3, 0]  # held where it stands
    assert safe.check(np.array([-9.0, 0.0])).action.tolist() == [-2.5, 0]
    free = SafetyFilter(Limits(low=-1, high=1), 1, start=np.array([5.0]))
    assert free.check(np.array([5.0])).action.tolist() == [1]


def test_what_holds_a_robot_has_to_be_in_bounds() -> None:
    with pytest.raises(ValueError, match=r"still is \[0.\], out of bounds 0.5 to 1"):
        SafetyFilter(Limits(low=0.5, high=1), 1, still=np.zeros(1))


def test_it_may_stop_at_once() -> None:
    with pytest.raises(SafetyStop):
        SafetyFilter(Limits(hold_steps=0), 1).check(None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low": 1, "high": 0}, "low below high"),
        ({"jump": 0}, "above 0"),
        ({"high": math.nan}, "finite"),
        ({"age_s": 0}, "age_s is 0"),
        ({"hold_steps": -1}, "hold_steps -1"),
    ],
)
def test_limits_that_mean_nothing(settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Limits(**settings)


def test_limits_of_another_robot() -> None:
    with pytest.raises(ValueError, match=r"jump has shape \(2,\); wanted one number, or 3"):
        SafetyFilter(Limits(jump=[1, 2]), 3)
    with pytest.raises(ValueError, match="start is"):
        SafetyFilter(Limits(), 3, start=np.zeros(2))
