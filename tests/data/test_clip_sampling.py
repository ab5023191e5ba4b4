from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ideomotor.data.loader import ClipLoader
from ideomotor.data.sampling import Sampling, StridedWindow, sampled_sources
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.data.whole_clips import WholeClip
from ideomotor.data.windows import WindowConfig, WindowIndex
from ideomotor.training.config import config_from_json, config_to_json


def unequal(*lengths: int, cameras=("video",)):
    made = [synthetic_dataset(1, length, 8, seed=number, cameras=cameras) for number, length in enumerate(lengths)]
    return replace(made[0], episodes=tuple(one.episodes[0] for one in made))


def test_a_whole_clip_shows_first_and_last_frame_and_leaves_out_what_is_too_long():
    index = WindowIndex(unequal(20, 41, 3, 40), WholeClip(frames=4, longest=40))
    assert [index.locate(window) for window in range(len(index))] == [(0, 0), (2, 0), (3, 0)]
    assert index.config.frame_indices(0, 20).tolist() == [0, 6, 12, 19]
    assert index.config.frame_indices(0, 3).tolist() == [0, 0, 1, 2]
    for length in range(1, 200):  # exact where floating point might not be
        spread = np.linspace(0, length - 1, 16).astype(int)
        np.testing.assert_array_equal(WholeClip(frames=16).frame_indices(0, length), spread)


def test_a_dataset_of_which_no_episode_fits_says_so():
    with pytest.raises(ValueError, match=r"none of the 2 episodes .* gives a window: they have 30 to 40 frames"):
        WindowIndex(unequal(40, 30), WholeClip(frames=4, longest=20))


def test_seconds_become_the_stride_of_the_recording():
    assert StridedWindow(frames=16, seconds=0.2).window(10.0).stride == 2
    assert StridedWindow(frames=16, seconds=0.2).window(3.0).stride == 1
    wanted = WindowConfig(context=1, horizon=15, stride=5, every=3, chunk=16)
    assert StridedWindow(frames=16, stride=5, start_step=3).window(99.0) == wanted
    dataset = unequal(8, 9)
    (source,) = sampled_sources(dataset, Sampling(window=StridedWindow(frames=4, seconds=0.3)))
    assert source.window.stride == 3  # synthetic discs are filmed at 10 frames per second
    mixed = replace(dataset, episodes=(dataset.episodes[0], replace(dataset.episodes[1], fps=30.0)))
    with pytest.raises(ValueError, match=r"10, 30 frames per second; .* or give a stride"):
        sampled_sources(mixed, Sampling(window=StridedWindow(frames=4, seconds=0.3)))


@pytest.mark.parametrize("wrong", [{}, {"stride": 1, "seconds": 1.0}, {"stride": 0}, {"seconds": 0.0}])
def test_a_pace_is_given_once(wrong: dict):
    with pytest.raises(ValueError, match=r"stride=|seconds="):
        StridedWindow(**wrong)


def test_cameras_are_looked_through_as_often_as_said():
    dataset = unequal(12, 12, cameras=("front", "wrist"))
    sampling = Sampling(window=StridedWindow(frames=3, stride=1), cameras={"front": 3.0, "wrist": 1.0}, weight=2.0)
    sources = sampled_sources(dataset, sampling)
    assert [(source.weight, source.camera_names()) for source in sources] == [
        (1.5, {"main": "front"}),
        (0.5, {"main": "wrist"}),
    ]
    loader = ClipLoader(sources, 16, seed=3, actions=False, prefetch=0)
    assert loader.batch(0).frames["main"].shape == (16, 3, 3, 8, 8)
    assert Counter(loader.mixture.samples(0, 400)[0].tolist()) == {0: 300, 1: 100}


def test_a_policy_survives_json():
    for window in (WholeClip(frames=8, longest=50), StridedWindow(frames=8, seconds=0.5)):
        sampling = Sampling(window=window, cameras={"camera0": 0.75, "camera1": 0.25}, domain="robot")
        assert config_from_json(Sampling, config_to_json(sampling)) == sampling
