"""Perceptual distance: brute force, every spelling of the weights' names, what is missing."""

import pytest
import torch
from safetensors.torch import save_file

from ideomotor.layers.mobilenet import MobileNetTrunk
from ideomotor.layers.perceptual import MobileNetDistance, PerceptualDistance, load_perceptual, perceptual_from_state

WIDTHS = (2, 3, 4, 5, 6)
PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture
def files(tmp_path):
    """A network under torchvision's names, with a classifier; heads in a file of their own."""
    generator, before = torch.Generator().manual_seed(0), 3
    network, heads = {"classifier.0.weight": torch.zeros(2, 2)}, {}
    for k, (places, width) in enumerate(zip(PLACES, WIDTHS, strict=True)):
        for place in places:
            network[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=generator)
            network[f"features.{place}.bias"] = torch.randn(width, generator=generator)
            before = width
        heads[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    save_file(network, tmp_path / "vgg16.safetensors")
    torch.save(heads, tmp_path / "heads.pth")
    return tmp_path / "vgg16.safetensors", tmp_path / "heads.pth"


def test_both_files_and_both_spellings(files):
    distance, notice = load_perceptual(*files)
    assert "vgg16.safetensors" in notice and isinstance(distance, PerceptualDistance)
    assert not any(weight.requires_grad for weight in distance.parameters())
    x, y = torch.rand(2, 3, 3, 32, 32)
    assert distance(x, x).abs().max() == 0 and (distance(x, y) > 0).all()
    torch.testing.assert_close(distance(x, y), distance(y, x))
    state = torch.load(files[1], weights_only=True)
    for i, places in enumerate(PLACES, 1):
        for place in places:
            for j, part in enumerate(("weight", "bias")):
                convolution = [c for c in distance.groups.modules() if isinstance(c, torch.nn.Conv2d)]
                number = sum(PLACES, ()).index(place)
                state[f"net.slice{i}.{place}.{part}"] = list(convolution[number].parameters())[j]
    assert perceptual_from_state(state)(x, y).equal(distance(x, y))


def test_gradients_are_finite_where_features_vanish():
    distance = PerceptualDistance(WIDTHS)
    for weight in distance.groups.parameters():
        weight.zero_()
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(x, torch.rand(1, 3, 32, 32)).sum().backward()
    assert x.grad.isfinite().all()


def test_what_is_missing_is_named(files, tmp_path):
    distance, notice = load_perceptual()
    assert distance is None and notice.startswith("no perceptual loss")
    with pytest.raises(ValueError, match=r"13 convolutions.*heads missing: lin0.model.1.weight"):
        load_perceptual(files[0])
    with pytest.raises(ValueError, match="0 convolutions"):
        load_perceptual(files[1])
    for name in ("page.pth", "page.safetensors", "empty.pth", "rows.pth"):
        (tmp_path / name).write_bytes(b"<html>" * 9 if name.startswith("page") else b"")
        if name == "rows.pth":
            torch.save([torch.zeros(1)], tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} holds (no weights|a list)"):
            load_perceptual(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_perceptual(tmp_path / "nothing.pth")


def test_mobilenet_in_place_of_lpips():
    torch.manual_seed(0)
    distance = MobileNetDistance(MobileNetTrunk()).train()
    assert not any(part.training for part in distance.trunk.modules())
    x, y = torch.rand(2, 2, 3, 64, 64)
    y.requires_grad_()
    assert distance(x, x).abs().max() == 0 and (distance(x, y) > 0).all() and (distance(x, y) <= 4).all()
    distance(x, y).sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().max() > 0
