"""A policy of VPP that looks with a frozen image encoder in place of the video model: a control without foresight.

Source: the ablations of 2412.14803 swap the video model for other encoders of the newest frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.extras import require
from ideomotor.systems.vpp import VPP, Eyes, Part
from ideomotor.tokenizers.image_encoder import ImageEncoder, ImageEncoderConfig
from ideomotor.training.checkpoint import load_model, read_model_info


class Encoding:
    """Frames to the tokens that an image encoder sees in them; owns nothing and computes no gradient."""

    def __init__(self, config: VPP, encoder: ImageEncoder) -> None:
        self.config, self.encoder = config, encoder

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks, each with its ``config``."""
        return (self.encoder,)

    @torch.no_grad()
    def __call__(
        self,
        frames: UInt8[Tensor, "b 1 c h w"],
        sentences: Sequence[str],
        generators: Sequence[torch.Generator] | None = None,
    ) -> Float[Tensor, "b 1 n d"]:
        """Returns the tokens of each view, one after the other; nothing is read of sentences, nothing drawn."""
        views = self.config.views
        each = rearrange(frames, "b t c (view h) w -> (b view) t c h w", view=views)
        return rearrange(self.encoder.encode(each), "(b view) t n d -> b t (view n) d", view=views)

    def alone(self) -> Encoding:
        """Returns the same for one view by itself."""
        return Encoding(replace(self.config, views=1), self.encoder)


def looking_through(config: VPP, encoder: ImageEncoder) -> VPP:
    """Returns the same form with a Video Former that reads what the encoder sees: one frame, of its width."""
    return replace(config, former=replace(config.former, feature_width=encoder.width, frames=1))


def refuse_other_eyes(eyes: Eyes, video_from: Path | None, encoder_from: Path | None) -> None:
    """Refuses networks that the eyes do not look with, and eyes without theirs.

    Raises:
        ValueError: saying what each kind of eyes needs.
    """
    wanted = {"foresight": (True, False), "latents": (True, False), "encoder": (False, True), "pixels": (False, False)}
    given = (video_from is not None, encoder_from is not None)
    if given != wanted[eyes]:
        named = " and ".join(name for name, there in zip(("--video-from", "--encoder"), given, strict=True) if there)
        raise ValueError(
            f"--eyes {eyes} came with {named or 'neither --video-from nor --encoder'}: a policy that looks at the "
            "foretold future, or at latents, needs --video-from alone, one with --eyes encoder needs --encoder alone, "
            "and one with --eyes pixels has neither"
        )


def noted_with(encoder: ImageEncoder | None) -> dict[str, str]:
    """Returns what is noted beside a saved encoder: whose names its weights have."""
    return {} if encoder is None else {"transformers": _version()}


def saved_encoder(folder: Path, device: str | torch.device = "cpu") -> ImageEncoder:
    """Returns the encoder that a run saved.

    Raises:
        ValueError: as ``load_model``; another version of transformers may call its weights otherwise.
    """
    noted = read_model_info(folder).get("meta", {}).get("transformers")
    try:
        return load_model(folder, ImageEncoder, ImageEncoderConfig, device)
    except ValueError as error:
        if noted in (None, _version()):
            raise
        raise ValueError(
            f"{error}. It was saved under transformers {noted}, and {_version()} is installed, which may name weights "
            f'otherwise: pip install "transformers=={noted}", or train again'
        ) from error


def _version() -> str:
    return str(require("transformers", "text").__version__)
