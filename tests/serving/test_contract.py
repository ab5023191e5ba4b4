"""What is wanted of an observation: every way to get it wrong is told, and single frames become the trained context."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ideomotor.serving.contract import Contract, History, Observation
from ideomotor.serving.policy_backend import clip_of

CONTRACT = Contract(
    cameras=("main", "view1"), size=8, context=3, stride=2, chunk=6, width=2, execute=4, state=3, prefix=True,
    recorded_as={"main": "corner2"},
)  # fmt: skip
ONE = Contract(cameras=("main",), size=8, context=3, stride=2, chunk=6, width=2, execute=2, prompt=False)


def frame(number: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), number, np.uint8)


def message(**changes: Any) -> dict[str, Any]:
    found = {"images": {"main": frame(1), "view1": frame(2)}, "state": np.zeros(3), "prompt": "push", "ideomotor": {}}
    return {name: value for name, value in (found | changes).items() if value is not None}


def asked(**fields: Any) -> dict[str, Any]:
    return message(ideomotor=fields)


@pytest.mark.parametrize(
    ("observation", "says"),
    [
        ({"observation/image": frame(1)}, r'holds observation/image; wanted "images", a dict of the cameras main, '),
        (message(images=[1]), 'wanted "images"'),
        (message(images={"main": frame(1)}), r"lacks view1: send main \(recorded as corner2\), view1, and no others"),
        (message(images={"main": frame(1), "view1": frame(1), "wrist": frame(1)}), "knows no wrist"),
        (message(images={"main": frame(1), "top": frame(1)}), "lacks view1 and knows no top"),
        (message(images={"main": frame(1), "view1": frame(1, 9)}), r"'view1' sent frames of 9x9 pixels; .*scale them"),
        (message(images={"main": frame(1), "view1": frame(1).astype(np.float32)}), "sent float32; wanted uint8"),
        (message(images={"main": frame(1), "view1": frame(1).tolist()}), "'view1' sent list; wanted an array"),
        (message(images={"main": frame(1), "view1": np.zeros((3, 8, 8), np.uint8)}), "colours come last"),
        (message(images={"main": frame(1), "view1": np.zeros((8, 8), np.uint8)}), "colours come last"),
        (message(images={"main": np.zeros((2, 8, 8, 3), np.uint8), "view1": frame(1)}), "sent 2 frames; wanted 3"),
        (message(images={"main": np.zeros((3, 8, 8, 3), np.uint8), "view1": frame(1)}), "send all alike"),
        (message(state=None), 'no state came; the policy reads one: send "state", 3 numbers'),
        (message(state=np.zeros(4)), r"a state of shape \(4,\) came; wanted \"state\", 3 numbers"),
        (message(state=np.zeros((1, 3))), r"a state of shape \(1, 3\) came"),
        (message(state=np.array([0, np.nan, 0])), "number 1 is nan; wanted .*all finite: check its sensors"),
        (message(state=np.array([0, 0, np.inf])), "number 2 is inf"),
        (message(state=np.array([0, 0, 1e60])), "number 2 is 1e"),  # no float32
        (message(state=["a", "b", "c"]), "<U1 came; wanted \"state\""),
        (message(state=[[1.0], [2.0, 3.0]]), "came; wanted \"state\""),
        (message(state=np.array([True, False, True])), "bool came; wanted \"state\""),
        (message(prompt=None), 'none came: send "prompt"'),
        (message(prompt=b"push"), 'a bytes came: send "prompt"'),
        (asked(prefix=np.zeros((6, 2))), r"a prefix of shape \(6, 2\) came; wanted \"prefix\", up to 5 actions of 2"),
        (asked(prefix=np.zeros((2, 3))), r"a prefix of shape \(2, 3\) came"),
        (asked(prefix=np.zeros(2)), r"a prefix of shape \(2,\) came"),
        (asked(prefix=np.full((2, 2), np.nan)), "number 0, 0 is nan"),
        (asked(step=-1), "step is -1; wanted a whole number"),
        (asked(step=1.5), "step is 1.5; wanted a whole number"),
        (asked(step=True), "step is True; wanted a whole number"),
        (asked(step=2**60), "wanted a whole number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_changes_nothing(observation: dict[str, Any], says: str) -> None:
    history = History(CONTRACT)
    history.read(message(ideomotor={"step": 0}))
    before = history.read(message(ideomotor={"step": 4}))
    with pytest.raises(ValueError, match=says):
        history.read(observation)
    after = history.read(message(ideomotor={"step": 4}))
    assert after.steps == before.steps == (0, 0, 4)
    assert all(np.array_equal(after.frames[name], before.frames[name]) for name in before.frames)


def test_what_a_policy_does_not_read_is_left_aside() -> None:
    seen = History(ONE).read({"images": {"main": frame(1)}, "state": "broken", "prompt": 7})
    assert seen.state is None and seen.text == "" and seen.prefix is None
    optional = replace(CONTRACT, state_needed=False)
    assert History(optional).read(message(state=None)).state is None
    with pytest.raises(ValueError, match="a state of shape"):  # but what comes must be one
        History(optional).read(message(state=np.zeros(2)))
    with pytest.raises(ValueError, match="cannot begin a chunk"):
        History(ONE).read({"images": {"main": frame(1)}, "ideomotor": {"prefix": np.zeros((1, 2))}})


def test_plain_lists_and_other_numbers_will_do() -> None:
    seen = History(CONTRACT).read(message(state=[1, 2.5, 3], ideomotor={"prefix": [[1, 2], [3, 4]]}))
    assert seen.state is not None and seen.state.dtype == np.float32 and seen.state.tolist() == [1, 2.5, 3]
    assert seen.prefix is not None and seen.prefix.dtype == np.float32 and seen.prefix.tolist() == [[1, 2], [3, 4]]
    assert History(CONTRACT).read(asked(prefix=[])).prefix is None


def numbers(seen: Observation) -> list[int]:
    return [int(one[0, 0, 0]) for one in seen.frames["main"]]


def test_each_request_counts_as_what_is_executed_unless_it_says_its_step() -> None:
    history = History(ONE)
    read = lambda number, **fields: history.read({"images": {"main": frame(number)}, "ideomotor": fields})  # noqa: E731
    assert numbers(read(10)) == [10, 10, 10]  # before the first, the first
    assert numbers(read(12)) == [10, 10, 12]
    assert numbers(read(14)) == [10, 12, 14]
    assert numbers(read(16)) == [12, 14, 16]
    assert numbers(read(17, step=6)) == [12, 14, 17]  # the same step again: the newer frame counts
    late = read(20, step=9)
    assert late.steps == (4, 6, 9) and numbers(late) == [14, 17, 20]  # 5 and 7 never came; of 4 and 6 the older
    with pytest.raises(ValueError, match="step 8 came after step 9; steps of an episode only rise: reset"):
        read(0, step=8)
    assert numbers(read(60, step=50)) == [60, 60, 60]  # what is nearest: nothing was seen for long


def test_a_whole_context_stands_for_itself_and_for_what_comes_after() -> None:
    history = History(ONE)
    video = np.stack([frame(1), frame(2), frame(3)])
    assert numbers(history.read({"images": {"main": video}})) == [1, 2, 3]
    video[:] = 99  # what was kept was copied: the message's bytes are not the session's
    assert numbers(history.read({"images": {"main": frame(4)}})) == [2, 3, 4]


def test_a_session_keeps_no_more_than_it_looks_at() -> None:
    history = History(ONE)
    for step in range(2000):
        history.read({"images": {"main": frame(step % 256)}, "ideomotor": {"step": step}})
        assert len(history._seen) <= (ONE.context - 1) * ONE.stride + 1
    assert numbers(history.read({"images": {"main": frame(0)}, "ideomotor": {"step": 10**9}})) == [0, 0, 0]


def test_single_frames_become_the_context_that_the_policy_was_trained_on() -> None:
    """Bit for bit what ``Chunked`` shows an agent, for a world of which every step's frame is another."""
    pytest.importorskip("gymnasium")
    from ideomotor.envs.chunked import Chunked
    from ideomotor.envs.toy import ToyConfig, ToyEnv

    for context, stride, execute in ((4, 4, 4), (4, 4, 8), (4, 1, 1), (1, 4, 4), (3, 2, 6), (3, 4, 2)):
        contract = Contract(
            cameras=("main",), size=32, context=context, stride=stride, chunk=8, width=2, execute=execute, state=2
        )
        world = Chunked(ToyEnv(ToyConfig(task="red", size=32)), context=context, stride=stride, chunk=execute)
        alone = ToyEnv(ToyConfig(task="red", size=32))
        rng, history = np.random.default_rng(0), History(contract)
        (shown, info), (single, _) = world.reset(seed=0, options={"goal": 3}), alone.reset(seed=0, options={"goal": 3})
        for step in range(0, 6 * execute, execute):
            # A client shows the robot at every step that a later context looks back to. It need not say which step it
            # is where that is the one after the actions executed.
            seen = history.read(told(single, info["text"], None if execute <= stride else step))
            assert all(place == max(0, step - back * stride) for back, place in enumerate(reversed(seen.steps)))
            clip = clip_of([seen])
            assert torch.equal(clip.frames["main"], torch.from_numpy(shown["frames"]["main"])[None])
            assert clip.proprio is not None
            assert torch.equal(clip.proprio, torch.from_numpy(shown["proprio"])[None]) and clip.text == (info["text"],)
            actions = rng.uniform(-0.2, 0.2, (execute, 2)).astype(np.float32)
            shown, _, over, cut, _ = world.step(actions)
            assert not (over or cut)
            for ahead, action in enumerate(actions, 1):
                single = alone.step(action)[0]
                if ahead < execute and ahead % stride == 0:
                    history.read(told(single, info["text"], step + ahead))


def told(seen: dict[str, Any], text: str, step: int | None) -> dict[str, Any]:
    picture = np.ascontiguousarray(seen["frames"]["main"].transpose(1, 2, 0))
    return {"images": {"main": picture}, "state": seen["proprio"], "prompt": text, "ideomotor": {"step": step}}
