"""ideomotor: robot policies learned from video.

Pre-train on video without actions, fine-tune on a few demonstrations, act in real time, show what was imagined.
"""

import os

# Two torch processes on two cores run 8 to 80 times slower when idle OpenMP threads spin. This must be set before torch
# loads its OpenMP runtime, hence here, in the first line of every entry point.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ideomotor.types import Agent, Borrowed, Clip, Dataset, Episode, Frames, Losses, Quarantined, Tokenizer  # noqa: E402

__version__ = "0.1.0"

__all__ = ["Agent", "Borrowed", "Clip", "Dataset", "Episode", "Frames", "Losses", "Quarantined", "Tokenizer", "__version__"]
