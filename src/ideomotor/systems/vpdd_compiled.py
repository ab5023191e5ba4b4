"""A VPDD agent that acts through torch.compile, with shapes that never change."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.types import Clip

Backend = Literal["inductor", "aot_eager", "eager"]


class CompiledAgent:
    """Acts as the agent that it is given, up to rounding, through compiled networks.

    How many robots act changes during a roll-out, and each new shape would be compiled anew, which takes minutes. So a
    batch is padded to the largest one seen, by repeating its last sample: a roll-out, whose first batch is its largest,
    compiles once; the padding is computed for nothing.

    On a GPU each network's launches are replayed as one CUDA graph (mode "reduce-overhead"); not tried on one yet. On a
    CPU the weights are built in as constants ("freezing"), so they must not change any more; it gains little there
    (docs/log.md). The networks' methods are replaced in place: the agent given is compiled, too.

    Attributes:
        agent: what acts; its dial may be turned at any time, and ``imagined`` shows what it foresaw.
        batch: the size that batches are padded to.
    """

    def __init__(self, agent: VPDDAgent, batch: int = 1, backend: Backend = "inductor") -> None:
        """``batch``: robots at once, where the caller knows; ``backend``: of torch.compile, the others for tests."""
        if batch < 1:
            raise ValueError(f"batch is {batch}; wanted at least 1")
        self.agent, self.batch = agent, batch
        self._cuda = next(agent.policy.parameters()).device.type == "cuda"
        compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        if backend == "inductor":
            how = partial(compiled, mode="reduce-overhead") if self._cuda else partial(compiled, options=_FROZEN)
        else:
            how = compiled
        # einops notes each type of tensor it meets, and torch.compile compiles anew when that list has grown.
        rearrange(torch.nn.Parameter(torch.empty(1)), "i -> i")
        policy, predictor, tokenizer = agent.policy, agent.predictor, agent.tokenizer
        policy.observe, policy.logits = how(policy.observe), how(policy.logits)  # type: ignore[method-assign]
        if predictor is not None and tokenizer is not None:
            predictor.features = how(predictor.features)  # type: ignore[method-assign]
            predictor.observe, predictor.logits = how(predictor.observe), how(predictor.logits)  # type: ignore[method-assign]
            tokenizer.encode, tokenizer.decode = how(tokenizer.encode), how(tokenizer.decode)  # type: ignore[method-assign]

    def act(self, context: Clip) -> Float[Tensor, "b chunk action"]:
        """Returns the next chunks, as the agent does; the first call of a larger batch compiles.

        Raises:
            RuntimeError: nothing here can compile; the message says what to do.
        """
        self.batch, asked = max(self.batch, len(context)), len(context)
        if self._cuda:
            torch.compiler.cudagraph_mark_step_begin()  # what the last call returned may be overwritten
        try:
            actions = self.agent.act(_padded(context, self.batch))
        except torch._dynamo.exc.BackendCompilerFailed as error:
            why = str(error.inner_exception).partition("\n")[0]
            raise RuntimeError(
                f"the policy cannot be compiled here ({why}): install a C++ compiler (Debian: apt install g++) or name "
                "one in the environment variable CXX, or act without compiling"
            ) from error
        if self.agent.imagined is not None:
            self.agent.imagined = self.agent.imagined[:asked].clone()  # the graph's own memory is used again
        return actions[:asked].clone()


_FROZEN: dict[str, str | int | bool] = {"freezing": True}


def _padded(context: Clip, batch: int) -> Clip:
    """The batch, its last sample repeated until there are ``batch`` of them."""
    more = batch - len(context)
    if more == 0:
        return context

    def longer(value: Tensor) -> Tensor:
        return torch.cat([value, value[-1:].expand(more, *value.shape[1:])])

    return replace(
        context,
        frames={name: longer(video) for name, video in context.frames.items()},
        text=context.text + context.text[-1:] * more,
        domain=None if context.domain is None else longer(context.domain),
        proprio=None if context.proprio is None else longer(context.proprio),
        tokens=None if context.tokens is None else {name: longer(ids) for name, ids in context.tokens.items()},
    )
