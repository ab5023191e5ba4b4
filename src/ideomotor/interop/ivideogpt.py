"""The published iVideoGPT transformer under the names of ``predictors.autoregressive``, and back.

Nothing is dropped in silence: a name that is not known here, or is missing, is an error that lists all of them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]

_INNER = "llm."
"""In front of the language model's names, where actions condition it."""

_WHOLE = {
    "embedding.weight": "model.embed_tokens.weight",
    "trunk.norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_BLOCK = {
    "norm_attention.weight": ("input_layernorm.weight",),
    "norm_feed_forward.weight": ("post_attention_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "feed_forward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feed_forward.down.weight": ("mlp.down_proj.weight",),
}
_HEADS = {"action": "action_linear", "reward": "reward_linear", "reconstruction": "action_recon_linear"}
_FIXED = {"hidden_act": "silu", "rope_scaling": None, "attention_bias": False, "tie_word_embeddings": False}
_WANTED = ("num_attention_heads", "max_position_embeddings", "rms_norm_eps")
"""What no tensor's shape tells."""
_GRIDS = (256, 16)
"""Tokens of a frame seen and of one foretold; typed in the published code, which reads no others."""


def transformer_config(state: State, settings: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of AutoregressiveConfig, with those of LlamaConfig as a dict under ``trunk``.

    Args:
        state: the published weights; sizes are read from them where they show.
        settings: ``transformer/config.json``.
        tokenizer: ``tokenizer/config.json``, for the codes of either kind and the context frames.

    Raises:
        ValueError: the weights are not those of such a transformer, or not for that tokenizer.
    """
    absent = [key for key in _WANTED if key not in settings]
    if absent:
        raise ValueError(f"not the config of an iVideoGPT transformer: {', '.join(absent)} missing")
    inner = _INNER if any(name.startswith(_INNER) for name in state) else ""
    vocab, width = _shape(state, f"{inner}model.embed_tokens.weight")
    codes = (tokenizer["num_vq_embeddings"], tokenizer["num_dyn_embeddings"])
    if vocab != sum(codes) + 2:
        raise ValueError(
            f"the transformer knows {vocab} ids; a tokenizer of {codes[0]} and {codes[1]} codes wants "
            f"{sum(codes) + 2}: these two folders do not belong together"
        )
    other = {key: settings[key] for key, value in _FIXED.items() if settings.get(key, value) != value}
    heads = settings["num_attention_heads"]
    if other or settings.get("num_key_value_heads", heads) != heads:
        raise ValueError(f"config.json asks for {other or 'shared key-value heads'}, which this transformer has not")
    trunk = {
        "width": width,
        "layers": _layers(state, inner),
        "heads": heads,
        "inner": _shape(state, f"{inner}model.layers.0.mlp.up_proj.weight")[0],
        "positions": settings["max_position_embeddings"],
        "dropout": settings.get("attention_dropout", 0.0),
        "rotary_base": settings.get("rope_theta", 10000.0),
        "norm_epsilon": settings["rms_norm_eps"],
    }
    return {
        "context_codes": codes[0],
        "dynamics_codes": codes[1],
        "context": tokenizer["context_length"],
        "action_width": _shape(state, "action_linear.weight")[1] if "action_linear.weight" in state else 0,
        "reward": "reward_linear.weight" in state,
        "action_reconstruction": 1.0 if "action_recon_linear.weight" in state else 0.0,  # the file tells no weight
        "trunk": trunk,
    }


def snapshot_settings(state: State) -> dict[str, Any]:
    """Returns the ``config.json`` that a published training snapshot leaves out: both published sizes have heads of 64.

    Raises:
        ValueError: the weights are not those of such a transformer.
    """
    inner = _INNER if any(name.startswith(_INNER) for name in state) else ""
    width = _shape(state, f"{inner}model.embed_tokens.weight")[1]
    return {"num_attention_heads": max(1, width // 64), "max_position_embeddings": 1024, "rms_norm_eps": 1e-6}


def config_to_published(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the published ``transformer/config.json`` for an AutoregressiveConfig, given as a dict of dicts.

    Raises:
        ValueError: the published code has no such transformer.
    """
    grids, trunk = (config["context_tokens"], config["dynamics_tokens"]), config["trunk"]
    if grids != _GRIDS:
        raise ValueError(
            f"frames of {grids[0]} and {grids[1]} tokens came; the published code knows {_GRIDS[0]} and {_GRIDS[1]} "
            "only: this world cannot be exported"
        )
    vocab = config["context_codes"] + config["dynamics_codes"] + 2
    outside = max(50256, vocab)  # begin and end are no ids of the vocabulary, so that nothing ends early
    return {
        "architectures": ["LlamaModel" if config["action_width"] or config["reward"] else "LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": trunk["width"],
        "intermediate_size": trunk["inner"],
        "num_hidden_layers": trunk["layers"],
        "num_attention_heads": trunk["heads"],
        "num_key_value_heads": trunk["heads"],
        "max_position_embeddings": trunk["positions"],
        "max_length": trunk["positions"],
        "attention_dropout": trunk["dropout"],
        "rope_theta": trunk["rotary_base"],
        "rms_norm_eps": trunk["norm_epsilon"],
        **_FIXED,
        "bos_token_id": outside,
        "eos_token_id": outside,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.38.2",
        "use_cache": True,
    }


def transformer_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of an AutoregressivePredictor.

    Raises:
        ValueError: names are missing or left over; the message lists all of them.
    """
    inner = _INNER if any(name.startswith(_INNER) for name in state) else ""
    heads = {ours for ours, theirs in _HEADS.items() if f"{theirs}.weight" in state or f"{theirs}.bias" in state}
    names = dict(_names(_layers(state, inner), inner, heads))
    _check({name for sources in names.values() for name in sources}, set(state), "published")
    return {
        ours: state[sources[0]] if len(sources) == 1 else torch.cat([state[source] for source in sources])
        for ours, sources in names.items()
    }


def transformer_to_published(state: State) -> dict[str, Tensor]:
    """Returns the published names and tensors for the state of an AutoregressivePredictor.

    Raises:
        ValueError: names are missing or left over; the message lists all of them.
    """
    layers = 1 + max(
        (int(match[1]) for name in state if (match := re.match(r"trunk\.blocks\.(\d+)\.", name))), default=-1
    )
    heads = {ours for ours in _HEADS if f"{ours}.weight" in state or f"{ours}.bias" in state}
    names = dict(_names(layers, _INNER if heads else "", heads))
    _check(set(names), set(state), "our")
    theirs: dict[str, Tensor] = {}
    for ours, targets in names.items():
        theirs |= {
            target: part.contiguous() for target, part in zip(targets, state[ours].chunk(len(targets)), strict=True)
        }
    return theirs


def _names(layers: int, inner: str, heads: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our names, and the published ones that are joined under it."""
    for ours, theirs in _WHOLE.items():
        yield ours, (inner + theirs,)
    for layer in range(layers):
        for ours, parts in _BLOCK.items():
            yield f"trunk.blocks.{layer}.{ours}", tuple(f"{inner}model.layers.{layer}.{part}" for part in parts)
    for head in sorted(heads):
        for part in ("weight", "bias"):
            yield f"{head}.{part}", (f"{_HEADS[head]}.{part}",)


def _layers(state: State, inner: str) -> int:
    pattern = re.compile(rf"{re.escape(inner)}model\.layers\.(\d+)\.")
    return 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=-1)


def _shape(state: State, name: str) -> tuple[int, int]:
    if name not in state or state[name].ndim != 2:
        raise ValueError(
            f"not the weights of an iVideoGPT transformer: no matrix {name}; the {len(state)} names begin with "
            f"{', '.join(sorted(state)[:3]) or 'nothing'}"
        )
    rows, columns = state[name].shape
    return rows, columns


def _check(wanted: set[str], came: set[str], whose: str) -> None:
    missing, leftover = sorted(wanted - came), sorted(came - wanted)
    if missing or leftover:
        raise ValueError(
            f"not the weights of an iVideoGPT transformer: of {whose} names {len(missing)} are missing "
            f"({', '.join(missing) or 'none'}), {len(leftover)} left over ({', '.join(leftover) or 'none'})"
        )
