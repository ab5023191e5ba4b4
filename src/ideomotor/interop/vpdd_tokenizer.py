"""The published VPDD tokenizer's weights under the names of ``tokenizers.axial_vqvae``."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_AXES = {"w": "columns", "h": "rows", "t": "time"}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def tokenizer_config(state: Mapping[str, Tensor], strides: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """Returns the settings of AxialVQVAE that the published weights' shapes tell.

    Args:
        state: the published names (a Lightning checkpoint's ``state_dict``).
        strides: time, height, width; weights do not show them (``hyper_parameters["downsample"]`` does). By default
            all three are as large as the number of halvings allows, as in the release.

    Raises:
        ValueError: the weights are not those of such a tokenizer, or have another number of halvings.
    """
    blocks, halvings = _sizes(state)
    strides = strides or (2**halvings,) * 3
    if max(strides) != 2**halvings:
        raise ValueError(f"strides {strides} came; weights with {halvings} halvings shrink an axis by {2**halvings}")
    codes, code_width = state["codebook.embeddings"].shape
    width = state["pre_vq_conv.conv.weight"].shape[1]
    return {"strides": tuple(strides), "width": width, "blocks": blocks, "codes": codes, "code_width": code_width}


def tokenizer_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of an AxialVQVAE; its codebook counts as begun, so that training goes on from it.

    Raises:
        ValueError: names are missing or left over; the message lists all of them.
    """
    names = _names(*_sizes(state))
    wanted = {published for sources in names.values() for published in sources}
    missing, leftover = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or leftover:
        raise ValueError(
            f"not the weights of a VPDD tokenizer: {len(missing)} names missing ({', '.join(missing) or 'none'}), "
            f"{len(leftover)} left over ({', '.join(leftover) or 'none'})"
        )
    ours = {name: torch.cat([state[source] for source in sources]) if len(sources) > 1 else state[sources[0]]
            for name, sources in names.items()}  # fmt: skip
    return ours | {"codebook.initialised": torch.tensor(True), "codebook.step": torch.tensor(0)}


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Numbers of residual blocks on a side, and of halvings."""
    blocks = _count(r"encoder\.res_stack\.(\d+)\.block\.", state)
    halvings = _count(r"encoder\.convs\.(\d+)\.", state)
    needed = ("codebook.embeddings", "pre_vq_conv.conv.weight")
    missing = [name for name in needed if name not in state]
    if not blocks or not halvings or missing:
        raise ValueError(
            f"not the weights of a VPDD tokenizer: {blocks} residual blocks and {halvings} halvings in the encoder, "
            f"missing {', '.join(missing) or 'none'} of {', '.join(needed)}; the {len(state)} names begin with "
            f"{', '.join(sorted(state)[:3]) or 'nothing'}"
        )
    return blocks, halvings


def _count(pattern: str, state: Mapping[str, Tensor]) -> int:
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _names(blocks: int, halvings: int) -> dict[str, list[str]]:
    """Each of our names, and the published ones that are joined under it."""
    names = {
        "codebook.codes": ["codebook.embeddings"],
        "codebook.counts": ["codebook.N"],
        "codebook.sums": ["codebook.z_avg"],
    }
    pairs = {f"encoder.shrink.{2 * halvings}": "encoder.conv_last",
             "encoder.project": "pre_vq_conv", "decoder.project": "post_vq_conv"}  # fmt: skip
    for step in range(halvings):
        pairs[f"encoder.shrink.{2 * step}"] = f"encoder.convs.{step}"
        for part in ("weight", "bias"):
            names[f"decoder.grow.{2 * step}.conv.{part}"] = [f"decoder.convts.{step}.convt.{part}"]
    for ours, published in pairs.items():
        names |= {f"{ours}.conv.{part}": [f"{published}.conv.{part}"] for part in ("weight", "bias")}
    for side in ("encoder", "decoder"):
        for block in range(blocks):
            names |= _block(f"{side}.blocks.{block}.body", f"{side}.res_stack.{block}.block")
        names |= {f"{side}.blocks.{blocks}.{part}": [f"{side}.res_stack.{blocks}.{part}"] for part in _NORM}
    return names


def _block(ours: str, published: str) -> dict[str, list[str]]:
    names = {f"{ours}.{norm}.{part}": [f"{published}.{norm}.{part}"] for norm in (0, 3, 6) for part in _NORM}
    names |= {f"{ours}.{conv}.conv.weight": [f"{published}.{conv}.conv.weight"] for conv in (2, 5)}
    for letter, axis in _AXES.items():
        attention = f"{published}.8.attn_{letter}"
        names[f"{ours}.8.{axis}.qkv.weight"] = [f"{attention}.w_{part}s.weight" for part in "qkv"]
        names |= {f"{ours}.8.{axis}.out.{part}": [f"{attention}.fc.{part}"] for part in ("weight", "bias")}
    return names
