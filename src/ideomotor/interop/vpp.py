"""The published VPP policy under the names of ``layers.video_former`` and ``policies.edm_transformer``.

Nothing is dropped in silence: a name that is not known here, or is missing, is an error that lists all of them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ideomotor.interop.clip_text import clip_text_from_published

State = Mapping[str, Tensor]
Names = dict[str, tuple[str, ...]]
"""Each of our names, and the published ones that are joined under it."""

FORMER, POLICY = "Video_Former.", "model.inner_model."
_GOAL_TEXT, _ORIGINAL_TEXT = "text_encoder.", "language_goal.clip_rn50."
_VIDEO_TEXT = "TVP_encoder.text_encoder."
_UNUSED = (f"{_ORIGINAL_TEXT}visual.", f"{_ORIGINAL_TEXT}logit_scale")
_CONSTANT = "embeddings.position_ids"  # older transformers kept 0..76 among the weights
HEADS = 8  # no weight tells it; typed in the published code

_READ = {
    "norm_tokens.weight": ("norm_media.weight",),
    "norm_tokens.bias": ("norm_media.bias",),
    "norm_queries.weight": ("norm_latents.weight",),
    "norm_queries.bias": ("norm_latents.bias",),
    "query.weight": ("to_q.weight",),
    "key_value.weight": ("to_k.weight", "to_v.weight"),
    "out.weight": ("to_out.weight",),
}
_TIME = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in (("qkv", "qkv"), ("out", "proj"))
         for kind in ("weight", "bias")}  # fmt: skip
_REFINE = ("0.weight", "0.bias", "1.weight", "3.weight")
_ATTENTION = {
    "query.weight": ("query.weight",),
    "query.bias": ("query.bias",),
    "keys_values.weight": ("key.weight", "value.weight"),
    "keys_values.bias": ("key.bias", "value.bias"),
    "out.weight": ("c_proj.weight",),
}
_BLOCK = {
    "norm_attention.weight": "ln_1.weight",
    "norm_feed_forward.weight": "ln_2.weight",
    "feed_forward.0.weight": "mlp.c_fc.weight",
    "feed_forward.2.weight": "mlp.c_proj.weight",
}
_DECODER_BLOCK = {
    "norm_context.weight": "ln3.weight",
    "norm_context.bias": "ln3.bias",
    "modulation.1.weight": "adaLN_zero.modulation.1.weight",
    "modulation.1.bias": "adaLN_zero.modulation.1.bias",
}
_LAYERS = {  # ours and theirs, with weight and bias each
    "features": "tok_emb",
    "goal.0": "lang_emb.0",
    "goal.2": "lang_emb.2",
    "proprio.0": "proprio_emb.0",
    "proprio.2": "proprio_emb.2",
    "sigma.0": "sigma_emb.1",
    "sigma.2": "sigma_emb.3",
    "action": "action_emb",
    "out": "action_pred",
    "unused_goal.0": "goal_emb.0",
    "unused_goal.2": "goal_emb.2",
}


class Parts(NamedTuple):
    """A published checkpoint's weights by their use; ``left_out`` are the names of what nothing uses.

    Both text towers are CLIP's, under transformers' names, and {} where the checkpoint has none: ``goal_text``
    tells the policy the sentence, ``video_text`` the video model. ``calvin``: as the CALVIN policy stores the former.
    """

    former: dict[str, Tensor]
    policy: dict[str, Tensor]
    goal_text: dict[str, Tensor]
    video_text: dict[str, Tensor]
    calvin: bool
    left_out: tuple[str, ...]


def split_checkpoint(state: State) -> Parts:
    """Returns the parts of a policy's state, each without its prefix.

    Raises:
        ValueError: there is no Video Former or no policy, or a name belongs to no part.
    """
    prefixes = (FORMER, POLICY, _ORIGINAL_TEXT, _GOAL_TEXT, _VIDEO_TEXT)
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    unknown, left_out = [], []
    for name, value in state.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            unknown.append(name)
        elif name.startswith(_UNUSED) or name.endswith(_CONSTANT):
            left_out.append(name)
        else:
            parts[prefix][name.removeprefix(prefix)] = value
    missing = [prefix for prefix in (FORMER, POLICY) if not parts[prefix]]
    if unknown or missing:
        raise ValueError(
            f"not a VPP policy: no names begin with {' or '.join(missing) or '(all begin as wanted)'}; "
            f"{len(unknown)} names belong to no part of it ({', '.join(sorted(unknown)[:20]) or 'none'})"
        )
    original = parts[_ORIGINAL_TEXT]
    goal_text = clip_text_from_published(original) if original else parts[_GOAL_TEXT]
    return Parts(parts[FORMER], parts[POLICY], goal_text, parts[_VIDEO_TEXT], bool(original), tuple(left_out))


def former_config(state: State, heads: int = HEADS) -> dict[str, Any]:
    """Returns the fields of VideoFormerConfig.

    Args:
        state: the weights, without the prefix.
        heads: which no weight tells; the published code always takes 8.

    Raises:
        ValueError: they are not those of a Video Former.
    """
    if "weight" in state:
        width, feature_width = _shape(state, "weight", 2)
        return {"kind": "linear", "feature_width": feature_width, "width": width, "heads": 1}
    frames, queries, width = _shape(state, "latents", 3)
    return {
        "kind": "3d" if "layers.0.1.qkv.weight" in state else "2d",
        "feature_width": _shape(state, "goal_emb.0.weight", 2)[1],
        "width": width,
        "frames": frames,
        "queries": queries,
        "layers": _count(state, "layers"),
        "heads": heads,
        "head_width": _shape(state, "layers.0.0.to_q.weight", 2)[0] // heads,
        "expansion": _shape(state, f"layers.0.{_refine(state)}.1.weight", 2)[0] // width,
    }


def former_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of a VideoFormer.

    Raises:
        ValueError: names are missing or left over; the message lists all of them.
    """
    return _renamed(state, dict(_former_names(state)), "a Video Former")


