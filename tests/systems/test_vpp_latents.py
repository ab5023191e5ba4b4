"""What stage 1 of VPP learns from, by the command: videos, latents that were prepared, latents that were published."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import ideomotor, said

from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.systems.autoencoders import load_vae
from ideomotor.systems.stages import learned_with
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.systems.vpp_stages import load_models
from ideomotor.systems.vpp_weights import first_weights
from ideomotor.tokenizers.svd_vae import SVDVAE
from ideomotor.training.checkpoint import load_state, save_model
from ideomotor.training.config import config_to_json


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, one of them damaged, and an autoencoder that nobody trained."""
    home = tmp_path_factory.mktemp("latents")
    for number in range(3):
        video = synthetic_disc(0, number).render(np.arange(9, dtype=float), (32, 32))
        write_video(home / f"films/{number}.mp4", video, fps=10)
    (home / "films/cut.mp4").write_bytes((home / "films/0.mp4").read_bytes()[:300])
    config = replace(PRESETS["tiny"]().vae, scale=0.5)
    torch.manual_seed(0)
    save_model(home / "vae", SVDVAE(config), config)
    return home


def video(home: Path, data: Path, out: Path, cache: Path, *more: object) -> int:
    words = ("--preset", "tiny", "--data", data, "--vae-from", home / "vae", "--cache", cache, "--out", out)
    return ideomotor("vpp", "video", *words, "--video-stage.steps", 1, *more)


def published(root: Path, *shape: int) -> Path:
    (root / "annotation/val").mkdir(parents=True)
    (root / "latent_videos").mkdir()
    for number in range(3):
        entry = {"latent_videos": [{"latent_video_path": f"latent_videos/{number}.pt"}], "texts": ["go"]}
        (root / f"annotation/val/{number}.json").write_text(json.dumps(entry))
        torch.save(0.18215 * torch.randn(8, *shape), root / f"latent_videos/{number}.pt")
    return root


