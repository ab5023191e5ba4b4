"""Play tables in lock step: tasks judged after each action, over processes that may fail or die."""

import functools
import os
import signal

import numpy as np
import pytest

from ideomotor.envs.subtasks import SubtaskVector


class Sum:
    """A fake table: its state is the sum of all actions since the reset. It breaks when it reaches ``breaks``."""

    def __init__(self, breaks=None, how="raise"):
        self.breaks, self.how, self.sum, self.looks = breaks, how, 0.0, 0

    def reset(self, *, seed=None, options=None):
        self.sum = options["from"]
        return self.observe(), {"sum": self.sum}

    def advance(self, action):
        self.sum += action[0]
        if self.breaks is not None and self.sum >= self.breaks:
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the drawer fell off")
        return 0.0, False, False, {"sum": self.sum}

    def observe(self):
        self.looks += 1
        return {"sum": np.array(self.sum)}

    def close(self):
        pass


class Risen:
    """The task "3" is done where the sum has risen by 3 since it began."""

    def completed(self, start, end, tasks):
        return {task for task in tasks if end["sum"] - start["sum"] >= float(task)}


def make(breaks=None, how="raise"):
    return Sum(breaks, how), Risen()


ONES = np.ones((4, 7))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_ends_with_the_action_that_does_it_and_the_next_begins_there(workers):
    with SubtaskVector([make] * 3, workers=workers) as tables:
        seen = tables.reset({0: {"from": 10.0}, 2: {"from": 20.0}})
        assert {i: float(one["sum"]) for i, one in seen.items()} == {0: 10.0, 2: 20.0}
        out = tables.act({0: ONES, 2: ONES}, begin={0: "6", 2: "2"}, film=[0], stride=2)
        assert (out[0].executed, out[0].solved, float(out[0].observation["sum"])) == (4, False, 14.0)
        assert (out[2].executed, out[2].solved, float(out[2].observation["sum"])) == (2, True, 22.0)
        assert [float(one["sum"]) for one in out[0].film] == [12.0] and out[2].film == []
        out = tables.act({0: ONES, 2: ONES[:1]}, begin={2: "1"})
        assert (out[0].executed, out[0].solved) == (2, True)  # 6 since it began, over two chunks
        assert (out[2].executed, out[2].solved) == (1, True)


def test_what_nobody_looks_at_is_not_drawn():
    table = Sum()
    with SubtaskVector([lambda: (table, Risen())], workers=0) as tables:
        tables.reset({0: {"from": 0.0}})
        tables.act({0: ONES}, begin={0: "9"})
        assert table.looks == 2


def test_a_new_sequence_forgets_the_task_before():
    with SubtaskVector([make], workers=0) as tables:
        tables.reset({0: {"from": 0.0}})
        tables.act({0: ONES}, begin={0: "9"})
        tables.reset({0: {"from": 0.0}})
        with pytest.raises(RuntimeError, match="no task is under way"):
            tables.act({0: ONES}, begin={})


@pytest.mark.parametrize(
    ("workers", "how", "says"), [(0, "raise", "fell off"), (2, "raise", "fell off"), (2, "die", "")]
)
def test_a_table_that_fails_is_named(workers, how, says):
    makers = [make, functools.partial(make, 2.0, how)]
    says = says and rf"table 1 failed \(task 9\): ZeroDivisionError: .*{says}"
    with SubtaskVector(makers, workers=workers) as tables:
        tables.reset({0: {"from": 0.0}, 1: {"from": 0.0}})
        with pytest.raises(RuntimeError, match=says or "the process of tables 1 ended by signal 9"):
            tables.act({0: ONES, 1: ONES}, begin={0: "9", 1: "9"})
        with pytest.raises(RuntimeError, match="were closed"):
            tables.reset({0: {"from": 0.0}})


@pytest.mark.parametrize(("chunk", "says"), [(np.zeros(7), r"shape \(7,\)"), (np.zeros((0, 7)), "at least one action")])
def test_a_chunk_without_actions_is_refused(chunk, says):
    with SubtaskVector([make], workers=0) as tables:
        tables.reset({0: {"from": 0.0}})
        with pytest.raises(RuntimeError, match=says):
            tables.act({0: chunk}, begin={0: "9"})


def test_errors_say_what_was_wanted():
    with SubtaskVector([make] * 2, workers=0) as tables:
        with pytest.raises(ValueError, match=r"no tables \[2\]"):
            tables.reset({2: {}})
        with pytest.raises(RuntimeError, match="reset a table before it acts"):
            tables.act({0: ONES}, begin={0: "9"})
    with pytest.raises(ValueError, match="0 tables"):
        SubtaskVector([])
