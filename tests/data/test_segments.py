from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ideomotor.data.cache import cached
from ideomotor.data.formats import open_dataset
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Mixture, Source
from ideomotor.data.replay import draw_segments, read_trajectory
from ideomotor.data.segments import SegmentWindow
from ideomotor.data.token_cache import windows_key
from ideomotor.data.windows import WindowIndex
from ideomotor.types import Dataset, Episode


class Numbered:
    """Frames whose every pixel is the frame's number."""

    def __init__(self, length: int) -> None:
        self.shape = (length, 3, 2, 2)

    def read(self, indices, size=None):
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)


def numbered(*lengths: int) -> Dataset:
    episodes = tuple(
        Episode(
            id=str(number),
            text="",
            fps=1.0,
            length=length,
            frames={"image": Numbered(length)},
            read_actions=lambda length=length: np.arange(length, dtype=np.float32)[:, None],
            read_proprio=lambda length=length: np.arange(length, dtype=np.float32)[:, None],
        )
        for number, length in enumerate(lengths)
    )
    return Dataset(name="numbered", path=None, format="test", episodes=episodes, fingerprint="f")


def test_every_start_is_a_window_and_lies_inside():
    window = SegmentWindow(frames=4, stride=3)
    index = WindowIndex(numbered(20, 12, 7, 2), window)
    starts = [9, 1, 4, 1]  # 20 - 12 + 1, 12 - 12 + 1, stride shrunk to 1: 7 - 4 + 1, too short
    assert [len(index.windows_of(number)) for number in range(4)] == starts
    assert window.frame_indices(8, 20).tolist() == [8, 11, 14, 17]
    assert window.frame_indices(3, 7).tolist() == [3, 4, 5, 6]
    assert window.frame_indices(0, 2).tolist() == [0, 1, 1, 1]
    assert replace(window, every=4).anchors(20) == 3
    assert replace(window, mode="first").anchors(20) == 1


def test_actions_are_the_rows_of_the_frames():
    rows = np.arange(10.0)[:, None]
    window = SegmentWindow(frames=4, stride=2)
    got, mask = window.actions(rows, 3)
    assert got[:, 0].tolist() == [3, 5, 7, 9] and mask.all()
    got, mask = window.actions(rows[:3], 0)
    assert got[:, 0].tolist() == [0, 1, 2, 2] and mask.tolist() == [True, True, True, False]
    drawn = SegmentWindow(frames=4, stride=2, mode="random_selection", span=5)
    got, mask = drawn.actions(rows, 0, draw=9)
    assert got[:, 0].tolist() == drawn.frame_indices(0, 10, draw=9).tolist() and mask.all()
    for mode in ("goal", "random_shuffle"):
        with pytest.raises(ValueError, match="not in order of time"):
            replace(window, mode=mode).actions(rows, 0)


def test_pooled_segments_count_what_is_done_between_their_frames():
    rows = np.arange(10, dtype=np.float32)
    window = SegmentWindow(frames=3, context=1, stride=3, pooled=True)
    got, mask = window.actions(rows[:, None], 1)
    assert got[:, 0].tolist() == [2, 5, 8] and got.dtype == np.float32 and mask.all()
    assert window.rewards(rows, 1).tolist() == [1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9]
    assert replace(window, pooled=False).rewards(rows, 1).tolist() == [1, 4, 7]
    assert window.frame_indices(1, 10).tolist() == [1, 4, 7]
    # At the end: the last action is repeated, and no reward comes twice.
    got, mask = window.actions(rows[:9, None], 1)
    np.testing.assert_allclose(got[:, 0], [2, 5, (7 + 8 + 8) / 3], rtol=1e-6)
    assert mask.all() and window.rewards(rows[:9], 1).tolist() == [6, 15, 15]
    # Of a shorter episode the stride shrinks, and what is pooled with it.
    assert window.actions(rows[:7, None], 0)[0][:, 0].tolist() == [0.5, 2.5, 4.5]
    assert window.rewards(rows[:2], 0).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"only frames a stride apart \(in_order, first\) have actions between them"):
        replace(window, mode="random_selection")


