"""Chunks become actions: against brute force, and in simulated time with answers that come late, early or never."""

import math

import numpy as np
import pytest

from ideomotor.serving.client.blending import Turns, crossfade, ensemble
from ideomotor.serving.client.errors import ConnectionLost, NotLetIn, Refused
from ideomotor.serving.client.execution import Answer, ChunkPlan, ChunkRunner, Contract, contract_of


def chunk(start: int, rows: int = 8, width: int = 2) -> np.ndarray:
    """A chunk whose rows tell when it was asked for and for which step each is meant."""
    return np.array([[start, start + row] for row in range(rows)], np.float32)[:, :width]


# --- what a plan makes of chunks --------------------------------------------------------------------------------------


def test_a_crossfade_is_a_line_from_one_to_the_other() -> None:
    old, new = np.zeros((3, 1), np.float32), np.ones((3, 1), np.float32)
    assert crossfade(old, new).ravel().tolist() == [0.25, 0.5, 0.75]
    assert crossfade(old[:0], new[:0]).shape == (0, 1)


def test_without_blending_the_newest_chunk_decides() -> None:
    plan = ChunkPlan()
    assert plan.take() is None and plan.step == 0 and plan.add(chunk(0), 0) == 0
    assert [plan.take().tolist() for _ in range(3)] == [[0, 0], [0, 1], [0, 2]]
    assert plan.add(chunk(1), 1) == 2  # rows 0 and 1 were for steps that are over
    assert plan.take().tolist() == [1, 3] and plan.remaining == 5
    assert plan.ahead(2).tolist() == [[1, 4], [1, 5]]
    assert plan.add(chunk(-9, 4), 0) == 4 and plan.take().tolist() == [1, 4]  # wholly too late, and so ignored


def test_blending_fades_over_the_overlap_and_no_further() -> None:
    plan = ChunkPlan(blend=3)
    plan.add(np.zeros((4, 1), np.float32), 0)
    plan.take()
    plan.add(np.full((6, 1), 8, np.float32), 1)
    assert [float(plan.take()[0]) for _ in range(6)] == [2, 4, 6, 8, 8, 8]
    plan = ChunkPlan(blend=9)  # more than overlaps
    plan.add(np.zeros((2, 1), np.float32), 0)
    plan.take()
    plan.add(np.full((6, 1), 8, np.float32), 1)
    assert [float(plan.take()[0]) for _ in range(3)] == [4, 8, 8]


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.7, -0.5])
def test_ensembling_against_brute_force(decay: float) -> None:
    """Every step is the mean over all chunks that reach it, number 0 the oldest of these."""
    draw, plan, known = np.random.default_rng(0), ChunkPlan(decay=decay), []
    for start in (0, 1, 3, 6, 7):
        while plan.step < start:
            at, action = plan.step, plan.take()
            reach = [c[at - s] for s, c in known if 0 <= at - s < len(c)]
            weights = [math.exp(-decay * i) for i in range(len(reach))]
            wanted = sum(w * row for w, row in zip(weights, reach, strict=True)) / sum(weights)
            assert np.allclose(action, wanted, atol=1e-6)
        known.append((start, draw.normal(size=(5, 3)).astype(np.float32)))
        plan.add(known[-1][1], start)
    assert plan.take() is not None


def test_ensembling_is_that_of_the_roll_outs() -> None:
    """The same numbers as the ensemble that trials in a simulator use."""
    torch = pytest.importorskip("torch")
    from ideomotor.policies.actions import TemporalEnsemble

    draw, plan, theirs = np.random.default_rng(1), ChunkPlan(decay=0.3), TemporalEnsemble(0.3)
    for number in range(6):
        new = draw.normal(size=(7, 2)).astype(np.float32)
        wanted = theirs.blend([0], torch.from_numpy(new)[None], 2)[0].numpy()
        plan.add(new, 2 * number)
        assert np.allclose(plan.ahead(7), wanted, atol=1e-6)
        plan.take(), plan.take()


def test_great_decays_do_not_overflow() -> None:
    assert np.isfinite(ensemble([chunk(0)] * 50, 20.0)).all() and np.isfinite(ensemble([chunk(0)] * 50, -20.0)).all()


