"""A policy that looks with a frozen image encoder, by the commands: it trains, acts, is moved, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("transformers", reason="the text extra is not installed")

import transformers
from test_bad_pairs import digest, ideomotor, recording, said

from ideomotor.systems import vpp_encoder
from ideomotor.systems.study_vpp import VPPEyes, form_of
from ideomotor.systems.vpp_encoder import Encoding, looking_through
from ideomotor.systems.vpp_presets import looking_with, tiny
from ideomotor.systems.vpp_shards import pack, unpack
from ideomotor.systems.vpp_stages import load_agent, load_models
from ideomotor.tokenizers.image_encoder import load_encoder
from ideomotor.types import Clip

SCALES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3, "crop_size": 24, "size": 24}


def clip(folder: Path, seed: int = 0) -> Path:
    """A small vision tower of CLIP: 9 tokens of width 32 a frame."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=24, patch_size=8)
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SCALES))
    return folder


def policy(home: Path, out: Path, *more: object) -> int:
    words = ["--preset", "tiny", "--out", out, "--cache", home / "cache", "--data", home / "shown"]
    if "--encoder" not in more:
        words += ["--encoder", home / "clip"]
    return ideomotor("vpp", "policy", *words, "--eyes", "encoder", *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, an encoder, and a policy of both."""
    home = tmp_path_factory.mktemp("encoder")
    for number in range(4):
        recording(home / f"shown/{number}.npz")
    clip(home / "clip")
    assert policy(home, home / "policy") == 0
    return home


def seen(count: int = 2, views: int = 1) -> Clip:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 1, 3, 32, 32)
    names = ("main",) if views == 1 else ("main", "view1")
    frames = {name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for name in names}
    return Clip(frames=frames, text=("push the disc",) * count)


def test_a_policy_reads_the_tokens_of_the_encoder(home: Path) -> None:
    agent, encoder = load_agent(home / "policy"), load_encoder(home / "clip")
    frames = seen(3).frames["main"]
    assert agent.foreseeing is not None
    features = agent.foreseeing(frames, seen(3).text)
    assert features.shape == (3, 1, 9, 32) and torch.equal(features, encoder.encode(frames))
    assert (agent.config.former.feature_width, agent.config.former.frames) == (32, 1)
    both, one = agent.act(seen(2)), agent.act(seen(1))
    assert both.shape == (2, 4, 2) and both.isfinite().all()
    torch.testing.assert_close(both[:1], one, atol=1e-5, rtol=1e-4)
    black = Clip(frames={"main": torch.zeros_like(frames[:1])}, text=("push the disc",))
    assert (agent.act(black) - one).abs().max() > 1e-4


def test_the_folder_can_be_moved_and_needs_no_other(home: Path, tmp_path: Path) -> None:
    acted = load_agent(home / "policy").act(seen())
    shutil.copytree(home / "clip", tmp_path / "clip")
    assert policy(home, tmp_path / "policy", "--encoder", tmp_path / "clip") == 0
    shutil.rmtree(tmp_path / "clip")
    shutil.move(tmp_path / "policy", tmp_path / "moved")
    assert torch.equal(load_agent(tmp_path / "moved").act(seen()), acted)
    assert not any((tmp_path / "moved" / name).exists() for name in ("vae", "predictor"))
    pack(tmp_path / "moved", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    again = load_agent(tmp_path / "again")
    torch.testing.assert_close(again.act(seen()), acted, atol=0.1, rtol=0.1)  # bf16 weights


def test_each_view_is_encoded_by_itself(home: Path, tmp_path: Path) -> None:
    for number in range(2):
        recording(tmp_path / f"shown/{number}.npz")
        with np.load(tmp_path / f"shown/{number}.npz") as file:
            arrays = dict(file)
        np.savez(tmp_path / f"shown/{number}.npz", **arrays, aux1_image=arrays["image"][:, ::-1])
    assert policy(home, tmp_path / "policy", "--data", tmp_path / "shown", "--views", 2, "--cache-features") == 0
    agent, both = load_agent(tmp_path / "policy"), seen(2, views=2)
    assert isinstance(agent.foreseeing, Encoding)
    stacked = torch.cat([*both.frames.values()], -2)
    tokens, alone = agent.foreseeing(stacked, both.text), agent.foreseeing.alone()
    apart = torch.cat([alone(frames, both.text) for frames in both.frames.values()], 2)
    assert tokens.shape == (2, 1, 18, 32)
    torch.testing.assert_close(tokens, apart, atol=1e-5, rtol=1e-5)
    assert agent.act(both).shape == (2, 4, 2)


def test_cached_tokens_train_the_same_policy(home: Path, tmp_path: Path) -> None:
    clip(tmp_path / "other", seed=1)
    counts = []
    for out, encoder in (("fast", home / "clip"), ("again", home / "clip"), ("stranger", tmp_path / "other")):
        words = ("--cache-features", "--cache", tmp_path / "cache", "--encoder", encoder)
        assert policy(home, tmp_path / out, *words) == 0
        counts.append(len(list((tmp_path / "cache").glob("features-*"))))
    assert counts == [1, 1, 2]
    slow, fast = load_models(home / "policy"), load_models(tmp_path / "fast")
    for one, other in ((slow.policy, fast.policy), (slow.looking, fast.looking)):
        assert one is not None and other is not None
        # Each moved by up to 8e-3; a few went elsewhere, as Adam's first steps are whole however small a gradient.
        apart = torch.cat([(w - other.state_dict()[n]).abs().flatten() for n, w in one.state_dict().items()])
        assert apart.mean() < 1e-4 and (apart > 1e-3).float().mean() < 0.02, (apart.max(), apart.mean())


def test_it_is_tried_in_a_world(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    words = ("--world", "toy", "--tasks", "red", "--episodes", 1, "--workers", 0, "--camera", "main", "--other-camera")
    for _ in range(2):
        assert ideomotor("vpp", "evaluate", home / "policy", *words, "--out", tmp_path / "log.jsonl") == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--encoder", "nowhere"), "nowhere holds no model (config.json)"),
        (("--encoder", "{home}/text"), "type 'clip_text_model', which is no image encoder"),
        (("--encoder", "{home}/pickled"), "pickled weights (.bin, .pt) are not read"),
        (("--eyes", "pixels"), "--eyes pixels came with --encoder: a policy"),
        (("--eyes", "foresight"), "--eyes foresight came with --encoder: a policy"),
        (("--video-from", "{home}"), "--eyes encoder came with --video-from and --encoder: a policy"),
        (("--out", "{home}/clip"), "which this stage reads from"),
        (("--cache-latents",), "--cache-latents was given, and --eyes encoder looks at video alone"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str
) -> None:
    clip(home / "pickled")
    (home / "pickled/model.safetensors").rename(home / "pickled/pytorch_model.bin")
    (home / "text").mkdir(exist_ok=True)
    (home / "text/config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    before = digest(home)
    capsys.readouterr()
    assert policy(home, tmp_path / "a", *(word.format(home=home) for word in words)) == 2
    assert why in said(capsys)
    assert digest(home) == before and not (tmp_path / "a").exists()


def test_eyes_of_an_encoder_want_one(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--preset", "tiny", "--out", tmp_path / "a", "--data", home / "shown", "--eyes", "encoder")
    assert ideomotor("vpp", "policy", *words) == 2
    assert "--eyes encoder came with neither --video-from nor --encoder" in said(capsys)


def test_another_encoder_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert policy(home, home / "policy", "--encoder", tmp_path / "other") == 2  # a run that goes on
    assert "encoder" in said(capsys)
    assert policy(home, tmp_path / "policy", "--encoder", tmp_path / "other") == 0
    strange = shutil.copytree(home / "policy", tmp_path / "strange")
    shutil.rmtree(strange / "encoder")
    with pytest.raises(ValueError, match=r"learned with the encoder .* lies none: they do not belong together"):
        load_agent(strange)
    shutil.copytree(tmp_path / "policy/encoder", strange / "encoder")
    with pytest.raises(ValueError, match="learned with the encoder"):
        load_agent(strange)


def test_weights_under_other_names_say_who_named_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = json.loads((home / "policy/encoder/config.json").read_text())
    assert noted["meta"]["transformers"] == transformers.__version__
    moved = shutil.copytree(home / "policy", tmp_path / "policy")
    noted["meta"]["transformers"] = "4.0.0"
    noted["config"]["network"]["num_hidden_layers"] = 2
    (moved / "encoder/config.json").write_text(json.dumps(noted))
    with pytest.raises(ValueError, match=r"does not fit the model: missing: .* pip install .transformers==4\.0\.0"):
        load_agent(moved)
    monkeypatch.setattr(vpp_encoder, "_version", lambda: "4.0.0")
    with pytest.raises(ValueError, match=r"does not fit the model") as told:
        load_agent(moved)
    assert "pip install" not in str(told.value)


def test_arms_of_a_study_name_their_encoder(home: Path) -> None:
    kept: Callable[..., VPPEyes] = lambda **more: VPPEyes(data=("a",), video_from="b", preset="tiny", **more)  # noqa: E731
    form = form_of(kept(eyes="encoder", encoder="c"), 5)
    assert form.eyes == "encoder" and replace(form, eyes="foresight") == form_of(kept(), 5)
    with pytest.raises(ValueError, match="no encoder is named"):
        kept(eyes="encoder")
    fitted = looking_through(looking_with(tiny(), "encoder"), load_encoder(home / "clip"))
    assert fitted.seen_shape == (32, 1) and fitted.former.frames == 1