def test_what_is_damaged_is_left_out_by_name(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert video(home, home / "films", tmp_path / "a", tmp_path / "cache") == 0
    assert "left out of films: cut.mp4: " in capsys.readouterr().err
    (noted,) = json.loads((tmp_path / "a/data.json").read_text())["datasets"]
    assert [entry["path"] for entry in noted["left_out"]] == ["cut.mp4"] and noted["learned"] == 2
    words = ("--data", home / "films", "--vae", home / "vae", "--size", 32, "--cache", tmp_path / "cache")
    assert ideomotor("vpp", "prepare", *words) == 0
    shown = capsys.readouterr()
    assert "1 episodes left out" in shown.out and "left out of films: cut.mp4: " in shown.err


def test_latents_prepared_in_another_precision_serve(home: Path, tmp_path: Path) -> None:
    words = ("--data", home / "films", "--vae", home / "vae", "--size", 32, "--cache", tmp_path / "cache")
    assert ideomotor("vpp", "prepare", *words, "--dtype", "bfloat16") == 0
    (made,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert video(home, home / "films", tmp_path / "a", tmp_path / "cache") == 0
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [made], "nothing is encoded again"


def test_published_latents_are_learned_from(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = published(tmp_path / "data", 4, 16, 16)
    assert video(home, data, tmp_path / "a", tmp_path / "cache") == 0
    assert "taken as they were published, for those of --vae-from" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("*")), "nothing is encoded"
    # There is no video that the model could be tried on; with some it can.
    assert ideomotor("vpp", "gate", tmp_path / "a") == 2
    assert "has no video of camera 'camera0', only latents" in said(capsys)
    assert ideomotor("vpp", "predict", tmp_path / "a", "--input", data, "--out", tmp_path / "a.mp4") == 2
    assert "has no video, only latents" in said(capsys)
    quick = ("--clips", 2, "--samples", 1, "--steps", 1, "--noises", 1, "--sigmas", 1.0, "--videos", 0)
    assert ideomotor("vpp", "gate", tmp_path / "a", "--data", home / "films", *quick) == 0


def test_training_begins_with_the_weights_of_a_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    given = LatentDiffusion(PRESETS["tiny"]().video)
    given.unet.save_pretrained(tmp_path / "svd/unet")
    cache, still = tmp_path / "cache", ("--video-stage.optim.lr", 1e-30, "--video-stage.optim.warmup", 0)
    begin = ("--begin-from", tmp_path / "svd", *still)
    assert video(home, home / "films", tmp_path / "a", cache, *begin, "--recompute") == 0
    models = load_models(tmp_path / "a")
    assert models.predictor is not None
    for name, value in models.predictor.unet.state_dict().items():
        torch.testing.assert_close(value, given.unet.state_dict()[name])
    assert video(home, home / "films", tmp_path / "a", cache, *still) == 2
    assert "weights it begins with" in said(capsys)
    assert video(home, home / "films", tmp_path / "b", cache, *begin, "--video.unet.layers", 2) == 2
    assert "layers: 1 -> 2" in said(capsys)
    (file,) = (tmp_path / "svd/unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:500])
    assert video(home, home / "films", tmp_path / "b", cache, *begin) == 2
    assert "are damaged or not all there" in said(capsys)
    (file.parent / "config.json").write_text("{")
    assert video(home, home / "films", tmp_path / "b", cache, *begin) == 2
    assert "config.json is damaged" in said(capsys)


def test_few_weights_may_be_trained_beside_those_of_a_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    given = LatentDiffusion(PRESETS["tiny"]().video)
    given.unet.save_pretrained(tmp_path / "svd/unet")
    films, cache = home / "films", tmp_path / "cache"
    begin = ("--begin-from", tmp_path / "svd", "--video-stage.optim.ema", 0.9)
    assert video(home, films, tmp_path / "a", cache, *begin, "--lora", 2) == 0
    models = load_models(tmp_path / "a")
    assert models.predictor is not None
    ours, theirs = models.predictor.unet.state_dict(), given.unet.state_dict()
    assert ours.keys() == theirs.keys()
    moved = {name for name, value in ours.items() if not value.equal(theirs[name])}
    linear = {f"{name}.weight" for name, part in given.unet.named_modules() if isinstance(part, torch.nn.Linear)}
    assert moved and moved <= linear, "what is no linear map holds still"
    tensors = load_state(tmp_path / "a/state")[1]["VideoDenoising"].tensors
    for part in ("average", "weights"):
        pairs = {name.removeprefix(f"{part}.predictor.unet."): value for name, value in tensors.items()}
        same = [
            ours[name].allclose(
                theirs[name] + 32 / 2 * pairs[f"{place}.up"] @ pairs[f"{place}.down"], rtol=0, atol=1e-7
            )
            for name, place in ((name, name.removesuffix(".weight")) for name in moved)
        ]
        assert all(same) if part == "average" else not any(same), "it is the average that is merged and saved"
    saved = (tmp_path / "a/predictor/model.safetensors").read_bytes()
    (tmp_path / "a/done.json").unlink()  # as if it had crashed while it saved
    shutil.rmtree(tmp_path / "a/predictor")
    assert video(home, films, tmp_path / "a", cache, *begin, "--lora", 2) == 0
    assert (tmp_path / "a/predictor/model.safetensors").read_bytes() == saved
    assert video(home, films, tmp_path / "a", cache, *begin, "--lora", 3) == 2
    assert "lora" in said(capsys)
    assert video(home, films, tmp_path / "b", cache, "--lora", 2) == 2
    assert "needs weights to begin with (--begin-from)" in said(capsys)


def test_training_goes_on_from_a_stage_of_ours(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, form, vae = tmp_path / "first", PRESETS["tiny"](), load_vae(home / "vae")
    torch.manual_seed(5)
    earlier = LatentDiffusion(replace(form.video, latent_scale=vae.scale))
    save_model(first / "vae", vae, vae.config)
    save_model(first / "predictor", earlier, earlier.config, learned_with(first, "vae"))
    (first / "vpp.json").write_text(json.dumps(config_to_json(form)))
    still = ("--video-stage.optim.lr", 1e-30, "--video-stage.optim.warmup", 0, "--window.stride", 1)
    words = ("--begin-from", first, *still)  # another pace is welcome
    assert video(home, home / "films", tmp_path / "a", tmp_path / "cache", *words) == 0
    ours = load_models(tmp_path / "a").predictor
    assert ours is not None
    for name, value in earlier.state_dict().items():  # the map of the text too
        torch.testing.assert_close(ours.state_dict()[name], value)
    save_model(first / "predictor", ours, ours.config, learned_with(first, "vae"))
    assert video(home, home / "films", tmp_path / "a", tmp_path / "cache", *words) == 2
    assert "weights it begins with" in said(capsys)

    deeper = replace(form.video, unet=replace(form.video.unet, layers=2))
    torch.manual_seed(1)
    for config, eyes, why in [
        (replace(form, video=deeper), vae, "unet.layers: 1 -> 2"),
        (replace(form, video=replace(form.video, foretells="change")), vae, "foretells: 'v' -> 'change'"),
        (replace(form, text="sentence"), vae, "text: 'hashed' -> 'sentence'"),  # its vectors are as wide
        (form, SVDVAE(vae.config), f"give --vae-from {first}"),
    ]:
        with pytest.raises(ValueError, match=re.escape(why)):
            first_weights(first, config, eyes)
    with pytest.raises(ValueError, match=r"gone holds nothing to begin with: give the --out folder of an earlier"):
        first_weights(tmp_path / "gone", form, vae)
    shutil.rmtree(first / "predictor")
    with pytest.raises(ValueError, match="holds no video model"):
        first_weights(first, form, vae)
    (first / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has not finished"):
        first_weights(first, form, vae)


@pytest.mark.parametrize("content, why", [("{", "is not JSON"), ("{}", "holds a None"), ("[]", "holds a list"),
    ('{"_class_name": "AutoencoderKLTemporalDecoder"}', "does not say block_out_channels")])  # fmt: skip
def test_a_damaged_folder_of_an_autoencoder_is_named(
    home: Path, tmp_path: Path, content: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(content)
    words = ("--data", home / "films", "--vae", tmp_path, "--cache", tmp_path / "cache")
    assert ideomotor("vpp", "prepare", *words) == 2
    assert why in said(capsys) and not (tmp_path / "cache").exists()


def test_latents_of_another_shape_and_stages_that_need_video_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = published(tmp_path / "small", 4, 8, 8)
    assert video(home, small, tmp_path / "a", tmp_path / "cache") == 2
    assert "has latents of shape (4, 8, 8); this autoencoder makes (4, 16, 16)" in said(capsys)
    words = ("--preset", "tiny", "--data", small, "--cache", tmp_path / "cache", "--out", tmp_path / "a")
    assert ideomotor("vpp", "vae", *words) == 2
    assert "published as latents, without video" in said(capsys)
    assert not (tmp_path / "a").exists()
