"""What imports of published weights share: files read without running what is in them, a folder whole or not at all."""

from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ideomotor.files import drafted
from ideomotor.systems.stages import CONFIG_FILES, IMPORT_FILE
from ideomotor.training.checkpoint import writing
from ideomotor.training.learner import check_tensors

Model = TypeVar("Model", bound=nn.Module)
_PLACES = (
    "tokenizer",
    "vae",
    "predictor",
    "bins",
    "former",
    "looking",
    "robot",
    "policy",
    "goal_text",
    "video_text",
    "world",
    *CONFIG_FILES.values(),
    IMPORT_FILE,
)
"""All that an import of any system may leave."""
# Settings that a release pickled beside its weights; read as things that hold what they held, and do nothing.
_SETTINGS = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.Metadata",
             "omegaconf.base.ContainerMetadata", *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String",
             "Integer", "Float", "Boolean", "Bytes", "Path")), "typing.Any", "collections.defaultdict",
             *(f"builtins.{kind}" for kind in ("dict", "list", "str", "int", "float", "bool")))  # fmt: skip
_BEGINNINGS = (b"PK", b"\x80")  # of a zip, and of a pickle as torch wrote before
# What torch's restricted reader was seen to raise on bytes that were tampered with.
_DAMAGED = (RuntimeError, EOFError, LookupError, AssertionError, AttributeError, TypeError, ValueError, ArithmeticError,
            struct.error, zipfile.BadZipFile)  # fmt: skip


def refuse_other_folder(out: Path) -> None:
    """Refuses a folder to import to that holds anything but an earlier import.

    Raises:
        ValueError: naming it.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / IMPORT_FILE).is_file())):
        raise ValueError(f"{out} is there already and holds no import: give a new folder")


@contextmanager
def importing(out: Path) -> Iterator[Path]:
    """Inside, an import is written to the folder this yields; afterwards it stands at ``out``, whole.

    An error inside leaves what stood at ``out`` before.
    """
    with drafted(out) as draft:
        yield draft
        _move(draft, out)


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
    with source.open("rb") as file:
        began = file.read(4)
    if not began.startswith(_BEGINNINGS):
        raise ValueError(
            f"{source} is no checkpoint of torch, nor named .safetensors (it begins with {began!r}): it is another "
            "kind of file, was damaged or misnamed"
        )
    try:
        inert = [(_Inert, name) for name in _SETTINGS]
        with torch.serialization.safe_globals([Namespace, *inert]):  # plain values, as releases keep their arguments in
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


class _Inert:
    """Stands for an object of a library that is not needed here."""

    def __init__(self, *_: object) -> None:
        pass


def tensors_of(content: Any, where: str) -> dict[str, Tensor]:
    """Returns names and tensors.

    Raises:
        ValueError: there are none, or other things among them.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds a {type(content).__name__}; wanted names and tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{where} holds other things than tensors: {', '.join(others)}")
    return dict(content)


def filled(cls: Callable[[Any], Model], config: Any, tensors: Mapping[str, Tensor]) -> Model:
    """Returns the model with those weights, in eval mode. The global random state is left as it was.

    Raises:
        ValueError: names or shapes do not fit; the message lists them.
    """
    with torch.random.fork_rng(devices=[]):
        module = cls(config)
    check_tensors(module.state_dict(), tensors, f"the checkpoint's {type(module).__name__}")
    module.load_state_dict(tensors)
    return module.eval()


def _move(draft: Path, out: Path) -> None:
    """Puts a whole import in the place of an earlier one, of which no model stays; the roll-outs beside it do.

    Where there is none it comes in one go. Else import.json is changed last and at once, so that after a kill the
    folder still is one that may be imported to.
    """
    with writing(out):
        if not out.exists() or not any(out.iterdir()):
            draft.rename(out.resolve())
            return
        for name in _PLACES:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            elif name != IMPORT_FILE:
                (out / name).unlink(missing_ok=True)
            if (draft / name).exists():
                (draft / name).rename(out / name)


def summary(left_out: Sequence[str]) -> list[str]:
    """Returns a line for each part that the names belong to, with the number of its tensors."""
    counts: dict[str, int] = {}
    for name in left_out:
        words = name.split(".")
        part = ".".join([word for word in words[:-1] if not word.isdigit()][:3]) or name
        counts[part] = counts.get(part, 0) + 1
    return [f"{part} ({count} tensors)" for part, count in counts.items()]
