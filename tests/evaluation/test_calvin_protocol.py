"""CALVIN's symbols: what can be told without any recorded number."""

import itertools

import numpy as np
import pytest

from ideomotor.evaluation.calvin_protocol import (
    SEQUENCE_LENGTH,
    draw_sequences,
    evaluation_sequences,
    initial_states,
    is_sequence,
    placement_seed,
    read_scene,
    start_scene,
)
from ideomotor.evaluation.calvin_tasks import CATEGORIES, COLOURS, TASKS, TableState, follow, successors

START = TableState(0, 0, "right", "open", "table", "table", "slider_left", 0)


def reachable(steps):
    states = set(initial_states())
    for _ in range(steps):
        states |= {after for state in states for task in TASKS for after in successors(state, task)}
    return states


def test_no_task_leads_to_an_impossible_table():
    for state in reachable(2):
        blocks = [state.red_block, state.blue_block, state.pink_block]
        assert blocks.count("grasped") == state.grasped
        assert blocks.count("stacked_top") == blocks.count("stacked_bottom") <= 1


def test_lights_and_doors_are_undone_by_their_opposites():
    for there, back in (
        ("turn_on_led", "turn_off_led"),
        ("turn_on_lightbulb", "turn_off_lightbulb"),
        ("close_drawer", "open_drawer"),
        ("move_slider_left", "move_slider_right"),
    ):
        assert follow(START, (there,)) != START
        assert follow(START, (there, back)) == START
        assert successors(START, back) == []


def test_a_lifted_block_can_be_put_in_three_ways():
    held = follow(START, ("lift_red_block_table",))
    assert held.red_block == "grasped" and held.grasped == 1
    assert [task for task in TASKS if successors(held, task)] == ["place_in_slider", "place_in_drawer", "stack_block"]
    assert follow(held, ("place_in_drawer", "lift_red_block_drawer")) == held
    stacked = follow(held, ("stack_block",))
    assert (stacked.red_block, stacked.blue_block) == ("stacked_top", "stacked_bottom")
    assert follow(stacked, ("unstack_block",)) == START


def test_what_can_be_done_in_two_ways_is_in_no_sequence():
    held = TableState(0, 0, "right", "open", "table", "grasped", "table", 1)
    assert len(successors(held, "stack_block")) == 2 and follow(held, ("stack_block",)) is None
    assert follow(START, ("push_into_drawer",)) is None  # two blocks are on the table


def test_a_sequence_has_one_task_of_a_category():
    assert is_sequence(START, ("turn_on_led", "close_drawer"))
    assert not is_sequence(START, ("turn_on_led", "turn_on_lightbulb"))


def test_the_stored_sequences_keep_the_rules():
    sequences, states = evaluation_sequences(), initial_states()
    assert len(states) == len(set(states)) == 192
    assert [sequence.number for sequence in sequences] == list(range(1000))
    for sequence in sequences:
        assert len(sequence.tasks) == SEQUENCE_LENGTH == len({CATEGORIES[task] for task in sequence.tasks})
        assert is_sequence(states[sequence.state], sequence.tasks)
    counts = np.bincount([sequence.state for sequence in sequences])
    assert counts.tolist() == [6] * 40 + [5] * 152


def test_a_start_shows_its_state_and_depends_on_nothing_else():
    for state in initial_states():
        scene = start_scene(state)
        assert read_scene(scene) == state
        np.testing.assert_array_equal(scene, start_scene(state))
        positions = scene[6:].reshape(len(COLOURS), 6)[:, :3]
        assert all(abs(a - b).max() > 0.05 for a, b in itertools.combinations(positions, 2))  # no two in one place
        assert 0 <= placement_seed(state) < 2**32


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="did you mean 'lift_red_block_table'"):
        successors(START, "lift_red_block_tabel")


def test_drawing_is_seeded_and_leaves_numpys_own_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    assert draw_sequences(0) == ()
    start_scene(START)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_fewer_sequences_are_the_first_of_their_states():
    stored = {(sequence.state, sequence.tasks) for sequence in evaluation_sequences()}
    drawn = draw_sequences(2)
    assert sorted(sequence.state for sequence in drawn) == [0, 1]
    assert [sequence.number for sequence in drawn] == [0, 1]
    assert {(sequence.state, sequence.tasks) for sequence in drawn} <= stored
