"""The weights that stage 1 of VPP begins with, where they are not random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ideomotor.data.draft import digest
from ideomotor.data.formats.checks import pieces
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig
from ideomotor.predictors.svd_unet import unet_files
from ideomotor.systems.autoencoders import Autoencoder, vae_fingerprint
from ideomotor.systems.stages import VPP_FILE, read_config, refuse_strangers, refuse_unfinished
from ideomotor.systems.vpp import VPP
from ideomotor.training.checkpoint import load_model, read_model_info
from ideomotor.training.config import config_to_json, differences


class FirstWeights(NamedTuple):
    """What training begins with: an earlier stage 1 of ours, its map of the text included, or a network of diffusers.

    Attributes:
        folder: they lie in.
        fingerprint: of them.
        earlier: None for those of diffusers.
    """

    folder: Path
    fingerprint: str
    earlier: LatentDiffusion | None

    def fill(self, predictor: LatentDiffusion) -> None:
        """Copies them."""
        if self.earlier is None:
            predictor.load_diffusers(self.folder)
        else:
            predictor.load_state_dict(self.earlier.state_dict())


def first_weights(folder: Path, config: VPP, vae: Autoencoder) -> FirstWeights:
    """Returns what stage 1 is to begin with.

    Raises:
        ValueError: there is none, or it is of another size than ``config`` speaks of; or an earlier stage 1 has learned
            to foretell something else, with another autoencoder than ``vae``, or from sentences in another form.
    """
    if (folder / VPP_FILE).is_file():
        earlier = _earlier(folder, config, vae)
        return FirstWeights(folder, str(read_model_info(folder / "predictor")["fingerprint"]), earlier)
    if not (folder / "unet" / "config.json").is_file():
        raise ValueError(
            f"{folder} holds nothing to begin with: give the --out folder of an earlier `ideomotor vpp video`, or a "
            "folder that diffusers saved (unet/config.json)"
        )
    sizes, files = unet_files(folder)
    changed = differences(config_to_json(sizes), config_to_json(config.video.unet))
    if changed:
        raise ValueError(
            f"the network in {folder} has other sizes (there -> now): {'; '.join(changed)}. Give the same --preset and "
            "options"
        )
    return FirstWeights(folder, digest([[file.name, pieces(file).hex()] for file in files]), None)


def _earlier(folder: Path, config: VPP, vae: Autoencoder) -> LatentDiffusion:
    if not (folder / "predictor").is_dir():
        refuse_unfinished(folder)
        raise ValueError(f"{folder} holds no video model: give the --out folder of `ideomotor vpp video`")
    refuse_strangers(folder, ("predictor",))
    predictor = load_model(folder / "predictor", LatentDiffusion, LatentDiffusionConfig)
    there, now, text = predictor.config, config.video, read_config(folder / VPP_FILE, VPP).text
    alike = replace(now, unet=there.unet, text=there.text, foretells=there.foretells)
    changed = differences(config_to_json(alike), config_to_json(now))
    if text != config.text and {text, config.text} & {"sentence", "hashed"}:  # folders of CLIP may have moved
        changed.append(f"text: {text!r} -> {config.text!r}")
    if changed:
        raise ValueError(
            f"the video model in {folder} was trained with other settings (there -> now): {'; '.join(changed)}. Give "
            "the same --preset and options"
        )
    known, ours = str(read_model_info(folder / "vae")["fingerprint"]), vae_fingerprint(vae)
    if known != ours:
        raise ValueError(
            f"the video model in {folder} foretells latents of the autoencoder {known[:12]}, and --vae-from is "
            f"{ours[:12]}: give --vae-from {folder}"
        )
    return predictor
