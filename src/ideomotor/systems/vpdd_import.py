"""Published VPDD checkpoints to folders of ours; nothing in a checkpoint is ever run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ideomotor.data.formats import open_dataset
from ideomotor.data.signals import all_actions
from ideomotor.files import sha256
from ideomotor.interop import vpdd as names
from ideomotor.interop.vpdd_tokenizer import tokenizer_config, tokenizer_from_published
from ideomotor.layers.gpt import GPTConfig
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy, GPTDiffusionPolicyConfig
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy, MultiviewGPTPolicyConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig
from ideomotor.systems.importing import (
    filled,
    importing,
    read_checkpoint,
    refuse_other_folder,
    summary,
    tensors_of,
)
from ideomotor.systems.stages import IMPORT_FILE, PUBLISHED_FILE, learned_with
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.systems.vpdd_published_stages import PublishedModels, fitted_bins, text_encoder
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.training.checkpoint import save_model, write_json
from ideomotor.training.config import config_to_json

Weights = Literal["ema", "model"]
Policy = GPTDiffusionPolicy | MultiviewGPTPolicy
_FOLDERS = ("tokenizer", "predictor", "bins", "policy")  # each after those that it learned with


def import_vpdd(
    source: Path, out: Path, weights: Weights = "ema", demonstrations: Path | None = None, text: str | None = None
) -> list[str]:
    """Turns a published checkpoint into the folders ``tokenizer``, ``predictor`` and ``policy`` of ``out``.

    Args:
        source: a checkpoint of torch, of which tensors alone are read, or a safetensors file.
        out: a new or empty folder, or that of an earlier import.
        weights: of a diffusion checkpoint, the running average or the last ones.
        demonstrations: the data set that its Meta-World policy was trained on; action bins are fitted to it.
        text: the CLIP folder that the networks were trained with; needed to act.

    Returns:
        Lines that say what was found and what was left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but a published checkpoint, or something other than tensors and plain values.
    """
    refuse_other_folder(out)
    content = read_checkpoint(source)
    step = content.get("step")
    models = completed(models_of(content, weights), demonstrations, text)
    facts = {
        "source": source.name,
        "sha256": sha256(source),
        "weights": weights if "ema" in content else "",
        "step": step if isinstance(step, int) else None,
        "left_out": list(models.left_out),
    }
    with importing(out) as draft:
        _write(models, draft, facts)
    lines = []
    for name, module in _parts(models).items():
        count = sum(weight.numel() for weight in module.parameters())
        lines.append(f"{out / name}: {type(module).__name__}, {count:,} parameters")
    if models.left_out:
        lines.append(f"left out, as nothing uses it (all names are in {out / IMPORT_FILE}):")
        lines += [f"  {line}" for line in summary(models.left_out)]
    if models.policy is not None and models.bins is None:
        lines.append("A checkpoint holds no action bins: --demonstrations fits them to the data it was trained with.")
    return lines


def _parts(models: PublishedModels) -> dict[str, nn.Module]:
    named = dict(zip(_FOLDERS, (models.tokenizer, models.predictor, models.bins, models.policy), strict=True))
    return {name: module for name, module in named.items() if module is not None}


def _write(models: PublishedModels, folder: Path, facts: Mapping[str, Any]) -> None:
    for name, module in _parts(models).items():
        beside = {"predictor": ("tokenizer",), "policy": ("tokenizer", "predictor", "bins")}.get(name, ())
        about = {"imported": facts["source"], "sha256": facts["sha256"]} | learned_with(folder, *beside)
        save_model(folder / name, module, module.config, about)
    if models.config is not None:
        write_json(folder / PUBLISHED_FILE, config_to_json(models.config))
    write_json(folder / IMPORT_FILE, facts)


def completed(models: PublishedModels, demonstrations: Path | None, text: str | None) -> PublishedModels:
    """Returns the models with what a checkpoint lacks for acting: action bins, and the text encoder's name.

    Raises:
        ValueError: there is no Meta-World policy to complete, or the actions or the encoder's width do not fit it.
    """
    if text is not None and models.config is not None:
        config = replace(models.config, text=text)
        text_encoder(config)
        models = models._replace(config=config)
    if demonstrations is None:
        return models
    if models.config is None or not isinstance(models.policy, GPTDiffusionPolicy):
        raise ValueError("the checkpoint holds no policy for Meta-World: leave out --demonstrations, or import another")
    actions = torch.from_numpy(all_actions(open_dataset(demonstrations)))
    return models._replace(bins=fitted_bins(models.config, actions))


def models_of(content: Mapping[str, Any], weights: Weights = "ema") -> PublishedModels:
    """Returns the models of what ``read_checkpoint`` read.

    Raises:
        ValueError: names are missing or left over, or shapes do not fit; the message lists them.
    """
    if "state_dict" in content:
        return _tokenizer_alone(tensors_of(content["state_dict"], "state_dict"), _strides(content))
    if "model" in content or "ema" in content:
        if weights not in content:
            raise ValueError(
                f"the checkpoint has no {weights!r} weights: give --weights {'model' if weights == 'ema' else 'ema'}"
            )
        _check_codebooks(content)
        content = content[weights]
    state = tensors_of(content, "the checkpoint")
    if not any(name.startswith("model.") for name in state):
        return _tokenizer_alone(state, None)
    parts = names.split_checkpoint(state)
    tokenizer = _tokenizer(parts.tokenizer, None)
    predictor = filled(
        PerceiverDiffusionPredictor,
        PerceiverDiffusionPredictorConfig(**names.predictor_config(parts.predictor)),
        names.predictor_from_published(parts.predictor),
    )
    policy_config: GPTDiffusionPolicyConfig | MultiviewGPTPolicyConfig
    if parts.policy is None:
        policy = None
        rlbench = parts.action_classes == MultiviewGPTPolicyConfig().classes  # no other benchmark has that many
        kind = MultiviewGPTPolicyConfig if rlbench else GPTDiffusionPolicyConfig
        policy_config = kind(classes=parts.action_classes)
    else:
        policy = _policy(parts.policy)
        policy_config = policy.config
        if policy.config.classes != parts.action_classes:
            raise ValueError(
                f"the action model has {policy.config.classes} classes, the noise schedule beside it "
                f"{parts.action_classes}: the checkpoint was put together by hand"
            )
    config = PublishedVPDD(
        size=predictor.config.grid[0] * tokenizer.config.strides[1],
        steps=parts.steps,
        tokenizer=tokenizer.config,
        predictor=predictor.config,
        policy=policy_config,
        first_weight=10.0 if isinstance(policy_config, MultiviewGPTPolicyConfig) else 5.0,
    )
    return PublishedModels(tokenizer, predictor, policy, config, parts.left_out)


def _tokenizer_alone(state: Mapping[str, Tensor], strides: tuple[int, int, int] | None) -> PublishedModels:
    return PublishedModels(_tokenizer(state, strides), None, None, None)


def _tokenizer(state: Mapping[str, Tensor], strides: tuple[int, int, int] | None) -> AxialVQVAE:
    return filled(AxialVQVAE, AxialVQVAEConfig(**tokenizer_config(state, strides)), tokenizer_from_published(state))


def _policy(state: Mapping[str, Tensor]) -> Policy:
    sizes, trunk = names.policy_config(state)
    tensors = names.policy_from_published(state)
    if names.is_multiview(state):
        return filled(MultiviewGPTPolicy, MultiviewGPTPolicyConfig(**sizes, trunk=GPTConfig(**trunk)), tensors)
    return filled(GPTDiffusionPolicy, GPTDiffusionPolicyConfig(**sizes, trunk=GPTConfig(**trunk)), tensors)


def _check_codebooks(content: Mapping[str, Any]) -> None:
    """The running average passes over buffers: a codebook loaded after it began would be missing in it."""
    found = [entry[name] for entry in (content.get("model"), content.get("ema")) if isinstance(entry, Mapping)
             for name in entry if str(name).endswith("vqvae.codebook.embeddings")]  # fmt: skip
    if not all(codes.equal(found[0]) for codes in found if isinstance(codes, Tensor)):
        raise ValueError(
            "the checkpoint's copies of the codebook differ between its entries or its networks: keep one entry alone, "
            'for example torch.save({"model": checkpoint["model"]}, new_path), and give --weights model'
        )


def _strides(content: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """The strides among the release's arguments; weights do not show them."""
    settings: Any = content.get("hyper_parameters") or {}
    settings = settings.get("args", settings) if isinstance(settings, Mapping) else settings
    found = vars(settings).get("downsample") if isinstance(settings, Namespace) else settings.get("downsample")
    if found is None:
        return None
    time, rows, columns = (int(stride) for stride in found)
    return time, rows, columns
