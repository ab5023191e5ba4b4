"""The published VPDD checkpoints' two networks under our names; the tokenizer in them is for ``vpdd_tokenizer``.

Nothing is dropped in silence: a name that is not known here is an error, and what is left out on purpose is listed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ideomotor.diffusion.schedule import Schedule, Vocabulary, linear_schedule

State = Mapping[str, Tensor]

UNUSED = ("transformer.wte.", "propri_embed.", "cross_attn_1.", "self_attn.")
"""Parts of the action networks that the published code builds, saves, and never uses."""

_SCHEDULE = {
    "log_at": "log_alpha",
    "log_ct": "log_gamma",
    "log_1_min_ct": "log_one_minus_gamma",
    "log_cumprod_at": "log_alpha_bar",
    "log_cumprod_ct": "log_gamma_bar",
    "log_1_min_cumprod_ct": "log_one_minus_gamma_bar",
}
_REPLACEMENT = {"log_bt_obs": ("log_beta", 0), "log_bt_act": ("log_beta", 1),
                "log_cumprod_bt_obs": ("log_beta_bar", 0), "log_cumprod_bt_act": ("log_beta_bar", 1)}  # fmt: skip
_MEMORY = ("Lt_history", "Lt_count")
_TOKENIZERS = ("model.traj_model.vqvae.", "model.act_model.vqvae.")
_CODES = "vqvae.codebook.embeddings"
_PREDICTOR, _POLICY = "model.traj_model.", "model.act_model."

# Our name for each published part; a digit group stands for the number of a block.
_SHARED = {
    r"position_emb": "embedding.places",
    r"time_mlp\.1": "embedding.step.0",
    r"time_mlp\.3": "embedding.step.2",
    r"prompt_embed\.(\d+)": r"embedding.text.\1",
    r"embed_ln": "embedding.norm",
}
_PERCEIVER = _SHARED | {
    r"latents": "latents",
    r"vqvae\.codebook\.embeddings": "codes",
    r"embed_history\.(\d+)": r"history.\1",
    r"embed_traj": "future",
    r"predict_traj\.0": "head",
}
_READERS = {r"cross_attend_blocks\.0": "read.attention", r"layers\.(\d+)\.0": r"think.\1.attention",
            r"decoder_cross_attn": "answer"}  # fmt: skip
_FORWARDS = {r"cross_attend_blocks\.1": "read.feed_forward", r"layers\.(\d+)\.1": r"think.\1.feed_forward"}
for _theirs, _ours in (_READERS | _FORWARDS).items():
    _PERCEIVER[rf"{_theirs}\.(norm|norm_context)"] = rf"{_ours}.\{_theirs.count('(') + 1}"
for _theirs, _ours in _READERS.items():
    _PERCEIVER |= {rf"{_theirs}\.fn\.to_q": f"{_ours}.query", rf"{_theirs}\.fn\.to_kv": f"{_ours}.key_value",
                   rf"{_theirs}\.fn\.to_out": f"{_ours}.out"}  # fmt: skip
for _theirs, _ours in _FORWARDS.items():
    _PERCEIVER |= {rf"{_theirs}\.fn\.net\.0": f"{_ours}.value+gate", rf"{_theirs}\.fn\.net\.2": f"{_ours}.out"}
_GPT = _SHARED | {
    r"transformer\.h\.(\d+)\.ln_1": r"trunk.blocks.\1.norm_attention",
    r"transformer\.h\.(\d+)\.ln_2": r"trunk.blocks.\1.norm_feed_forward",
    r"transformer\.h\.(\d+)\.attn\.c_attn": r"trunk.blocks.\1.attention.qkv^T",
    r"transformer\.h\.(\d+)\.attn\.c_proj": r"trunk.blocks.\1.attention.out^T",
    r"transformer\.h\.(\d+)\.mlp\.c_fc": r"trunk.blocks.\1.feed_forward.0^T",
    r"transformer\.h\.(\d+)\.mlp\.c_proj": r"trunk.blocks.\1.feed_forward.2^T",
    r"transformer\.ln_f": "trunk.norm",
}
_METAWORLD = _GPT | {
    r"act_embeddings\.(\d+)": r"action.\1",
    r"predict_act_x\.(\d+)": r"heads.0.\1",
    r"predict_act_y\.(\d+)": r"heads.1.\1",
    r"predict_act_z\.(\d+)": r"heads.2.\1",
    r"predict_gripper\.(\d+)": r"heads.3.\1",
}
_RLBENCH = _GPT | {
    r"act_embeddings": "action",
    r"proprio_preprocess\.linear": "state.0",
    r"process_tokens\.(\d+)": r"views.\1",
    r"input_preprocess\.conv2d": "pixels.0",
    r"patchify\.conv2d": "pixels.2",
    r"patchify\.norm": "pixels.3",
    r"img_embed\.(\d+)": r"patches.\1",
    r"predict_trans\.(\d+)": r"translation.\1",
    r"predict_quat\.(\d+)": r"rotation.\1",
    r"predict_gripper": "gripper",
}


class Checkpoint(NamedTuple):
    """A published diffusion checkpoint, taken apart; names are the published ones of each network."""

    tokenizer: dict[str, Tensor]
    predictor: dict[str, Tensor]
    policy: dict[str, Tensor] | None
    steps: int
    action_classes: int
    left_out: tuple[str, ...]
    """Names that no network here needs: unused parts, constants, the memory of the time sampling."""


def split_checkpoint(state: State) -> Checkpoint:
    """Returns the parts of a diffusion checkpoint's ``model`` or ``ema`` entry.

    Raises:
        ValueError: names are unknown or missing (all are listed), the noise schedule is not the published one, or the
            copies of the tokenizer differ.
    """
    tokenizers = [part for prefix in _TOKENIZERS if (part := _below(prefix, state))]
    known = {*_SCHEDULE, *_REPLACEMENT, *_MEMORY}
    leftover = [name for name in state if name not in known and not name.startswith((_PREDICTOR, _POLICY))]
    missing = [name for name in known if name not in state]
    if _PREDICTOR + _CODES not in state:
        missing.append(_PREDICTOR + _CODES)
    predictor = {name: value for name, value in _below(_PREDICTOR, state).items() if _own(name) or name == _CODES}
    policy = {name: value for name, value in _below(_POLICY, state).items() if _own(name)}
    if missing or leftover:
        raise ValueError(_mismatch(missing, leftover))
    for name in {name for copy in tokenizers for name in copy}:
        if not all(name in copy and copy[name].equal(tokenizers[0][name]) for copy in tokenizers):
            raise ValueError(f"the checkpoint holds two tokenizers that differ in {name}: it was put together by hand")
    classes = _check_schedule(state, len(predictor[_CODES]))
    left_out = [*_MEMORY, *(_POLICY + name for name in policy if name.startswith(UNUSED) or _constant(name))]
    return Checkpoint(tokenizers[0], predictor, policy or None, len(state["log_at"]), classes, tuple(left_out))


def predictor_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of a PerceiverDiffusionPredictor from that of the published video network.

    Raises:
        ValueError: names are left over; all are listed.
    """
    return _renamed({name: value for name, value in state.items() if _own(name) or name == _CODES}, _PERCEIVER)


