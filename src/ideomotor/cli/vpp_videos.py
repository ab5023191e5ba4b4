"""The commands that look at the videos of VPP's stage 1: whether it is fit to act by (gate), what it foretells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from ideomotor.systems.video_scoring import JudgeOptions
from ideomotor.systems.vpp_gate_scores import GateOptions

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class VPPGate(GateOptions, JudgeOptions):
    """Tries a video model on held-out clips: loss on a fixed grid, futures beside the truth, and a verdict.

    The same command gives the same figures; they are written as gate.json, gate.html and videos.
    """

    stage: tyro.conf.Positional[Path]
    """OUT of the video stage."""
    data: tuple[Path, ...] = ()
    """Data sets to try it on; by default the episodes that the stage held out."""
    out: Path | None = None
    """Folder for the figures and videos; STAGE/gate by default."""
    videos: int = 6
    """Clips that are written as videos, the truth above the futures."""
    against: Path | None = None
    """gate.json of another checkpoint, made with the same autoencoder, data and options: losses are compared clip by
    clip."""
    must_pass: bool = False
    """End with exit status 1 where the verdict is FAILED, for scripts; the figures are written all the same."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpp_gate import gate, gate_table

        options = GateOptions(
            clips=self.clips,
            sigmas=self.sigmas,
            noises=self.noises,
            samples=self.samples,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
        )
        out = self.out or self.stage / "gate"
        report = gate(self.stage, self.data, out, options, self.videos, self.against, judging=self)
        console.print(gate_table(report))
        console.print(report["verdict"], markup=False, highlight=False)
        console.print(f"page: {out / 'gate.html'}", markup=False, highlight=False)
        if self.must_pass and not report["passed"]:
            raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class VPPPredict:
    """Writes futures of a clip or a picture as a video, side by side, the truth above them where the clip goes on."""

    stage: tyro.conf.Positional[Path]
    """OUT of the video stage."""
    input: Path
    """A video file, a picture (PNG, JPEG), an episode (npz), or a data set (then --episode picks one)."""
    out: Path = Path("foretold.mp4")
    """Video file to write (mp4, webm or gif)."""
    text: str | None = None
    """What should happen; by default the clip's own caption. "" foretells without any sentence."""
    episode: str | None = None
    """Episode id in a data set; by default the first that the stage held out, else the first."""
    camera: str | None = None
    """Camera of an episode; by default one that the stage looked through, else the first."""
    start: int = 0
    """The frame that is seen."""
    stride: int | None = None
    """Frames of the input between foretold frames; by default as in training (of whole clips evenly to the last)."""
    frames: int | None = None
    """Frames foretold; by default as many as in training, more were never learned."""
    steps: int = 10
    """Denoising steps (Euler)."""
    guidance: float = 2.0
    """How far the sentence pushes: 1 is as learned (half the cost), more pushes harder."""
    samples: int = 3
    """Futures, side by side."""
    seed: int = 0
    """Seed of their noise."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpp_predict import predict

        lines = predict(
            self.stage,
            self.input,
            self.out,
            text=self.text,
            episode=self.episode,
            camera=self.camera,
            start=self.start,
            stride=self.stride,
            frames=self.frames,
            steps=self.steps,
            guidance=self.guidance,
            samples=self.samples,
            seed=self.seed,
        )
        for line in lines:
            console.print(line, markup=False, highlight=False)
