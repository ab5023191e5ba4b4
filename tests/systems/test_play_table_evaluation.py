"""CALVIN's evaluation whole, physics included: its sequences on our play table, done by scripts instead of a policy."""

import functools
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

from ideomotor.envs.play_table import PlayTableConfig, PlayTableEnv
from ideomotor.envs.play_table_scripts import script
from ideomotor.envs.play_table_tasks import TASKS, PlayTableOracle
from ideomotor.envs.play_table_walk import Walk
from ideomotor.envs.subtasks import SubtaskVector
from ideomotor.evaluation.calvin import evaluate_sequences
from ideomotor.evaluation.calvin_protocol import evaluation_sequences, initial_states, start_robot, start_scene
from ideomotor.evaluation.calvin_tasks import INSTRUCTIONS
from ideomotor.evaluation.calvin_tasks import TASKS as CALVIN_TASKS
from ideomotor.types import Clip

pytestmark = pytest.mark.sim


class Scripted:
    """Looks into the tables themselves, and walks as their scripts say; ``able`` False makes it stand still."""

    def __init__(self, tables: Sequence[PlayTableEnv], *, able: bool = True) -> None:
        self.tables, self.able = tables, able
        self.walks: dict[int, Walk | None] = {}

    def begin(self, slots, seeds) -> None:
        self.walks |= dict.fromkeys(slots)

    def act(self, context: Clip, slots):
        actions = torch.zeros(len(slots), 1, 7)
        for row, (slot, text) in enumerate(zip(slots, context.text, strict=True)):
            state = self.tables[slot].state()
            walk = self.walks[slot]
            if walk is None:
                task = next(task for task, sentence in INSTRUCTIONS.items() if sentence == text)
                plan = script(task, state["robot_obs"], state["scene_obs"])
                walk = self.walks[slot] = Walk((*plan.before, *plan.task))
            if self.able:
                actions[row, 0] = torch.from_numpy(walk.action(state["robot_obs"]))
        return actions


def evaluate(numbers: Sequence[int], *, able: bool = True, max_steps: int = 360):
    tables = [PlayTableEnv(PlayTableConfig(cameras=())) for _ in range(2)]
    makers = [functools.partial(lambda table: (table, PlayTableOracle()), table) for table in tables]
    sequences = [evaluation_sequences()[number] for number in numbers]
    with SubtaskVector(makers, workers=0) as vector:
        return evaluate_sequences(
            Scripted(tables, able=able), vector, sequences, arm="script", cameras={}, max_steps=max_steps
        )


def test_both_speak_of_the_same_tasks():
    assert set(TASKS) == set(CALVIN_TASKS)


def test_scripts_do_five_tasks_in_a_row():
    results = evaluate(range(4))
    assert [result.solved for result in results] == [5, 5, 5, 5]
    assert all(0 < steps < 200 for result in results for steps in result.steps)


def test_who_stands_still_does_nothing():
    (result,) = evaluate([0], able=False, max_steps=30)
    assert result.solved == 0 and result.steps == [30]


def test_every_initial_state_rests():
    """No block is thrown about by what it is put into."""
    table = PlayTableEnv(PlayTableConfig(cameras=()))
    for state in initial_states()[::7]:
        scene = start_scene(state)
        _, info = table.reset(options={"robot_obs": start_robot(), "scene_obs": scene})
        for _ in range(15):
            table.advance([0, 0, 0, 0, 0, 0, 1])
        assert abs(table.state()["scene_obs"] - scene).max() < 0.02
        assert all(info["touches"][block] for block in ("red", "blue", "pink"))
    table.close()
