"""VPDD acting: frames and a sentence in, a chunk of actions out, imagining before it as far as its dial says."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ideomotor.data.windows import refuse_other_context
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.vpdd import VPDD, Dial, TextEncoder, context_tokens, decode, seen_frames
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.types import DOMAINS, Clip, Prefix, domain_id


def refuse_odd_context(context: Clip, config: VPDD) -> None:
    """Refuses what a policy would act on blindly, or fail on without a word of the cause.

    Raises:
        ValueError: another number of frames, a state that is not finite, or domains that are none.
    """
    refuse_other_context(context.frames, config.window)
    state = context.proprio
    if config.policy.state_width and state is not None and not state.isfinite().all():
        row = int((~state.isfinite().all(1)).nonzero()[0])
        raise ValueError(
            f"the state of sample {row} is {state[row].tolist()}; wanted finite numbers: check the robot's sensors"
        )
    ids, known = context.domain, set(range(len(DOMAINS)))
    if ids is not None and (tuple(ids.shape) != (len(context),) or not set(ids.tolist()) <= known):
        raise ValueError(
            f"the context's domains are {ids.tolist()}; wanted for each of {len(context)} samples an id: "
            f"{', '.join(f'{domain_id(name)} {name}' for name in DOMAINS)}, or none at all"
        )


class VPDDAgent:
    """Acts: frames and a sentence in, a chunk of actions out; and shows what it foresees.

    Attributes:
        dial: how far it imagines before it acts; may be turned at any time.
        imagined: the video of the last call, where the dial is at "full".
        domain: that it acts in, for a context that names none.
    """

    def __init__(
        self,
        config: VPDD,
        policy: DiscreteDiffusionPolicy,
        predictor: DiscreteDiffusionPredictor | None,
        tokenizer: VQVAE3D | None,
        text: TextEncoder,
        domain: str = "unknown",
    ) -> None:
        domain_id(domain)  # refuses an unknown name
        self.domain = domain
        self.config, self.policy, self.predictor, self.tokenizer, self.text = config, policy, predictor, tokenizer, text
        self.dial: Dial = config.dial
        self.imagined: UInt8[Tensor, "b t c h w"] | None = None
        for module in (policy, predictor, tokenizer):
            if module is not None:
                module.eval()

    @torch.inference_mode()
    def act(self, context: Clip, prefix: Prefix | None = None) -> Float[Tensor, "b chunk action"]:
        """Returns the next chunk; its first ``config.execute`` actions are to be carried out before looking again.

        With a ``prefix`` it begins with these very actions, and goes on from them.

        Raises:
            ValueError: the context is none that the policy was trained on; see ``refuse_odd_context``.
        """
        refuse_odd_context(context, self.config)
        device = next(self.policy.parameters()).device
        context = context.to(device)
        with self.config.finetune_stage.optim.autocast(device):
            text = self.text(context.text).to(device)
            return self.policy.sample(
                seen_frames(context, self.config.views),
                self._foresight(context, text),
                text,
                context.proprio,
                self.config.action_steps,
                prefix=None if prefix is None else prefix.to(device),
            ).float()

    def domain_ids(self, context: Clip) -> Int[Tensor, " b"]:
        """Returns the context's domains; where it names none, the agent's own."""
        if context.domain is not None:
            return context.domain
        device = next(self.policy.parameters()).device
        return torch.full((len(context),), domain_id(self.domain), device=device)

    def _foresight(self, context: Clip, text: Float[Tensor, "b d"]) -> Float[Tensor, "b m d"] | None:
        if self.predictor is None or self.tokenizer is None or self.dial == "none":
            return None
        seen, future = context_tokens(context, self.tokenizer, self.predictor), None
        domain = self.domain_ids(context)
        if self.dial != "features":
            steps = self.config.imagine_steps
            steps = steps if self.dial == "full" else max(1, steps // 2)
            future = self.predictor.sample(seen, text, steps, domain=domain)
        if self.dial == "full":
            assert future is not None
            self.imagined = decode(self.tokenizer, future, self.predictor.config.grid, self.config.views)
        return self.predictor.features(seen, text, future, domain)
