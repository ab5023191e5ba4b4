"""The text towers of an import of VPP: CLIP's, from a checkpoint or the user's folder, each with the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from ideomotor.interop.clip_text import tower_config
from ideomotor.layers.clip_folders import clip_text_tower
from ideomotor.training.checkpoint import write_json, writing


class Tower(NamedTuple):
    """A CLIP text tower: weights under transformers' names, and the settings of its config.json."""

    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Of a token's state."""
        return int(self.settings["hidden_size"])

    @property
    def goal_width(self) -> int:
        """Of the vector of a sentence."""
        return int(self.settings["projection_dim"])


def tower_of(weights: Mapping[str, Tensor]) -> Tower:
    """Returns a checkpoint's tower, whose settings its weights and CLIP's constants tell.

    Raises:
        ValueError: a name is missing or unknown; the message lists all of them.
    """
    return Tower(weights, tower_config(weights))


def read_tower(clip: Path) -> Tower:
    """Returns the text tower of a user's folder, of a whole CLIP or of its text half.

    Raises:
        ValueError: there is none, it is damaged, or weights of it are missing.
    """
    model = clip_text_tower(clip)
    return Tower(model.state_dict(), json.loads(model.config.to_json_string(use_diff=False)))


def write_tower(tower: Tower, folder: Path, tokenizer: Any = None) -> None:
    """Writes a tower as transformers reads it, with the tokenizer's files where one is given."""
    with writing(folder):
        folder.mkdir(parents=True)
        tensors = {key: value.contiguous() for key, value in tower.weights.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    kind = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    write_json(folder / "config.json", {**tower.settings, **kind})


def refuse_other_tokens(tower: Tower, name: str, tokenizer: Any, clip: Path) -> None:
    """Refuses a tokenizer of another vocabulary than the tower's.

    Raises:
        ValueError: naming both.
    """
    known = tower.settings["vocab_size"]
    if len(tokenizer) != known:
        raise ValueError(
            f"the tokenizer in {clip} knows {len(tokenizer)} tokens, the text tower {name} {known}: give the folder of "
            "the CLIP that it was trained with (ViT-B/32)"
        )
