"""How imagined videos are told from what happened: which protocol, with which networks; opened before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.table import Table

from ideomotor.evaluation.statistics import Estimate
from ideomotor.evaluation.video_features import FVDFeatures, MobileNetFeatures, VideoFeatures
from ideomotor.evaluation.video_metrics import PictureDistance
from ideomotor.layers.perceptual import load_perceptual


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Networks that tell of imagined videos what PSNR, SSIM and squared error do not.

    Attributes:
        lpips: the user's files with the weights of LPIPS (VGG16 and its heads); none leaves it out.
        fvd: the user's i3d_torchscript.pt; none leaves FVD out.
        fvd_sha256: its digest, as told by who published it: the file is a program, and no other one is run.
        frechet: the Frechet distance on packaged MobileNetV2 features, which is not FVD.
    """

    lpips: tuple[Path, ...] = ()
    fvd: Path | None = None
    fvd_sha256: str | None = None
    frechet: bool = False


@dataclass(frozen=True, kw_only=True)
class VideoScoring(JudgeOptions):
    """What is told of imagined videos, and how.

    Attributes:
        protocol: "strict" scores the frames that were foretold; "ivideogpt" also scores as published with it, the best
            future of each metric and the context frames included, which flatters and is set beside nothing else.
    """

    protocol: Literal["strict", "ivideogpt"] = "strict"


class Judges(NamedTuple):
    """Networks that tell videos apart."""

    lpips: PictureDistance | None = None
    features: tuple[VideoFeatures, ...] = ()


NO_JUDGES = Judges()


def open_judges(asked: JudgeOptions, device: str | torch.device = "cpu") -> Judges:
    """Returns the networks that are asked for.

    Raises:
        FileNotFoundError: a file is not there.
        ModuleNotFoundError: the package of MobileNetV2's weights is not installed.
        ValueError: a file is another one, or the digest of I3D is missing.
    """
    lpips, _ = load_perceptual(*asked.lpips)
    features: list[VideoFeatures] = []
    if asked.fvd is not None or asked.fvd_sha256 is not None:
        if asked.fvd is None or asked.fvd_sha256 is None:
            raise ValueError(
                f"{'--fvd-sha256' if asked.fvd is None else '--fvd'} came alone: FVD wants both, the file and its "
                "SHA-256 from who published it, because the file is a program that is run"
            )
        if not asked.fvd.is_file():
            raise FileNotFoundError(
                f"{asked.fvd} is not a file: FVD needs your copy of StyleGAN-V's i3d_torchscript.pt, which no "
                "package ships; --frechet needs no file, and is not FVD"
            )
        features.append(FVDFeatures(asked.fvd, asked.fvd_sha256, device))
    if asked.frechet:
        features.append(MobileNetFeatures(device=device))
    return Judges(None if lpips is None else lpips.to(device), tuple(features))


def protocol_table(rows: Mapping[str, Mapping[str, Estimate]], said: str) -> Table:
    """Returns the figures of each protocol side by side, with their intervals; ``said`` tells of what."""
    rows = {name: figures for name, figures in rows.items() if figures}
    table = Table("metric", *rows, title=f"by protocol, {said}")
    for metric in dict.fromkeys(name for figures in rows.values() for name in figures):
        table.add_row(metric, *(_cell(figures.get(metric)) for figures in rows.values()))
    return table


def _cell(row: Estimate | None) -> str:
    if row is None:
        return ""
    interval = f" ({row.low:.4g} to {row.high:.4g})" if math.isfinite(row.low) else ""
    return f"{row.value:.4g}{interval}"
