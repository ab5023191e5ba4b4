"""Sizes of VPP by name: those published, and those that two CPU cores train."""

from collections.abc import Callable
from dataclasses import replace

from ideomotor.data.windows import WindowConfig
from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.layers.conv import PixelStemConfig
from ideomotor.layers.encoder_decoder import EncoderDecoderConfig
from ideomotor.layers.text_tokens import TextTokensConfig
from ideomotor.layers.video_former import VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformerConfig
from ideomotor.predictors import latent_diffusion_config as video
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig
from ideomotor.predictors.svd_unet import SVDUNetConfig
from ideomotor.systems.vpdd import Stage
from ideomotor.systems.vpp import VPP, Eyes, Foresight
from ideomotor.tokenizers.patch_pca import PatchPCAConfig
from ideomotor.tokenizers.svd_vae import SVDVAEConfig
from ideomotor.training.optim import OptimConfig


def cpu() -> VPP:
    """Returns the form that two cores train from nothing: 64 px, 8 frames of 8 x 8 patches, a former of 4 queries."""
    unet = SVDUNetConfig(
        latent_channels=24, widths=(64, 96, 128), heads=(2, 3, 4), layers=1, text_width=128, time_width=32
    )
    return VPP(
        vae=PatchPCAConfig(patch=8, channels=24, whiten=0.5),
        video=replace(video.small(), unet=unet, sigma_max=80.0, foretells="change", weight_max=5.0),
        foresight=Foresight(sigma=28.0, layers=(1, 2)),
        former=VideoFormerConfig(feature_width=160, width=192, frames=8, queries=4, layers=2, heads=4, head_width=48),
        policy=EDMTransformerConfig(
            action_width=4, chunk=8, feature_width=192, goal_width=384,
            trunk=EncoderDecoderConfig(
                width=192, encoder_layers=2, decoder_layers=2, heads=4, attention_dropout=0.1,
            ),
            sampling=Sampling(steps=8, sigma_min=0.02),
        ),
        cache_features=True,
        vae_stage=Stage(steps=32, batch=16, every=4),
        video_stage=Stage(
            steps=1000, batch=16, every=2,
            optim=OptimConfig(lr=1e-3, warmup=50, weight_decay=0.01, ema=0.995, bf16=True),
        ),
        policy_stage=Stage(
            steps=2000, batch=32, optim=OptimConfig(lr=1e-3, warmup=100, weight_decay=0.05, ema=0.995, bf16=True)
        ),
    )  # fmt: skip


def svd() -> VPP:
    """Returns the published sizes, with what is known to be better: see ``docs/systems/vpp.md``."""
    return VPP(
        size=256,
        views=2,
        window=WindowConfig(context=1, horizon=15, stride=2, chunk=10),
        execute=10,
        policy=EDMTransformerConfig(),
        vae_stage=Stage(steps=100_000, batch=8, optim=OptimConfig(lr=1e-4, bf16=True)),
        video_stage=Stage(steps=100_000, batch=48, optim=OptimConfig(lr=5e-6, ema=0.9999, bf16=True)),
        policy_stage=Stage(
            steps=50_000, batch=128,
            optim=OptimConfig(lr=1e-4, betas=(0.9, 0.9), weight_decay=0.05, ema=0.9999, bf16=True),
        ),
    )  # fmt: skip


def published() -> VPP:
    """Returns the form of the published CALVIN policy, its causal reading of the context included."""
    form = svd()
    return replace(
        form,
        foresight=replace(form.foresight, seed=None),
        video=video.published(positions=False),
        policy=EDMTransformerConfig(
            action_positions=False, trunk=EncoderDecoderConfig(causal_context=True), sampling=Sampling(sigma_min=1.0)
        ),
    )


def tiny() -> VPP:
    """Returns a form that learns little in seconds; for tests and for trying a pipeline out."""
    stage = Stage(steps=4, batch=4, every=4, optim=OptimConfig(lr=2e-3, warmup=2))
    return VPP(
        size=32,
        window=WindowConfig(context=1, horizon=3, stride=2, chunk=4),
        execute=2,
        shift=1,
        text="hashed",
        save_every=2,
        vae=SVDVAEConfig(widths=(32, 32), blocks=1, channels=4, scale=None, together=4),
        video=LatentDiffusionConfig(
            unet=SVDUNetConfig(widths=(32, 32, 32, 32), heads=(1, 1, 1, 1), layers=1, text_width=16, time_width=8),
            text=TextTokensConfig(width=384, out=16, join="projected"),
            frames=4,
            latent_scale=1.0,
        ),
        former=VideoFormerConfig(feature_width=64, width=32, frames=4, queries=2, layers=1, heads=2, head_width=16),
        stem=PixelStemConfig(widths=(16, 16)),
        policy=EDMTransformerConfig(
            action_width=2, chunk=4, feature_width=32, goal_width=384, sampling=Sampling(steps=2),
            trunk=EncoderDecoderConfig(width=32, encoder_layers=1, decoder_layers=1, heads=2),
        ),
        vae_stage=stage, video_stage=stage, policy_stage=stage,
    )  # fmt: skip


def looking_with(config: VPP, eyes: Eyes) -> VPP:
    """Returns the same form with other eyes, its former reading what they see (of an encoder, once that is opened)."""
    if eyes == config.eyes:
        return config
    former = config.former
    if eyes == "latents":
        former = replace(former, feature_width=config.vae.channels, frames=1)
    return replace(config, eyes=eyes, former=former)


PRESETS: dict[str, Callable[[], VPP]] = {"cpu": cpu, "svd": svd, "published": published, "tiny": tiny}
