"""The stages of VPDD as commands, in its fast and its published form."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import PRESETS, VPDD
from ideomotor.systems.vpdd_published_config import PublishedVPDD

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Options that every stage has."""

    out: Path
    """Folder of this stage's run: model, state, logs. The same command goes on where it stopped."""
    seed: int = 0
    """Seed of order, noise and initial weights."""
    fresh: bool = False
    """Throw away what OUT holds and begin anew."""
    preset: str = "fast"
    """Model preset: fast, or tiny to try the plumbing; published, paper or published-tiny for the published form. Every
    field below can be changed, e.g. --predictor.trunk.layers 8."""


Config = Annotated[VPDD | PublishedVPDD, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


@dataclass(frozen=True, kw_only=True)
class VPDDTokenizer(StageOptions, DataOptions):
    """Stage 1: learns to turn clips into tokens and back. Needs no actions and no text."""

    config: Config = field(default_factory=lambda: PRESETS["fast"]())

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems import vpdd_published_stages, vpdd_stages

        if isinstance(self.config, PublishedVPDD):
            vpdd_published_stages.run_tokenizer(self, self.config, self.out, self.seed, self.fresh)
        else:
            vpdd_stages.run_tokenizer(self, self.config, self.out, self.seed, self.fresh)


@dataclass(frozen=True, kw_only=True)
class VPDDPretrain(StageOptions, DataOptions):
    """Stage 2: learns to foretell video tokens from actionless video and its captions."""

    tokenizer_from: Path
    """OUT of the tokenizer stage."""
    config: Config = field(default_factory=lambda: PRESETS["fast"]())

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems import vpdd_published_stages, vpdd_stages

        if isinstance(self.config, PublishedVPDD):
            vpdd_published_stages.run_pretrain(self, self.config, self.tokenizer_from, self.out, self.seed, self.fresh)
        else:
            vpdd_stages.run_pretrain(self, self.config, self.tokenizer_from, self.out, self.seed, self.fresh)


@dataclass(frozen=True, kw_only=True)
class VPDDFinetune(StageOptions, DataOptions):
    """Stage 3: learns actions from a few demonstrations, with the foresight of stage 2."""

    predictor_from: Path | None = None
    """OUT of the pre-training stage; left out, the policy has no foresight (pixels and text; fast form only)."""
    config: Config = field(default_factory=lambda: PRESETS["fast"]())

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems import vpdd_published_stages, vpdd_stages

        if isinstance(self.config, PublishedVPDD):
            vpdd_published_stages.run_finetune(self, self.config, self.predictor_from, self.out, self.seed, self.fresh)
        else:
            vpdd_stages.run_finetune(self, self.config, self.predictor_from, self.out, self.seed, self.fresh)


@dataclass(frozen=True, kw_only=True)
class VPDDEvaluate:
    """Rolls a fine-tuned policy out in a simulator on goals that no demonstration used; success with intervals."""

    policy: tyro.conf.Positional[Path]
    """OUT of the fine-tuning stage."""
    world: Literal["metaworld", "toy"] = "metaworld"
    """The simulator."""
    tasks: tuple[str, ...] = ()
    """Tasks of the world, Meta-World's without "-v3"; easy, middle and hard for those of a level, "all" for all of the
    world. By default those of the quickstart."""
    dial: Literal["none", "features", "half", "full"] | None = None
    """How far it imagines before it acts: no foresight, that of one pass, of a future decoded in half of the passes, or
    in all. By default as fine-tuned. For a report, write RUN/rollouts-dial-full.jsonl and the like (--out)."""
    execute: int | None = None
    """Actions of a chunk that are carried out before looking again. By default as fine-tuned."""
    ensemble: float | Literal["off"] | None = None
    """Average what overlapping chunks foretold for a step (temporal ensembling): the weight of each later chunk is
    smaller by exp(-ENSEMBLE), e.g. 0.01; "off" for the newest chunk alone. By default as fine-tuned."""
    compile: bool = False
    """Act through torch.compile: minutes of compiling before the first step. For GPUs; on a CPU it gains little."""
    episodes: int = 20
    """Episodes a task; each has a goal of its own out of 20 held-out ones."""
    camera: str | None = None
    """Camera that the policy looks through; by default the one it was fine-tuned on."""
    look: Literal["fast", "default"] = "fast"
    """How pictures are rendered, as in `collect`."""
    out: Path | None = None
    """File of finished episodes (JSONL); a rerun skips them. POLICY/rollouts.jsonl by default."""
    workers: int = 2
    """Simulator processes."""
    device: str | None = None
    """Where the policy computes: cpu, cuda, cuda:1...; by default a GPU, where there is one."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.quickstart_report import DEFAULT_TASKS
        from ideomotor.systems.quickstarts import threads
        from ideomotor.systems.trials import success_table
        from ideomotor.systems.vpdd_stages import evaluate

        with threads(1):  # as in the quickstart: costs can then be compared, and two would spin as much as they work
            rows = evaluate(
                self.policy,
                self.tasks or DEFAULT_TASKS[self.world],
                self.episodes,
                self.out or self.policy / "rollouts.jsonl",
                self.workers,
                self.device,
                dial=self.dial,
                execute=self.execute,
                ensemble=self.ensemble,
                compiled=self.compile,
                world=self.world,
                camera=self.camera,
                look=self.look,
            )
        console.print(success_table(rows))


def stages(config: VPDD | PublishedVPDD) -> Any:
    """Returns the command group; its stages start from the preset's config."""
    missing = tyro.MISSING
    stages = (
        Annotated[
            VPDDTokenizer,
            tyro.conf.subcommand("tokenizer", default=VPDDTokenizer(out=missing, data=missing, config=config)),
        ]
        | Annotated[
            VPDDPretrain,
            tyro.conf.subcommand(
                "pretrain", default=VPDDPretrain(out=missing, data=missing, tokenizer_from=missing, config=config)
            ),
        ]
        | Annotated[
            VPDDFinetune,
            tyro.conf.subcommand(
                "finetune", default=VPDDFinetune(out=missing, data=missing, validation=0.0, config=config)
            ),
        ]
        | Annotated[VPDDEvaluate, tyro.conf.subcommand("evaluate")]
    )
    group = make_dataclass("VPDDStages", [("command", Annotated[stages, tyro.conf.arg(name="")])], frozen=True)
    group.__doc__ = "The three stages of VPDD, and the trial: tokenizer, pretrain, finetune, evaluate."
    return group
