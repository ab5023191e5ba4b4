"""CALVIN's evaluation with a scripted agent at a scripted table: stops, limits, resumption, films, figures."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from ideomotor.envs.subtasks import SubtaskVector
from ideomotor.evaluation.calvin import Memoryless, evaluate_sequences
from ideomotor.evaluation.calvin_protocol import evaluation_sequences
from ideomotor.evaluation.calvin_results import (
    SequenceResult,
    as_published,
    read_sequences,
    summarize_sequences,
    write_tables,
)
from ideomotor.evaluation.calvin_scripted import ScriptedAgent, ScriptedOracle, ScriptedTable
from ideomotor.evaluation.calvin_tasks import INSTRUCTIONS, TASKS

SEQUENCES = evaluation_sequences()[:24]
SCRIPT = {sequence.number: sequence.number * 7 % 6 for sequence in SEQUENCES}


def make(scale=10):
    return ScriptedTable(scale), ScriptedOracle()


def tables(n=4, workers=0):
    return SubtaskVector([make] * n, workers=workers)


def facts(results):
    return [(r.sequence, r.state, r.tasks, r.solved, r.steps) for r in results]


def expected(sequences=SEQUENCES, limit=360, wait=2):
    return [
        (
            s.number,
            s.state,
            list(s.tasks),
            SCRIPT[s.number],
            [wait + 1] * SCRIPT[s.number] + [limit] * (SCRIPT[s.number] < 5),
        )
        for s in sequences
    ]


def run(agent=None, worlds=None, sequences=SEQUENCES, **given):
    return evaluate_sequences(
        agent or ScriptedAgent(SCRIPT, wait=2), worlds or tables(), sequences, **({"arm": "scripted"} | given)
    )


@pytest.mark.parametrize(("num", "workers"), [(1, 0), (5, 0), (40, 0), (3, 2)])
def test_every_sequence_ends_at_its_first_failure(num, workers, tmp_path):
    told, log = [], tmp_path / "runs" / "log.jsonl"
    with tables(num, workers) as worlds:
        results = run(worlds=worlds, log=log, done=told.append)
    assert facts(results) == expected()
    assert told == read_sequences(log)
    assert sorted(told, key=lambda one: one.sequence) == results
    assert all(one.seconds > 0 for one in results)


@pytest.mark.parametrize(("limit", "execute"), [(360, None), (7, 4), (25, 10), (3, 3)])
def test_a_task_takes_no_more_than_its_steps(limit, execute):
    assert facts(run(max_steps=limit, execute=execute)) == expected(limit=limit)


def test_a_task_done_too_late_is_not_done():
    results = run(ScriptedAgent(SCRIPT, wait=8), max_steps=8)
    assert {one.solved for one in results} == {0} and all(one.steps == [8] for one in results)


def test_another_task_than_the_asked_one_is_no_success():
    class Wrong(ScriptedAgent):
        def act(self, context, slots):
            actions = super().act(context, slots)
            other = [TASKS.index("turn_on_led" if "led" not in text else "open_drawer") for text in context.text]
            actions[:, 0, 0] = torch.tensor(other).float()
            actions[:, 1:, 0] = -1
            return actions

    for one in run(Wrong(SCRIPT), max_steps=20):
        assert one.solved == 0


class Looks(ScriptedAgent):
    """Keeps what it was shown and told."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.begun, self.seen = [], []

    def begin(self, slots, seeds):
        super().begin(slots, seeds)
        self.begun += seeds

    def act(self, context, slots):
        self.seen.append(context)
        return super().act(context, slots)


def test_what_the_agent_is_told():
    agent = Looks(SCRIPT, wait=2)
    results = run(agent)
    tried = [5 * one.sequence + place for one in results for place in range(len(one.steps))]
    assert sorted(agent.begun) == tried  # once a task
    clip = agent.seen[0]
    assert clip.text == tuple(INSTRUCTIONS[sequence.tasks[0]] for sequence in SEQUENCES[:4])
    assert clip.frames["rgb_static"].shape == (4, 1, 3, 20, 20) and clip.frames["rgb_gripper"].shape == (4, 1, 3, 8, 8)
    assert clip.frames["rgb_static"].dtype == torch.uint8
    assert clip.proprio.shape == (4, 15) and clip.proprio[:, -1].eq(1).all()


def test_pictures_are_drawn_only_where_the_agent_looks():
    table, agent = ScriptedTable(10), Looks(SCRIPT, wait=2)
    run(agent, SubtaskVector([lambda: (table, ScriptedOracle())], workers=0))
    assert table.looks == len(agent.seen) + len(SEQUENCES)  # after each chunk, and at each start