def turn(angle: float) -> np.ndarray:
    """The quaternion of a turn about z, with a number before it."""
    return np.array([7.0, 0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)], np.float32)


def angle_of(action: np.ndarray) -> float:
    return 2 * math.atan2(action[3], action[4])


@pytest.mark.parametrize("sign", [1, -1])
def test_quaternions_are_blended_as_rotations(sign: int) -> None:
    """Number by number, opposite signs of one rotation would cancel out."""
    turns = Turns(quaternions=(1,))
    old, new = sign * np.stack([turn(0.2)] * 3), np.stack([turn(1.0)] * 3)
    old[:, 0] = 3
    for blended in (crossfade(old, new, turns), ensemble([old, new], 0.0, turns)):
        assert np.allclose(np.linalg.norm(blended[:, 1:], axis=1), 1) and blended.dtype == np.float32
        assert ((blended[:, 0] > 3) & (blended[:, 0] < 7)).all()
    assert angle_of(ensemble([old, new], 0.0, turns)[0]) == pytest.approx(0.6, abs=1e-5)
    faded = [angle_of(row) for row in crossfade(old, new, turns)]
    assert faded == pytest.approx([0.4, 0.6, 0.8], abs=0.01)
    assert np.array_equal(old[0], np.concatenate([[3], sign * turn(0.2)[1:]]).astype(np.float32))  # nothing is changed


def test_opposite_rotations_have_no_mean_and_the_newer_is_taken() -> None:
    turns, new = Turns(quaternions=(0,)), np.array([[0, 0, 0, 1]], np.float32)
    old = np.array([[0, 0, 1, 0]], np.float32)
    assert np.allclose(np.linalg.norm(crossfade(old, new, turns)), 1)
    assert turns.whole(np.zeros((1, 4), np.float32), new).tolist() == new.tolist()


def test_angles_are_blended_the_short_way_round() -> None:
    turns = Turns(angles=(1,))
    old, new = np.array([[1.0, 3.1]] * 3, np.float32), np.array([[2.0, -3.1]] * 3, np.float32)
    blended = crossfade(old, new, turns)
    assert blended[:, 0] == pytest.approx([1.25, 1.5, 1.75])
    assert np.abs(np.abs(blended[:, 1]) - math.pi).max() < 0.05 and np.abs(blended[:, 1]).max() <= np.float32(math.pi)
    assert np.abs(np.abs(ensemble([old, new], 0.0, turns)[:, 1]) - math.pi).max() < 0.05


@pytest.mark.parametrize("turns", [Turns(quaternions=(3,)), Turns(angles=(5,)), Turns(angles=(-1,))])
def test_rotations_outside_of_the_action_are_refused(turns) -> None:
    old = np.ones((2, 5), np.float32)
    for blend in (lambda: crossfade(old, old, turns), lambda: ensemble([old, old], 0.0, turns)):
        with pytest.raises(ValueError, match=r"actions have 5 numbers; .* do not lie in them"):
            blend()


def test_a_plan_blends_the_rotations_that_a_server_announces() -> None:
    about = {"kind": "policy", "actions": {"chunk": 4, "execute": 2, "width": 5, "quaternions": [1], "angles": []}}
    contract = contract_of({"ideomotor": about})
    assert contract.turns == Turns(quaternions=(1,))
    for settings in ({"blend": 2}, {"decay": 0.0}):
        plan = ChunkPlan(turns=contract.turns, **settings)
        plan.add(np.stack([turn(0.5)] * 4), 0)
        plan.take()
        plan.add(-np.stack([turn(0.5)] * 4), 0)
        assert np.linalg.norm(plan.take()[1:]) == pytest.approx(1)


@pytest.mark.parametrize("settings", [{"blend": -1}, {"blend": 2, "decay": 0.1}, {"decay": math.inf}])
def test_plans_that_mean_nothing(settings) -> None:
    with pytest.raises(ValueError, match="wanted steps of 0 or more"):
        ChunkPlan(**settings)


def test_a_chunk_of_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="came at step 0"):
        ChunkPlan().add(chunk(0), 1)


# --- asking while acting, in simulated time ---------------------------------------------------------------------------


