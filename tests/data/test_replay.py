"""Replay draws what it says, from files that survive, and leaves out with a word what does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ideomotor.data.formats import npz
from ideomotor.data.replay import Replay, ReplayConfig, Trajectory, read_trajectory


def episode(length: int = 12, first: int = 0) -> Trajectory:
    """An episode whose frames, actions and rewards carry their row's number."""
    rows = np.arange(first, first + length + 1)
    return Trajectory(
        frames=np.broadcast_to(rows[:, None, None, None], (length + 1, 3, 4, 4)).astype(np.uint8).copy(),
        actions=np.repeat(rows[:, None] / 256, 2, 1).astype(np.float32) * (rows[:, None] > first),
        rewards=rows.astype(np.float32) * (rows > first),
        discounts=np.ones(length + 1, np.float32),
    )


def stacked(path: Path, taken: Trajectory, stack: int = 3) -> None:
    """Writes an episode as the published code does."""
    frames = np.stack([taken.stacked(row, stack).reshape(-1, 4, 4) for row in range(len(taken.frames))])
    np.savez_compressed(
        path,
        observation=frames,
        action=taken.actions * 20,
        reward=taken.rewards[:, None],
        discount=taken.discounts[:, None],
    )


def test_a_draw_is_a_function_of_seed_and_number(tmp_path):
    replay = Replay(tmp_path, ReplayConfig())
    for number in range(3):
        replay.add(number, episode(first=20 * number))
    one, again = replay.transitions(16, 5, 7), Replay(tmp_path, ReplayConfig()).transitions(16, 5, 7)
    assert one.frames.equal(again.frames) and one.rewards.equal(again.rewards)
    for other in (replay.transitions(16, 5, 8), replay.transitions(16, 6, 7)):
        assert not one.frames.equal(other.frames)


def test_transitions_by_hand(tmp_path):
    replay = Replay(tmp_path, ReplayConfig(stack=3, steps=2, discount=0.5))
    replay.add(0, episode(5))
    batch = replay.transitions(200, 0, 0)
    rows = batch.frames[:, -1, 0, 0, 0].long()
    assert rows.unique().tolist() == [0, 1, 2, 3]  # the last start from which two actions follow is 3
    assert batch.frames[:, 1, 0, 0, 0].long().equal((rows - 1).clamp_min(0))
    assert batch.frames[:, 0, 0, 0, 0].long().equal((rows - 2).clamp_min(0))
    assert batch.next_frames[:, -1, 0, 0, 0].long().equal(rows + 2)
    assert batch.actions[:, 0].equal((rows + 1).float() / 256)
    assert batch.rewards.equal((rows + 1) + 0.5 * (rows + 2)) and batch.discounts.unique().tolist() == [0.25]
    starts = replay.segments(200, 3, 0, 0)
    rows = starts.frames[:, 0, 0, 0, 0].float()
    assert rows.unique().tolist() == [0, 1, 2] and starts.rewards.equal(rows[:, None] + torch.tensor([1.0, 2.0, 3.0]))
    assert starts.actions[..., 0].equal(starts.rewards / 256)


def test_a_coarse_episode_is_what_an_agent_of_longer_steps_would_have():
    fine = episode(7)  # seven steps; row i was brought about by action i / 256 and earned i
    coarse = fine.coarse(3)
    assert coarse.frames[:, 0, 0, 0].tolist() == [0, 3, 6] and len(coarse) == 2
    assert coarse.rewards.tolist() == [0, 1 + 2 + 3, 4 + 5 + 6] and coarse.discounts.tolist() == [1, 1, 1]
    np.testing.assert_allclose(coarse.actions[:, 0], np.array([0, 2, 5]) / 256, rtol=1e-6)
    later = fine.coarse(3, 1)
    assert later.frames[:, 0, 0, 0].tolist() == [1, 4, 7] and later.rewards.tolist() == [0, 9, 18]
    assert fine.coarse(1).actions.tolist() == fine.actions.tolist() and coarse.actions.dtype == np.float32
    for held, start in ((8, 0), (3, 5), (0, 0)):
        with pytest.raises(ValueError, match=f"has no {held} of them from step {start} on"):
            fine.coarse(held, start)


def test_an_end_cuts_the_value_off(tmp_path):
    ended = episode(5)
    ended.discounts[-1] = 0
    replay = Replay(tmp_path, ReplayConfig(steps=3))
    replay.add(0, ended)
    batch = replay.transitions(100, 0, 0)
    last = batch.frames[:, -1, 0, 0, 0] == 2
    assert last.any() and (batch.discounts[last] == 0).all() and (batch.discounts[~last] > 0.9).all()


def test_each_start_is_as_likely_as_another(tmp_path):
    replay = Replay(tmp_path, ReplayConfig(steps=1))
    replay.add(0, episode(2))
    replay.add(1, episode(8, first=100))
    rows = replay.transitions(5000, 0, 0).frames[:, -1, 0, 0, 0]
    counts = torch.stack([(rows == row).sum() for row in rows.unique()])
    assert len(counts) == 10 and counts.min() > 400 and counts.max() < 600


