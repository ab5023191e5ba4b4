"""The network of Stable Video Diffusion, which diffusers holds: its sizes, its weights, and what its up-blocks see."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ideomotor.extras import require
from ideomotor.files import read_settings

Tap = int | tuple[int, int]
"""What of the way up is read: a whole block (as it leaves its up-sampling), or (block, layer in it)."""


def tap_name(tap: Tap) -> str:
    """Returns "1" for a block, "1.2" for a layer in it."""
    return ".".join(map(str, tap)) if isinstance(tap, tuple) else str(tap)


_CLASS = "UNetSpatioTemporalConditionModel"
_SETTINGS = {  # ours -> diffusers'
    "widths": "block_out_channels", "heads": "num_attention_heads", "layers": "layers_per_block",
    "text_width": "cross_attention_dim", "time_width": "addition_time_embed_dim",
}  # fmt: skip


def _fixed(levels: int) -> dict[str, Any]:
    """What our networks have no choice in, in diffusers' words."""
    return {
        "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * (levels - 1), "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * (levels - 1)],
        "transformer_layers_per_block": 1,
    }


@dataclass(frozen=True, kw_only=True)
class SVDUNetConfig:
    """Sizes of diffusers' UNetSpatioTemporalConditionModel; the defaults are the published ones, 1,524,623,082 weights.

    Attributes:
        latent_channels: of a latent frame; the condition has as many.
        widths: of the levels, two or more, finest first; each divides into 32 groups.
        heads: of the attention at each level; the coarsest level's are those of the middle.
        layers: of a down-block; an up-block has one more.
        text_width: of what the cross-attention reads.
        time_width: of the embedding of each of the three time ids.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    layers: int = 2
    text_width: int = 1024
    time_width: int = 256

    def __post_init__(self) -> None:
        if min(self.latent_channels, *self.heads, self.layers, self.text_width, self.time_width) < 1:
            raise ValueError(f"all sizes must be at least 1: {self}")
        if len(self.widths) < 2 or len(self.heads) != len(self.widths):
            raise ValueError(
                f"widths {self.widths} and heads {self.heads}: wanted two levels or more, and heads for each"
            )
        odd = [width for width, heads in zip(self.widths, self.heads, strict=True) if width % 32 or width % heads]
        if odd:
            raise ValueError(f"widths {self.widths} with heads {self.heads}: each must divide by 32 and by its heads")

    def shape(self, tap: Tap, height: int, width: int) -> tuple[int, int, int]:
        """Returns channels, rows and columns of what is read there, for latent frames of that size.

        Raises:
            ValueError: the network has no such block or layer.
        """
        block, layer = tap if isinstance(tap, tuple) else (tap, self.layers)
        last = len(self.widths) - 1
        if not (0 <= block <= last and 0 <= layer <= self.layers):
            raise ValueError(
                f"there is no {tap_name(tap)} on the way up: wanted an up-block 0..{last}, or block.layer with layers "
                f"0..{self.layers}"
            )
        level = last - block if isinstance(tap, tuple) else max(last - 1 - block, 0)
        for _ in range(level):
            height, width = (height + 1) // 2, (width + 1) // 2
        return self.widths[last - block], height, width


def small_unet(text_width: int = 128) -> SVDUNetConfig:
    """Returns sizes that two CPU cores can train in minutes."""
    return SVDUNetConfig(widths=(32, 64, 128, 128), heads=(2, 4, 4, 4), layers=1, text_width=text_width, time_width=32)


def svd_unet(config: SVDUNetConfig) -> nn.Module:
    """Returns diffusers' network with random weights."""
    fixed = _fixed(len(config.widths))
    unet: nn.Module = getattr(_diffusers(), _CLASS)(
        down_block_types=tuple(fixed["down_block_types"]),
        up_block_types=tuple(fixed["up_block_types"]),
        in_channels=2 * config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.widths,
        num_attention_heads=config.heads,
        layers_per_block=config.layers,
        cross_attention_dim=config.text_width,
        addition_time_embed_dim=config.time_width,
        projection_class_embeddings_input_dim=3 * config.time_width,
    )
    return unet


def read_unet(folder: str | Path) -> tuple[SVDUNetConfig, dict[str, Tensor]]:
    """Returns sizes and weights of a diffusers folder, of a whole pipeline or of its ``unet`` alone.

    Raises:
        ValueError: there is no such network, it has parts that ours cannot have, or a file is damaged.
    """
    config, files = unet_files(folder)
    try:
        return config, {name: value for file in files for name, value in load_file(file).items()}
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"the weights in {folder} are damaged or not all there ({error}): copy them anew") from error


