"""Published iVideoGPT weights to a folder that is stepped and trained on, and back; nothing in a file is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from ideomotor.files import drafted, sha256, synced
from ideomotor.interop import ivideogpt as transformer_names
from ideomotor.interop import ivideogpt_tokenizer as tokenizer_names
from ideomotor.layers.llama import LlamaConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from ideomotor.systems.importing import filled, importing, read_checkpoint, refuse_other_folder, tensors_of
from ideomotor.systems.ivideogpt import IVideoGPT, published_large, published_small
from ideomotor.systems.ivideogpt_stages import load_world
from ideomotor.systems.stages import IMPORT_FILE, WORLD_FILE, learned_with
from ideomotor.systems.world import counts, refuse_strangers
from ideomotor.tokenizers.context_config import ContextVQGANConfig, published_64
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.training.checkpoint import read_json, save_model, write_json, writing
from ideomotor.training.config import config_to_json

# Hub folders first; then the snapshots that the release's reinforcement learning leaves, state dicts without settings.
_TOKENIZERS = ("tokenizer/diffusion_pytorch_model.safetensors", "tokenizer.pt")
_TRANSFORMERS = ("transformer/model.safetensors", "model.pt")


class Published(NamedTuple):
    """One of the two networks as it lies in a release; ``settings`` are of its config.json, None for a snapshot."""

    path: Path
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any] | None


def import_ivideogpt(source: Path, out: Path) -> list[str]:
    """Turns a published folder into the models ``tokenizer`` and ``world`` of ``out``, with ivideogpt.json.

    Args:
        source: a folder of the hub's layout, or one with the snapshots tokenizer.pt and model.pt.
        out: a new or empty folder, or that of an earlier import.

    Returns:
        Lines that say what was found.

    Raises:
        FileNotFoundError: the source lacks one of the two networks, or a config.json.
        ValueError: names are missing or left over, shapes or settings do not fit; the message lists them.
    """
    refuse_other_folder(out)
    tokenizer_file, world_file = find(source)
    tokenizer, predictor = networks(tokenizer_file, world_file)
    config = config_of(tokenizer.config, predictor.config)
    digests = {"tokenizer": sha256(tokenizer_file.path), "world": sha256(world_file.path)}
    with importing(out) as draft:
        about = {"imported": source.resolve().name}
        save_model(draft / "tokenizer", tokenizer, tokenizer.config, about | {"sha256": digests["tokenizer"]})
        about |= {"sha256": digests["world"]} | learned_with(draft, "tokenizer")
        save_model(draft / "world", predictor, predictor.config, about)
        write_json(draft / WORLD_FILE, config_to_json(config))
        write_json(draft / IMPORT_FILE, {"source": source.resolve().name, "sha256": digests, "left_out": []})
    lines = [_line(out / "tokenizer", tokenizer), _line(out / "world", predictor)]
    heads = [name for name in ("action", "reward", "reconstruction") if getattr(predictor, name) is not None]
    lines.append(
        f"context {config.world.context} frames, up to {config.world.longest} foretold; "
        + (f"heads: {', '.join(heads)}; actions of width {config.world.action_width}" if heads else "without actions")
    )
    if tokenizer_file.settings is None or world_file.settings is None:
        lines.append("a snapshot names no settings: those of the published 64 px networks were taken (heads of 64)")
    return lines


def export_ivideogpt(folder: Path, out: Path) -> list[str]:
    """Writes a world as a published folder: safetensors under the published names, and a config.json beside each.

    Raises:
        ValueError: ``out`` holds something, or the published code has no such networks.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new folder")
    tokenizer, predictor = load_world(folder)
    settings = {
        "tokenizer": tokenizer_names.settings_to_published(asdict(tokenizer.config)),
        "transformer": transformer_names.config_to_published(asdict(predictor.config)),
    }
    states = {
        _TOKENIZERS[0]: tokenizer_names.tokenizer_to_published(tokenizer.state_dict()),
        _TRANSFORMERS[0]: transformer_names.transformer_to_published(predictor.state_dict()),
    }
    with drafted(out) as draft, writing(out):
        for place, state in states.items():
            _write(draft / place, state, settings[place.partition("/")[0]])
        draft.rename(out.resolve())
    return [f"{out / place}: {len(state)} tensors" for place, state in states.items()]


