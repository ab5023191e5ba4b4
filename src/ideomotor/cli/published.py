"""Published weights in and out: each system has its own verb below ``import`` and ``export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class ImportVPDD:
    """Turns a published VPDD checkpoint into folders of this library, number for number."""

    source: tyro.conf.Positional[Path]
    """The file: a checkpoint of torch, whose tensors alone are read (nothing in it is run), or safetensors."""
    out: Path
    """Folder to write: tokenizer, predictor, policy, and import.json with what was left out."""
    weights: Literal["ema", "model"] = "ema"
    """Of a diffusion checkpoint: the running average, which the release acts with, or the last weights."""
    demonstrations: Path | None = None
    """The data set that a Meta-World policy was trained on: its action bins, which no checkpoint holds, are fitted to
    it. Needed to evaluate."""
    text: str | None = None
    """Folder with the CLIP (RN50, transformers layout) that the networks were trained with. Needed to evaluate."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpdd_import import import_vpdd

        _say(import_vpdd(self.source, self.out, self.weights, self.demonstrations, self.text))


@dataclass(frozen=True, kw_only=True)
class ImportIVideoGPT:
    """Turns a published iVideoGPT folder into a world to imagine with, to step and to train on, number for number."""

    source: tyro.conf.Positional[Path]
    """The folder as downloaded (tokenizer/ and transformer/, safetensors and config.json), or one with the training
    snapshots tokenizer.pt and model.pt, whose tensors alone are read (nothing in them is run)."""
    out: Path
    """Folder to write: tokenizer, world, ivideogpt.json, import.json."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_import import import_ivideogpt

        _say(import_ivideogpt(self.source, self.out))


@dataclass(frozen=True, kw_only=True)
class ImportVPP:
    """Turns a published VPP policy, with its video model, into a folder to evaluate, serve and imagine with.

    A policy's checkpoint and --video give a whole stage 2. A video model alone (the folder in the checkpoint's place)
    gives a stage 1. A checkpoint without --video gives its parts, number for number.
    """

    source: tyro.conf.Positional[Path]
    """A policy's file: a checkpoint of torch, whose tensors alone are read (nothing in it is run), or safetensors. Or
    the folder of a video model: svd-robot, or SVD itself."""
    out: Path
    """Folder to write: vpp.json and the models of the stage, or the parts former and policy; and the text towers, and
    import.json with what was left out."""
    video: Path | None = None
    """The diffusers folder (unet, vae) of the video model that the policy was trained with, such as
    svd-robot-calvin."""
    text: Path | None = None
    """Folder of CLIP ViT-B/32 in the transformers layout: the tokenizer, which no checkpoint holds, and the text tower
    of a video model alone. It is copied into OUT."""
    size: int = 256
    """Pixels a side of the frames that the video model was trained on; 256 is published."""
    positions: bool = False
    """The video model was trained with positions added to the words: svd-robot was, that of CALVIN was not, and SVD
    knows no words. Two-arm policies always add them."""
    preset: Literal["published", "svd"] = "published"
    """Of a video model alone: published (other time ids in use than in training), or svd (the same in both); later
    stages then take the same preset."""
    scales: Path | None = None
    """Of a two-arm policy: JSON file with its percentiles, the lists state_01, state_99, action_01 and action_99."""
    bf16: bool = False
    """The policy acts in bfloat16: faster, and features differ by about one in a hundred."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpp_import import import_vpp
        from ideomotor.systems.vpp_joining import Joining

        joining = Joining(
            video=self.video,
            text=self.text,
            size=self.size,
            positions=self.positions,
            preset=self.preset,
            scales=self.scales,
            bf16=self.bf16,
        )
        _say(import_vpp(self.source, self.out, joining))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a world as the published code reads it: the hub's folders, safetensors under the published names."""

    system: tyro.conf.Positional[Literal["ivideogpt"]]
    """Whose published form it takes."""
    folder: tyro.conf.Positional[Path]
    """OUT of the world (or finetune) stage, or of an import."""
    out: Path
    """New folder to write: tokenizer/ and transformer/, each with a config.json."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_import import export_ivideogpt

        _say(export_ivideogpt(self.folder, self.out))


@dataclass(frozen=True)
class ImportVerbs:
    """Turns published weights into folders of this library: of VPDD, iVideoGPT or VPP."""

    command: Annotated[
        Annotated[ImportVPDD, tyro.conf.subcommand("vpdd")]
        | Annotated[ImportIVideoGPT, tyro.conf.subcommand("ivideogpt")]
        | Annotated[ImportVPP, tyro.conf.subcommand("vpp")],
        tyro.conf.arg(name=""),
    ]


def _say(lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False)
