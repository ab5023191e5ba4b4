"""Models and training states on disk: safetensors and JSON, written whole or not at all, never pickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ideomotor import files
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import LearnerState, check_tensors

FORMAT = 1  # of saved models and of training states; raised when an older reader would misread the files

Model = TypeVar("Model", bound=nn.Module)


class SaveError(OSError):
    """A file could not be written. What stood there before is intact."""


def save_model(folder: Path, module: nn.Module, config: Any, meta: Mapping[str, Any] | None = None) -> str:
    """Saves a model as the folder ``config.json`` + ``model.safetensors`` and returns its fingerprint.

    A model that is there already is replaced in one go: a full disk or a kill leaves the old one.

    Args:
        folder: where; its parents are made.
        module: a module that ``type(module)(config)`` rebuilds.
        config: the frozen dataclass it was built from.
        meta: anything JSON can hold that a reader may want to know (data, steps, seed).

    Raises:
        SaveError: the disk is full, or the folder may not be written.
    """
    folder = Path(folder)
    tensors = {name: value.detach() for name, value in module.state_dict().items()}
    described = config_to_json(config)
    fingerprint = _fingerprint(tensors, type(module).__name__, described)
    about = {
        "class": type(module).__name__,
        "format": FORMAT,
        "ideomotor": _version(),
        "config": described,
        "fingerprint": fingerprint,
        "meta": dict(meta or {}),
    }
    _settle(folder)
    with writing(folder), files.drafted(folder) as fresh:
        fresh.mkdir(parents=True)
        _write_tensors(fresh / "model.safetensors", tensors)
        write_json(fresh / "config.json", about)
        _put_folder(fresh, folder)
    return fingerprint


def read_model_info(folder: Path) -> dict[str, Any]:
    """Returns the ``config.json`` of a saved model: class, format, ideomotor, config, fingerprint, meta.

    Raises:
        FileNotFoundError: there is no saved model.
        ValueError: it was written in a format that this version does not read.
    """
    path = _settled(Path(folder)) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no saved model (no config.json): give the folder that a stage has saved"
        )
    about = read_json(path)
    _check_format(about, path)
    return about


def load_model(
    folder: Path, cls: Callable[[Any], Model], config_cls: type[Any], device: str | torch.device = "cpu"
) -> Model:
    """Returns the model that ``save_model`` wrote, in eval mode. The global random state is left as it was.

    Args:
        folder: of the saved model.
        cls: its class, called with the config.
        config_cls: the dataclass of its config.
        device: where its weights shall lie.

    Raises:
        FileNotFoundError: there is no saved model.
        ValueError: another class, format or config; tensors that do not fit; a file that was damaged.
    """
    folder = Path(folder)
    about = read_model_info(folder)
    name = getattr(cls, "__name__", repr(cls))
    if about.get("class") != name:
        raise ValueError(f"{folder} holds a {about.get('class')}; wanted a {name}: give the folder of a {name}")
    config = config_from_json(config_cls, about.get("config", {}), f"the config in {folder}")
    with torch.random.fork_rng(
        devices=[]
    ):  # building draws first weights, which must not shift those of the next model
        module = cls(config)
    tensors = _read_tensors(_settled(folder) / "model.safetensors")
    check_tensors(module.state_dict(), tensors, f"{folder}")
    if _fingerprint(tensors, name, about["config"]) != about.get("fingerprint"):
        raise ValueError(
            f"the weights in {folder} do not match their fingerprint: a file was damaged or edited; "
            "save the model again"
        )
    module.load_state_dict(tensors)
    return module.to(device).eval()


def save_state(folder: Path, values: Mapping[str, Any], learners: Mapping[str, LearnerState]) -> None:
    """Saves a training state under ``folder`` and lets ``latest`` point at it; then removes the one before.

    Args:
        folder: e.g. ``<run>/state``.
        values: JSON values, with the integer ``step``.
        learners: state by name of learner.

    Raises:
        SaveError: the disk is full, or the folder may not be written; ``latest`` still points at the state before.
    """
    name = f"step-{values['step']:09d}"
    if (target := folder / name).is_dir() and latest_state(folder) == target:
        return
    with writing(folder):
        fresh = folder / f".{name}.new"
        for leftover in (fresh, target):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            fresh.mkdir(parents=True)
            digests = {}
            for index, state in enumerate(learners.values()):
                _write_tensors(fresh / (file := f"learner-{index}.safetensors"), state.tensors)
                digests[file] = files.sha256(fresh / file)
            about = {"format": FORMAT, "ideomotor": _version(), **values, "sha256": digests}
            write_json(
                fresh / "state.json", about | {"learners": {key: state.values for key, state in learners.items()}}
            )
            fresh.rename(target)
            files.synced(folder)
            write_text(folder / "latest", name + "\n")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    for other in folder.iterdir():
        if other.is_dir() and other != target:
            shutil.rmtree(other, ignore_errors=True)


def latest_state(folder: Path) -> Path | None:
    """Returns the folder of the last complete training state, or None where there is none."""
    pointer = folder / "latest"
    if not pointer.is_file():
        return None
    return folder / pointer.read_text(encoding="utf-8").strip()


def load_state(folder: Path) -> tuple[dict[str, Any], dict[str, LearnerState]] | None:
    """Returns ``(values, learners)`` as given to ``save_state``, or None where nothing was saved.

    Raises:
        ValueError: another format, or a damaged file.
    """
    latest = latest_state(folder)
    if latest is None:
        return None
    path = latest / "state.json"
    if not path.is_file():
        raise ValueError(
            f"{folder / 'latest'} points at {latest.name}, which is not there: remove {folder} to train from the start"
        )
    values = read_json(path)
    _check_format(values, path)
    for file, digest in values.pop("sha256", {}).items():  # states of earlier versions have none
        if not (latest / file).is_file() or files.sha256(latest / file) != digest:
            raise ValueError(
                f"{latest / file} is damaged or missing (it is not what was written): remove {folder} to train from "
                "the start"
            )
    learners = {
        name: LearnerState(_read_tensors(latest / f"learner-{index}.safetensors"), described)
        for index, (name, described) in enumerate(values.pop("learners").items())
    }
    return values, learners


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        SaveError: it cannot be written; what stood there before is intact.
    """
    with writing(path):
        files.write_text(path, text)


