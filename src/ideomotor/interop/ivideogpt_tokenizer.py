"""The published iVideoGPT tokenizer under the names of ``tokenizers.context_vqgan``, and back: weights and settings."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]

_BRANCHES = {
    "context_encoder": "encoder",
    "future_encoder": "cond_encoder",
    "context_decoder": "decoder",
    "future_decoder": "cond_decoder",
}
_PLAIN = {
    "to_context": "quant_conv",
    "from_context": "post_quant_conv",
    "to_dynamics": "quant_linear",
    "from_dynamics": "post_quant_linear",
}
_BOTH = ("weight", "bias")
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_CROSS = {
    **{f"query_norm.{part}": f"q_norm.{part}" for part in _BOTH},
    **{f"context_norm.{part}": f"kv_norm.{part}" for part in _BOTH},
    "query_positions": "q_pos_emb",
    "context_positions": "kv_pos_emb",
    **{f"qkv.{part}": f"att.in_proj_{part}" for part in _BOTH},
    **{f"out.{part}": f"att.out_proj.{part}" for part in _BOTH},
}
# Keys of the published config: ours and the default of the published class, for those that shape the network.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "resolution": ("size", 256),
    "block_out_channels": ("widths", (64,)),
    "layers_per_block": ("blocks", 1),
    "latent_channels": ("latent", 3),
    "patch_size": ("patch", 4),
    "num_vq_embeddings": ("context_codes", 256),
    "num_dyn_embeddings": ("dynamics_codes", 256),
    "norm_num_groups": ("norm_groups", 32),
    "max_att_resolution": ("attention_limit", 32),
    "mid_block_add_attention": ("middle_attention", True),
    "context_length": ("context_length", 1),
}
_FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group"}
_UNUSED = {"sample_size": 32, "scaling_factor": 0.18215, "lookup_from_codebook": True, "force_upcast": True}


def tokenizer_settings(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """Returns the settings of ContextVQGAN that the published ``config.json`` and the weights tell.

    The context's length is taken from the weights, which were cut where the context was.

    Raises:
        ValueError: a key is unknown, or asks for a network that was never published.
    """
    blocks = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D", "vq_embed_dim": None}
    known = {*_SETTINGS, *_FIXED, *_UNUSED, *blocks}
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
    settings = {ours: config.get(key, default) for key, (ours, default) in _SETTINGS.items()}
    odd = [
        f"{key}={config[key]!r} (wanted {value!r})" for key, value in _FIXED.items() if config.get(key, value) != value
    ]
    for key in ("down_block_types", "up_block_types"):
        odd += [f"{key} holds {kind!r}" for kind in {*config.get(key, ())} - {blocks[key]}]
    if config.get("vq_embed_dim") not in (None, settings["latent"]):
        odd.append(f"vq_embed_dim={config['vq_embed_dim']} (wanted {settings['latent']}, as latent_channels)")
    if unknown or odd:
        raise ValueError(
            f"not the config of a published iVideoGPT tokenizer: unknown keys {', '.join(unknown) or 'none'}; "
            f"settings that were never published: {'; '.join(odd) or 'none'}"
        )
    tables = [name for name in state if name.endswith(".kv_pos_emb")]
    if tables:
        queries = state[tables[0].replace("kv_pos_emb", "q_pos_emb")]
        settings["context_length"] = len(state[tables[0]]) // len(queries)
    return settings | {"widths": tuple(settings["widths"])}


def settings_to_published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the published ``config.json`` of a tokenizer with these settings (its config as a dict).

    Raises:
        ValueError: the published class has no such tokenizer.
    """
    fixed = {"codebook": "learned", "symmetric": False, "residual": False, "heads": 4}
    odd = [f"{key}={settings[key]!r} (wanted {value!r})" for key, value in fixed.items() if settings[key] != value]
    if odd:
        raise ValueError(f"the published form has no tokenizer with {', '.join(odd)}: it cannot be exported")
    levels = len(settings["widths"])
    theirs = {key: settings[ours] for key, (ours, _) in _SETTINGS.items()}
    return {
        "_class_name": "CompressiveVQModel",
        "_diffusers_version": "0.27.0",
        **theirs | {"block_out_channels": list(settings["widths"])},
        **_FIXED,
        **_UNUSED,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "vq_embed_dim": None,
    }


def tokenizer_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of a ContextVQGAN with learned codebooks.

    Raises:
        ValueError: names are missing or left over; the message lists all of them.
    """
    state = {_modern(name): value for name, value in state.items()}
    names = {theirs: ours for ours, theirs in _names(state, published=True).items()}
    _check(names, state, "a published iVideoGPT tokenizer")
    return {names[theirs]: value for theirs, value in state.items()}


def tokenizer_to_published(state: State) -> dict[str, Tensor]:
    """Returns the published state; the inverse of ``tokenizer_from_published``.

    Raises:
        ValueError: names are missing or left over (as with codebooks that are not learned by gradient).
    """
    names = _names(state, published=False)
    _check(names, state, "a ContextVQGAN with learned codebooks")
    return {names[ours]: value for ours, value in state.items()}


def critic_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of a PatchCritic, which counts as one that has learned.

    Raises:
        ValueError: names are missing or left over.
    """
    names = {theirs: ours for ours, theirs in _critic_names(state, r"encoder\.(\d+)\.weight_orig").items()}
    _check(names, state, "a published discriminator")
    return {names[theirs]: value for theirs, value in state.items()} | {"updates": torch.tensor(1)}


