"""The encoders of sentences that VPP's stages read, checked against the networks that read them."""

from __future__ import annotations

from pathlib import Path

from ideomotor.layers.text import ClipText
from ideomotor.layers.text_tokens import OneToken, clip_tokens
from ideomotor.systems.stages import encoder_named
from ideomotor.systems.vpdd import TextEncoder
from ideomotor.systems.vpp import VPP, TokenEncoder

OWN = "own"
"""The encoder of an import: CLIP text towers in its own folder, under these names."""
GOAL_TEXT, VIDEO_TEXT = "goal_text", "video_text"


def goal_encoder(config: VPP, folder: Path | None = None) -> TextEncoder:
    """Returns the encoder of one vector a sentence, for the policy; of an import in ``folder`` not of unit length.

    Raises:
        ValueError: its vectors are not as wide as the policy expects, or there is none.
    """
    own = config.text == OWN
    encoder = ClipText(_tower(folder, GOAL_TEXT), unit=False) if own else encoder_named(config.text)
    if encoder.width != config.policy.goal_width:
        raise ValueError(
            f"text encoder {config.text!r} gives vectors of width {encoder.width}, the policy expects "
            f"{config.policy.goal_width}: set --policy.goal-width {encoder.width}"
        )
    return encoder


def token_encoder(config: VPP, folder: Path | None = None) -> TokenEncoder:
    """Returns the encoder of a sequence of vectors a sentence, for the video model; ``folder`` as in ``goal_encoder``.

    Raises:
        ValueError: its vectors are not as wide as the video model expects, or there is none.
    """
    named = config.text in ("sentence", "hashed")
    place = _tower(folder, VIDEO_TEXT) if config.text == OWN else config.text
    encoder: TokenEncoder = OneToken(encoder_named(config.text)) if named else clip_tokens(place)
    width = encoder([""]).shape[2]
    if width != config.video.text.width:
        raise ValueError(
            f"text encoder {config.text!r} gives vectors of width {width}, the video model expects "
            f"{config.video.text.width}: set --video.text.width {width}"
        )
    return encoder


def _tower(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise ValueError(
            f"--text {OWN} is for folders of an import; a stage that trains takes an encoder's folder: give --text "
            f"IMPORT/{VIDEO_TEXT}"
        )
    if not (folder / name / "config.json").is_file():
        raise ValueError(f"{folder} lacks the text tower {name} of its import: import it again")
    return folder / name
