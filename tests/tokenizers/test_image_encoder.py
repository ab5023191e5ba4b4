"""Image encoders in transformers folders: tokens against transformers' own, what is kept, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="the text extra is not installed")
pytest.importorskip("PIL", reason="transformers' own processors read pictures by PIL")

import transformers as T

from ideomotor.tokenizers.image_encoder import ImageEncoder, ImageEncoderConfig, load_encoder
from ideomotor.training.checkpoint import fingerprint, load_model, save_model

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
NETWORK = {**SIZES, "image_size": 32}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CUT = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}


def whole_clip():
    return T.CLIPModel(T.CLIPConfig(text_config=TEXT, vision_config=NETWORK))


MAKE = {
    "clip": lambda: (whole_clip(), T.CLIPImageProcessorPil(**CUT)),
    "clip_vision_model": lambda: (T.CLIPVisionModel(T.CLIPVisionConfig(**NETWORK)), T.CLIPImageProcessorPil(**CUT)),
    "siglip": lambda: (
        T.SiglipModel(T.SiglipConfig(text_config=TEXT, vision_config=NETWORK)),
        T.SiglipImageProcessorPil(**SQUARE),
    ),
    "dinov2": lambda: (T.Dinov2Model(T.Dinov2Config(**SIZES, image_size=64)), T.BitImageProcessorPil(**CUT)),
    "dinov2_with_registers": lambda: (
        T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**NETWORK)),
        T.BitImageProcessorPil(**CUT),
    ),
    "dinov3_vit": lambda: (
        T.DINOv3ViTModel(T.DINOv3ViTConfig(**NETWORK, num_register_tokens=4)),
        T.ViTImageProcessorPil(**SQUARE),
    ),
    "vit": lambda: (T.ViTForImageClassification(T.ViTConfig(**NETWORK)), T.ViTImageProcessorPil(**SQUARE)),
}


def saved(folder, kind):
    """A folder as transformers writes it; the network that looks, and the processor of its pictures."""
    torch.manual_seed(0)
    model, processor = MAKE[kind]()
    for weights in model.parameters():  # those that begin as 0 or 1 say nothing about names
        weights.data += 0.05 * torch.randn_like(weights)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    towers = {"clip": "vision_model", "siglip": "vision_model", "vit": "vit"}
    return getattr(model, towers[kind]) if kind in towers else model, processor


def films(side, count=3):
    """Frames of soft blobs, as pictures are."""
    blobs = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(side)) * 255
    return F.interpolate(blobs, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)[:, None]


def pixels_of(processor, frames):
    pictures = [frame.permute(1, 2, 0).numpy() for frame in frames[:, 0]]
    return torch.from_numpy(np.stack([np.asarray(p) for p in processor(pictures)["pixel_values"]]))


@pytest.mark.parametrize("kind", MAKE)
def test_tokens_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    tower, processor = saved(tmp_path, kind)
    encoder = load_encoder(tmp_path)
    frames = films(32)
    with torch.no_grad():
        states = tower(pixel_values=pixels_of(processor, frames)).last_hidden_state
    extra = {"siglip": 0, "dinov2_with_registers": 5, "dinov3_vit": 5}.get(kind, 1)  # class and register tokens
    assert states.shape[1] == 16 + extra and (encoder.places, encoder.width) == (16, 32)
    tokens = encoder.encode(frames)
    assert tokens.shape == (3, 1, 16, 32) and states.std() > 0.5
    torch.testing.assert_close(tokens[:, 0], states[:, extra:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
@pytest.mark.parametrize("side", [20, 64, 90])
def test_frames_are_resized_as_by_pil(tmp_path: Path, kind: str, side: int) -> None:
    _, processor = saved(tmp_path, kind)
    encoder = load_encoder(tmp_path)
    level = 1 / 255 / torch.tensor(encoder.config.std)[:, None, None]
    off = (encoder.scaled(films(side)[:, 0]) - pixels_of(processor, films(side))).abs() / level
    assert off.max() < 1.001 and off.mean() < 0.01  # a level of 255, where sums differ by a rounding


@pytest.mark.parametrize("kind", MAKE)
def test_a_saved_encoder_sees_the_same(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "theirs", kind)
    encoder = load_encoder(tmp_path / "theirs")
    noted = save_model(tmp_path / "ours", encoder, encoder.config)
    shutil.rmtree(tmp_path / "theirs")
    again = load_model(tmp_path / "ours", ImageEncoder, ImageEncoderConfig)
    assert fingerprint(again, again.config) == noted
    assert torch.equal(again.encode(films(48)), encoder.encode(films(48)))
    assert not any("text_model" in name or "head" in name or "pooler" in name for name in encoder.state_dict())


def test_no_frame_depends_on_its_neighbours_and_loading_draws_nothing(tmp_path: Path) -> None:
    saved(tmp_path, "dinov2")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    encoder = load_encoder(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    both = encoder.encode(films(40, 4))
    torch.testing.assert_close(encoder.encode(films(40, 4)[1:2]), both[1:2], atol=1e-5, rtol=1e-5)
    film = films(40, 4).transpose(0, 1)
    torch.testing.assert_close(encoder.encode(film)[0], both[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip_vision_model", "dinov3_vit"])
def test_weights_in_half_precision_are_read_as_float32(tmp_path: Path, kind: str) -> None:
    tower, processor = saved(tmp_path, kind)
    tower.bfloat16().save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    values = (*encoder.parameters(), *encoder.buffers())
    assert {value.dtype for value in values if value.is_floating_point()} == {torch.float32}
    whole = type(tower).from_pretrained(tmp_path, dtype=torch.float32).eval()  # positions in float32, too
    with torch.no_grad():
        states = whole(pixel_values=pixels_of(processor, films(32))).last_hidden_state
    torch.testing.assert_close(encoder.encode(films(32))[:, 0], states[:, -16:], atol=1e-5, rtol=1e-5)


def test_the_size_of_the_cut_counts_and_older_ways_to_write_it(tmp_path: Path) -> None:
    saved(tmp_path, "dinov2")
    about = json.loads((tmp_path / "preprocessor_config.json").read_text())

    def told(**more: object) -> ImageEncoderConfig:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(about | more))
        return load_encoder(tmp_path).config

    assert told(size={"shortest_edge": 40}).size == 32
    assert told(size=40, crop_size=24).size == 24
    assert told(size={"height": 48, "width": 48}, do_center_crop=False).size == 48
    assert told(resample=2).resize == "bilinear" and told(resample=None).resize == "bicubic"
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": about, "processor_class": "X"}))
    assert load_encoder(tmp_path).config.size == 32


def edited(folder: Path, name: str, **more: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.mark.parametrize(
    ("spoil", "error", "why"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no model .config.json.: give"),
        (lambda f: edited(f, "config.json", model_type="bert"), ValueError, "type 'bert', which is no"),
        (lambda f: edited(f, "config.json", model_type="clip_text_model"), ValueError, "wanted one of clip, siglip"),
        (lambda f: (f / "config.json").write_text("["), ValueError, "config.json is damaged"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            FileNotFoundError,
            "holds no model.safetensors: pickled weights",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"spoiled"), ValueError, "weights in .* cannot be read"),
        (lambda f: (f / "preprocessor_config.json").unlink(), FileNotFoundError, "no preprocessor_config"),
        (lambda f: edited(f, "preprocessor_config.json", image_mean=None), ValueError, "image_mean in .* is None"),
        (lambda f: edited(f, "preprocessor_config.json", image_std=[1, 1]), ValueError, "3 numbers each"),
        (lambda f: edited(f, "preprocessor_config.json", image_std=[1, 0, 1]), ValueError, "must be above 0"),
        (lambda f: edited(f, "preprocessor_config.json", rescale_factor=1), ValueError, "which are not made here"),
        (lambda f: edited(f, "preprocessor_config.json", resample=1), ValueError, "by filter 1; known are 2"),
        (lambda f: edited(f, "preprocessor_config.json", crop_size={"height": 8, "width": 9}), ValueError, "a square"),
        (lambda f: edited(f, "preprocessor_config.json", crop_size=64), ValueError, "scaled to 64 px .* at 32 px"),
        (lambda f: edited(f, "config.json", hidden_size=48), ValueError, "^37 of .* of another shape"),
        (lambda f: edited(f, "config.json", num_hidden_layers=3), ValueError, "^16 of the image"),
        (lambda f: edited(f, "config.json", patch_size=0), ValueError, "no network that can be built .Zero"),
        (lambda f: edited(f, "config.json", hidden_size="wide"), ValueError, "no network that can be .*hidden_size"),
        (lambda f: edited(f, "config.json", image_size=[24, 24]), ValueError, "no network that can be built"),
        (lambda f: edited(f, "config.json", hidden_act="nope"), ValueError, "can be built .KeyError: 'nope'.: it was"),
        (lambda f: edited(f, "preprocessor_config.json", rescale_factor="x"), ValueError, "rescale_factor 1/255"),
    ],
)  # fmt: skip
def test_what_is_no_image_encoder_is_refused(tmp_path: Path, spoil, error, why: str) -> None:
    saved(tmp_path, "clip_vision_model")
    spoil(tmp_path)
    with pytest.raises(error, match=why):
        load_encoder(tmp_path)


def test_text_alone_is_refused_though_its_config_speaks_of_images(tmp_path: Path) -> None:
    saved(tmp_path, "clip")
    T.CLIPTextModel(T.CLIPTextConfig(**TEXT)).save_pretrained(tmp_path / "text")
    shutil.copy(tmp_path / "text/model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="of the image encoder's weights are not in"):
        load_encoder(tmp_path)
