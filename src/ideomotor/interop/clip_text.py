"""The text tower of an original CLIP checkpoint under the names that transformers gives it, and its settings."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MODEL = "text_model."
_WHOLE = {
    "token_embedding.weight": _MODEL + "embeddings.token_embedding.weight",
    "positional_embedding": _MODEL + "embeddings.position_embedding.weight",
    "ln_final.weight": _MODEL + "final_layer_norm.weight",
    "ln_final.bias": _MODEL + "final_layer_norm.bias",
}
_PARTS = {
    "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def clip_text_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the settings of transformers' CLIPTextConfig that the weights' shapes tell, and CLIP's constants."""
    return tower_config(clip_text_from_published(state))


def tower_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what ``clip_text_config`` does, for weights that have transformers' names.

    Raises:
        ValueError: a name is missing or unknown; the message lists all of them.
    """
    pattern = re.compile(rf"{re.escape(_MODEL)}encoder\.layers\.(\d+)\.")
    layers = 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=0)
    parts = (*_PARTS.values(), *(f"self_attn.{target}_proj" for target in "qkv"))
    inside = {f"{_MODEL}encoder.layers.{layer}.{part}.{kind}"
              for layer in range(layers) for part in parts for kind in ("weight", "bias")}  # fmt: skip
    wanted = {*_WHOLE.values(), "text_projection.weight", *inside}
    _check(sorted(wanted - set(state)), sorted(set(state) - wanted))
    vocabulary, width = state[_WHOLE["token_embedding.weight"]].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state[f"{_MODEL}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // 64, 1),  # every original CLIP has heads of 64
        "max_position_embeddings": len(state[_WHOLE["positional_embedding"]]),
        "projection_dim": len(state["text_projection.weight"]),
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def clip_text_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of transformers' CLIPTextModelWithProjection; the image tower is left out.

    Raises:
        ValueError: a name of the text tower is missing or unknown; the message lists all of them.
    """
    image = ("visual.", "logit_scale", "input_resolution", "context_length", "vocab_size")
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        if name in _WHOLE:
            ours[_WHOLE[name]] = value
        elif name == "text_projection":
            ours["text_projection.weight"] = value.T.contiguous()  # a parameter there, a layer here
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name):
            layer, part, kind = f"{_MODEL}encoder.layers.{match[1]}", match[2], match[3]
            if part == "attn.in_proj":
                for target, third in zip("qkv", value.chunk(3), strict=True):
                    ours[f"{layer}.self_attn.{target}_proj.{kind}"] = third.contiguous()
            elif part in _PARTS:
                ours[f"{layer}.{_PARTS[part]}.{kind}"] = value
            else:
                unknown.append(name)
        elif not name.startswith(image):
            unknown.append(name)
    blocks = {match[0] for name in state if (match := re.match(r"transformer\.resblocks\.\d+\.", name))}
    parts = [f"{part}.{kind}" for part in _PARTS for kind in ("weight", "bias")]
    inside = [block + part for block in sorted(blocks) for part in ("attn.in_proj_weight", "attn.in_proj_bias", *parts)]
    missing = [name for name in (*_WHOLE, "text_projection", *inside) if name not in state]
    _check(missing, sorted(unknown))
    return ours


def _check(missing: list[str], unknown: list[str]) -> None:
    if missing or unknown:
        raise ValueError(
            f"not the text tower of a CLIP: missing {', '.join(missing) or 'none'}, unknown "
            f"{', '.join(unknown) or 'none'}"
        )