def find(source: Path) -> tuple[Published, Published]:
    """Returns the two networks of a published folder.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: a file holds something else than names and tensors.
    """
    places = {"tokenizer": _TOKENIZERS, "transformer": _TRANSFORMERS}
    found = {
        kind: next((source / name for name in names if (source / name).is_file()), None)
        for kind, names in places.items()
    }
    missing = [f"{kind} ({' or '.join(places[kind])})" for kind, path in found.items() if path is None]
    if missing:
        there = [kind for kind, path in found.items() if path is not None]
        raise FileNotFoundError(
            f"{source} holds {f'a {there[0]}, and' if there else 'neither tokenizer nor transformer:'} no "
            f"{' and no '.join(missing)}: give the folder of a release with both, or copy the missing one into it"
        )
    tokenizer, transformer = (_read(path) for path in found.values() if path is not None)
    return tokenizer, transformer


def networks(tokenizer_file: Published, world_file: Published) -> tuple[ContextVQGAN, AutoregressivePredictor]:
    """Returns the two networks with the published weights.

    Raises:
        ValueError: names, shapes or settings do not fit, or the two do not belong together.
    """
    given = tokenizer_file.settings
    if given is None:
        given = tokenizer_names.settings_to_published(asdict(published_64()))
    settings = ContextVQGANConfig(**tokenizer_names.tokenizer_settings(given, tokenizer_file.state))
    tokenizer = filled(ContextVQGAN, settings, tokenizer_names.tokenizer_from_published(tokenizer_file.state))
    told = counts(tokenizer)
    given = world_file.settings
    if given is None:
        given = transformer_names.snapshot_settings(world_file.state)
    known = {
        "num_vq_embeddings": told["context_codes"],
        "num_dyn_embeddings": told["dynamics_codes"],
        "context_length": told["context"],  # of the weights: they were cut where the context was
    }
    sizes = transformer_names.transformer_config(world_file.state, given, known)
    config = AutoregressiveConfig(**sizes | told | {"trunk": LlamaConfig(**sizes["trunk"])})
    predictor = filled(AutoregressivePredictor, config, transformer_names.transformer_from_published(world_file.state))
    refuse_strangers(tokenizer, predictor)
    return tokenizer, predictor


def config_of(tokenizer: ContextVQGANConfig, world: AutoregressiveConfig) -> IVideoGPT:
    """Returns settings for networks that were imported; what no checkpoint tells is as in the preset of their size."""
    preset = published_large() if tokenizer.size > published_64().size else published_small()
    window = replace(
        preset.window, context=world.context, frames=min(preset.window.frames, world.context + world.longest)
    )
    painted = replace(
        preset.painted,
        context=world.context,
        frames=max(preset.painted.frames, world.context + 1),
        span=max(preset.painted.span or 0, world.context + 1),
    )
    return replace(preset, tokenizer=tokenizer, world=world, window=window, painted=painted)


def _read(path: Path) -> Published:
    state = tensors_of(read_checkpoint(path), str(path))
    if path.suffix == ".pt":
        return Published(path, state, None)
    settings = path.parent / "config.json"
    if not settings.is_file():
        raise FileNotFoundError(f"{settings} is missing: a release has it beside {path.name}; copy it too")
    return Published(path, state, read_json(settings))


def _write(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path, {"format": "pt"})  # readers want that
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes for the owner alone
    synced(path)
    write_json(path.parent / "config.json", settings)


def _line(folder: Path, module: nn.Module) -> str:
    return f"{folder}: {type(module).__name__}, {sum(weight.numel() for weight in module.parameters()):,} parameters"
