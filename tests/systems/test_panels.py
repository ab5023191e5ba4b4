"""Pictures of imagination: what they show, pixel by pixel."""

import torch

from ideomotor.systems import panels


def test_heat_is_black_where_nothing_differs_and_white_where_all_does() -> None:
    one = torch.zeros(1, 3, 1, 4, dtype=torch.uint8)
    other = one.clone()
    other[0, 1, 0] = torch.tensor([0, 40, 128, 255], dtype=torch.uint8)  # green alone counts
    shown = panels.heat(one, other)[0, :, 0].T.tolist()
    assert shown[0] == [0, 0, 0] and shown[2] == shown[3] == [255, 255, 255]
    assert shown[1][0] > shown[1][1] > 0 and torch.equal(panels.heat(one, other), panels.heat(other, one))


def test_hatching_covers_the_blocks_of_unknown_tokens_and_no_more() -> None:
    video = torch.full((4, 3, 8, 12), 250, dtype=torch.uint8)
    unknown = torch.zeros(2, 2, 3, dtype=torch.bool)
    unknown[1, 0, 2] = True  # of the second latent frame, the upper right block
    shown = panels.hatched(video, unknown)
    changed = (shown != video).all(1)
    wanted = torch.zeros(4, 8, 12, dtype=torch.bool)
    wanted[2:, :4, 8:] = True
    assert torch.equal(changed, wanted) and shown[2:, :, :4, 8:].amax() < 160


def test_all_panels_show_the_context_first() -> None:
    g = torch.Generator().manual_seed(0)
    context, truth = (torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=g) for _ in range(2))
    futures = torch.stack([truth, context])
    shown = panels.comparison(context, truth, futures)
    assert shown.shape == (4, 3, 24, 4 * 24)
    seen = shown[:2].unflatten(3, (4, 24))
    assert all(torch.equal(seen[:, :, :, k], panels.framed(context, "seen")) for k in range(4))
    assert torch.equal(shown[2:, :, 4:-4, 76:-4], torch.zeros(2, 3, 16, 16, dtype=torch.uint8))  # the first is right