def check_writable(folder: Path) -> None:
    """Makes ``folder`` and writes a byte into it, so that a run fails before training and not after it.

    Raises:
        SaveError: the folder cannot be made or written.
    """
    probe = folder / f".probe-{os.getpid()}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes plain-ordered copies; tied weights once under each name, since safetensors refuses shared memory."""
    seen: set[int] = set()
    plain = {}
    for name, value in tensors.items():
        value = value.detach().contiguous()
        plain[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    save_file(plain, path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes for the owner alone, whatever the umask says
    files.synced(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"{path} is damaged or missing ({error}): save it again, or remove its folder and train again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was damaged or edited; save it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; wanted an object")
    return data


def _check_format(about: Mapping[str, Any], path: Path) -> None:
    if about.get("format") != FORMAT:
        writer = about.get("ideomotor", "an unknown version")
        raise ValueError(
            f"{path} was written by ideomotor {writer} in format {about.get('format')}; "
            f"ideomotor {_version()} reads format {FORMAT}: install "
            f"ideomotor {writer} to use it, or train again with this one"
        )


def fingerprint(module: nn.Module, config: Any) -> str:
    """Returns what identifies a model: the digest of its class, config and weights, as ``save_model`` notes it."""
    return _fingerprint(module.state_dict(), type(module).__name__, config_to_json(config))


def _fingerprint(tensors: Mapping[str, Tensor], cls: str, config: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([cls, config], sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _put_folder(fresh: Path, folder: Path) -> None:
    """Renames ``fresh`` to ``folder``. A kill between the two renames leaves ``.old``, which readers look for."""
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    files.synced(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Finishes what a kill in ``_put_folder`` left undone: the old model takes its place again."""
    if not folder.exists() and _old(folder).is_dir():
        _old(folder).rename(folder)


def _settled(folder: Path) -> Path:
    return _old(folder) if not folder.exists() and _old(folder).is_dir() else folder


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, turns every failure to write into a ``SaveError`` that says where, why and what to do."""
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        text = str(error).removeprefix(f"[Errno {number}] ").removesuffix(f": '{path}'")
        full = number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text
        way_out = "free some space" if full else "choose another --out, or make it writable"
        raise SaveError(
            errno.ENOSPC if full else number or errno.EIO,
            f"cannot write {path}: {text}. What was saved before is intact; {way_out} and run the same command again",
        ) from error


def _version() -> str:
    import ideomotor  # not above: the package's root may import this module while it is still being made

    return ideomotor.__version__