def policy_from_published(state: State) -> dict[str, Tensor]:
    """Returns the state of a GPTDiffusionPolicy or a MultiviewGPTPolicy from that of the published action network.

    Raises:
        ValueError: names are left over; all are listed.
    """
    kept = {}
    for name, value in state.items():
        if _constant(name):
            _check_constant(name, value)
        elif not name.startswith(UNUSED) and _own(name):
            kept[name] = value
    return _renamed(kept, _RLBENCH if is_multiview(state) else _METAWORLD)


def is_multiview(state: State) -> bool:
    """Returns whether the published action network is RLBench's, which reads views; Meta-World's reads features."""
    return "act_embeddings.weight" in state


def predictor_config(state: State) -> dict[str, Any]:
    """Returns the settings of PerceiverDiffusionPredictor that the published weights' shapes tell.

    Raises:
        ValueError: a weight that tells them is missing.
    """
    codes, code_width = _shape(state, _CODES, 2)
    latents, width = _shape(state, "latents", 2)
    return {
        "codes": codes,
        "code_width": code_width,
        "width": width,
        "head_width": _shape(state, "decoder_cross_attn.fn.to_q.weight", 2)[0],
        "latents": latents,
        "blocks": _count(r"layers\.(\d+)\.", state),
        "text_width": _shape(state, "prompt_embed.0.weight", 1)[0],
        "places": _shape(state, "position_emb", 3)[1],
    }


