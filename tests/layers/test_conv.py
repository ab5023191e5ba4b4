"""Folding: what a CPU does where no gradient is wanted is the same map."""

import pytest
import torch
from einops import rearrange

from ideomotor.layers.conv import Fold


@pytest.mark.parametrize(
    ("shape", "step"), [((2, 3, 8, 12), (4, 4)), ((2, 5, 6, 4), (2, 1)), ((2, 3, 4, 8, 8), (4, 4, 2))]
)
@pytest.mark.parametrize("last", [False, True])
def test_folding_without_gradients_is_the_same_map(shape: tuple[int, ...], step: tuple[int, ...], last: bool) -> None:
    torch.manual_seed(0)
    fold, x = Fold(shape[1], 7, step), torch.randn(shape)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.no_grad():
        quick = fold(x)
    assert quick.shape == (shape[0], 7, *(side // by for side, by in zip(shape[2:], step, strict=True)))
    torch.testing.assert_close(quick, fold(x).detach())


def test_a_fold_reads_colours_before_places() -> None:
    """Every trained folder's weights are in this order."""
    fold, x = Fold(2, 3, (2, 2)), torch.randn(1, 2, 2, 2)
    wanted = fold.linear(rearrange(x, "b c y x -> b (c y x)"))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(fold(x).detach()[:, :, 0, 0], wanted.detach())


@pytest.mark.parametrize("grad", [False, True])
def test_sides_that_do_not_divide_are_refused(grad: bool) -> None:
    """A convolution by itself would leave the rest out."""
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="not divisible by steps"):
        Fold(3, 4, (4, 4))(torch.randn(1, 3, 8, 10))