def test_cameras_are_renamed():
    agent = Looks(SCRIPT)
    run(agent, cameras={"main": "rgb_gripper"})
    assert set(agent.seen[0].frames) == {"main"}


class Killed(ScriptedAgent):
    def __init__(self, after):
        super().__init__(SCRIPT, wait=2)
        self.after = after

    def act(self, context, slots):
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().act(context, slots)


@pytest.mark.parametrize("after", [0, 1, 5, 60, 100, 130])
def test_a_killed_evaluation_goes_on(tmp_path, after):
    log = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Killed(after), log=log)
    before = read_sequences(log)
    if before:
        with log.open("ab") as file:
            file.write(b'{"arm": "scripted", "seq')  # the kill came in the middle of a row
    agent = Looks(SCRIPT, wait=2)
    assert facts(run(agent, log=log)) == expected()
    assert {seed // 5 for seed in agent.begun} == {s.number for s in SEQUENCES} - {one.sequence for one in before}
    assert len(log.read_text().splitlines()) == len(SEQUENCES)


PROGRAM = """
import sys
from pathlib import Path
from test_calvin_evaluation import SCRIPT, SEQUENCES, tables
from ideomotor.evaluation.calvin import evaluate_sequences
from ideomotor.evaluation.calvin_scripted import ScriptedAgent

if __name__ == "__main__":
    def told(result):
        print(result.sequence, flush=True)
        if int(sys.argv[2]):
            sys.stdin.readline()  # waits to be killed, or to be told to go on

    with tables(3) as worlds:
        agent = ScriptedAgent(SCRIPT, wait=2)
        evaluate_sequences(agent, worlds, SEQUENCES, arm="scripted", log=Path(sys.argv[1]), done=told)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process as POSIX does")
def test_a_process_that_was_killed_leaves_what_another_finishes(tmp_path):
    script, log = tmp_path / "program.py", tmp_path / "log.jsonl"
    script.write_text(PROGRAM)
    here = os.path.dirname(__file__)  # noqa: PTH120
    paths = os.pathsep.join([here, *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, str(script), str(log)]
    with subprocess.Popen(
        [*command, "1"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        for _ in range(9):
            assert first.stdout.readline()
            first.stdin.write("\n")
            first.stdin.flush()
        first.kill()
    assert 9 <= len(read_sequences(log)) < len(SEQUENCES)
    second = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    rows = sorted(read_sequences(log), key=lambda one: one.sequence)
    assert facts(rows) == expected()
    assert as_published(summarize_sequences(rows)) == as_published(summarize_sequences(run()))


def test_failures_are_filmed(tmp_path):
    films, log = {}, tmp_path / "log.jsonl"

    def recorder(result, cameras):
        assert result.sequence not in {row.sequence for row in read_sequences(log)}
        films[result.sequence] = cameras

    results = run(log=log, record=range(8), recorder=recorder, max_steps=11, stride=4)
    failed = [one for one in results[:8] if one.solved < 5]
    assert 0 < len(failed) < 8 and sorted(films) == [one.sequence for one in failed]
    for one in failed:
        film = films[one.sequence]["rgb_static"]
        assert film.dtype == torch.uint8 and film.shape[1:] == (3, 20, 20)
        # The start; each solved task's end after 3 steps; steps 4, 8, 10 and 11 of the one that failed.
        assert len(film) == 1 + one.solved + 4


def test_two_arms_share_a_log_and_a_finished_one_touches_no_table(tmp_path):
    log = tmp_path / "log.jsonl"
    first = run(log=log)
    run(Memoryless(Still()), sequences=SEQUENCES[:3], arm="still", log=log)
    assert len(read_sequences(log)) == len(SEQUENCES) + 3
    assert run(Killed(0), log=log) == first


class Still:
    def act(self, context):
        return torch.full((len(context), 10, 7), -1.0)


class Answers:
    def __init__(self, actions):
        self.actions = actions

    def act(self, context):
        return self.actions


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sequences": SEQUENCES + SEQUENCES[:1]}, "sequence 0 is asked for twice"),
        ({"cameras": {"main": "rgb_wrist"}}, r"no camera \['rgb_wrist'\]"),
        ({"execute": 11}, "execute is 11"),
        ({"agent": Memoryless(Answers(torch.zeros(4, 7)))}, "wanted \\(4, chunk, action\\)"),
        ({"agent": Memoryless(Answers(torch.full((4, 10, 7), torch.nan)))}, "all finite"),
    ],
)
def test_errors_say_what_was_wanted(change, says):
    with pytest.raises(ValueError, match=says):
        run(**change)


def test_a_log_of_other_sequences_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    run(sequences=SEQUENCES[:3], log=log)
    other = dataclasses.replace(SEQUENCES[0], tasks=SEQUENCES[1].tasks)
    with pytest.raises(ValueError, match="holds another sequence 0: state 190"):
        run(sequences=[other], log=log)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"solved": 7}, "solved is 7; wanted 0 to 5"),
        ({"solved": "a"}, "solved is 'a'; wanted 0 to 5"),
        ({"solved": True}, "solved is True"),
        ({"solved": -1}, "solved is -1"),
        ({"tasks": []}, "tasks is \\[\\]; wanted"),
        ({"tasks": ["rotate_red_block_right", ["b"]]}, "tasks is .*wanted names of tasks"),
        ({"tasks": ["dance"]}, "tasks is \\['dance'\\]; wanted names of tasks"),
        ({"state": None}, "state is None; wanted int"),
        ({"steps": ["5"]}, "steps is .*'5'.*; wanted whole numbers"),
        ({"steps": 5}, "steps is 5; wanted whole numbers"),
    ],
)
def test_an_edited_row_is_refused_by_its_line(edit, says, tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [dataclasses.asdict(result(0, 2)), dataclasses.asdict(result(1, 3)) | edit]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"line 2 of {log} is no row of a roll-out .{says}"):
        read_sequences(log)


def result(number, solved, state=0):
    tasks = list(SEQUENCES[number].tasks)
    return SequenceResult(
        arm="x",
        sequence=number,
        state=state,
        tasks=tasks,
        solved=solved,
        steps=[1],
        seconds=1.0,
        inference_cpu_seconds=0.1,
    )


def test_figures_by_hand():
    rows = [result(0, 5, state=1), result(1, 0, state=2), result(2, 3, state=3), result(3, 3, state=3)]
    summary = summarize_sequences(rows)
    assert [rate.value for rate in summary.rates] == [0.75, 0.75, 0.75, 0.25, 0.25]
    assert summary.average_length.value == 11 / 4
    assert summary.average_length.low < 11 / 4 < summary.average_length.high
    tried = [(task, place < row.solved) for row in rows for place, task in enumerate(row.tasks) if place <= row.solved]
    assert sum(row.episodes for row in summary.tasks.values()) == len(tried) == 5 + 1 + 4 + 4
    for task, counted in summary.tasks.items():
        assert counted.episodes == sum(name == task for name, _ in tried)
        assert counted.successes == sum(done for name, done in tried if name == task)
        assert counted.interval[0] <= counted.successes / counted.episodes <= counted.interval[1]
    assert list(summary.tasks) == [task for task in TASKS if task in summary.tasks]


def test_where_all_ended_alike_the_mean_length_claims_no_interval():
    for solved in (0, 5):
        summary = summarize_sequences([result(number, solved, state=number) for number in range(20)])
        assert summary.average_length.value == solved
        assert math.isnan(summary.average_length.low) and math.isnan(summary.average_length.high)
        assert summary.rates[0].high - summary.rates[0].low > 0.1


def test_tables_hold_the_same_figures(tmp_path):
    arms = {"x": summarize_sequences([result(0, 5), result(1, 2)]), "y": summarize_sequences(run())}
    write_tables(tmp_path / "made", arms)
    content = json.loads((tmp_path / "made" / "results.json").read_text())
    assert content["x"]["avg_seq_len"] == 3.5
    assert content["x"]["avg_seq_len_interval"] is None  # one initial state: nothing to draw from
    assert content["y"]["sequences"] == 24 and len(content["y"]["avg_seq_len_interval"]) == 2
    with (tmp_path / "made" / "in_a_row.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [float(row["rate"]) for row in rows[:5]] == [1, 1, 0.5, 0.5, 0.5]
    with (tmp_path / "made" / "tasks.csv").open() as file:
        tasks = [row for row in csv.DictReader(file) if row["arm"] == "y"]
    assert sum(int(row["attempts"]) for row in tasks) == sum(len(row[4]) for row in expected())


@pytest.mark.parametrize(
    ("rows", "says"), [([], "0 results"), ([result(0, 1), result(0, 2)], "2 results of 1 sequences")]
)
def test_figures_of_nothing_or_twice_are_refused(rows, says):
    with pytest.raises(ValueError, match=says):
        summarize_sequences(rows)


def test_a_broken_table_is_named():
    class Broken(ScriptedTable):
        def advance(self, action):
            raise ZeroDivisionError("the drawer fell off")

    with (
        SubtaskVector([lambda: (Broken(10), ScriptedOracle())], workers=0) as worlds,
        pytest.raises(RuntimeError, match=r"table 0 failed \(task rotate_blue_block_right\): .* the drawer fell off"),
    ):
        run(worlds=worlds)
