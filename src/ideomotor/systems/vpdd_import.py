"""Published VPDD checkpoints to folders of ours; nothing in a checkpoint is ever run."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ideomotor.interop import vpdd as names
from ideomotor.interop.vpdd_tokenizer import tokenizer_config, tokenizer_from_published
from ideomotor.layers.gpt import GPTConfig
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy, GPTDiffusionPolicyConfig
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicy, MultiviewGPTPolicyConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig
from ideomotor.systems.vpdd_published import PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.training.checkpoint import load_model, read_json, save_model, write_json
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import check_tensors

Weights = Literal["ema", "model"]
Policy = GPTDiffusionPolicy | MultiviewGPTPolicy
Model = TypeVar("Model", bound=nn.Module)
_CONFIG = "vpdd_published.json"
# What torch's restricted reader was seen to raise on bytes that were tampered with.
_DAMAGED = (RuntimeError, EOFError, LookupError, AssertionError, AttributeError, TypeError, ValueError, ArithmeticError,
            struct.error, zipfile.BadZipFile)  # fmt: skip


class PublishedModels(NamedTuple):
    """What a checkpoint holds; a tokenizer's has no networks, a pre-trained one no policy."""

    tokenizer: AxialVQVAE
    predictor: PerceiverDiffusionPredictor | None
    policy: Policy | None
    config: PublishedVPDD | None
    left_out: tuple[str, ...]


def import_vpdd(source: Path, out: Path, weights: Weights = "ema") -> list[str]:
    """Turns a published checkpoint into the folders ``tokenizer``, ``predictor`` and ``policy`` of ``out``.

    Args:
        source: a checkpoint of torch, of which tensors alone are read, or a safetensors file.
        out: a new or empty folder, or that of an earlier import.
        weights: of a diffusion checkpoint, the running average or the last ones.

    Returns:
        Lines that say what was found and what was left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything but a published checkpoint, or something other than tensors and plain values.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "import.json").is_file())):
        raise ValueError(f"{out} is there already and holds no import: give a new folder")
    content = read_checkpoint(source)
    step = content.get("step")
    models = models_of(content, weights)
    facts = {
        "source": source.name,
        "sha256": _sha256(source),
        "weights": weights if "ema" in content else "",
        "step": step if isinstance(step, int) else None,
        "left_out": list(models.left_out),
    }
    lines = []
    for folder, module in (("tokenizer", models.tokenizer), ("predictor", models.predictor), ("policy", models.policy)):
        if module is not None:
            save_model(out / folder, module, module.config, {"imported": facts["source"], "sha256": facts["sha256"]})
            count = sum(weight.numel() for weight in module.parameters())
            lines.append(f"{out / folder}: {type(module).__name__}, {count:,} parameters")
    if models.config is not None:
        write_json(out / _CONFIG, config_to_json(models.config))
    write_json(out / "import.json", facts)
    if models.left_out:
        lines.append(f"left out, as nothing uses it (all names are in {out / 'import.json'}):")
        lines += [f"  {line}" for line in _summary(models.left_out)]
    if models.policy is not None:
        lines.append("A checkpoint holds no action bins: fit them on the demonstrations it was trained with.")
    return lines


def load_published(folder: Path) -> PublishedModels:
    """Returns what ``import_vpdd`` wrote.

    Raises:
        ValueError: the folder is none of an import.
    """
    folder = Path(folder)
    if not (folder / "import.json").is_file():
        raise ValueError(f"{folder} holds no imported checkpoint: give the --out folder of `ideomotor import vpdd ...`")
    left_out = tuple(read_json(folder / "import.json")["left_out"])
    tokenizer = load_model(folder / "tokenizer", AxialVQVAE, AxialVQVAEConfig)
    if not (folder / _CONFIG).is_file():
        return PublishedModels(tokenizer, None, None, None, left_out)
    config = config_from_json(PublishedVPDD, read_json(folder / _CONFIG))
    predictor = load_model(folder / "predictor", PerceiverDiffusionPredictor, PerceiverDiffusionPredictorConfig)
    policy: Policy | None = None
    if (folder / "policy").is_dir():
        if isinstance(config.policy, MultiviewGPTPolicyConfig):
            policy = load_model(folder / "policy", MultiviewGPTPolicy, MultiviewGPTPolicyConfig)
        else:
            policy = load_model(folder / "policy", GPTDiffusionPolicy, GPTDiffusionPolicyConfig)
    return PublishedModels(tokenizer, predictor, policy, config, left_out)


def models_of(content: Mapping[str, Any], weights: Weights = "ema") -> PublishedModels:
    """Returns the models of what ``read_checkpoint`` read.

    Raises:
        ValueError: names are missing or left over, or shapes do not fit; the message lists them.
    """
    if "state_dict" in content:
        return _tokenizer_alone(_tensors(content["state_dict"], "state_dict"), _strides(content))
    if "model" in content or "ema" in content:
        if weights not in content:
            raise ValueError(
                f"the checkpoint has no {weights!r} weights: give --weights {'model' if weights == 'ema' else 'ema'}"
            )
        _check_codebooks(content)
        content = content[weights]
    state = _tensors(content, "the checkpoint")
    if not any(name.startswith("model.") for name in state):
        return _tokenizer_alone(state, None)
    parts = names.split_checkpoint(state)
    tokenizer = _tokenizer(parts.tokenizer, None)
    predictor = _filled(
        PerceiverDiffusionPredictor,
        PerceiverDiffusionPredictorConfig(**names.predictor_config(parts.predictor)),
        names.predictor_from_published(parts.predictor),
    )
    config = PublishedVPDD(steps=parts.steps, predictor=predictor.config)
    if parts.policy is None:
        policy = None
        rlbench = parts.action_classes == MultiviewGPTPolicyConfig().classes  # no other benchmark has that many
        kind = MultiviewGPTPolicyConfig if rlbench else GPTDiffusionPolicyConfig
        config = _with_policy(config, kind(classes=parts.action_classes))
    else:
        policy = _policy(parts.policy)
        config = _with_policy(config, policy.config)
        if policy.config.classes != parts.action_classes:
            raise ValueError(
                f"the action model has {policy.config.classes} classes, the noise schedule beside it "
                f"{parts.action_classes}: the checkpoint was put together by hand"
            )
    return PublishedModels(tokenizer, predictor, policy, config, parts.left_out)


def read_checkpoint(source: Path) -> Mapping[str, Any]:
    """Returns the mapping in a checkpoint of torch or in a safetensors file, without running anything in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or loading it would run code.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file: give a published checkpoint (.pt, .ckpt, .safetensors)")
    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except SafetensorError as error:
            raise ValueError(f"{source} is not a safetensors file ({error}): it was damaged or misnamed") from error
    try:
        with torch.serialization.safe_globals([Namespace]):  # plain values; the release keeps its arguments in one
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "its pickle is not plain")
        raise ValueError(
            f"{source} holds more than tensors, and loading it could run code, so it was not loaded ({reason[:160]}). "
            "If you trust it, keep its tensors alone, in a throw-away environment: "
            'torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, new_path), or the entries '
            "step, model and ema of a diffusion checkpoint"
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"{source} is not a checkpoint of torch ({error}): it was damaged or misnamed") from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{source} holds a {type(content).__name__}; wanted a checkpoint's mapping of names to tensors"
        )
    return content


