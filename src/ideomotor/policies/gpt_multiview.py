"""Views to keyframes as VPDD's published RLBench head does: the causal GPT-2, reading what the cameras see now.

The sequence is [step | text | state | tokens of the views | patches of the images | noised actions]. The published head
does not read the video model at all.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ideomotor.layers.gpt import GPT, GPTConfig
from ideomotor.layers.linear import Linear
from ideomotor.layers.step_text import StepTextEmbedding, two_layers

_SLOPE = 0.02  # of LeakyReLU below 0


@dataclass(frozen=True, kw_only=True)
class MultiviewGPTPolicyConfig:
    """Sizes of the published RLBench head; an action is three translations, three angles and a gripper.

    Attributes:
        classes: bins of a dimension; the id ``classes`` itself is [MASK].
        chunk: keyframes foretold together.
        view_width: width of the joined code vectors of a place, all views after one another.
        state_width: gripper open, two finger joints, and a 1.
        channels, patch: the images become squares of ``patch`` pixels, each of that many channels.
        places: rows of the table of places, of which the first are used.
    """

    classes: int = 360
    chunk: int = 4
    view_width: int = 1024
    state_width: int = 4
    channels: int = 64
    patch: int = 13
    text_width: int = 1024
    places: int = 3358
    trunk: GPTConfig = field(default_factory=GPTConfig)

    @property
    def action_width(self) -> int:
        """Dimensions of an action."""
        return 7

    @property
    def tokens(self) -> int:
        """Action tokens of a chunk, step by step, the dimension running fastest."""
        return self.chunk * self.action_width


class Viewed(NamedTuple):
    """What stays the same through all steps of a decision."""

    prefix: Float[Tensor, "b n d"]
    text: Float[Tensor, "b d"]


class MultiviewGPTPolicy(nn.Module):
    """Source: p_theta2 for RLBench of VPDD (2402.14407), as published; its numbers are pinned by recorded ones.

    8,127,352 published parameters, 256 of which (a word embedding) are never used and left out here.
    """

    def __init__(self, config: MultiviewGPTPolicyConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.trunk.width, config.channels
        self.state = nn.Sequential(Linear(config.state_width, width), nn.LeakyReLU(_SLOPE))
        self.views = nn.Sequential(Linear(config.view_width, width), nn.Mish(), *two_layers(width, width, width))
        self.pixels = nn.Sequential(
            nn.Conv2d(3, channels, 1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(channels, channels, config.patch, config.patch),
            nn.GroupNorm(4, channels),
            nn.LeakyReLU(_SLOPE),
        )
        self.patches = nn.Sequential(nn.LayerNorm(channels), *two_layers(channels, width, width))
        self.action = nn.Embedding(config.classes + 1, width)
        self.embedding = StepTextEmbedding(width, config.text_width, config.places)
        self.trunk = GPT(config.trunk)
        self.translation = two_layers(width, width, config.classes)
        self.rotation = two_layers(width, width, config.classes)
        self.gripper = Linear(width, config.classes)

    def observe(
        self,
        views: Float[Tensor, "b n code"],
        images: UInt8[Tensor, "b view c h w"],
        proprio: Float[Tensor, "b state"],
        text: Float[Tensor, "b text"],
    ) -> Viewed:
        """Returns the embedded observation, good for all steps of the chain.

        Args:
            views: code vectors of wrist, left, right and wrist again, joined (the published order; front is missing).
            images: four RGB views; scaled to [-0.5, 0.5] here.
            proprio: gripper open, two finger joints, 1.
            text: the sentence.
        """
        grids = self.pixels(images.flatten(0, 1).float() / 255 - 0.5)  # (b view) c h w
        patches = self.patches(rearrange(grids, "(b view) c h w -> b (view h w) c", b=len(images)))
        return Viewed(
            torch.cat([self.state(proprio)[:, None], self.views(views), patches], 1), self.embedding.text(text)
        )

    def logits(self, xt: Int[Tensor, "b m"], step: Int[Tensor, " b"], seen: Viewed) -> Float[Tensor, "b m k"]:
        """Returns logits of every action token; noised ids in ``0..classes``."""
        sequence = self.embedding(torch.cat([seen.prefix, self.action(xt)], 1), seen.text, step)
        out = rearrange(self.trunk(sequence, xt.shape[1]), "b (t a) d -> b t a d", a=self.config.action_width)
        parts = [self.translation(out[:, :, :3]), self.rotation(out[:, :, 3:6]), self.gripper(out[:, :, 6:])]
        return rearrange(torch.cat(parts, 2), "b t a k -> b (t a) k")
