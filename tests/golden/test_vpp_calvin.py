"""CALVIN's protocol as the published evaluation runs it: task model, sequences, starts, and figures."""

import json

import numpy as np
import pytest

from ideomotor.envs.subtasks import SubtaskVector
from ideomotor.evaluation.calvin import evaluate_sequences
from ideomotor.evaluation.calvin_protocol import (
    MAX_STEPS,
    draw_from,
    evaluation_sequences,
    initial_states,
    placement_seed,
    start_robot,
    start_scene,
)
from ideomotor.evaluation.calvin_results import SequenceResult, as_published, summarize_sequences
from ideomotor.evaluation.calvin_scripted import ScriptedAgent, ScriptedOracle, ScriptedTable
from ideomotor.evaluation.calvin_tasks import CATEGORIES, INSTRUCTIONS, TASKS, TableState, successors

pytestmark = pytest.mark.golden


def read(shared, name):
    return json.loads((shared / "golden" / "vpp" / name).read_text())


@pytest.fixture(scope="module")
def protocol(shared):
    return read(shared, "calvin_protocol.json")


def test_tasks(protocol):
    assert list(TASKS) == protocol["task_names"]
    assert [CATEGORIES[task] for task in TASKS] == protocol["task_category"]
    assert [INSTRUCTIONS[task] for task in TASKS] == protocol["instructions"]
    assert list(TableState._fields) == protocol["state_fields"]
    assert protocol["max_steps_per_task"] == MAX_STEPS


def test_what_each_task_does(shared):
    model = read(shared, "calvin_symbolic_model.json")
    assert len(model["examples"]) == 60 and model["task_names"] == list(TASKS)
    assert model["state_fields"] == list(TableState._fields)
    for example in model["examples"]:
        state = TableState(*example["state"])
        assert [len(successors(state, task)) for task in TASKS] == example["n_next_states"], state


def test_initial_states_and_the_thousand_sequences(protocol):
    assert [list(state) for state in initial_states()] == protocol["initial_states"]
    rows = [[s.state, *(TASKS.index(task) for task in s.tasks)] for s in evaluation_sequences()]
    assert rows == protocol["sequences"]


@pytest.mark.parametrize("state", [136, 160, 177, 184])  # where the fewest draws find their sequences
def test_sequences_are_drawn_and_shuffled_as_published(protocol, state):
    order = list(range(1000))
    np.random.RandomState(0).shuffle(order)
    drawn = [row for _, row in sorted(zip(order, protocol["sequences"], strict=True))]
    assert [row[0] for row in drawn] == sorted(row[0] for row in drawn)
    wanted = [tuple(TASKS[task] for task in row[1:]) for row in drawn if row[0] == state]
    assert draw_from(state, len(wanted)) == wanted


def test_starts(protocol):
    states = initial_states()
    assert [placement_seed(state) for state in states] == protocol["block_seed_fnv32"]
    assert start_robot().tolist() == protocol["robot_obs"]
    scenes = np.stack([start_scene(state) for state in states])
    np.testing.assert_allclose(scenes, np.array(protocol["scene_obs"]), rtol=0, atol=1e-15)


def make_table():
    return ScriptedTable(20), ScriptedOracle()


def test_a_thousand_scripted_sequences_are_reported_as_published(shared):
    golden = read(shared, "calvin_aggregation.json")
    agent = ScriptedAgent(dict(enumerate(golden["results_1000"])), chunk=60)
    with SubtaskVector([make_table] * 50, workers=0) as tables:
        results = evaluate_sequences(agent, tables, evaluation_sequences(), arm="scripted")
    assert [result.solved for result in results] == golden["results_1000"]
    report = as_published(summarize_sequences(results))
    assert report["task_info"] == golden["report_1000"]["task_info"]
    assert golden["average_length"] == golden["report_1000"]["avg_seq_len"]
    assert golden["success_rate_for_1_to_5"] == [*golden["report_1000"]["chain_sr"].values()]
    assert report["avg_seq_len"] == pytest.approx(golden["report_1000"]["avg_seq_len"], rel=1e-12)
    assert report["chain_sr"] == pytest.approx(golden["report_1000"]["chain_sr"], rel=1e-12)


def test_figures_of_ten_results(shared):
    golden, sequences = read(shared, "calvin_aggregation.json"), evaluation_sequences()
    results = [
        SequenceResult(
            arm="scripted",
            sequence=number,
            state=sequences[number].state,
            tasks=list(sequences[number].tasks),
            solved=solved,
            steps=[60] * min(5, solved + 1),
            seconds=0.0,
            inference_cpu_seconds=0.0,
        )
        for number, solved in enumerate(golden["results_10"])
    ]
    report = as_published(summarize_sequences(results))
    assert report["avg_seq_len"] == pytest.approx(golden["average_length_10"], rel=1e-12)
    assert list(report["chain_sr"].values()) == pytest.approx(golden["success_rate_for_1_to_5_10"], rel=1e-12)
