from dataclasses import replace

import numpy as np
import pytest
import torch

from ideomotor.data.segments import SegmentWindow
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.windows import WindowConfig, WindowIndex, refuse_still, split
from ideomotor.types import Dataset


def unequal(*lengths: int, size: int = 8) -> Dataset:
    """A dataset whose episodes differ in length."""
    episodes = tuple(
        replace(synthetic_dataset(1, length, size, seed=number).episodes[0], id=f"e{number}")
        for number, length in enumerate(lengths)
    )
    return replace(synthetic_dataset(1), episodes=episodes)


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("context,horizon", [(1, 0), (2, 3), (4, 4)])
def test_frames_match_the_definition(stride: int, context: int, horizon: int):
    config = WindowConfig(context=context, horizon=horizon, stride=stride)
    for length in (1, 3, 20):
        for anchor in range(length):
            seen = [max(anchor - k * stride, 0) for k in reversed(range(context))]
            foretold = [min(anchor + k * stride, length - 1) for k in range(1, horizon + 1)]
            assert config.frame_indices(anchor, length).tolist() == seen + foretold
            assert len(seen + foretold) == config.frames


def test_actions_past_the_end_are_masked_repeats():
    config = WindowConfig(chunk=2, stride=3, outlook=2)
    indices, mask = config.action_indices(5, 7)
    assert indices.tolist() == [5, 6, 6, 6] and mask.tolist() == [True, True, False, False]
    indices, mask = config.action_indices(0, 7)
    assert indices.tolist() == [0, 1, 2, 3] and mask.all()


@pytest.mark.parametrize("every", [1, 2, 3, 50])
def test_every_window_lies_in_one_episode(every: int):
    lengths = (5, 1, 7, 4)
    index = WindowIndex(unequal(*lengths), WindowConfig(every=every))
    expected = [(number, anchor) for number, length in enumerate(lengths) for anchor in range(0, length, every)]
    assert [index.locate(window) for window in range(len(index))] == expected
    for number in range(len(lengths)):
        assert [index.locate(window)[0] for window in index.windows_of(number)].count(number) == len(
            index.windows_of(number)
        )
    for wrong in (-1, len(index)):
        with pytest.raises(IndexError, match="ask for"):
            index.locate(wrong)


def test_read_gives_the_frames_of_each_window():
    dataset = unequal(6, 9)
    index = WindowIndex(dataset, WindowConfig(context=2, horizon=2, stride=3))
    video = index.read([0, 8, 14], "video")
    assert video.shape == (3, 4, 3, 8, 8)
    first, second = (episode.frames["video"] for episode in dataset.episodes)
    assert torch.equal(video[0], first.read([0, 0, 3, 5]))
    assert torch.equal(video[1], second.read([0, 2, 5, 8]))
    assert torch.equal(video[2], second.read([5, 8, 8, 8]))
    assert index.read([3], "video", size=(4, 6)).shape == (1, 4, 3, 4, 6)


def test_reading_frames_of_two_sizes_names_the_episode():
    small, large = synthetic_dataset(1, 4, 8), synthetic_dataset(1, 4, 16)
    mixed = replace(small, episodes=(small.episodes[0], replace(large.episodes[0], id="large")))
    index = WindowIndex(mixed, WindowConfig())
    with pytest.raises(ValueError, match=r"'large' gives frames .* set size"):
        index.read([0, 5], "video")
    assert index.read([0, 5], "video", size=(8, 8)).shape == (2, 8, 3, 8, 8)


@pytest.mark.parametrize(
    "wrong", [{"context": 0}, {"horizon": -1}, {"stride": 0}, {"chunk": 0}, {"every": 0}, {"stride": 1.5}]
)
def test_windows_that_cannot_be_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        WindowConfig(**wrong)


def test_datasets_without_frames_are_refused():
    dataset = synthetic_dataset(1)
    with pytest.raises(ValueError, match="has no episodes"):
        WindowIndex(replace(dataset, episodes=()), WindowConfig())
    with pytest.raises(ValueError, match="has no frames"):
        WindowIndex(replace(dataset, episodes=(replace(dataset.episodes[0], length=0),)), WindowConfig())


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.34, 0.5, 0.999])
@pytest.mark.parametrize("episodes", [2, 3, 10, 50])
def test_both_sides_of_a_split_are_filled_and_disjoint(fraction: float, episodes: int):
    dataset = synthetic_dataset(episodes, 2, 4)
    train, validation = split(dataset, fraction, seed=1)
    ids = [{episode.id for episode in side.episodes} for side in (train, validation)]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == {episode.id for episode in dataset.episodes}
    assert len(validation.episodes) == min(max(round(fraction * episodes), 1), episodes - 1)


def test_a_split_depends_on_ids_and_seed_alone():
    dataset = synthetic_dataset(40, 2, 4)
    held = {episode.id for episode in split(dataset, 0.25, seed=3)[1].episodes}
    turned = replace(dataset, episodes=dataset.episodes[::-1])
    assert {episode.id for episode in split(turned, 0.25, seed=3)[1].episodes} == held
    assert {episode.id for episode in split(dataset, 0.25, seed=4)[1].episodes} != held


def test_every_task_is_held_out_in_proportion():
    validation = split(synthetic_dataset(40, 2, 4), 0.2)[1]  # four texts, ten episodes each
    texts, counts = np.unique([episode.text for episode in validation.episodes], return_counts=True)
    assert len(texts) == 4 and counts.tolist() == [2, 2, 2, 2]


def test_episodes_of_one_recording_stay_together():
    dataset = synthetic_dataset(20, 2, 4)
    phases = [replace(e, id=f"{e.id}_{n}", recording=e.id) for e in dataset.episodes for n in range(3)]
    held = split(dataset, 0.3, seed=2)[1].episodes
    train, validation = split(replace(dataset, episodes=tuple(phases)), 0.3, seed=2)
    assert [e.id for e in validation.episodes] == [f"{e.id}_{n}" for e in held for n in range(3)]
    assert len(train.episodes) + len(validation.episodes) == 60
    with pytest.raises(ValueError, match="3 episodes of one recording; a split needs at least 2"):
        split(replace(dataset, episodes=tuple(phases[:3])), 0.3)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="1 episodes; a split needs at least 2"):
        split(synthetic_dataset(1), 0.5)
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            split(synthetic_dataset(4), fraction)


def test_a_stride_that_reaches_over_every_episode_is_refused():
    dataset = synthetic_dataset(2, 5, 4)
    refuse_still(dataset, WindowConfig(context=1, horizon=3, stride=4))  # frames 0 and 4 are shown
    wide = WindowConfig(context=1, horizon=3, stride=5)
    assert set(wide.frame_indices(0, 5)[1:].tolist()) == {4}
    with pytest.raises(ValueError, match=r"taken 5 apart, and its longest episode, 'disc-0-0000', has 5: .* at most 4"):
        refuse_still(dataset, wide)
    longer = replace(dataset, episodes=(dataset.episodes[0], *synthetic_dataset(1, 6, 4, seed=1).episodes))
    refuse_still(longer, wide)
    # A frame by itself, segments that shrink their stride, and pictures of one frame each are as ever.
    refuse_still(dataset, WindowConfig(context=1, horizon=0, stride=5))
    refuse_still(dataset, SegmentWindow(frames=4, context=1, stride=5))
    refuse_still(synthetic_dataset(2, 1, 4), WindowConfig(stride=1))
