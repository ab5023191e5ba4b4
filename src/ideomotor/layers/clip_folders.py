"""Text tower and tokenizer of a CLIP that the user has, in the transformers layout; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError

from ideomotor.extras import require

_WORDS = ("vocab.json", "merges.txt")


def clip_text_tower(folder: str | Path) -> Any:
    """Returns transformers' CLIPTextModelWithProjection in float32 and eval mode, of a whole CLIP or of its text half.

    Raises:
        ValueError: there is none, it is damaged, or weights of it are missing, which transformers would make up.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no CLIP model (config.json): give a transformers model folder on this machine"
        )
    kind = transformers_without_bars().CLIPTextModelWithProjection
    try:
        model, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"the text tower of CLIP in {folder} cannot be read ({error}): copy the folder anew"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"{len(missing)} of the weights of CLIP's text tower are not in {folder}, {', '.join(missing[:3])} among "
            "them: give the folder of a whole CLIP, or of its text tower with projection"
        )
    return model.float().eval().requires_grad_(False)


def clip_tokenizer(folder: str | Path) -> Any:
    """Returns transformers' CLIPTokenizer.

    Raises:
        ValueError: the folder holds none, or a damaged one.
    """
    place = Path(folder)
    if not ((place / "tokenizer.json").is_file() or all((place / name).is_file() for name in _WORDS)):
        raise ValueError(  # of a folder without, transformers makes a tokenizer that knows no word
            f"{folder} holds no tokenizer of CLIP ({' and '.join(_WORDS)}, or tokenizer.json): give the folder of a "
            "CLIP as transformers keeps it"
        )
    kind = transformers_without_bars().CLIPTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the half of it that is Rust raises no other
        raise ValueError(f"the tokenizer in {folder} is damaged ({error}): copy its files anew") from error


def transformers_without_bars() -> ModuleType:
    """Returns the package; a bar for a second of loading would break a stage's own.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how it comes.
    """
    transformers = require("transformers", "text")
    transformers.utils.logging.disable_progress_bar()
    return transformers
