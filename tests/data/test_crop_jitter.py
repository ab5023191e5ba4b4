import colorsys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ideomotor.data.crop_jitter import (
    CropJitterConfig,
    _contrast,
    _hue,
    _saturation,
    crop_and_jitter,
    crop_boxes,
    normal,
    strong,
)
from ideomotor.types import Clip

STILL = {"color": 0.0, "hue": 0.0}


def clip_of(video, **more):
    return Clip(frames={"main": video}, text=("",) * len(video), **more)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_every_frame_of_a_sample_is_changed_alike_and_every_sample_by_itself(generator):
    still = noise(1, 1, 3, 20, 26).expand(6, 4, -1, -1, -1)
    made = crop_and_jitter(clip_of(still), strong(16), generator).frames["main"]
    assert made.shape == (6, 4, 3, 16, 16) and made.dtype == torch.uint8
    assert (made == made[:, :1]).all()
    assert len({sample.numpy().tobytes() for sample in made}) == 6


def test_the_same_generator_gives_the_same_change():
    video = noise(3, 2, 3, 24, 24)
    made = [
        crop_and_jitter(clip_of(video), normal(16), torch.Generator().manual_seed(seed)).frames["main"]
        for seed in (1, 1, 2)
    ]
    assert made[0].equal(made[1]) and not made[0].equal(made[2])


@pytest.mark.parametrize("config", [normal(), strong()])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (256, 320)])
def test_crops_keep_to_their_bounds(config, height, width, generator):
    boxes = crop_boxes(2000, height, width, config, generator)
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    short = min(height, width)
    share, ratio = h * w / short**2, w / h
    slack = 2.0 / short  # edges are whole pixels
    assert config.area[0] - slack <= share.min() < config.area[0] + 0.06 and share.max() <= 1 + slack
    assert config.ratio[0] * (1 - slack) <= ratio.min() and ratio.max() <= config.ratio[1] * (1 + slack)
    assert top.min() == 0 and (top + h).max() == height and left.min() == 0 and (left + w).max() == width


def test_a_picture_that_no_crop_fits_is_cut_to_its_middle(generator):
    config = CropJitterConfig(area=(1.0, 1.0), ratio=(2.0, 2.0))  # twice as wide as high, over a square's whole area
    assert crop_boxes(3, 40, 40, config, generator).tolist() == [[10, 0, 20, 40]] * 3
    assert crop_boxes(2, 40, 20, replace(config, ratio=(1.5, 1.5)), generator).tolist() == [[13, 0, 13, 20]] * 2
    assert crop_boxes(1, 10, 40, replace(config, ratio=(0.5, 0.5)), generator).tolist() == [[0, 17, 10, 5]]


def test_a_whole_picture_without_jitter_is_itself(generator):
    video = noise(2, 3, 3, 16, 16)
    config = CropJitterConfig(size=16, area=(1.0, 1.0), ratio=(1.0, 1.0), **STILL)
    assert crop_and_jitter(clip_of(video), config, generator).frames["main"].equal(video)


def test_hue_turns_as_the_hexcone_does():
    colors = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    colors[0], colors[1], colors[2] = 0.0, 1.0, torch.tensor([0.3, 0.3, 0.3])  # greys have no hue
    for change in (0.05, -0.37, 0.5):
        turned = _hue(colors.reshape(200, 3, 1, 1), change).reshape(200, 3)
        for color, got in zip(colors.tolist(), turned.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*color)
            assert got == pytest.approx(colorsys.hsv_to_rgb((hue + change) % 1, saturation, value), abs=2e-5)


def test_contrast_and_saturation():
    frames = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    grey = (frames * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(_contrast(frames, -1.0), grey.mean().expand_as(frames))
    torch.testing.assert_close(_saturation(frames, -1.0), grey.expand_as(frames))
    stronger = _contrast(frames, 0.2)
    torch.testing.assert_close(stronger.mean(), frames.mean() + 0.2 * (frames.mean() - grey.mean()))


def test_colours_are_changed_in_every_order(monkeypatch, generator):
    seen = []
    changes = tuple(lambda frames, change, step=step: (seen.append(step), frames)[1] for step in range(4))
    monkeypatch.setattr("ideomotor.data.crop_jitter._CHANGES", changes)
    crop_and_jitter(clip_of(noise(600, 1, 3, 4, 4)), normal(4), generator)
    orders = Counter(tuple(seen[at : at + 4]) for at in range(0, len(seen), 4))
    assert len(orders) == 24 and max(orders.values()) < 60


def test_bounds_and_tokens_are_checked(generator):
    for wrong in ({"area": (0.0, 1.0)}, {"area": (0.9, 0.8)}, {"size": 0}, {"hue": 0.6}, {"color": -0.1}):
        with pytest.raises(ValueError, match="augmentation has"):
            CropJitterConfig(**wrong)
    clip = clip_of(noise(1, 1, 3, 8, 8), tokens={"main": torch.zeros(1, 1, 4, dtype=torch.long)})
    with pytest.raises(ValueError, match="stand for its unchanged frames"):
        crop_and_jitter(clip, normal(8), generator)
