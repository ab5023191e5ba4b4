"""VPDD as published, acting: both networks at each of 100 steps, for every decision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor
from ideomotor.systems.vpdd import VIEW, TextEncoder
from ideomotor.systems.vpdd_published import ActionCodec, PublishedVPDD, metaworld_head, sample
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE
from ideomotor.types import Clip


class PublishedAgent:
    """Acts as the published Meta-World policy: four frames and a sentence in, a chunk of actions out."""

    def __init__(
        self,
        config: PublishedVPDD,
        policy: GPTDiffusionPolicy,
        predictor: PerceiverDiffusionPredictor,
        tokenizer: AxialVQVAE,
        text: TextEncoder,
        actions: ActionCodec,
    ) -> None:
        self.config, self.policy, self.predictor = config, policy, predictor.eval()
        self.tokenizer, self.text, self.codec = tokenizer, text, actions
        policy.train(config.dropout_acting)

    @torch.inference_mode()
    def act(self, context: Clip) -> Float[Tensor, "b chunk action"]:
        """Returns the next chunk; the published evaluation carries out its first action and looks again."""
        history = self.tokenizer.encode(context.frames[VIEW][:, -self.tokenizer.frames_per_latent :])[:, 0]
        text = self.text(context.text).to(history.device)
        _, ids = sample(self.config, self.predictor, history, text, metaworld_head(self.policy, text))
        return self.codec.decode(ids.unflatten(1, (self.policy.config.chunk, -1)))
