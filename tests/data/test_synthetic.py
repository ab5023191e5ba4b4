import numpy as np
import pytest
import torch

from ideomotor.data.synthetic import BACKGROUND, COLOURS, BouncingDisc, synthetic_dataset, synthetic_disc
from ideomotor.types import Frames


def test_same_seed_same_bytes():
    first, again, other = (synthetic_dataset(3, 10, 24, seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    for a, b in zip(first.episodes, again.episodes, strict=True):
        assert torch.equal(a.frames["video"].read(range(10)), b.frames["video"].read(range(10)))
    assert not np.array_equal(first.episodes[0].read_proprio(), other.episodes[0].read_proprio())


def test_the_state_is_the_sum_of_the_actions():
    for episode in synthetic_dataset(4, 100, 8, seed=3).episodes:
        proprio, actions = episode.read_proprio(), episode.read_actions()
        assert proprio.dtype == actions.dtype == np.float32
        np.testing.assert_allclose(proprio[0] + np.cumsum(actions, axis=0)[:-1], proprio[1:], atol=1e-4)


def test_position_matches_a_simulation_step_by_step():
    disc = synthetic_disc(2, seed=5)
    reach, position, velocity = 1 - disc.radius, np.array(disc.start), np.array(disc.velocity)
    for expected in disc.position(np.arange(200)):
        np.testing.assert_allclose(position, expected, atol=1e-9)
        position = position + velocity
        for axis in range(2):
            if abs(position[axis]) > reach:
                position[axis] = np.sign(position[axis]) * 2 * reach - position[axis]
                velocity[axis] = -velocity[axis]


def test_the_disc_is_drawn_where_it_is():
    episode = synthetic_dataset(1, 20, 64, seed=7).episodes[0]
    frames = episode.frames["video"]
    assert isinstance(frames, Frames) and frames.shape == (20, 3, 64, 64)
    video = frames.read(range(20)).double()
    weight = (video - torch.tensor(BACKGROUND, dtype=torch.float64)[None, :, None, None]).abs().sum(1)
    axis = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    x = (weight.sum(1) * axis).sum(1) / weight.sum((1, 2))
    y = (weight.sum(2) * axis).sum(1) / weight.sum((1, 2))
    np.testing.assert_allclose(torch.stack((x, y), 1).numpy(), episode.read_proprio(), atol=0.01)


def test_read_gives_the_asked_order_and_size_and_refuses_the_rest():
    frames = synthetic_dataset(1, 5, 16, cameras=("front", "side")).episodes[0].frames
    video = frames["front"].read(range(5))
    assert torch.equal(frames["front"].read([4, 0, 4]), video[[4, 0, 4]])
    assert frames["side"].read([1], size=(12, 20)).shape == (1, 3, 12, 20)
    assert torch.equal(frames["side"].read([2])[0], torch.rot90(video[2], 1, (1, 2)))
    with pytest.raises(IndexError, match=r"0\.\.4"):
        frames["front"].read([5])


def test_video_alone_has_neither_actions_nor_state():
    episode = synthetic_dataset(1, 5, 16, actions=False).episodes[0]
    assert episode.read_actions is None and episode.read_proprio is None
    with pytest.raises(ValueError, match="1 or more"):
        synthetic_dataset(0)


def test_a_disc_at_rest_has_its_colour_in_the_middle():
    still = BouncingDisc(start=(0.0, 0.0), velocity=(0.0, 0.0), colour="red")
    picture = still.render(np.array([0.0, 9.0]), (9, 9))
    assert tuple(picture[0, :, 4, 4].tolist()) == COLOURS["red"] and torch.equal(picture[0], picture[1])
