"""What the published iVideoGPT does to step: the whole prefix again for every frame, a cache inside the frame only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ideomotor.interop.ivideogpt import transformer_to_published
from ideomotor.layers.linear import Linear
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor

Map = Callable[[Tensor], Tensor]


class Reprefilling:
    """The published loop over the published weights: separate maps, a cache grown by concatenation, logits of all ids.

    Kinder than the original in two places: after the prefix it computes the logits of the last position alone, and ids
    that stand for nothing are not chosen, so that its output can be compared.
    """

    def __init__(self, predictor: AutoregressivePredictor, quick: bool) -> None:
        """Takes the predictor's weights; ``quick`` maps by this library's kernels in place of torch's default ones."""
        self.config: AutoregressiveConfig = predictor.config
        self.weights: Mapping[str, Tensor] = transformer_to_published(predictor.state_dict())
        self.maps: dict[str, Map] = {name: _map(weight, quick) for name, weight in self.weights.items()
                                     if weight.ndim == 2}  # fmt: skip

    @torch.no_grad()
    def frame(self, ids: Tensor, actions: Tensor) -> Tensor:
        """Returns the likeliest codes of the frame behind ``ids``; ``actions`` are those of all frames up to it."""
        config = self.config
        slots = torch.full((len(ids), 1), config.frame_slot)
        x = self.weights["llm.model.embed_tokens.weight"][torch.cat([ids, slots], 1)]
        every = config.dynamics_tokens + 1
        x[:, config.prompt :: every] += F.linear(
            actions, self.weights["action_linear.weight"], self.weights["action_linear.bias"]
        )
        past: list[tuple[Tensor, Tensor]] = []
        tokens: list[Tensor] = []
        first, last = config.context_codes, config.context_codes + config.dynamics_codes
        while True:
            logits = self.maps["llm.lm_head.weight"](self._forward(x, past)[:, -1])
            tokens.append(logits[:, first:last].argmax(-1))
            if len(tokens) == config.dynamics_tokens:
                return torch.stack(tokens, 1)
            x = self.weights["llm.model.embed_tokens.weight"][tokens[-1][:, None] + first]

    def _forward(self, x: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        trunk = self.config.trunk
        start = past[0][0].shape[2] if past else 0
        half = torch.arange(0, trunk.width // trunk.heads, 2).float() / (trunk.width // trunk.heads)
        angles = torch.arange(start, start + x.shape[1]).float()[:, None] / trunk.rotary_base**half
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        for layer in range(trunk.layers):
            name = f"llm.model.layers.{layer}."
            y = self._norm(x, f"{name}input_layernorm.weight")
            q, k, v = (self._split(self.maps[f"{name}self_attn.{part}_proj.weight"](y)) for part in "qkv")
            q, k = q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin
            if start:
                k, v = torch.cat([past[layer][0], k], 2), torch.cat([past[layer][1], v], 2)
                past[layer] = (k, v)
            else:
                past.append((k, v))
            read = F.scaled_dot_product_attention(q, k, v, is_causal=not start)
            x = x + self.maps[f"{name}self_attn.o_proj.weight"](read.transpose(1, 2).flatten(2))
            y = self._norm(x, f"{name}post_attention_layernorm.weight")
            inner = F.silu(self.maps[f"{name}mlp.gate_proj.weight"](y)) * self.maps[f"{name}mlp.up_proj.weight"](y)
            x = x + self.maps[f"{name}mlp.down_proj.weight"](inner)
        return self._norm(x, "llm.model.norm.weight")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.trunk.norm_epsilon)
        return self.weights[name] * (x * scale)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.trunk.heads, -1)).transpose(1, 2)


def _map(weight: Tensor, quick: bool) -> Map:
    if not quick:
        return lambda x: F.linear(x, weight)
    made = Linear(*reversed(weight.shape), bias=False, device="meta")
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    return made


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