def unet_files(folder: str | Path) -> tuple[SVDUNetConfig, list[Path]]:
    """Returns sizes of a diffusers folder's network, and the files of its weights.

    Raises:
        ValueError: as ``read_unet``; the weights themselves are not read.
    """
    unet = Path(folder) / "unet" if (Path(folder) / "unet").is_dir() else Path(folder)
    if not (unet / "config.json").is_file():
        raise ValueError(f"{folder} holds no unet/config.json: give a folder that diffusers saved")
    config = config_of(read_settings(unet / "config.json"))
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    if index.is_file():
        files = sorted({unet / name for name in read_settings(index).get("weight_map", {}).values()})
    else:
        files = [unet / f"diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".fp16")]
        files = [file for file in files if file.is_file()][:1]
    if not files:
        raise ValueError(f"{unet} holds no diffusion_pytorch_model.safetensors: save it anew with safetensors")
    return config, files


def config_of(settings: Mapping[str, Any]) -> SVDUNetConfig:
    """Returns the sizes that diffusers' ``config.json`` tells.

    Raises:
        ValueError: it is of another network, or of parts that ours cannot have.
    """
    if settings.get("_class_name", _CLASS) != _CLASS:
        raise ValueError(f"the folder holds a {settings['_class_name']}; wanted a {_CLASS}")
    fixed = _fixed(len(settings.get("block_out_channels", ())))
    other = [name for name, value in fixed.items() if settings.get(name, value) != value]
    missing = [name for name in (*_SETTINGS.values(), "in_channels", "out_channels") if name not in settings]
    channels = int(settings.get("out_channels", 0))
    if missing or other or settings["in_channels"] != 2 * channels:
        raise ValueError(
            f"not Stable Video Diffusion's network: missing {', '.join(missing) or 'none'}, of another kind "
            f"{', '.join(other) or 'none'}, {settings.get('in_channels')} channels in, {channels} out (wanted twice as "
            "many in)"
        )
    sizes = {ours: settings[theirs] for ours, theirs in _SETTINGS.items()}
    lists = {name: tuple(value) for name, value in sizes.items() if isinstance(value, list)}
    return SVDUNetConfig(latent_channels=channels, **(sizes | lists))


def attending(x: Float[Tensor, "b t c h w"]) -> AbstractContextManager[None]:
    """Returns a context for the network's passes over ``x``: small maps on a CPU attend by plain products.

    torch's own kernels are made for long sequences; on films of 8 x 8 x 8 places a training step with plain products
    takes 0.79 of the CPU time.
    """
    short = x.device.type == "cpu" and x.shape[-2] * x.shape[-1] <= 64
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


def way_up(
    unet: nn.Module,
    x: Float[Tensor, "b t c h w"],
    c_noise: Float[Tensor, " b"],
    text: Float[Tensor, "b n d"],
    time_ids: Float[Tensor, "b 3"],
    taps: Sequence[Tap],
) -> list[Float[Tensor, "b t channel row column"]]:
    """Returns what is read at ``taps``, in their order; nothing behind the last of them is computed."""
    net: Any = unet
    b, t = x.shape[:2]
    time = net.time_embedding(net.time_proj(c_noise).to(x.dtype))
    ids = net.add_time_proj(time_ids.flatten()).view(b, -1).to(x.dtype)
    time = (time + net.add_embedding(ids)).repeat_interleave(t, 0)
    text, still = text.repeat_interleave(t, 0), x.new_zeros(b, t)
    x = net.conv_in(x.flatten(0, 1))  # (b t) c h w
    skips = [x]
    for block in net.down_blocks:
        reads = {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}
        x, more = block(x, time, image_only_indicator=still, **reads)
        skips += more
    x = net.mid_block(x, time, encoder_hidden_states=text, image_only_indicator=still)
    found: dict[Tap, Tensor] = {}
    for number, block in enumerate(net.up_blocks):
        for layer, resnet in enumerate(block.resnets):
            x = resnet(torch.cat([x, skips.pop()], 1), time, image_only_indicator=still)
            if hasattr(block, "attentions"):
                (x,) = block.attentions[layer](x, text, still, return_dict=False)
            found[number, layer] = x
            if all(tap in found for tap in taps):
                break
        else:
            for upsampler in block.upsamplers or ():
                x = upsampler(x, skips[-1].shape[2:])
            found[number] = x
        if all(tap in found for tap in taps):
            return [found[tap].unflatten(0, (b, t)) for tap in taps]
    raise ValueError(f"taps are {list(taps)}; this network has {len(net.up_blocks)} up-blocks, counted from 0")


def joined(maps: Sequence[Float[Tensor, "b t _ _ _"]]) -> Float[Tensor, "b t d row column"]:
    """Returns the maps beside each other on channels, all enlarged to the largest by nearest neighbours."""
    b, t = maps[0].shape[:2]
    size = max((tuple(found.shape[-2:]) for found in maps), key=lambda shape: shape[0] * shape[1])
    same = [F.interpolate(found.flatten(0, 1), size=size) for found in maps]
    return torch.cat(same, 1).unflatten(0, (b, t))


def _diffusers() -> Any:
    return require("diffusers.models.unets.unet_spatio_temporal_condition", "svd")
