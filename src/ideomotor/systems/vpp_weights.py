"""The weights that stage 1 of VPP begins with, where they are not random."""

from __future__ import annotations

from pathlib import Path

from ideomotor.data.draft import digest
from ideomotor.data.formats.checks import pieces
from ideomotor.predictors.svd_unet import unet_files
from ideomotor.systems.vpp import VPP
from ideomotor.training.config import config_to_json, differences


def first_weights(folder: Path, config: VPP) -> str:
    """Returns a fingerprint of a diffusers folder's network, which stage 1 is to begin with.

    Raises:
        ValueError: there is none, or it is of another size than ``config`` speaks of.
    """
    sizes, files = unet_files(folder)
    changed = differences(config_to_json(sizes), config_to_json(config.video.unet))
    if changed:
        raise ValueError(
            f"the network in {folder} has other sizes (there -> now): {'; '.join(changed)}. Give the same --preset and "
            "options"
        )
    return digest([[file.name, pieces(file).hex()] for file in files])
