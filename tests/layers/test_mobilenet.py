import pytest
import torch

from ideomotor.layers.mobilenet import MobileNetTrunk


def test_shapes_and_size():
    trunk = MobileNetTrunk().eval()
    with torch.no_grad():
        assert trunk(torch.rand(2, 3, 64, 96)).shape == (2, 320, 2, 3)
    assert sum(p.numel() for p in trunk.parameters()) == 1_811_712  # 3,504,872 less the layers behind


def test_it_takes_the_published_names_and_refuses_others():
    trunk = MobileNetTrunk()
    state = dict(trunk.state_dict()) | {"features.18.0.weight": torch.ones(1), "classifier.1.bias": torch.ones(1)}
    assert next(iter(state)) == "features.0.0.weight"
    assert "features.17.conv.3.running_var" in state
    trunk.load_published(state)
    with pytest.raises(RuntimeError, match=r"features\.9\.conv\.2\.weight"):
        trunk.load_published({name: value for name, value in state.items() if name != "features.9.conv.2.weight"})


def test_it_equals_the_network_of_transformers(generator):
    """The same weights, by position, in an independent build."""
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    trunk = MobileNetTrunk().eval()
    theirs = transformers.MobileNetV2Model(transformers.MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5)).eval()
    ours = {name: value for name, value in trunk.state_dict().items() if not name.endswith("num_batches_tracked")}
    names = [n for n in theirs.state_dict() if not n.endswith("num_batches_tracked") and not n.startswith("conv_1x1")]
    for mine, their in zip(ours.values(), names, strict=True):
        mine.copy_(
            torch.rand(mine.shape, generator=generator) * (0.2 if mine.ndim == 4 else 1.0) + 0.1 * (mine.ndim < 4)
        )
        theirs.state_dict()[their].copy_(mine)
    pictures = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        wanted = theirs((pictures - trunk.mean) / trunk.deviation, output_hidden_states=True).hidden_states[-1]
        got = trunk(pictures)
    assert wanted.std() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
