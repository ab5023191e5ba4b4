"""VPDD as published, acting: both networks at each of 100 steps, for every decision."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ideomotor.data.windows import refuse_other_context
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor
from ideomotor.systems.vpdd import TextEncoder, seen_frames
from ideomotor.systems.vpdd_published import ActionCodec, metaworld_head, sample
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE
from ideomotor.types import Clip


class PublishedAgent:
    """Acts as the published Meta-World policy: four frames and a sentence in, a chunk of actions out.

    Args:
        config: of the models.
        policy: what acts; its dropout is on or off as the config says.
        predictor: what foretells.
        tokenizer: between frames and tokens.
        text: the sentence's encoder.
        actions: between actions and ids.
        barred: ids of each dimension of an action that stand for no value, and are never drawn.
    """

    def __init__(
        self,
        config: PublishedVPDD,
        policy: GPTDiffusionPolicy,
        predictor: PerceiverDiffusionPredictor,
        tokenizer: AxialVQVAE,
        text: TextEncoder,
        actions: ActionCodec,
        barred: Bool[Tensor, "action k"] | None = None,
    ) -> None:
        self.config, self.policy, self.predictor = config, policy, predictor.eval()
        self.tokenizer, self.text, self.codec, self.barred = tokenizer.eval(), text, actions, barred
        policy.train(config.dropout_acting)

    @torch.inference_mode()
    def act(self, context: Clip) -> Float[Tensor, "b chunk action"]:
        """Returns the next chunk; the published evaluation carries out its first action and looks again."""
        refuse_other_context(context.frames, self.config.window)
        frames = seen_frames(context, self.config.views).to(self.predictor.codes.device)
        history = self.tokenizer.encode(frames)[:, 0]
        text = self.text(context.text).to(history.device)
        head = metaworld_head(self.policy, text)
        _, ids = sample(self.config, self.predictor, history, text, head, barred=self.barred)
        return self.codec.decode(ids.unflatten(1, (self.policy.config.chunk, -1)))
