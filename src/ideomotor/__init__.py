"""ideomotor: robot policies learned from video.

Pre-train on video without actions, fine-tune on a few demonstrations, act in real time, show what was imagined.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Two torch processes on two cores run 8 to 80 times slower when idle OpenMP threads spin. This must be set before torch
# loads its OpenMP runtime, hence here, in the first line of every entry point.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from ideomotor.systems.world import World
    from ideomotor.types import (
        Agent,
        Borrowed,
        Clip,
        Dataset,
        Episode,
        Frames,
        Losses,
        Quarantined,
        Tokenizer,
        WorldModel,
    )

__version__ = "0.1.0"

_FROM = {
    **dict.fromkeys(
        (
            "Agent",
            "Borrowed",
            "Clip",
            "Dataset",
            "Episode",
            "Frames",
            "Losses",
            "Quarantined",
            "Tokenizer",
            "WorldModel",
        ),
        "ideomotor.types",
    ),
    "World": "ideomotor.systems.world",
}
__all__ = [
    "Agent", "Borrowed", "Clip", "Dataset", "Episode", "Frames", "Losses", "Quarantined", "Tokenizer", "World",
    "WorldModel",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Brings the public names when they are first asked for: simulator processes need none, and so no torch."""
    if name not in _FROM:
        raise AttributeError(f"module 'ideomotor' has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name]), name)
