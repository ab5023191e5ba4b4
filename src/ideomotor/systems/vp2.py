"""A learned world as the video predictor of the VP2 benchmark, without editing its tree.

Source: VP2 (2304.13723), whose planner asks a model for the pictures that candidate actions lead to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32

from ideomotor.systems.world import World


class VP2Predictor:
    """What VP2 calls a model: a batch of seen frames and candidate actions in, the frames that follow out.

    Where it differs from the published one: any number of context frames and actions, those seen come back as they
    came, and an action of another width is refused.

    Attributes:
        num_context: frames that VP2 shall give.
        base_prediction_modality: what planning costs are computed from.
        at_once: futures imagined together at most, to bound memory.
    """

    base_prediction_modality = "rgb"

    def __init__(self, world: World, at_once: int = 100) -> None:
        if world.action_width < 1 or at_once < 1:
            raise ValueError(
                f"the world hears actions of width {world.action_width}, at_once is {at_once}: wanted 1 or more each; "
                "VP2 plans actions, so take a world that was trained with them"
            )
        self.world, self.at_once, self.num_context = world, at_once, world.context

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu", at_once: int = 100, seed: int = 0) -> VP2Predictor:
        """Returns the predictor for a world's folder, of a stage or of an import."""
        return cls(World.load(folder, device=device, seed=seed), at_once)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Float32[np.ndarray, "b t h w c"]]:
        """Returns ``{"rgb": frames}`` in [0, 1]: of ``n`` actions, frames 1 to ``n``, frame 0 being the first one seen.

        Args:
            batch: ``video`` (b, num_context, h, w, 3) in [0, 1]; of more frames the first ``num_context`` count.
                ``actions`` (b, n, action): row ``k`` is done at frame ``k`` and leads to the next.

        Raises:
            ValueError: shapes or values that do not fit.
        """
        video, actions = np.asarray(batch["video"], np.float32), np.asarray(batch["actions"], np.float32)
        self._check(video, actions)
        seen = np.rint(video[:, : self.num_context] * 255).astype(np.uint8)
        frames = rearrange(torch.from_numpy(seen), "b t h w c -> b t c h w")
        leading = torch.from_numpy(actions[:, self.num_context - 1 :])
        imagined = [
            self.world.imagine(some, done.shape[1], done).frames.cpu()
            for some, done in zip(frames.split(self.at_once), leading.split(self.at_once), strict=True)
        ]
        whole = torch.cat([frames[:, 1:], torch.cat(imagined)], 1)
        return {"rgb": rearrange(whole, "b t c h w -> b t h w c").numpy().astype(np.float32) / 255}

    def close(self) -> None:
        """Does nothing; VP2 calls it at the end."""

    def _check(self, video: np.ndarray, actions: np.ndarray) -> None:
        context, width = self.num_context, self.world.action_width
        if video.ndim != 5 or len(video) < 1 or video.shape[1] < context or video.shape[4] != 3:
            raise ValueError(f"video has shape {video.shape}; wanted (batch, {context} or more, height, width, 3)")
        if not (np.isfinite(video).all() and video.min() >= 0 and video.max() <= 1):
            raise ValueError(
                f"video holds {video.min():g} to {video.max():g}; wanted 0 to 1: divide 8-bit frames by 255"
            )
        if actions.ndim != 3 or len(actions) != len(video) or actions.shape[1] < context or actions.shape[2] != width:
            raise ValueError(
                f"actions have shape {actions.shape} for {len(video)} videos; wanted ({len(video)}, {context} or more, "
                f"{width})"
            )
