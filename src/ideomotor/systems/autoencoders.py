"""The autoencoders that VPP can look through, under one name: SVD's, or a map of patches that needs no training."""

from __future__ import annotations

from pathlib import Path

import torch

from ideomotor.tokenizers.patch_pca import PatchPCA, PatchPCAConfig
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig, load_diffusers
from ideomotor.training.checkpoint import fingerprint, load_model, read_json

Autoencoder = SVDVAE | PatchPCA
AutoencoderConfig = SVDVAEConfig | PatchPCAConfig


def saved_vae(folder: Path, device: str | torch.device = "cpu") -> Autoencoder:
    """Returns the autoencoder that a run saved in ``folder``; see ``training.checkpoint.load_model``."""
    if read_json(folder / "config.json").get("class") == PatchPCA.__name__:
        return load_model(folder, PatchPCA, PatchPCAConfig, device)
    return load_model(folder, SVDVAE, SVDVAEConfig, device)


def load_vae(folder: Path) -> Autoencoder:
    """Returns the autoencoder in a folder, or in its sub-folder ``vae``: one saved by a run, or one of diffusers.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another model, or damaged.
    """
    for place in (folder, folder / "vae"):
        if (place / "config.json").is_file() and "class" in read_json(place / "config.json"):
            return saved_vae(place)
    if not any((place / "config.json").is_file() for place in (folder, folder / "vae")):
        raise FileNotFoundError(
            f"{folder} holds no autoencoder (no config.json): give the --out folder of `ideomotor vpp vae`, or a "
            "diffusers folder with that of SVD"
        )
    return load_diffusers(folder)


def vae_fingerprint(vae: Autoencoder) -> str:
    """Returns what names an autoencoder in caches of latents."""
    return fingerprint(vae, vae.config)
