"""A world's figures under named protocols, with the user's weights and with those of a package; devices."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ideomotor.evaluation.video_metrics import mse
from ideomotor.layers.perceptual import PerceptualDistance
from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import AutoregressivePredictor
from ideomotor.systems.devices import device_named
from ideomotor.systems.held_out import HeldOut
from ideomotor.systems.ivideogpt import tiny
from ideomotor.systems.ivideogpt_scores import as_json, score, video_scores_table
from ideomotor.systems.video_scoring import Judges, VideoScoring, open_judges
from ideomotor.systems.world import World
from ideomotor.tokenizers.context_vqgan import ContextVQGAN


@pytest.fixture(scope="module")
def world() -> World:
    torch.manual_seed(0)
    config = replace(tiny(), world=replace(tiny().world, action_width=0))
    predictor = AutoregressivePredictor(config.world)
    return World(ContextVQGAN(config.tokenizer), predictor, sampling=Sampling(temperature=1.0))


@pytest.fixture(scope="module")
def clips() -> HeldOut:
    frames = torch.randint(0, 256, (4, 5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = list("abcd")
    return HeldOut(frames=frames, actions=None, rewards=None, episodes=names, texts=names, names=names)


class Stamp:
    """A vector a video that grows with its number of frames."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        return video.float().mean((2, 3, 4))[:, :2, None] * video.shape[1]


def test_the_published_protocol_scores_the_repainted_context(world: World, clips: HeldOut) -> None:
    """Fails if the true context frames are scored, which every world gives back for nothing."""
    found = score(world, clips, samples=3, published=True)
    strict, published = found.strict, found.ivideogpt
    assert published is not None and "mse (mean)" not in published and "mse (mean)" in strict
    seen = clips.frames[:, :2]
    again = world.tokenizer.observe(world.tokenizer.tokenize(seen).context).frames
    context = float(mse(seen, again).mean())
    assert context > 0.01
    wanted = (2 * context + 3 * strict["mse (best)"].value) / 5
    assert published["mse (best)"].value == pytest.approx(wanted, rel=1e-4)
    plain = json.loads(json.dumps(as_json(found)))
    assert plain["ivideogpt"]["mse (best)"]["low"] <= published["mse (best)"].value
    assert [column.header for column in video_scores_table(found).columns] == ["metric", "strict", "ivideogpt"]


def test_judges_add_rows_to_every_protocol(world: World, clips: HeldOut) -> None:
    judges = Judges(lambda one, other: (one - other).abs().mean((1, 2, 3)), (Stamp("fvd"), Stamp("frechet")))
    found = score(world, clips, published=True, judges=judges)
    added = {"lpips (best)", "fvd (all)", "frechet (all)"}
    assert found.ivideogpt is not None and added <= found.strict.keys() & found.ivideogpt.keys()
    assert found.strict["fvd (all)"].value != found.ivideogpt["fvd (all)"].value
    plain = score(world, clips)
    assert plain.ivideogpt is None and not added & plain.strict.keys()
    assert [column.header for column in video_scores_table(plain).columns] == ["metric", "strict"]


class Script(nn.Module):
    """Takes what the published I3D file takes."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        return x.mean(dim=(2, 3, 4))


def test_weights_are_the_users_files(tmp_path: Path) -> None:
    torch.jit.script(Script()).save(str(tmp_path / "i3d.pt"))
    digest = hashlib.sha256((tmp_path / "i3d.pt").read_bytes()).hexdigest()
    distance, state = PerceptualDistance((8, 8, 8, 8, 8)), {}
    convolutions = [part for part in distance.groups.modules() if isinstance(part, nn.Conv2d)]
    for place, convolution in enumerate(convolutions):
        state |= {f"features.{place}.weight": convolution.weight, f"features.{place}.bias": convolution.bias}
    state |= {f"lin{i}.model.1.weight": head[None, :, None, None] for i, head in enumerate(distance.heads)}
    save_file({name: value.detach().contiguous() for name, value in state.items()}, tmp_path / "lpips.safetensors")
    scoring = VideoScoring(lpips=(tmp_path / "lpips.safetensors",), fvd=tmp_path / "i3d.pt", fvd_sha256=digest)
    judges = open_judges(scoring)
    assert judges.lpips is not None and [each.name for each in judges.features] == ["fvd"]
    assert open_judges(VideoScoring()) == Judges()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"fvd": Path("nowhere.pt"), "fvd_sha256": "00"}, FileNotFoundError, "--frechet needs no file"),
        ({"fvd": Path("nowhere.pt")}, ValueError, "--fvd came alone"),
        ({"fvd_sha256": "00"}, ValueError, "--fvd-sha256 came alone"),
        ({"lpips": (Path("nowhere.pth"),)}, FileNotFoundError, "give the weights of VGG16"),
    ],
)
def test_missing_weights_are_named(given: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        open_judges(VideoScoring(**given))


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "gpu", "cpu:1"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"this machine has cpu"):
        device_named(name)
    assert device_named("cpu") == torch.device("cpu")


def test_packaged_features_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        open_judges(VideoScoring(frechet=True))
