"""Features to actions as VPDD's published Meta-World head does: a causal GPT-2 that undoes its part of one diffusion.

The sequence is [step | text | features of the video model | noised actions]. Features are those of the same step of the
chain, so the head reads what the video model believes about the future at that moment.
"""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ideomotor.layers.gpt import GPT, GPTConfig
from ideomotor.layers.linear import Linear
from ideomotor.layers.step_text import StepTextEmbedding, two_layers


@dataclass(frozen=True, kw_only=True)
class GPTDiffusionPolicyConfig:
    """Sizes of the published Meta-World head.

    Attributes:
        classes: bins of a dimension; the id ``classes`` itself is [MASK].
        action_width: dimensions of an action; each has logits of its own.
        chunk: actions foretold together.
        places: rows of the table of places, of which the first 2 + features + actions are used.
        trunk: sizes; its width is that of the features.
    """

    classes: int = 48
    action_width: int = 4
    chunk: int = 4
    text_width: int = 1024
    places: int = 994
    trunk: GPTConfig = field(default_factory=GPTConfig)

    @property
    def tokens(self) -> int:
        """Action tokens of a chunk, step by step, the dimension running fastest."""
        return self.chunk * self.action_width


class GPTDiffusionPolicy(nn.Module):
    """Source: p_theta2 for Meta-World of VPDD (2402.14407), as published; its numbers are pinned by recorded ones.

    Parts that the published code builds and never uses (a state encoder, two attentions, a word embedding; see
    ``interop.vpdd.UNUSED``) are left out. A bin enters as the plain number of its id, [MASK] as one more number.
    """

    def __init__(self, config: GPTDiffusionPolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.trunk.width
        self.action = nn.Sequential(Linear(1, width), nn.Mish(), *two_layers(width, width, width))
        self.embedding = StepTextEmbedding(width, config.text_width, config.places)
        self.trunk = GPT(config.trunk)
        self.heads = nn.ModuleList(two_layers(width, width, config.classes) for _ in range(config.action_width))

    def observe(self, text: Float[Tensor, "b text"]) -> Float[Tensor, "b d"]:
        """Returns the embedded sentence, good for all steps of the chain."""
        return self.embedding.text(text)

    def logits(
        self,
        xt: Int[Tensor, "b m"],
        step: Int[Tensor, " b"],
        features: Float[Tensor, "b n d"],
        text: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b m k"]:
        """Returns logits of every action token; noised ids in ``0..classes``, ``text`` as ``observe`` returned it."""
        actions = self.action(xt[..., None].to(features.dtype))  # b m d
        sequence = self.embedding(torch.cat([features, actions], 1), text, step)
        out = rearrange(self.trunk(sequence, xt.shape[1]), "b (t a) d -> a b t d", a=self.config.action_width)
        return rearrange(
            torch.stack([head(part) for head, part in zip(self.heads, out, strict=True)]), "a b t k -> b (t a) k"
        )
