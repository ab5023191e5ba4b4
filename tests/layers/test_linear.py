"""The quick linear map gives what torch's gives, whichever way it is computed."""

import pytest
import torch
import torch.nn.functional as F

from ideomotor.layers.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 7, 5), (1, 0, 5), (3, 4, 2, 5)])
def test_values(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(5, 6, bias=bias), torch.randn(shape)
    wanted = F.linear(x, layer.weight, layer.bias)
    assert layer(x).requires_grad and layer(x).equal(wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
        strided = x.unsqueeze(0).expand(2, *shape)
        torch.testing.assert_close(layer(strided), wanted.unsqueeze(0).expand(2, *wanted.shape))
        torch.testing.assert_close(layer.double()(x.double()), wanted.double())


def test_autocast_and_inference_mode() -> None:
    layer, x = Linear(5, 6), torch.randn(3, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
