"""The Video Former: its sizes, what may depend on what, and that other numbers of frames and views pass."""

from dataclasses import replace

import pytest
import torch

from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig

CONFIG = VideoFormerConfig(feature_width=6, width=16, frames=4, queries=3, layers=2, heads=2, head_width=4)


def former(**changes) -> VideoFormer:
    torch.manual_seed(0)
    return VideoFormer(replace(CONFIG, **changes)).eval()


def reached(model: VideoFormer, frame: int) -> list[bool]:
    """For each frame, whether its tokens depend on what foretold ``frame`` showed."""
    features = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    changed = features.clone()
    changed[:, frame] += 1
    moved = (model(features) - model(changed)).abs().amax(2) > 1e-6
    return moved.view(4, -1).any(1).tolist()


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = VideoFormer(VideoFormerConfig())
    assert sum(weight.numel() for weight in model.parameters()) == 17_713_536


@pytest.mark.parametrize("kind", ["3d", "2d", "linear"])
def test_frames_and_views_may_be_fewer(kind: str) -> None:
    model = former(kind=kind)
    for frames, views in ((4, 1), (2, 3), (1, 2)):
        tokens = model(torch.randn(2, frames, views * 5, 6))
        assert tokens.shape == (2, frames * (views * 5 if kind == "linear" else 3), 16)


def test_only_3d_looks_over_time() -> None:
    assert reached(former(), 1) == [True] * 4
    assert reached(former(temporal_norm=True), 1) == [True] * 4
    assert reached(former(kind="2d"), 1) == [False, True, False, False]
    assert reached(former(kind="linear"), 1) == [False, True, False, False]


def test_fewer_frames_are_the_first_ones() -> None:
    model, features = former(kind="2d"), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(model(features[:, :2]), model(features)[:, :6])


@pytest.mark.parametrize("kind", ["3d", "linear"])
def test_places_tell_where_a_token_stands(kind: str) -> None:
    model, features = former(kind=kind, places=5), torch.randn(1, 4, 5, 6)
    plain = former(kind=kind)
    torch.testing.assert_close(model(features), plain(features))  # they begin as nothing, and move no other number
    order = torch.tensor([1, 2, 3, 4, 0])
    torch.nn.init.normal_(model.places)
    moved, still = model(features[:, :, order]), model(features)
    if kind == "linear":
        moved = moved.unflatten(1, (4, 5))[:, :, order.argsort()].flatten(1, 2)
    assert not torch.allclose(moved, still, atol=1e-2)
    with pytest.raises(ValueError, match=r"frames of 6 tokens came; this Video Former knows 5 places"):
        model(torch.randn(1, 4, 6, 6))


def test_a_frame_is_a_set_of_tokens_that_knows_its_time() -> None:
    model, features = former(), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(model(features), model(features[:, :, torch.randperm(5)]))
    assert not torch.allclose(model(features), model(features.flip(1)), atol=1e-3)
    known = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(model(features, known=known), model(features))
    assert not torch.allclose(model(features, known=~known), model(features), atol=1e-3)


def test_extra_tokens_are_read_by_every_frame() -> None:
    model, features, extra = former(kind="2d"), torch.randn(1, 4, 5, 6), torch.randn(1, 2, 16)
    moved = (model(features, extra=extra) - model(features)).abs().amax(2) > 1e-4
    assert moved.view(4, 3).any(1).all()


def test_the_norm_over_time_is_one_more() -> None:
    plain, normed = former(), former(temporal_norm=True)
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (plain, normed)]
    assert sizes[1] - sizes[0] == 2 * 2 * 16


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="5 frames and width 6 came; this Video Former reads up to 4 frames"):
        former()(torch.zeros(1, 5, 2, 6))
    with pytest.raises(ValueError, match="width 7 came"):
        former()(torch.zeros(1, 4, 2, 7))
    for wrong in ({"kind": "4d"}, {"queries": 0}, {"width": 15}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(CONFIG, **wrong)