class Simulated:
    """Answers after a number of polls, one a step; its chunks say when they were asked for and what each row is for."""

    def __init__(self, contract: Contract, delays) -> None:
        self.contract, self.delays, self.asked = contract, iter(delays), []
        self.busy, self._left, self._answer = False, 0, None

    def submit(self, observation, extras) -> None:
        assert not self.busy
        self.asked.append((observation, extras))
        step = int(observation["state"][0])
        rows = chunk(step, self.contract.chunk)
        if extras.prefix is not None:
            rows[: len(extras.prefix)] = extras.prefix
        delay = next(self.delays)
        self._answer = Answer(None, delay) if isinstance(delay, Exception) else Answer(rows, None)
        self.busy, self._left = True, 1 if isinstance(delay, Exception) else delay

    def poll(self):
        self._left -= 1
        if not self.busy or self._left > 0:
            return None
        self.busy = False
        return self._answer


def seen(step: int) -> dict:
    return {"images": {"main": np.full((2, 2, 3), step, np.uint8)}, "state": np.array([step]), "prompt": "go"}


def run(runner: ChunkRunner, steps: int, first: int = 0) -> list[tuple[int, int] | None]:
    """What was done at each step: when its chunk was asked for, and for which step it was meant."""
    done = []
    for step in range(first, first + steps):
        action = runner.act(seen(step)).action
        done.append(None if action is None else tuple(map(int, action)))
    return done


def forever(delay):
    while True:
        yield delay


def test_chunks_overlap_so_that_no_step_is_without_an_action() -> None:
    contract = Contract(chunk=8, execute=4)
    asker = Simulated(contract, forever(2))
    done = run(ChunkRunner(asker, contract), 20)
    # Held for the first two steps; then each action is the one meant for its step (counted in actions done).
    assert done[:2] == [None, None] and None not in done[2:]
    assert [row for _, row in done[2:]][:4] == [0, 1, 2, 3]
    assert [extras.step for _, extras in asker.asked] == [0, 4, 8, 12, 16]
    assert asker.asked[0][1].reset and not any(extras.reset for _, extras in asker.asked[1:])


def test_rows_are_counted_in_actions_done_and_not_in_steps_held() -> None:
    """While the robot is held it does not move, so the first row is still the one that fits."""
    contract = Contract(chunk=4, execute=4)
    done = run(ChunkRunner(Simulated(contract, [3, 9]), contract), 7)
    assert done[:3] == [None] * 3 and [row for _, row in done[3:7]] == [0, 1, 2, 3]


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
def test_it_asks_earlier_where_answers_take_long(delay: int) -> None:
    contract = Contract(chunk=8, execute=8)
    runner = ChunkRunner(Simulated(contract, forever(delay)), contract)
    done = run(runner, 60)
    assert None not in done[8 + 2 * delay :]  # once the latency is known nothing is awaited any more
    assert runner.expected == delay


def test_where_answers_take_longer_than_half_a_chunk_the_robot_is_held_in_between() -> None:
    contract = Contract(chunk=8, execute=8)
    done = run(ChunkRunner(Simulated(contract, forever(6)), contract), 60)
    held = [action is None for action in done[12:]]
    assert 0.2 < np.mean(held) < 0.5  # of six steps four, for two rows of the next chunk are left when it comes
    rows = [row for _, row in filter(None, done)]
    assert rows == sorted(rows)


def test_a_prefix_is_what_is_then_done() -> None:
    """With prefixes the rows done between request and answer are those that the new chunk begins with: no break."""
    contract = Contract(chunk=8, execute=3, prefix=True)
    asker = Simulated(contract, forever(2))
    runner = ChunkRunner(asker, contract)
    done, prefixes = [], []
    for step in range(30):
        asked = len(asker.asked)
        done.append(runner.act(seen(step)).action)
        if len(asker.asked) > asked and step:
            prefixes.append((step, asker.asked[-1][1].prefix))
    assert len(prefixes) > 5
    for step, prefix in prefixes[:-1]:
        assert len(prefix) == runner.expected == 2
        assert np.array_equal(prefix, np.stack(done[step : step + 2]))


def test_the_age_of_what_an_action_rests_on() -> None:
    contract = Contract(chunk=6, execute=2)
    runner = ChunkRunner(Simulated(contract, forever(2)), contract)
    steps = [runner.act(seen(step)) for step in range(8)]
    assert [step.arrived for step in steps] == [None, None, 2, None, 2, None, 2, None]
    assert [step.age for step in steps[2:]] == [2, 3, 2, 3, 2, 3]


