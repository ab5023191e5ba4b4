"""The encoders of sentences that VPP's stages read, checked against the networks that read them."""

from __future__ import annotations

from ideomotor.layers.text_tokens import OneToken, clip_tokens
from ideomotor.systems.stages import encoder_named
from ideomotor.systems.vpdd import TextEncoder
from ideomotor.systems.vpp import VPP, TokenEncoder


def goal_encoder(config: VPP) -> TextEncoder:
    """Returns the encoder of one vector a sentence, for the policy.

    Raises:
        ValueError: its vectors are not as wide as the policy expects.
    """
    encoder = encoder_named(config.text)
    if encoder.width != config.policy.goal_width:
        raise ValueError(
            f"text encoder {config.text!r} gives vectors of width {encoder.width}, the policy expects "
            f"{config.policy.goal_width}: set --policy.goal-width {encoder.width}"
        )
    return encoder


def token_encoder(config: VPP) -> TokenEncoder:
    """Returns the encoder of a sequence of vectors a sentence, for the video model.

    Raises:
        ValueError: its vectors are not as wide as the video model expects.
    """
    named = config.text in ("sentence", "hashed")
    encoder: TokenEncoder = OneToken(encoder_named(config.text)) if named else clip_tokens(config.text)
    width = encoder([""]).shape[2]
    if width != config.video.text.width:
        raise ValueError(
            f"text encoder {config.text!r} gives vectors of width {width}, the video model expects "
            f"{config.video.text.width}: set --video.text.width {width}"
        )
    return encoder
