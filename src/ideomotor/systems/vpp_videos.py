"""What stage 1 of VPP foretells: a frame and a sentence in, frames out; the same for the same seed, whoever asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.systems.autoencoders import Autoencoder
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.stages import refuse_unfinished
from ideomotor.systems.vpp import VPP, TokenEncoder
from ideomotor.systems.vpp_stages import load_models
from ideomotor.systems.vpp_text import token_encoder
from ideomotor.training.learner import seed_of


class VideoModel:
    """A finished stage 1, to be asked for futures; it computes on the device of its networks, in float32."""

    def __init__(self, config: VPP, vae: Autoencoder, predictor: LatentDiffusion, text: TokenEncoder) -> None:
        self.config, self.vae, self.predictor, self.text = config, vae.eval(), predictor.eval(), text
        self.device = next(predictor.parameters()).device

    @classmethod
    def load(cls, folder: Path, device: str | torch.device | None = None) -> VideoModel:
        """Returns the model of a stage's folder, by default on CUDA where there is any.

        Raises:
            ValueError: the folder holds none.
        """
        models = load_models(folder, chosen_device(device))
        if models.vae is None or models.predictor is None:
            refuse_unfinished(folder)
            raise ValueError(f"{folder} holds no video model: give the --out folder of `ideomotor vpp video`")
        return cls(models.config, models.vae, models.predictor, token_encoder(models.config, folder))

    def noise(self, *words: str | int, frames: int | None = None) -> Float[Tensor, "t z h w"]:
        """Returns noise of a film, a pure function of ``words``, so that no film depends on those beside it."""
        config = self.config
        side = config.size // config.vae.factor
        generator = torch.Generator().manual_seed(seed_of(0, *words))
        return torch.randn(frames or config.video.frames, config.vae.channels, side, side, generator=generator)

    def heard(self, sentences: Sequence[str | None]) -> tuple[Float[Tensor, "b n d"], Tensor]:
        """Returns the vectors of sentences, and False for each that is None, i.e. withheld as in training."""
        text = self.text([said or "" for said in sentences]).to(self.device)
        return text, torch.tensor([said is not None for said in sentences], device=self.device)

    @torch.no_grad()
    def foretell(
        self,
        seen: UInt8[Tensor, "b c h w"],
        sentences: Sequence[str | None],
        noise: Float[Tensor, "b t z h w"],
        steps: int = 10,
        guidance: float = 1.0,
    ) -> UInt8[Tensor, "b horizon c h w"]:
        """Returns the frames after those seen, on the CPU; their number is that of the noise's, less the one seen.

        Args:
            seen: frames of the size that the model was trained on.
            sentences: what is told with each; None withholds it.
            noise: of each film, see ``noise``.
            steps: of Euler's method.
            guidance: see ``LatentDiffusion.sample``.
        """
        first = self.vae.moments(seen[:, None].to(self.device))[0][:, 0]
        text, told = self.heard(sentences)
        generator = torch.Generator().manual_seed(0)
        films = self.predictor.sample(first, text, steps, guidance, generator, noise=noise.to(self.device), told=told)
        return self.vae.decode(films)[:, 1:].cpu()


def refuse_sampling(samples: int, steps: int, guidance: float) -> None:
    """Refuses what cannot be sampled with.

    Raises:
        ValueError: naming all three.
    """
    if min(samples, steps) < 1 or not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(
            f"samples {samples}, steps {steps}, guidance {guidance}: wanted at least 1 sample and 1 step, and a "
            "guidance of 0 (the sentence fades out) or more; 1 is as learned"
        )
