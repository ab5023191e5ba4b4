"""Published VPP policies and video models to folders of ours; nothing in a checkpoint is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.files import sha256
from ideomotor.interop import vpp as names
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.systems.importing import (
    filled,
    importing,
    read_checkpoint,
    refuse_other_folder,
    summary,
    tensors_of,
)
from ideomotor.systems.stages import IMPORT_FILE, learned_with
from ideomotor.systems.vpp_joining import Joining, Whole, joined, video_alone, write_whole
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.systems.vpp_text import GOAL_TEXT, VIDEO_TEXT
from ideomotor.systems.vpp_towers import Tower, tower_of, write_tower
from ideomotor.training.checkpoint import save_model, write_json


class PublishedPolicy(NamedTuple):
    """A checkpoint's models; ``texts`` are CLIP text towers by folder, and ``calvin`` says that it acts there."""

    former: VideoFormer
    policy: EDMTransformer
    texts: Mapping[str, Tower]
    calvin: bool
    left_out: tuple[str, ...] = ()


def import_vpp(source: Path, out: Path, joining: Joining | None = None) -> list[str]:
    """Turns a published policy into its parts, or with a video model into a stage 2; a video model into a stage 1.

    The parts are the folders ``former``, ``policy`` and the text towers ``goal_text`` and ``video_text`` below ``out``.

    Args:
        source: a checkpoint of torch, of which tensors alone are read, or a safetensors file; or the diffusers folder
            of a video model.
        out: a new or empty folder, or that of an earlier import.
        joining: what a policy is joined with, and what is to be known of a video model.

    Returns:
        Lines that say what was found and what was left out.

    Raises:
        FileNotFoundError: there is no such file, or a folder lacks one.
        ValueError: it holds anything but a published policy or video model, something other than tensors and plain
            values, or what does not fit together.
    """
    refuse_other_folder(out)
    joining = joining or Joining()
    if source.is_dir():
        return _import_video(source, out, joining)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: give a policy's checkpoint, or the folder of a video model")
    if joining.video is None and joining != Joining():
        raise ValueError("a policy's parts are imported as they are: give --video too, or leave the other options out")
    models = models_of(read_checkpoint(source))
    facts = {"source": source.name, "sha256": sha256(source), "left_out": list(models.left_out)}
    if joining.video is not None:
        return _import_joined(models, out, joining, facts)
    with importing(out) as draft:
        _write_parts(models, draft, facts)
    lines = [_line(out / name, module) for name, module in (("former", models.former), ("policy", models.policy))]
    lines.append(_acting(models.policy))
    lines += [
        f"{out / name}: CLIP text tower, {sum(weight.numel() for weight in tower.weights.values()):,} parameters; put "
        "the tokenizer's files of CLIP ViT-B/32 beside it, which no checkpoint holds"
        for name, tower in models.texts.items()
    ]
    return lines + _left_out(models.left_out, out)


def _import_video(source: Path, out: Path, joining: Joining) -> list[str]:
    if joining.video is not None or joining.scales is not None or joining.bf16:
        raise ValueError(
            f"{source} is a folder, a video model to import alone, to which --video, --scales and --bf16 mean nothing: "
            "leave them out, or give a policy's checkpoint to join"
        )
    whole = video_alone(source, joining)
    facts = {"source": source.resolve().name, "left_out": []}
    with importing(out) as draft:
        write_whole(whole, draft, {"imported": facts["source"]})
        write_json(draft / IMPORT_FILE, facts)
    form, config = PRESETS[joining.preset](), whole.config
    others = " --video.text.positions" if joining.positions else ""
    for flag, usual, value in (
        ("size", form.size, config.size),
        ("policy.goal-width", form.policy.goal_width, config.policy.goal_width),
    ):
        others += "" if value == usual else f" --{flag} {value}"
    return [
        *_lines(whole, out),
        f"look at it: ideomotor vpp gate {out} --data VIDEO; or ideomotor vpp predict {out} --input CLIP --out FILM",
        f"train with it: ideomotor vpp policy --preset {joining.preset}{others} --video-from {out} --text "
        f"{out / VIDEO_TEXT} --data DEMONSTRATIONS --out POLICY",
    ]


