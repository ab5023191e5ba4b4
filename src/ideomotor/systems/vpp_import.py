"""Published VPP policies to folders of ours; nothing in a checkpoint is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.interop import vpp as names
from ideomotor.interop.clip_text import tower_config
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.systems.importing import (
    filled,
    importing,
    read_checkpoint,
    refuse_other_folder,
    sha256,
    summary,
    tensors_of,
)
from ideomotor.systems.stages import IMPORT_FILE, learned_with
from ideomotor.training.checkpoint import save_model, write_json, writing


class PublishedPolicy(NamedTuple):
    """A checkpoint's models; ``texts`` are CLIP text towers by folder, with transformers' names."""

    former: VideoFormer
    policy: EDMTransformer
    texts: Mapping[str, Mapping[str, Tensor]]
    left_out: tuple[str, ...] = ()


def import_vpp(source: Path, out: Path) -> list[str]:
    """Turns a published policy into the folders ``former``, ``policy`` and its text towers' below ``out``.

    These are ``goal_text`` and ``video_text``. The video model is a diffusers folder of its own, and needs no import.

    Args:
        source: a checkpoint of torch, of which tensors alone are read, or a safetensors file.
        out: a new or empty folder, or that of an earlier import.

    Returns:
        Lines that say what was found and what was left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but a published policy, or something other than tensors and plain values.
    """
    refuse_other_folder(out)
    models = models_of(read_checkpoint(source))
    facts = {"source": source.name, "sha256": sha256(source), "left_out": list(models.left_out)}
    with importing(out) as draft:
        _write(models, draft, facts)
    lines = []
    for name, module in (("former", models.former), ("policy", models.policy)):
        count = sum(weight.numel() for weight in module.parameters())
        lines.append(f"{out / name}: {type(module).__name__}, {count:,} parameters")
    config = models.policy.config
    lines.append(
        f"  {config.chunk} actions of width {config.action_width}, proprioception of width {config.proprio_width}; "
        f"denoised in {config.sampling.steps} steps down to sigma {config.sampling.sigma_min}"
    )
    lines += [
        f"{out / name}: CLIP text tower, {sum(weight.numel() for weight in tower.values()):,} parameters; put the "
        "tokenizer's files of CLIP ViT-B/32 beside it, which no checkpoint holds"
        for name, tower in models.texts.items()
    ]
    if models.left_out:
        lines.append(f"left out, as nothing uses it (all names are in {out / IMPORT_FILE}):")
        lines += [f"  {line}" for line in summary(models.left_out)]
    return lines


def models_of(content: Mapping[str, Any]) -> PublishedPolicy:
    """Returns the models of what ``read_checkpoint`` read. A CALVIN policy acts as in its published evaluation.

    Raises:
        ValueError: names are missing or left over, or shapes do not fit; the message lists them.
    """
    state = tensors_of(content.get("model", content), "the checkpoint")
    parts = names.split_checkpoint(state)
    former = filled(
        VideoFormer, VideoFormerConfig(**names.former_config(parts.former)), names.former_from_published(parts.former)
    )
    fields = names.policy_config(parts.policy, former.config.frames * former.config.queries)
    trunk = EncoderDecoderConfig(**fields.pop("trunk"))
    config = EDMTransformerConfig(**fields, trunk=trunk)
    if parts.calvin:
        config = replace(config, sampling=Sampling(sigma_min=1.0))
    policy = filled(EDMTransformer, config, names.policy_from_published(parts.policy))
    texts = {name: tower for name, tower in (("goal_text", parts.goal_text), ("video_text", parts.video_text)) if tower}
    for tower in texts.values():
        tower_config(tower)  # all of its names are there, or an error says which are not
    return PublishedPolicy(former, policy, texts, parts.left_out)


def _write(models: PublishedPolicy, folder: Path, facts: Mapping[str, Any]) -> None:
    about = {"imported": facts["source"], "sha256": facts["sha256"]}
    save_model(folder / "former", models.former, models.former.config, about)
    save_model(folder / "policy", models.policy, models.policy.config, about | learned_with(folder, "former"))
    for name, tower in models.texts.items():
        with writing(folder / name):
            (folder / name).mkdir(parents=True)
            tensors = {key: value.contiguous() for key, value in tower.items()}
            save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        kind = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
        write_json(folder / name / "config.json", kind | tower_config(tower))
    write_json(folder / IMPORT_FILE, facts)