def test_published_files_are_read_and_cut_and_left_as_they_are(tmp_path):
    shown = tmp_path / "demos"
    shown.mkdir()
    stacked(shown / "a.npz", episode())
    stacked(shown / "b.npz", episode(first=50))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(shown.iterdir())]
    replay = Replay(tmp_path / "own", ReplayConfig(capacity=1), shown)
    replay.add(0, episode())
    replay.rewind(0)
    assert list(replay.demonstrations) == ["a", "b"] and len(replay.episodes) == 2
    assert np.array_equal(replay.demonstrations["a"].frames, episode().frames)
    assert replay.demonstrations["b"].actions.max() == 1
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(shown.iterdir())] == before


def test_capacity_leaves_demonstrations_and_files_alone(tmp_path):
    shown = tmp_path / "demos"
    shown.mkdir()
    stacked(shown / "a.npz", episode(first=200))
    replay = Replay(tmp_path / "own", ReplayConfig(capacity=24), shown)
    for number in range(4):
        replay.add(number, episode(first=20 * number))
    firsts = [int(one.frames[0, 0, 0, 0]) for one in replay.episodes]
    assert firsts == [200, 40, 60]
    assert len(list((tmp_path / "own").glob("*.npz"))) == 4
    replay.rewind(2)  # a run goes on from before: what had left is drawn from again
    assert [int(one.frames[0, 0, 0, 0]) for one in replay.episodes] == [200, 0, 20]


def test_demonstrations_in_the_agents_own_folder_are_refused(tmp_path):
    Replay(tmp_path, ReplayConfig()).add(0, episode())
    with pytest.raises(ValueError, match="own replay"):
        Replay(tmp_path, ReplayConfig(), tmp_path / "../" / tmp_path.name)  # its rewind(0) would delete them
    assert (tmp_path / "000000.npz").is_file()


def test_damage_is_told_and_left_out(tmp_path):
    shown = tmp_path / "demos"
    shown.mkdir()
    stacked(shown / "good.npz", episode())
    (shown / "cut.npz").write_bytes((shown / "good.npz").read_bytes()[:-300])
    mixed = dict(np.load(shown / "good.npz"))
    mixed["observation"] = mixed["observation"][::-1]
    np.savez(shown / "mixed.npz", **mixed)
    np.savez(shown / "pickled.npz", **(mixed | {"reward": np.array([{}] * 13, dtype=object)}))
    np.savez(shown / "partial.npz", observation=mixed["observation"])
    np.savez(shown / "nan.npz", **(dict(np.load(shown / "good.npz")) | {"reward": np.full((13, 1), np.nan)}))
    replay = Replay(tmp_path / "own", ReplayConfig(), shown)
    assert list(replay.demonstrations) == ["good"]
    why = {Path(one.path).stem: one.reason for one in replay.quarantined}
    assert set(why) == {"cut", "mixed", "pickled", "partial", "nan"}
    assert (
        "stacks" in why["mixed"]
        and "cut short" in why["cut"]
        and "pickle" in why["pickled"]
        and "not finite" in why["nan"]
    )


@pytest.mark.parametrize("content", [None, b"no npz"])
def test_no_readable_demonstration_is_refused(tmp_path, content):
    if content:
        (tmp_path / "demos").mkdir()
        (tmp_path / "demos/a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"no demonstration that can be read.*without demonstrations"):
        Replay(tmp_path / "own", ReplayConfig(), tmp_path / "demos")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    replay = Replay(tmp_path, ReplayConfig())
    replay.add(0, episode())

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    for number in (0, 1):
        with pytest.raises(OSError, match="No space"):
            replay.add(number, episode(first=50))
    assert [file.name for file in tmp_path.iterdir()] == ["000000.npz"]
    assert np.array_equal(read_trajectory(tmp_path / "000000.npz").frames, episode().frames)


def test_our_files_are_a_dataset_too(tmp_path):
    Replay(tmp_path, ReplayConfig()).add(0, episode())
    (one,) = npz.read(tmp_path).episodes
    assert one.length == 13 and one.frames["observation"].shape == (13, 3, 4, 4)


def test_what_cannot_be_drawn(tmp_path):
    replay = Replay(tmp_path, ReplayConfig(steps=3))
    with pytest.raises(ValueError, match="0 episodes"):
        replay.transitions(1, 0, 0)
    replay.add(0, episode(2))
    with pytest.raises(ValueError, match="longest of 2 steps; wanted one of 3"):
        replay.transitions(1, 0, 0)
    with pytest.raises(ValueError, match="of the same task, camera"):
        replay.add(1, Trajectory(**(vars(episode(2)) | {"actions": np.zeros((3, 5), np.float32)})))
    for wrong in ({"steps": 0}, {"capacity": 0}, {"discount": 1.5}):
        with pytest.raises(ValueError, match="steps"):
            ReplayConfig(**wrong)


@pytest.mark.golden
def test_the_published_demonstrations(tmp_path, shared):
    folder = shared / "data/real/metaworld_demos"
    for task in ("button-press-topdown-wall", "door-lock", "plate-slide"):
        replay = Replay(tmp_path / task, ReplayConfig(), folder / task)
        assert len(replay.demonstrations) == 5 and not replay.quarantined
        assert all(len(one) == 100 and np.abs(one.actions).max() <= 1 for one in replay.demonstrations.values())
        batch = replay.transitions(8, 0, 0)
        assert batch.frames.shape == (8, 3, 3, 64, 64) and batch.rewards.min() > 0
