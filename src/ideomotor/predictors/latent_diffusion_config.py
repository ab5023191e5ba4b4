"""Sizes and settings of the latent video predictor, one object for its training and its use."""

from dataclasses import dataclass, field
from typing import Literal

from ideomotor.layers.text_tokens import TextTokensConfig
from ideomotor.predictors.svd_unet import SVDUNetConfig, small_unet


@dataclass(frozen=True, kw_only=True)
class TimeIds:
    """What the network is told beside noise, frame and sentence: frames per second, amount of motion, and the strength
    of the noise on its first frame.
    """

    fps: float = 7.0
    motion: float = 127.0
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LatentDiffusionConfig:
    """Sizes, and all that training and sampling must have the same.

    Attributes:
        unet: sizes of the network.
        text: how a sentence's vectors become what the network attends to.
        frames: of a film; the first is the frame seen.
        latent_scale: brings latents to unit variance; the autoencoder's own.
        sigma_mean: of ln sigma in training; with ``sigma_std`` it is normal.
        sigma_std: see ``sigma_mean``.
        sigma_min: lowest level of sampling.
        sigma_max: highest level of sampling.
        text_dropout: share of training samples without sentence (zeros), which guidance needs.
        image_dropout: share of training samples without first frame (zeros).
        augmentation: mean and standard deviation of ln strength of the noise that training adds to the first frame and
            tells as a time id; None for none. Sampling then adds noise of strength ``ids.noise``.
        ids: time ids.
        sampling_ids: others for ``sample``; None for the same, which is right. Kept for published models.
        feature_ids: others for ``features``.
        foretells: "v" is published: the network foretells v, most of which at low noise is the noise itself. With
            "change" it foretells, at every level, how each frame differs from the first one: a network of little
            training then leaves what stands still as it is, where with "v" it leaves noise there.
        weight_max: most that a film's error counts in training; by EDM's weight low noise counts without bound, which
            goes with "v" and not with "change". None for no limit.
        blank_negative: guidance pushes away from a film without first frame too, not only without sentence; needs
            ``image_dropout``, which the published code lacks where it does this.
    """

    unet: SVDUNetConfig = field(default_factory=SVDUNetConfig)
    text: TextTokensConfig = field(default_factory=TextTokensConfig)
    frames: int = 16
    latent_scale: float = 0.18215
    sigma_mean: float = 0.7
    sigma_std: float = 1.6
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    text_dropout: float = 0.05
    image_dropout: float = 0.0
    augmentation: tuple[float, float] | None = None
    ids: TimeIds = field(default_factory=TimeIds)
    sampling_ids: TimeIds | None = None
    feature_ids: TimeIds | None = None
    foretells: Literal["v", "change"] = "v"
    weight_max: float | None = None
    blank_negative: bool = False

    def __post_init__(self) -> None:
        if self.text.out != self.unet.text_width:
            raise ValueError(f"text.out is {self.text.out}; the network attends to width {self.unet.text_width}")
        if self.foretells not in ("v", "change") or (self.weight_max is not None and not self.weight_max >= 1):
            raise ValueError(
                f"foretells {self.foretells!r} and weight_max {self.weight_max}; wanted 'v' or 'change', and None or 1 "
                "and more, which is what the highest noise weighs"
            )
        dropouts = (self.text_dropout, self.image_dropout)
        if self.frames < 1 or min(self.latent_scale, self.sigma_std) <= 0 or not all(0 <= p < 1 for p in dropouts):
            raise ValueError(f"frames must be at least 1, scales above 0, dropouts in [0, 1): {self}")


def svd() -> LatentDiffusionConfig:
    """Returns the full size, 16 frames, with the same time ids in training, sampling and features."""
    return LatentDiffusionConfig()


def published(positions: bool) -> LatentDiffusionConfig:
    """Returns the published settings, time ids that differ between training and use included.

    Args:
        positions: True for the general checkpoint (svd-robot), False for that of CALVIN.
    """
    return LatentDiffusionConfig(
        text=TextTokensConfig(positions=positions),
        sampling_ids=TimeIds(fps=4.0, noise=0.02),
        feature_ids=TimeIds(fps=4.0),
    )


def small(text_width: int = 384, latent_scale: float = 1.0) -> LatentDiffusionConfig:
    """Returns a size that two CPU cores train in minutes, on 8 frames of 12 x 12 latents or the like.

    Args:
        text_width: of the sentence encoder's vectors.
        latent_scale: the autoencoder's own.
    """
    unet = small_unet()
    text = TextTokensConfig(width=text_width, out=unet.text_width, join="projected")
    return LatentDiffusionConfig(unet=unet, text=text, frames=8, latent_scale=latent_scale)
