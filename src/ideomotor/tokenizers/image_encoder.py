"""Frames to patch tokens, by an image encoder that the user has: CLIP, SigLIP, DINOv2, DINOv3 or a plain ViT.

The network is transformers' (extra ``text``); here are its borders, its scaling of frames, and what is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from ideomotor.extras import require
from ideomotor.files import read_settings

Resize = Literal["bilinear", "bicubic"]
_PUBLISHED: dict[str, Resize] = {
    "clip_vision_model": "bicubic",
    "siglip_vision_model": "bicubic",
    "dinov2": "bicubic",
    "dinov2_with_registers": "bicubic",
    "dinov3_vit": "bilinear",
    "vit": "bilinear",
}  # families, and how theirs resize where the folder does not say it
_WHOLE = ("clip", "siglip")  # with a text tower, which is left alone
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
_RESIZES: dict[int, Resize] = {2: "bilinear", 3: "bicubic"}  # by their numbers in PIL
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_NO_SIZES = (
    "model_type", "transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype",
    "id2label", "label2id", "stage_names", "out_features", "out_indices",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """An image encoder and how it wants its frames.

    Attributes:
        kind: transformers' name of the family.
        network: transformers' settings of the network, where they are not the family's defaults.
        size: height and width in pixels that the network looks at; whole frames are resized to it.
        mean: of the channels of pixels in 0..1, which is subtracted.
        std: what they are divided by then.
        resize: the filter, antialiased.
    """

    kind: str
    network: Mapping[str, Any]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize

    def __post_init__(self) -> None:
        if self.kind not in _PUBLISHED:
            raise ValueError(f"an image encoder of kind {self.kind!r} came; wanted one of {', '.join(_PUBLISHED)}")
        numbers = (*self.mean, *self.std)
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"size {self.size}, mean {self.mean}, std {self.std}; wanted pixels and 3 numbers each")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; channels are divided by it, so each must be above 0")


class ImageEncoder(nn.Module):
    """Frames to the last hidden states of their patches; class and register tokens are left out.

    Attributes:
        net: transformers' network, in whose names the weights are.
        width: of a token.
        places: tokens a frame.

    Source: Radford et al. 2021 (CLIP, arXiv 2103.00020), Zhai et al. 2023 (SigLIP, 2303.15343), Oquab et al. 2023
    (DINOv2, 2304.07193), Dosovitskiy et al. 2020 (ViT, 2010.11929).
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        """Builds the network.

        Raises:
            ModuleNotFoundError: transformers is not installed; the message says how it comes.
        """
        super().__init__()
        self.config = config
        transformers = require("transformers", "text")
        settings = transformers.AutoConfig.for_model(config.kind, **config.network)
        self.net: nn.Module = transformers.AutoModel.from_config(settings, **_built(config.kind))
        self.width = int(settings.hidden_size)
        self.places = (config.size // int(settings.patch_size)) ** 2

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t n d"]:
        """Returns a token a patch of each frame, row by row; the whole frame is seen, whatever its shape."""
        states = self.net(pixel_values=self.scaled(rearrange(frames, "b t c h w -> (b t) c h w"))).last_hidden_state
        return states[:, -self.places :].float().unflatten(0, frames.shape[:2])

    def scaled(self, frames: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c size size"]:
        """Returns pictures as the network wants them: resized to whole numbers as PIL does, then normalized."""
        config, pixels = self.config, frames.float()
        for side in ((frames.shape[-2], config.size), (config.size, config.size)):
            if pixels.shape[-2:] != side:
                pixels = F.interpolate(pixels, side, mode=config.resize, antialias=True)
                pixels = pixels.add(0.5).floor().clamp(0, 255)  # PIL rounds in each direction, halves up
        mean, std = (pixels.new_tensor(numbers)[:, None, None] for numbers in (config.mean, config.std))
        return (pixels / 255 - mean) / std


def load_encoder(folder: Path) -> ImageEncoder:
    """Returns the image encoder in a transformers folder, in float32. Nothing is downloaded, nothing unpickled.

    Raises:
        FileNotFoundError: there is no config.json, none of weights in safetensors, or none that says how frames are
            scaled.
        ValueError: it is another model, or the weights do not fit or are damaged.
    """
    described = _described(folder)
    frames = _preprocessing(folder)
    transformers = require("transformers", "text")
    with _quiet(transformers), torch.random.fork_rng(devices=[]):
        with _buildable(folder):
            settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if described in _WHOLE:
                settings = settings.vision_config
            fixed = int(settings.image_size)
        kind = settings.model_type
        if kind.startswith("siglip"):
            settings.vision_use_head = False  # of it only the pooled vector is made
        size = _size(frames, folder)
        if size != fixed and kind not in _ANY_SIZE:
            raise ValueError(
                f"frames are scaled to {size} px by the preprocessor in {folder}, and the network looks at {fixed} px: "
                "these files do not belong together; copy both from the same place"
            )
        config = ImageEncoderConfig(
            kind=kind,
            network={name: value for name, value in settings.to_diff_dict().items() if name not in _NO_SIZES},
            size=size,
            mean=tuple(frames["image_mean"]),
            std=tuple(frames["image_std"]),
            resize=_RESIZES[frames["resample"]] if frames.get("resample") is not None else _PUBLISHED[kind],
        )
        with _buildable(folder):
            encoder = ImageEncoder(config)  # in float32 with all its buffers, whatever the weights lie in
        encoder.net.load_state_dict(_weights(transformers, folder, settings, kind))
    return encoder.eval()


@contextmanager
def _buildable(folder: Path) -> Iterator[None]:
    """Inside, settings of which transformers can build no network are a ValueError in one line."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # transformers checks few settings, and each family stumbles over others
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder / 'config.json'} describes no network that can be built ({type(error).__name__}: {reason}): it "
            "was damaged or edited; copy it anew"
        ) from error


def _built(kind: str) -> dict[str, Any]:
    """What transformers is told beside the settings: attention of its own, and no pooled vector."""
    return {"attn_implementation": "sdpa"} | ({"add_pooling_layer": False} if kind == "vit" else {})


def _weights(transformers: ModuleType, folder: Path, settings: Any, kind: str) -> dict[str, Tensor]:
    """The network's weights by the names of this version of transformers, which translates those of the files."""
    try:
        net, found = transformers.AutoModel.from_pretrained(
            folder,
            config=settings,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else it raises without their names
            **_built(kind),
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
    unfit = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if unfit:
        raise ValueError(
            f"{len(unfit)} of the image encoder's weights are not in {folder}, or of another shape than its config "
            f"says, {', '.join(unfit[:3])} among them: copy them anew, or give a model that looks at images"
        )
    return dict(net.state_dict())


def _described(folder: Path) -> str:
    """The family that a folder's config.json names, once it is one that can be read.

    Raises:
        FileNotFoundError: there is no config.json, or no weights in safetensors.
        ValueError: no image encoder that is known here.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (config.json): give a transformers folder with an image encoder on this machine"
        )
    kind = read_settings(folder / "config.json").get("model_type")
    if kind not in (*_WHOLE, *_PUBLISHED):
        raise ValueError(
            f"{folder} holds a model of type {kind!r}, which is no image encoder known here; wanted one of "
            f"{', '.join((*_WHOLE, *_PUBLISHED))}"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise FileNotFoundError(
            f"{folder} holds no {_WEIGHTS[0]}: pickled weights (.bin, .pt) are not read; save the model anew with "
            "transformers' save_pretrained, which writes safetensors"
        )
    return str(kind)


def _preprocessing(folder: Path) -> dict[str, Any]:
    """How a folder says that frames are scaled.

    Raises:
        FileNotFoundError: it does not say it.
        ValueError: it says less than is needed, or what is not done here.
    """
    about: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        about = read_settings(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():  # of a processor that reads text, too
        about = read_settings(folder / "processor_config.json").get("image_processor", {})
    if not about:
        raise FileNotFoundError(
            f"{folder} holds no preprocessor_config.json, which says how frames are scaled: copy it from where the "
            "weights came from"
        )
    for name in ("image_mean", "image_std"):
        numbers = about.get(name)
        if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"{name} in {folder}'s preprocessor_config.json is {numbers!r}; wanted three numbers")
    factor = about.get("rescale_factor", 1 / 255)
    usual = isinstance(factor, int | float) and abs(factor * 255 - 1) <= 1e-3
    if not about.get("do_normalize", True) or not usual:
        raise ValueError(
            f"{folder}'s preprocessor_config.json wants other scales than 0..1 less a mean, over a deviation "
            "(do_normalize, rescale_factor 1/255), which are not made here"
        )
    if about.get("resample") not in (None, *_RESIZES):
        raise ValueError(
            f"{folder}'s preprocessor_config.json resizes by filter {about['resample']}; known are "
            f"{', '.join(f'{number} ({name})' for number, name in _RESIZES.items())}"
        )
    return about


def _size(about: Mapping[str, Any], folder: Path) -> int:
    """Height and width of what the network is shown: of the cut, where one is cut out after resizing."""
    size = (about.get("crop_size") if about.get("do_center_crop", True) else None) or about.get("size")
    sides = set(size.values()) if isinstance(size, dict) else {size}
    side = sides.pop() if len(sides) == 1 else None
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"the size in {folder}'s preprocessor_config.json is {size!r}; wanted a square, in pixels")
    return side


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Inside, transformers draws no bar and lists no weights of the text tower, which are left where they are."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
