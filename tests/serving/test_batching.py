"""The batcher: what waits is the next batch, owners take turns, the late are not computed, one fault spoils one."""

import asyncio
import math
import time

import numpy as np
import pytest
from made_up_backend import Doubling

from ideomotor.serving import batching
from ideomotor.serving.batching import PATIENCE, Batcher, Dream, Job
from ideomotor.serving.limits import Refused, TokenBucket


class Asking:
    """A batcher whose worker is held at the gate until everything was asked, and the answers in their order."""

    def __init__(self, backend):
        self.backend, self.answers, self.computed = backend, [], []
        self.batcher = Batcher(backend, asyncio.get_running_loop(), lambda *about: self.computed.append(about))

    def ask(self, owner, state, deadline_ms=math.inf, prepared=None):
        name = (owner, float(state))
        self.batcher.put(
            Job(
                owner=owner,
                prepared=(np.full(4, state, np.float32), 0) if prepared is None else prepared,
                arrived=time.perf_counter(),
                done=lambda answer: self.answers.append((name, answer)),
                deadline_ms=deadline_ms,
            )
        )

    async def until(self, count):
        for _ in range(2000):
            if len(self.answers) >= count:
                return [name for name, _ in self.answers]
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(self.answers)} of {count} were answered")


async def held(backend):
    """An Asking whose worker is busy with a first job of nobody's, so that all that is asked now has to wait."""
    backend.gate.clear()
    asking = Asking(backend)
    asking.ask("first", 0)
    for _ in range(400):
        if not asking.batcher._turns:
            return asking
        await asyncio.sleep(0.005)
    raise AssertionError("the worker did not begin")


def test_owners_take_turns_and_keep_their_order():
    async def run():
        asking = await held(Doubling(max_batch=3))
        for count, owner in ((6, "greedy"), (2, "a"), (1, "b")):
            for state in range(count):
                asking.ask(owner, state)
        asking.backend.gate.set()
        order = (await asking.until(10))[1:]
        assert asking.batcher.stop(5)
        return order, asking

    order, asking = asyncio.run(run())
    assert order == [
        *(("greedy", 0), ("a", 0), ("b", 0)),
        *(("greedy", 1), ("a", 1), ("greedy", 2)),
        *(("greedy", 3), ("greedy", 4), ("greedy", 5)),
    ]
    assert asking.backend.batches == [1, 3, 3, 3] == [size for size, _ in asking.computed]
    for (_, state), answer in asking.answers:
        np.testing.assert_array_equal(answer.reply["actions"], np.full((4, 4), 2 * state))
    assert [answer.batch for _, answer in asking.answers] == [1, *[3] * 9]
    assert asking.answers[-1][1].queue_ms > 0 and asking.answers[-1][1].infer_ms > 0


def test_the_late_are_told_and_not_computed():
    async def run():
        asking = await held(Doubling())
        asking.ask("a", 1, deadline_ms=1)
        asking.ask("a", 2, deadline_ms=60_000)
        asking.ask("b", 3, deadline_ms=0)
        await asyncio.sleep(0.05)
        asking.backend.gate.set()
        await asking.until(4)
        asking.batcher.stop(5)
        return asking

    asking = asyncio.run(run())
    assert asking.backend.batches == [1, 1]
    said = {name: answer.refused and (answer.refused.code, str(answer.refused)) for name, answer in asking.answers}
    assert said[("a", 2)] is None and said[("a", 1)][0] == said[("b", 3)][0] == "expired"
    assert said[("a", 1)][1].endswith("it was to begin within deadline_ms = 1")


def test_one_that_fails_spoils_no_other():
    async def run():
        asking = await held(Doubling())
        asking.ask("a", 1)
        asking.ask("b", 2, prepared=(np.zeros(66), 0))
        asking.ask("c", 3)
        asking.backend.gate.set()
        await asking.until(4)
        asking.batcher.stop(5)
        return asking

    asking = asyncio.run(run())
    assert {name[0]: type(answer.failure) for name, answer in asking.answers} == {
        **dict.fromkeys(("first", "a", "c"), type(None)),
        "b": RuntimeError,
    }


def test_a_backend_can_say_while_it_computes_what_was_wrong(monkeypatch):
    async def run():
        asking = Asking(Doubling())

        def refuse(batch):
            raise Refused("bad_observation", "reset it")

        monkeypatch.setattr(asking.backend, "infer", refuse)
        asking.ask("a", 1)
        await asking.until(1)
        asking.batcher.stop(5)
        return asking

    (_, answer), *_ = asyncio.run(run()).answers
    assert answer.failure is None and answer.refused.code == "bad_observation" and str(answer.refused) == "reset it"


def test_a_wrong_number_of_replies_is_a_failure(monkeypatch):
    async def run():
        asking = Asking(Doubling())
        monkeypatch.setattr(asking.backend, "infer", lambda batch: [])
        asking.ask("a", 1)
        await asking.until(1)
        asking.batcher.stop(5)
        return asking

    (_, answer), *_ = asyncio.run(run()).answers
    assert str(answer.failure) == "the backend gave 0 replies to a batch of 1"


def test_who_has_gone_is_not_computed():
    async def run():
        asking = await held(Doubling(max_batch=1))
        parts = []
        asking.batcher.dream(Dream(owner="gone", prepared=(np.zeros(4), 0), part=lambda *part: parts.append(part)))
        for owner in ("gone", "stays", "gone"):
            asking.ask(owner, 1)
        asking.batcher.drop("gone")
        asking.batcher.drop("never came")
        asking.backend.gate.set()
        order = await asking.until(2)
        asking.batcher.stop(5)
        return order, asking.backend.batches, parts

    order, batches, parts = asyncio.run(run())
    assert order == [("first", 0), ("stays", 1)] and batches == [1, 1] and parts == []