def critic_to_published(state: State) -> dict[str, Tensor]:
    """Returns the published state, old-style names of the spectral norm included."""
    names = _critic_names(state, r"body\.(\d+)\.weight")
    state = {name: value for name, value in state.items() if name != "updates"}
    _check(names, state, "a PatchCritic")
    return {names[ours]: value for ours, value in state.items()}


def _names(state: State, *, published: bool) -> dict[str, str]:
    """Each of our names and the published one, for networks of the size that ``state`` (of either kind) shows."""
    names = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in _PLAIN.items() for part in _BOTH}
    names |= {"context_codebook.codes.weight": "quantize.embedding.weight"}
    names |= {"dynamics_codebook.codes.weight": "dynamics_quantize.embedding.weight"}
    for ours, theirs in _BRANCHES.items():
        down = theirs.endswith("encoder")
        if published:
            levels = _count(rf"{theirs}\.{'down' if down else 'up'}_blocks\.(\d+)\.", state)
            blocks = _count(rf"{theirs}\.{'down' if down else 'up'}_blocks\.0\.resnets\.(\d+)\.", state)
            cross = _count(rf"{theirs}\.cross_att_blocks\.(\d+)\.", state)
            attention = any(name.startswith(f"{theirs}.mid_block.attentions.") for name in state)
        else:
            levels = _count(rf"{ours}\.levels\.(\d+)\.", state)
            blocks = _count(rf"{ours}\.levels\.0\.(\d+)\.norm1\.", state)
            cross = _count(rf"{ours}\.cross\.(\d+)\.", state)
            attention = any(name.startswith(f"{ours}.middle.1.") for name in state)
        names |= _branch(ours, theirs, levels, blocks)
        names |= {
            f"{ours}.cross.{k}.{a}": f"{theirs}.cross_att_blocks.{k}.{b}"
            for k in range(cross)
            for a, b in _CROSS.items()
        }
        if attention:
            names |= {
                f"{ours}.middle.1.{a}.{part}": f"{theirs}.mid_block.attentions.0.{b}.{part}"
                for a, b in _ATTENTION.items()
                for part in _BOTH
            }
    widening = {
        (ours, theirs)
        for ours, theirs in names.items()
        if ours.endswith(".conv1.weight") and _widens(state, theirs if published else ours)
    }
    for ours, theirs in widening:
        for part in _BOTH:
            shortcut = theirs.replace("conv1.weight", f"conv_shortcut.{part}")
            names[ours.replace("conv1.weight", f"shortcut.{part}")] = shortcut
    return names


def _branch(ours: str, theirs: str, levels: int, blocks: int) -> dict[str, str]:
    down = theirs.endswith("encoder")
    pairs = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
    resnets = {"middle.0": "mid_block.resnets.0", "middle.2": "mid_block.resnets.1"}
    for i in range(levels):
        level = f"{'down' if down else 'up'}_blocks.{i}"
        resnets |= {f"levels.{i}.{j}": f"{level}.resnets.{j}" for j in range(blocks)}
        if i < levels - 1 and down:
            pairs[f"levels.{i}.{blocks}.conv"] = f"{level}.downsamplers.0.conv"
        elif i < levels - 1:
            pairs[f"upsamples.{i}.conv"] = f"{level}.upsamplers.0.conv"
    for mine, published in resnets.items():
        pairs |= {f"{mine}.{part}": f"{published}.{part}" for part in ("norm1", "conv1", "norm2", "conv2")}
    return {f"{ours}.{a}.{part}": f"{theirs}.{b}.{part}" for a, b in pairs.items() for part in _BOTH}


def _critic_names(state: State, pattern: str) -> dict[str, str]:
    names = {f"out.{part}": f"shuffle.{part}" for part in _BOTH}
    for place in sorted({int(match[1]) for name in state if (match := re.fullmatch(pattern, name))}):
        for ours, theirs in {"weight": "weight_orig", "bias": "bias", "left": "weight_u", "right": "weight_v"}.items():
            names[f"body.{place}.{ours}"] = f"encoder.{place}.{theirs}"
    return names


def _modern(name: str) -> str:
    """Files of older libraries name the attention of the middle differently."""
    match = re.fullmatch(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name


def _widens(state: State, name: str) -> bool:
    return name in state and state[name].shape[0] != state[name].shape[1]


def _count(pattern: str, state: Iterable[str]) -> int:
    return max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1) + 1


def _check(wanted: Iterable[str], found: Iterable[str], what: str) -> None:
    missing, leftover = sorted({*wanted} - {*found}), sorted({*found} - {*wanted})
    if missing or leftover:
        raise ValueError(
            f"not the weights of {what}: {len(missing)} names missing ({', '.join(missing) or 'none'}), "
            f"{len(leftover)} left over ({', '.join(leftover) or 'none'})"
        )