def _tokenizer_alone(state: Mapping[str, Tensor], strides: tuple[int, int, int] | None) -> PublishedModels:
    return PublishedModels(_tokenizer(state, strides), None, None, None, ())


def _tokenizer(state: Mapping[str, Tensor], strides: tuple[int, int, int] | None) -> AxialVQVAE:
    return _filled(AxialVQVAE, AxialVQVAEConfig(**tokenizer_config(state, strides)), tokenizer_from_published(state))


def _policy(state: Mapping[str, Tensor]) -> Policy:
    sizes, trunk = names.policy_config(state)
    tensors = names.policy_from_published(state)
    if names.is_multiview(state):
        return _filled(MultiviewGPTPolicy, MultiviewGPTPolicyConfig(**sizes, trunk=GPTConfig(**trunk)), tensors)
    return _filled(GPTDiffusionPolicy, GPTDiffusionPolicyConfig(**sizes, trunk=GPTConfig(**trunk)), tensors)


def _filled(cls: Callable[[Any], Model], config: Any, tensors: Mapping[str, Tensor]) -> Model:
    with torch.random.fork_rng(devices=[]):
        module = cls(config)
    check_tensors(module.state_dict(), tensors, f"the checkpoint's {type(module).__name__}")
    module.load_state_dict(tensors)
    return module.eval()


def _check_codebooks(content: Mapping[str, Any]) -> None:
    """The running average passes over buffers: a codebook loaded after it began would be missing in it."""
    found = [entry[name] for entry in (content.get("model"), content.get("ema")) if isinstance(entry, Mapping)
             for name in entry if str(name).endswith("vqvae.codebook.embeddings")]  # fmt: skip
    if not all(codes.equal(found[0]) for codes in found if isinstance(codes, Tensor)):
        raise ValueError(
            "the checkpoint's copies of the codebook differ between its entries or its networks: keep one entry alone, "
            'for example torch.save({"model": checkpoint["model"]}, new_path), and give --weights model'
        )


def _with_policy(config: PublishedVPDD, policy: GPTDiffusionPolicyConfig | MultiviewGPTPolicyConfig) -> PublishedVPDD:
    first = 10.0 if isinstance(policy, MultiviewGPTPolicyConfig) else 5.0
    return PublishedVPDD(steps=config.steps, predictor=config.predictor, policy=policy, first_weight=first)


def _tensors(content: Any, where: str) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds a {type(content).__name__}; wanted names and tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{where} holds other things than tensors: {', '.join(others)}")
    return dict(content)


def _strides(content: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """The strides among the release's arguments; weights do not show them."""
    settings: Any = content.get("hyper_parameters") or {}
    settings = settings.get("args", settings) if isinstance(settings, Mapping) else settings
    found = vars(settings).get("downsample") if isinstance(settings, Namespace) else settings.get("downsample")
    if found is None:
        return None
    time, rows, columns = (int(stride) for stride in found)
    return time, rows, columns


def _summary(left_out: tuple[str, ...]) -> list[str]:
    counts: dict[str, int] = {}
    for name in left_out:
        words = name.split(".")
        part = ".".join([word for word in words[:-1] if not word.isdigit()][:3]) or name
        counts[part] = counts.get(part, 0) + 1
    return [f"{part} ({count} tensors)" for part, count in counts.items()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