def policy_config(state: State) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the settings of the policy, and of its trunk, that the published weights' shapes tell.

    Raises:
        ValueError: a weight that tells them is missing.
    """
    trunk = {
        "width": _shape(state, "transformer.ln_f.weight", 1)[0],
        "layers": _count(r"transformer\.h\.(\d+)\.", state),
        "inner": _shape(state, "transformer.h.0.mlp.c_fc.weight", 2)[1],
    }
    config: dict[str, Any] = {
        "text_width": _shape(state, "prompt_embed.0.weight", 1)[0],
        "places": _shape(state, "position_emb", 3)[1],
    }
    if not is_multiview(state):
        return config | {"classes": _shape(state, "predict_gripper.2.weight", 2)[0]}, trunk
    channels, _, patch, _ = _shape(state, "patchify.conv2d.weight", 4)
    views = _shape(state, "process_tokens.0.weight", 2)[1]
    proprio = _shape(state, "proprio_preprocess.linear.weight", 2)[1]
    return config | {
        "classes": _shape(state, "predict_gripper.weight", 2)[0],
        "view_width": views,
        "state_width": proprio,
        "channels": channels,
        "patch": patch,
    }, trunk


def _renamed(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    rules = [(re.compile(rf"{theirs}(\.weight|\.bias|)"), ours) for theirs, ours in names.items()]
    ours: dict[str, Tensor] = {}
    leftover = []
    for name, value in state.items():
        for pattern, target in rules:
            if match := pattern.fullmatch(name):
                ours |= _placed(match.expand(target), match.groups()[-1], value)
                break
        else:
            leftover.append(name)
    if leftover:
        raise ValueError(_mismatch([], leftover))
    return ours


def _placed(target: str, part: str, value: Tensor) -> dict[str, Tensor]:
    """Returns the value under our name: halved where one published map is two here, turned where it is stored so."""
    if target.endswith("^T"):  # GPT-2 keeps its weights input first
        return {target[:-2] + part: value.t().contiguous() if value.ndim == 2 else value}
    if target.endswith("value+gate"):
        stem, halves = target.removesuffix("value+gate"), value.chunk(2)
        return {f"{stem}value{part}": halves[0].contiguous(), f"{stem}gate{part}": halves[1].contiguous()}
    return {target + part: value[0] if target == "embedding.places" else value}


def _check_schedule(state: State, codes: int) -> int:
    """Returns the number of action classes, which is seen in how thinly their replacements are spread."""
    spread = (state["log_cumprod_bt_obs"][0] - state["log_cumprod_bt_act"][0]).double().exp()
    if not spread.isfinite() or not 0 < spread < 1e6:
        raise ValueError("the checkpoint's noise schedule never replaces: it is not one of the published code")
    classes = max(1, round(codes * float(spread)))
    schedule: Schedule = linear_schedule(Vocabulary((codes, classes)), len(state["log_at"]))
    wanted = {theirs: getattr(schedule, ours) for theirs, ours in _SCHEDULE.items()}
    wanted |= {theirs: getattr(schedule, ours)[:, group] for theirs, (ours, group) in _REPLACEMENT.items()}
    for name, values in wanted.items():
        # The betas are differences of nearly equal numbers, and the file holds float32.
        if state[name].shape != values.shape or not torch.allclose(state[name].double(), values, rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"the checkpoint's noise schedule ({name}) is not the published one for {codes} codes and {classes} "
                "action classes: such a checkpoint cannot be imported"
            )
    return classes


def _check_constant(name: str, value: Tensor) -> None:
    if name.endswith(".masked_bias"):
        right = value.ndim == 0 and float(value) == -1e4
    else:
        right = value.ndim == 4 and value.bool().equal(torch.ones_like(value).tril().bool())
    if not right:
        raise ValueError(f"{name} is not the constant causal mask of the published code: this network is another one")


def _own(name: str) -> bool:
    """Whether a name is the network's own, and not of the tokenizer that it carries along."""
    return not name.startswith("vqvae.")


def _constant(name: str) -> bool:
    return re.fullmatch(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", name) is not None


def _below(prefix: str, state: State) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(_mismatch([name], []))
    if state[name].ndim != axes:
        raise ValueError(f"{name} has the shape {tuple(state[name].shape)}; wanted {axes} axes")
    return tuple(state[name].shape)


def _count(pattern: str, state: Iterable[str]) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _mismatch(missing: list[str], leftover: list[str]) -> str:
    return (
        f"not a published VPDD checkpoint: {len(missing)} names missing ({', '.join(sorted(missing)) or 'none'}), "
        f"{len(leftover)} left over ({', '.join(sorted(leftover)) or 'none'})"
    )