def _import_joined(models: PublishedPolicy, out: Path, joining: Joining, facts: Mapping[str, Any]) -> list[str]:
    whole = joined(models.former, models.policy, models.texts, models.calvin, joining)
    assert joining.video is not None
    assert whole.policy is not None
    video, kept = joining.video.resolve().name, whole.policy.state_dict()
    unused = [name for name in models.policy.state_dict() if name not in kept]
    left_out = [*models.left_out, *(f"policy.{name}" for name in unused)]
    with importing(out) as draft:
        write_whole(whole, draft, {"imported": f"{facts['source']}, {video}", "sha256": facts["sha256"]})
        write_json(draft / IMPORT_FILE, {**facts, "video": video, "left_out": left_out})
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in unused))
    told = [f"  of the policy what its release never uses: {parts}"] if unused else []
    return [*_lines(whole, out), _acting(whole.policy), *_left_out(models.left_out, out), *told]


def _lines(whole: Whole, out: Path) -> list[str]:
    config = whole.config
    named = {"vae": whole.vae, "predictor": whole.predictor, "looking": whole.looking, "policy": whole.policy}
    lines = [_line(out / name, module) for name, module in named.items() if module is not None]
    cameras = f"{config.views} cameras" if whole.policy is not None else "frames"
    placed = "with" if config.video.text.positions else "without"
    return [
        *lines,
        f"  {cameras} of {config.size} px, {config.video.frames} frames foretold; words {placed} positions (see "
        "--positions)",
    ]


def _line(folder: Path, module: nn.Module) -> str:
    return f"{folder}: {type(module).__name__}, {sum(weight.numel() for weight in module.parameters()):,} parameters"


def _acting(policy: EDMTransformer) -> str:
    config = policy.config
    state = f"proprioception of width {config.proprio_width}" if config.proprio_width else "no proprioception"
    return (
        f"  {config.chunk} actions of width {config.action_width}, {state}; denoised in {config.sampling.steps} steps "
        f"down to sigma {config.sampling.sigma_min}"
    )


def _left_out(left_out: tuple[str, ...], out: Path) -> list[str]:
    if not left_out:
        return []
    about = f"left out, as nothing uses it (all names are in {out / IMPORT_FILE}):"
    return [about, *(f"  {line}" for line in summary(left_out))]


def models_of(content: Mapping[str, Any], heads: int = names.HEADS) -> PublishedPolicy:
    """Returns the models of what ``read_checkpoint`` read. A CALVIN policy acts as in its published evaluation.

    Args:
        content: the checkpoint.
        heads: of Video Former and policy, which no weight tells.

    Raises:
        ValueError: names are missing or left over, or shapes do not fit; the message lists them.
    """
    state = tensors_of(content.get("model", content), "the checkpoint")
    parts = names.split_checkpoint(state)
    former = filled(
        VideoFormer,
        VideoFormerConfig(**names.former_config(parts.former, heads)),
        names.former_from_published(parts.former),
    )
    fields = names.policy_config(parts.policy, former.config.frames * former.config.queries, heads)
    trunk = EncoderDecoderConfig(**fields.pop("trunk"))
    config = EDMTransformerConfig(**fields, trunk=trunk)
    if parts.calvin:
        config = replace(config, sampling=Sampling(sigma_min=1.0))
    policy = filled(EDMTransformer, config, names.policy_from_published(parts.policy))
    towers = {GOAL_TEXT: parts.goal_text, VIDEO_TEXT: parts.video_text}
    texts = {name: tower_of(tower) for name, tower in towers.items() if tower}
    return PublishedPolicy(former, policy, texts, parts.calvin, parts.left_out)


def _write_parts(models: PublishedPolicy, folder: Path, facts: Mapping[str, Any]) -> None:
    about = {"imported": facts["source"], "sha256": facts["sha256"]}
    save_model(folder / "former", models.former, models.former.config, about)
    save_model(folder / "policy", models.policy, models.policy.config, about | learned_with(folder, "former"))
    for name, tower in models.texts.items():
        write_tower(tower, folder / name)
    write_json(folder / IMPORT_FILE, facts)
