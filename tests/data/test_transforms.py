import time

import pytest
import torch

from ideomotor.data.transforms import (
    AugmentConfig,
    _gathered,
    adjust_color,
    augment,
    bilinear,
    center_crop,
    color_jitter,
    covering_size,
    flip,
    random_shift,
    resize,
    resize_and_crop,
    shift,
)
from ideomotor.types import Clip


@pytest.fixture
def video(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 3, 13, 17), dtype=torch.uint8, generator=generator)


def test_shift_matches_pad_and_crop(video: torch.Tensor):
    moves = torch.tensor([[0, 0], [3, -2], [-4, 5], [-1, -1]])
    moved = shift(video, moves)
    for sample, (down, right), result in zip(video, moves.tolist(), moved, strict=True):
        padded = torch.nn.functional.pad(sample.float(), (5, 5, 5, 5), mode="replicate")
        assert torch.equal(padded[..., 5 - down : 18 - down, 5 - right : 22 - right].byte(), result)


def test_a_gpu_shifts_alike(video: torch.Tensor):
    moves = torch.tensor([[0, 0], [3, -2], [-4, 5], [-12, 16]])
    assert torch.equal(_gathered(video, moves), shift(video, moves))


def test_random_shift_moves_all_frames_of_a_sample_alike(generator: torch.Generator):
    still = torch.randint(0, 256, (16, 1, 3, 12, 12), dtype=torch.uint8, generator=generator).expand(-1, 5, -1, -1, -1)
    moved = random_shift(still, 3, generator)
    assert torch.equal(moved, moved[:, :1].expand_as(moved))
    assert sum(bool((a != b).any()) for a, b in zip(moved, still, strict=True)) > 10
    with pytest.raises(ValueError, match=r"0\.\.11"):
        random_shift(still, 12, generator)


def test_adjust_color_matches_one_step_after_another(generator: torch.Generator):
    # Built from 4 x 4 blocks, so that the mean over every fourth pixel is the mean.
    video = torch.randint(60, 190, (3, 2, 3, 4, 4), dtype=torch.uint8, generator=generator)
    video = video.repeat_interleave(4, -1).repeat_interleave(4, -2)
    factors = torch.tensor([[1.2, 0.8, 0.5], [0.7, 1.1, 1.3], [1.0, 1.0, 1.0]])
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for sample, (bright, contrast, saturation), result in zip(
        video, factors, adjust_color(video, factors), strict=True
    ):
        pixels = sample.float() * bright
        mean = (pixels * luma).sum(1).mean()
        pixels = mean + contrast * (pixels - mean)
        grey = (pixels * luma).sum(1, keepdim=True)
        expected = (grey + saturation * (pixels - grey)).clamp(0, 255)
        assert (expected - result.float()).abs().max() <= 0.51
    assert torch.equal(adjust_color(video, factors)[2], video[2])


def test_the_same_generator_gives_the_same_augmentation(video: torch.Tensor):
    def once(seed: int) -> torch.Tensor:
        clip = Clip(frames={"main": video}, text=("",) * 4)
        config = AugmentConfig(shift=2, brightness=0.3, contrast=0.3, saturation=0.3, flip=0.5)
        return augment(clip, config, torch.Generator().manual_seed(seed)).frames["main"]

    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2))
    assert once(1).dtype == torch.uint8 and once(1).shape == video.shape


def test_nothing_asked_changes_nothing(video: torch.Tensor, generator: torch.Generator):
    clip = Clip(frames={"main": video}, text=("",) * 4, actions=torch.zeros(4, 2, 1))
    config = AugmentConfig(shift=0, brightness=0, contrast=0, saturation=0)
    assert torch.equal(augment(clip, config, generator).frames["main"], video)
    assert torch.equal(color_jitter(video, 0, 0, 0, generator), video)


def test_mirrored_samples_are_mirrored_in_every_camera(video: torch.Tensor, generator: torch.Generator):
    config = AugmentConfig(shift=0, brightness=0, contrast=0, saturation=0, flip=0.5)
    clip = Clip(frames={"a": video, "b": video}, text=("",) * 4)
    changed = augment(clip, config, generator).frames
    assert torch.equal(changed["a"], changed["b"])
    for before, after in zip(video, changed["a"], strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
    assert torch.equal(flip(video, torch.ones(4, dtype=torch.bool)), video.flip(-1))


def test_mirroring_actions_and_augmenting_tokens_are_refused(video: torch.Tensor, generator: torch.Generator):
    clip = Clip(frames={"main": video}, text=("",) * 4, actions=torch.zeros(4, 2, 1))
    with pytest.raises(ValueError, match="set flip=0"):
        augment(clip, AugmentConfig(flip=0.5), generator)
    tokens = Clip(frames={"main": video}, text=("",) * 4, tokens={"main": torch.zeros(4, 2, 1, dtype=torch.long)})
    with pytest.raises(ValueError, match="token cache"):
        augment(tokens, AugmentConfig(), generator)
    for wrong in ({"shift": -1}, {"flip": 1.5}, {"contrast": -0.1}):
        with pytest.raises(ValueError, match="augmentation has"):
            AugmentConfig(**wrong)


def test_resize_averages_areas_and_keeps_what_is_flat(generator: torch.Generator):
    video = torch.randint(0, 256, (2, 3, 3, 8, 12), dtype=torch.uint8, generator=generator)
    halves = video.float().unflatten(-1, (6, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    assert (resize(video, (4, 6)).float() - halves).abs().max() <= 0.5
    assert resize(video, (8, 12)) is video
    for size in ((5, 7), (20, 30), (4, 30)):
        assert torch.equal(
            resize(torch.full((1, 3, 8, 12), 77, dtype=torch.uint8), size).unique(), torch.tensor([77]).byte()
        )


def test_without_smoothing_pixels_between_are_skipped():
    stripes = torch.zeros(1, 1, 3, 12, 12, dtype=torch.uint8)
    stripes[..., 1::3] = 255
    assert resize(stripes, (4, 4)).unique().tolist() == [85]
    assert resize(stripes, (4, 4), smooth=False).unique().tolist() == [255]  # only the middle one of three is seen
    assert bilinear(stripes[..., :2], (12, 4))[0, 0, 0, 0].tolist() == [0, 63.75, 191.25, 255]
    assert resize_and_crop(stripes, (6, 6), smooth=False).equal(resize(stripes, (6, 6), smooth=False))


def test_covering_and_cropping():
    assert covering_size((480, 640), (96, 96)) == (96, 128)
    assert covering_size((640, 480), (96, 96)) == (128, 96)
    assert covering_size((96, 96), (64, 64)) == (64, 64)
    assert covering_size((120, 160), (48, 64)) == (48, 64)
    video = torch.arange(35, dtype=torch.uint8).reshape(1, 5, 7).expand(3, 5, 7)
    assert center_crop(video, (3, 3))[0].tolist() == [[9, 10, 11], [16, 17, 18], [23, 24, 25]]
    assert resize_and_crop(torch.zeros(2, 3, 48, 64, dtype=torch.uint8), (24, 24)).shape == (2, 3, 24, 24)
    with pytest.raises(ValueError, match="resize them first"):
        center_crop(video, (6, 3))


def test_fast_enough_to_feed_training(generator: torch.Generator):
    video = torch.randint(0, 256, (32, 8, 3, 96, 96), dtype=torch.uint8, generator=generator)
    clip = Clip(frames={"main": video}, text=("",) * 32)
    augment(clip, AugmentConfig(), generator)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        augment(clip, AugmentConfig(), generator)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.25  # 9 ms on the machine it was written on: 25 leaves room for a busy one