@pytest.mark.parametrize(("size", "wanted"), [(4, [(0, False), (1, False), (2, True)]), (7, ["secret"])])
def test_a_dream_comes_in_parts(size, wanted):
    async def run():
        asking, parts = Asking(Doubling()), []

        def part(made, last, failure):
            parts.append("secret" if failure else (int(made["main"][0, 0, 0, 0]), last))
            if not last:
                asking.batcher.dream(dream)

        dream = Dream(owner="a", prepared=(np.zeros(size), 0), part=part)
        asking.batcher.dream(dream)
        for _ in range(1000):
            if len(parts) == len(wanted):
                break
            await asyncio.sleep(0.005)
        asking.batcher.stop(5)
        return parts

    assert asyncio.run(run()) == wanted


def test_requests_go_before_dreams_but_not_for_ever():
    async def run():
        asking = await held(Doubling(max_batch=1, seconds=PATIENCE / 5))
        order = []
        dream = Dream(owner="a", prepared=(np.zeros(4), 0), part=lambda *part: order.append("dream"))
        asking.batcher.dream(dream)
        for state in range(10):
            asking.ask("b", state)
        asking.answers = order
        asking.backend.gate.set()
        for _ in range(1000):
            if len(order) == 12:
                break
            await asyncio.sleep(0.005)
        asking.batcher.stop(5)
        return order

    order = asyncio.run(run())
    assert 3 <= order.index("dream") <= 8 and order.count("dream") == 1


def test_the_bucket_lets_a_burst_and_then_the_rate_through(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("ideomotor.serving.limits.time.monotonic", lambda: now[0])
    bucket = TokenBucket(10, 3)
    assert [bucket.take() for _ in range(3)] == [0, 0, 0]
    assert bucket.take() == pytest.approx(0.1)
    now[0] += 0.05
    assert bucket.take() == pytest.approx(0.05)
    now[0] += 0.06
    assert bucket.take() == 0 and bucket.take() > 0
    now[0] += 1000
    assert [bucket.take() > 0 for _ in range(4)] == [False, False, False, True]


def test_who_was_answered_together_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    """Without, whoever asks again first would be computed alone, and the others after it."""
    monkeypatch.setattr(batching, "GATHERING", 1000.0)  # however slow this machine is

    async def run():
        asking = await held(Doubling(max_batch=8, seconds=0.01))
        asking.batcher.drop("first")  # it asks no more
        for owner in range(4):
            asking.ask(owner, 0)
        asking.backend.gate.set()
        for turn in range(1, 5):
            await asking.until(1 + 4 * turn)
            for owner in range(4):  # they ask again, a little apart
                asking.ask(owner, turn)
                await asyncio.sleep(0.02)
        await asking.until(21)
        assert asking.batcher.stop(5)
        return asking.backend.batches[1:]

    assert asyncio.run(run()) == [4, 4, 4, 4, 4]


def test_who_left_is_not_waited_for_again_and_again():
    async def run():
        asking = await held(Doubling(max_batch=8, seconds=0.05))
        for owner in range(4):
            asking.ask(owner, 0)
        asking.backend.gate.set()
        for turn in range(1, 4):
            await asking.until(4 + turn)
            asking.ask(0, turn)
        await asking.until(8)
        assert asking.batcher.stop(5)
        return asking.backend.batches[1:]

    assert asyncio.run(run()) == [4, 1, 1, 1]


def test_who_was_answered_joins_those_who_wait_already(monkeypatch: pytest.MonkeyPatch):
    """Without, two groups alternate for ever, and one is answered while the other waits."""
    monkeypatch.setattr(batching, "GATHERING", 1000.0)

    async def run():
        asking = await held(Doubling(max_batch=8, seconds=0.01))
        asking.batcher.drop("first")
        for owner in range(4):
            asking.ask(owner, 0)
        asking.backend.gate.set()
        while asking.batcher._turns:
            await asyncio.sleep(0.001)
        asking.backend.gate.clear()  # that batch of four is at the gate, or was answered
        for owner in range(4, 8):
            asking.ask(owner, 0)
        asking.backend.gate.set()
        await asking.until(5)
        for owner in range(4):
            asking.ask(owner, 1)
            await asyncio.sleep(0.02)
        await asking.until(13)
        assert asking.batcher.stop(5)
        return asking.backend.batches[1:]

    assert asyncio.run(run()) == [4, 8]


def test_who_is_slow_to_ask_again_is_not_waited_for_a_second_time():
    async def run():
        asking = await held(Doubling(max_batch=8, seconds=0.4))
        window = batching.GATHERING * 0.4
        asking.ask("quick", 0)
        asking.ask("slow", 0)
        asking.backend.gate.set()
        await asking.until(3)
        asking.ask("quick", 1)
        await asyncio.sleep(3 * window)
        asking.ask("slow", 1)
        await asking.until(4)
        asking.ask("quick", 2)  # with the slow one, which waits
        await asking.until(6)
        asking.ask("quick", 3)
        await asking.until(7)
        assert asking.batcher.stop(5)
        return asking, window

    asking, window = asyncio.run(run())
    waited = {name: answer.queue_ms / 1000 for name, answer in asking.answers}
    assert asking.backend.batches == [1, 2, 1, 2, 1]
    assert waited["quick", 1] > 0.6 * window and waited["quick", 3] < 0.4 * window


def test_who_is_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batching, "GATHERING", 1000.0)

    async def run():
        asking = Asking(Doubling(seconds=0.01))
        for state in range(5):
            asking.ask("alone", state)
            await asking.until(state + 1)
        assert asking.batcher.stop(5)
        return asking.backend.batches

    assert asyncio.run(run()) == [1] * 5