def policy_config(state: State, tokens: int, heads: int = HEADS) -> dict[str, Any]:
    """Returns the fields of EDMTransformerConfig, with those of EncoderDecoderConfig as a dict under ``trunk``.

    Args:
        state: the weights, without the prefix.
        tokens: frames times queries of the Video Former (224 for a linear one); with them the unused table of
            positions tells the chunk.
        heads: which no weight tells; the published code always takes 8.

    Raises:
        ValueError: they are not those of such a policy.
    """
    width, feature_width = _shape(state, "tok_emb.weight", 2)
    places = _shape(state, "pos_emb", 3)[1]
    if places <= tokens + 1:
        raise ValueError(
            f"the policy has {places} places, of which a goal and {tokens} tokens leave none for actions: the Video "
            "Former and the policy do not belong together"
        )
    return {
        "action_width": _shape(state, "action_emb.weight", 2)[1],
        "chunk": places - tokens - 1,
        "feature_width": feature_width,
        "goal_width": _shape(state, "lang_emb.0.weight", 2)[1],
        "proprio_width": _shape(state, "proprio_emb.0.weight", 2)[1],
        "action_positions": False,
        "published_places": places,
        "trunk": {
            "width": width,
            "encoder_layers": _count(state, "encoder.blocks"),
            "decoder_layers": _count(state, "decoder.blocks"),
            "heads": heads,
            "expansion": _shape(state, "encoder.blocks.0.mlp.c_fc.weight", 2)[0] // width,
            "causal_context": True,
        },
    }


def policy_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of an EDMTransformer with ``published_places``.

    Raises:
        ValueError: names are missing or left over; the message lists all of them.
    """
    return _renamed(state, dict(_policy_names(state)), "a VPP policy")


def _former_names(state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
    if "weight" in state:
        yield "embed.weight", ("weight",)
        yield "embed.bias", ("bias",)
        return
    yield "queries", ("latents",)
    yield "time", ("time_pos_emb",)
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", (f"norm.{kind}",)
        for place in (0, 2):
            yield f"embed.{place}.{kind}", (f"goal_emb.{place}.{kind}",)
    for layer in range(_count(state, "layers")):
        at = f"layers.{layer}"
        for ours, parts in _READ.items():
            yield f"{at}.read.{ours}", tuple(f"{at}.0.{part}" for part in parts)
        if _refine(state) == 2:
            for ours, theirs in _TIME.items():
                yield f"{at}.time.{ours}", (f"{at}.1.{theirs}",)
        for name in _REFINE:
            yield f"{at}.feed_forward.{name}", (f"{at}.{_refine(state)}.{name}",)


def _policy_names(state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "unused_positions", ("pos_emb",)
    for ours, theirs in _LAYERS.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", (f"{theirs}.{kind}",)
    for stack in ("encoder", "decoder"):
        yield f"{stack}.norm.weight", (f"{stack}.ln.weight",)
        for layer in range(_count(state, f"{stack}.blocks")):
            at = f"{stack}.blocks.{layer}"
            whole = _BLOCK | (_DECODER_BLOCK if stack == "decoder" else {})
            for ours, theirs in whole.items():
                yield f"{at}.{ours}", (f"{at}.{theirs}",)
            attentions = {"attention": "attn"} | ({"context": "cross_att"} if stack == "decoder" else {})
            for ours, theirs in attentions.items():
                for part, sources in _ATTENTION.items():
                    yield f"{at}.{ours}.{part}", tuple(f"{at}.{theirs}.{source}" for source in sources)


def _renamed(state: State, names: Names, what: str) -> dict[str, Tensor]:
    wanted, came = {name for sources in names.values() for name in sources}, set(state)
    missing, leftover = sorted(wanted - came), sorted(came - wanted)
    if missing or leftover:
        raise ValueError(
            f"not the weights of {what}: {len(missing)} published names are missing ({', '.join(missing) or 'none'}), "
            f"{len(leftover)} left over ({', '.join(leftover) or 'none'})"
        )
    return {
        ours: state[sources[0]] if len(sources) == 1 else torch.cat([state[source] for source in sources])
        for ours, sources in names.items()
    }


def _refine(state: State) -> int:
    """The place of the feed-forward in a published layer: after the attention over time, where there is one."""
    return 2 if "layers.0.1.qkv.weight" in state else 1


def _count(state: State, stack: str) -> int:
    pattern = re.compile(rf"{re.escape(stack)}\.(\d+)\.")
    return 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=-1)


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in state or state[name].ndim != axes or not state[name].numel():
        raise ValueError(
            f"not the weights of a VPP policy: no {name} of {axes} axes; the {len(state)} names begin with "
            f"{', '.join(sorted(state)[:3]) or 'nothing'}"
        )
    return tuple(state[name].shape)