def test_a_loader_pools_rewards_and_actions(tmp_path):
    actions = np.arange(9, dtype=np.float32)[:, None] / 8  # row k + 1 was done at frame k
    made = np.zeros((9, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", observation=made, action=actions, reward=actions, discount=actions)
    window = SegmentWindow(frames=4, context=2, stride=2, pooled=True)
    clip = ClipLoader([Source(open_dataset(tmp_path), window=window)], batch_size=2, seed=1, rewards=True).batch(0)
    first = torch.tensor([1.5, 3.5, 5.5, 7.5]) / 8
    assert {tuple(row.tolist()) for row in clip.actions[..., 0]} == {
        tuple(first.tolist()),
        (*tuple((first + 1 / 8)[:3].tolist()), 1.0),
    }
    assert clip.rewards[:, :3].equal(2 * clip.actions[:, :3, 0])


def test_a_loader_gives_the_rewards_of_the_actions(tmp_path):
    """From the files, through the cache of frames, as the replay gives them: row k leads to the frame after frame k."""
    actions = np.arange(8, dtype=np.float32)[:, None] / 8
    for name in "ab":
        made = np.random.default_rng(0).integers(0, 255, (8, 3, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", observation=made, action=actions, reward=10 * actions, discount=actions)
    window = SegmentWindow(frames=4, context=2)
    plain = open_dataset(tmp_path)
    kept = [Source(dataset, window=window) for dataset in (plain, cached(plain, tmp_path / "cache", 8))]
    clips = [ClipLoader([source], batch_size=6, seed=1, rewards=True).batch(0) for source in kept]
    assert clips[0].rewards.equal(clips[1].rewards) and clips[0].rewards.shape == (6, 4)
    assert clips[0].rewards.equal(10 * clips[0].actions[..., 0]) and clips[0].rewards.max() > 5
    segments = draw_segments([read_trajectory(tmp_path / "a.npz")], 6, 4, 0, 0)
    assert segments.rewards.equal(10 * segments.actions[..., 0])
    assert clips[0].split(2)[1].rewards.equal(clips[0].rewards)
    alone = ClipLoader(kept[:1], batch_size=6, seed=1, actions=False, rewards=True).batch(0)
    assert alone.actions is None and alone.rewards.equal(clips[0].rewards)
    assert ClipLoader(kept, batch_size=6, seed=1).batch(0).rewards is None
    with pytest.raises(ValueError, match="'0' has no rewards: load with rewards=False"):
        ClipLoader([kept[0], Source(numbered(9), window=window)], batch_size=6, seed=1, rewards=True)


def test_random_selection_draws_each_frame_equally_often():
    window = SegmentWindow(frames=5, context=2, stride=2, mode="random_selection", span=6)
    counts = Counter()
    for draw in range(4000):
        frames = window.frame_indices(3, 40, draw).tolist()
        assert frames[:2] == [3, 5] and frames[2:] == sorted(set(frames[2:]))
        counts.update(frames[2:])
    assert set(counts) == set(range(7, 15))  # every recorded frame after the context, not only each second
    assert all(abs(count - 1500) < 150 for count in counts.values()), counts  # 4 deviations of a fair draw: 122


def test_random_shuffle_draws_orders():
    window = SegmentWindow(frames=3, context=1, stride=2, mode="random_shuffle", span=4)
    orders = Counter(tuple(window.frame_indices(1, 30, draw).tolist()) for draw in range(2400))
    assert len(orders) == 24 and all(set(order) <= {1, 3, 5, 7} for order in orders)
    assert all(abs(count - 100) < 45 for count in orders.values()), orders


def test_too_short_for_a_draw_repeats_the_last_frame():
    window = SegmentWindow(frames=6, context=2, mode="random_selection", span=8)
    assert window.frame_indices(0, 4, 7).tolist() == [0, 1, 2, 3, 3, 3]
    assert window.actions(np.zeros((4, 1)), 0, 7)[1].tolist() == [True] * 4 + [False] * 2
    assert window.frame_indices(0, 1, 7).tolist() == [0] * 6


def test_a_loader_resumes_to_the_same_draws():
    window = SegmentWindow(frames=5, context=2, stride=2, mode="random_selection", span=6)
    sources = [Source(numbered(30, 25), window=window), Source(numbered(40), window=replace(window, stride=3))]
    straight = ClipLoader(sources, batch_size=4, seed=3)
    clips = [clip for clip, _ in zip(straight, range(6), strict=False)]
    resumed = next(iter(ClipLoader(sources, batch_size=4, seed=3, start=5)))
    assert resumed.frames["main"].equal(clips[5].frames["main"]) and resumed.actions.equal(clips[5].actions)
    shares = [ClipLoader(sources, batch_size=4, seed=3, world_size=2, rank=rank).batch(5) for rank in (0, 1)]
    assert torch.cat([share.frames["main"] for share in shares]).equal(clips[5].frames["main"])
    for clip in clips:
        shown = clip.frames["main"][:, :, 0, 0, 0].float()
        assert clip.actions[..., 0].equal(shown)  # the same draw decides frames and actions
        assert clip.proprio[:, 0].equal(shown[:, 1])  # the state at the last context frame
    assert not ClipLoader(sources, batch_size=4, seed=4).batch(5).frames["main"].equal(clips[5].frames["main"])


def test_the_same_window_is_drawn_anew_in_the_next_epoch():
    mixture = Mixture([1.0], [1], seed=0)
    draws = mixture.draws(0, 1000)
    assert len(set(draws.tolist())) == 1000 and mixture.draws(990, 10).tolist() == draws[990:].tolist()


def test_what_is_drawn_cannot_be_cached():
    window = SegmentWindow(frames=4, mode="random_shuffle")
    with pytest.raises(ValueError, match="no cache can hold them"):
        windows_key(WindowIndex(numbered(9), window), "image")
    keys = {windows_key(WindowIndex(numbered(9), replace(window, mode=mode)), "image") for mode in ("goal", "in_order")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 1, "context": 2},
        {"stride": 0},
        {"span": 20},
        {"mode": "random_shuffle", "span": 3},
        {"mode": "goal", "frames": 2},
    ],
)
def test_impossible_segments_are_refused(wrong):
    with pytest.raises(ValueError, match="segment"):
        SegmentWindow(**wrong)
