"""The verb that shows what a model imagines, of either kind: a video from a sentence, a world from actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

console = Console(soft_wrap=True)


_OF_VIDEO = ("text", "domain", "rounds", "guidance", "steps", "order", "film")
_OF_WORLD = ("context", "horizon", "greedy", "device")


@dataclass(frozen=True, kw_only=True)
class Imagine:
    """Writes a video from a clip and a sentence: the context, then truth | imagined futures | the first one's error.

    A world (iVideoGPT) imagines from the clip's actions instead of a sentence.
    """

    model: tyro.conf.Positional[Path]
    """OUT of a VPDD pre-training (or fine-tuning) stage, or of a world of iVideoGPT."""
    input: Path
    """A video file, or a data set (then --episode picks one)."""
    out: Path = Path("imagined.mp4")
    """Video file to write (mp4, webm or gif); of a world also npz, with its frames and tokens."""
    text: str | None = None
    """What should happen; by default the clip's own caption."""
    domain: str | None = None
    """What the clip is of: human, robot, simulated or unknown; by default as the data that the model learned from."""
    episode: str | None = None
    """Episode id in a data set; by default the first that the model's stage held out, else the first."""
    start: int | None = None
    """Last context frame, by default a third into the clip; of a world the first one, by default that of the clip."""
    stride: int | None = None
    """Frames of the file between the frames of a window; by default as in training."""
    rounds: int = 1
    """How many horizons are chained."""
    samples: int = 1
    """Imagined futures, drawn side by side; more than one draws them at temperature 1."""
    guidance: float = 1.0
    """How far the sentence pushes: 0 ignores it, 1 is as learned, 2 to 4 push harder (twice the cost)."""
    steps: int | None = None
    """Denoising passes a round; by default as in the model's settings."""
    temperature: float | None = None
    """Of the draws; 0 takes the likeliest tokens. By default 0 for one future, 1 for several."""
    order: Literal["confidence", "halton", "random"] = "confidence"
    """Which tokens are set first: the surest, those far from one another, or any."""
    film: Path | None = None
    """Also write the denoising film to this file: every pass, with grey blocks for tokens not known yet."""
    seed: int = 0
    """Seed of the draws."""
    context: int | None = None
    """A world's context frames, which must be as many as it was built for."""
    horizon: int | None = None
    """Frames that a world imagines; by default 14."""
    greedy: bool = False
    """A world takes the likeliest tokens instead of drawing them."""
    device: str = "cpu"
    """Where a world computes: cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.stages import WORLD_FILE

        if not self.model.is_dir():
            raise ValueError(f"there is no folder {self.model}: give the --out folder of a stage, or of an import")
        is_world = (self.model / WORLD_FILE).is_file()  # also of a stage that left no world, which is said then
        plain = Imagine(model=self.model, input=self.input)
        others = _OF_VIDEO if is_world else _OF_WORLD
        given = [name for name in others if getattr(self, name) != getattr(plain, name)]
        if given:
            raise ValueError(
                f"--{', --'.join(given)} mean nothing to {'a world' if is_world else 'a model that is told a sentence'}"
                f" ({self.model}): leave them out"
            )
        for line in self._world() if is_world else self._video():
            console.print(line, markup=False, highlight=False)

    def _world(self) -> list[str]:
        from ideomotor.systems.world_imagination import imagine_episode

        return imagine_episode(
            self.model,
            self.input,
            self.out,
            episode=self.episode,
            start=self.start,
            stride=self.stride,
            context=self.context,
            horizon=14 if self.horizon is None else self.horizon,
            samples=self.samples,
            greedy=self.greedy,
            temperature=self.temperature,
            device=self.device,
            seed=self.seed,
        )

    def _video(self) -> list[str]:
        from ideomotor.systems.imagination import imagine_file

        return imagine_file(
            self.model,
            self.input,
            self.out,
            text=self.text,
            domain=self.domain,
            episode=self.episode,
            start=self.start,
            stride=self.stride,
            rounds=self.rounds,
            samples=self.samples,
            steps=self.steps,
            temperature=self.temperature,
            order=self.order,
            guidance=self.guidance,
            seed=self.seed,
            film=self.film,
        )