def test_failures_pass_and_the_plan_goes_on_until_it_ends() -> None:
    contract = Contract(chunk=4, execute=2)
    away = ConnectionLost("away")
    asker = Simulated(contract, [1, away, away, away, away, Refused("later", "expired"), 1, 1, 1, 1, 1])
    runner = ChunkRunner(asker, contract)
    done = []
    for step in range(12):
        done.append(runner.act(seen(step)).action is not None)
        if step == 6:
            assert runner.failures == 4 and runner.last_error is away
    assert done == [False, True, True, True, True, False, False, False, True, True, True, True]
    assert runner.failures == 0 and runner.last_error is None


@pytest.mark.parametrize(
    "error",
    [
        Refused("no camera", "bad_observation"),
        Refused("2 sessions already", "too_many"),
        NotLetIn("the wrong key"),
        TypeError("a set cannot be sent"),
    ],
)
def test_what_is_wrong_for_good_is_raised(error: Exception) -> None:
    contract = Contract(chunk=4, execute=2)
    runner = ChunkRunner(Simulated(contract, [error]), contract)
    with pytest.raises(type(error), match=str(error).split(": ")[-1]):
        run(runner, 3)


def test_a_refused_first_look_leaves_the_reset_to_the_next() -> None:
    """The server forgot nothing when it refused; without the reset the next request would go on in the old episode."""
    contract = Contract(chunk=4, execute=2)
    asker = Simulated(contract, [1, 1, 1, Refused("no camera", "bad_observation"), 1, 1, 1])
    runner = ChunkRunner(asker, contract)
    run(runner, 5)
    runner.reset()
    with pytest.raises(Refused, match="no camera"):
        run(runner, 4)
    refused = len(asker.asked)
    assert asker.asked[-1][1].reset
    run(runner, 4)
    assert [extras.reset for _, extras in asker.asked[refused : refused + 2]] == [True, False]


def test_after_a_reset_an_answer_to_the_old_episode_is_thrown_away() -> None:
    contract = Contract(chunk=6, execute=3)
    asker = Simulated(contract, [1, 3, 1, 1, 1])
    runner = ChunkRunner(asker, contract)
    run(runner, 4)
    assert asker.busy
    runner.reset()
    done = run(runner, 6, first=100)
    assert {asked for asked, _ in filter(None, done)} <= set(range(100, 106)) and done[-1] is not None
    assert asker.asked[2][1].reset and asker.asked[2][1].step < 3


def test_frames_are_a_stride_apart_whenever_a_request_is_made() -> None:
    contract = Contract(chunk=8, execute=5, context=3, stride=2)
    asker = Simulated(contract, forever(1))
    run(ChunkRunner(asker, contract), 14)
    shown = {extras.step: observation["images"]["main"] for observation, extras in asker.asked}
    assert all(frames.shape == (3, 2, 2, 3) for frames in shown.values())
    for step, frames in shown.items():
        assert frames[:, 0, 0, 0].tolist() == [max(0, step - 4), max(0, step - 2), step]
    assert len(shown) >= 3


def test_a_plain_server_is_asked_for_nothing_else() -> None:
    contract = Contract(chunk=8, execute=4, plain=True)
    asker = Simulated(contract, forever(1))
    run(ChunkRunner(asker, contract), 9)
    assert all(extras.message() == {} for _, extras in asker.asked)


def test_the_contract_is_read_from_metadata() -> None:
    ours = {"kind": "policy", "actions": {"chunk": 8, "execute": 4}, "observation": {"context": 4, "stride": 2}}
    assert contract_of({"ideomotor": ours}) == Contract(8, 4, 4, 2)
    assert contract_of({"ideomotor": ours | {"extensions": ["prefix"]}}).prefix
    with pytest.raises(ValueError, match="write a Contract"):
        contract_of({"model": "theirs"})
    with pytest.raises(ValueError, match="no policy"):
        contract_of({"ideomotor": {"kind": "world"}})
    with pytest.raises(ValueError, match="at most a chunk"):
        Contract(chunk=2, execute=3)
