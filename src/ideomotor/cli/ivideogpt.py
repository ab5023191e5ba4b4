"""The stages of iVideoGPT as commands: tokenizer, world, finetune, evaluate, resize, dream, plan."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.systems.dream import DREAMS, Dream
from ideomotor.systems.ivideogpt import PRESETS, IVideoGPT
from ideomotor.systems.mixed_data import MixOptions
from ideomotor.systems.plan import Planning
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.video_scoring import VideoScoring

console = Console(soft_wrap=True)
DEFAULT = "cpu"
Config = Annotated[IVideoGPT, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Options that every stage has."""

    out: Path
    """Folder of this stage's run: model, state, logs. The same command goes on where it stopped."""
    seed: int = 0
    """Seed of order, noise and initial weights."""
    fresh: bool = False
    """Throw away what OUT holds and begin anew."""
    preset: str = DEFAULT
    """Model preset: cpu (minutes on two cores), published-64 or published-256, or tiny to try the plumbing. Every field
    below can be changed, e.g. --world.trunk.layers 6."""


@dataclass(frozen=True, kw_only=True)
class WorldTokenizer(StageOptions, MixOptions):
    """Stage 1: learns to turn context frames into many tokens, and the frames after them into few. Needs no actions."""

    augment: Literal["none", "normal", "strong"] = "none"
    """The release's crops and colours, or its stronger ones; each time a clip comes, it is changed otherwise."""
    config: Config = field(default_factory=PRESETS[DEFAULT])

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_stages import run_tokenizer

        run_tokenizer(self.chosen(), self.config, self.out, self.seed, self.fresh, self.augment)


@dataclass(frozen=True, kw_only=True)
class WorldModel(StageOptions, MixOptions):
    """Stage 2: learns to foretell the next frame's tokens, given what is done (or without, --world.action-width 0).

    Each window is turned into tokens once, and they are kept: so clips cannot be changed at random (--augment) here.
    """

    tokenizer_from: Path
    """OUT of the tokenizer stage."""
    recompute: bool = False
    """Keep less of the forward pass and compute it anew in the backward one: less memory, about a third more time, the
    same numbers. The published medium size wants it on one GPU."""
    config: Config = field(default_factory=PRESETS[DEFAULT])

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_stages import run_world

        run_world(
            self.chosen(), self.config, self.tokenizer_from, None, 0, self.out, self.seed, self.fresh, self.recompute
        )


@dataclass(frozen=True, kw_only=True)
class WorldFinetune(StageOptions, DataOptions):
    """Stage 3: goes on from an earlier world on data of your own, with actions where they are recorded."""

    world_from: Path
    """OUT of the world stage, or of `ideomotor import ivideogpt`. Its tokenizer is used too."""
    tokenizer_from: Path | None = None
    """OUT of another tokenizer stage, one that was trained further from the same weights; by default WORLD_FROM."""
    lora: int = 0
    """Rank of what is trained beside the transformer's maps, merged into them at the end; 0 trains the maps."""
    recompute: bool = False
    """Keep less of the forward pass and compute it anew in the backward one: less memory, about a third more time, the
    same numbers. The published medium size wants it on one GPU."""
    config: Config = field(default_factory=PRESETS[DEFAULT])

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_stages import run_world

        tokenizer = self.tokenizer_from or self.world_from
        run_world(
            self, self.config, tokenizer, self.world_from, self.lora, self.out, self.seed, self.fresh, self.recompute
        )


@dataclass(frozen=True, kw_only=True)
class WorldEvaluate(VideoScoring):
    """Scores a world on held-out clips: each step beside repeating the last frame, and whether actions are heard.

    Videos are scored under named protocols, with intervals; as published: --protocol ivideogpt --samples 100.
    """

    world: tyro.conf.Positional[Path]
    """OUT of the world (or finetune) stage."""
    data: tuple[Path, ...] = ()
    """Data sets to score on; by default the episodes that the stage held out."""
    against: Path | None = None
    """OUT of another world, e.g. one without actions, scored on the same clips."""
    clips: int = 64
    """Clips at most, spread evenly."""
    samples: int = 1
    """Futures of each clip; more than one are drawn, and the best of them is told too."""
    futures: int = 1
    """Drawn futures whose mean, the picture expected, is scored at each step and with other actions (quickstart: 8)."""
    out: Path | None = None
    """File for the figures (JSON); WORLD/scores.json by default."""
    device: str = "cpu"
    """Where it computes: cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Seed of the draws."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_scores import evaluate, score_table, video_scores_table

        scores = evaluate(
            self.world,
            self.data,
            self.out or self.world / "scores.json",
            against=self.against,
            clips=self.clips,
            samples=self.samples,
            futures=self.futures,
            scoring=self,
            device=self.device,
            seed=self.seed,
        )
        console.print(score_table(scores))
        console.print(video_scores_table(scores))


@dataclass(frozen=True, kw_only=True)
class WorldResize:
    """Gives a tokenizer another number of context frames, and the world beside it where its positions suffice.

    OUT is read by every command that reads the folder of a stage; it wants fine-tuning, and what is printed says with
    which options.
    """

    folder: tyro.conf.Positional[Path]
    """OUT of a stage, or of `ideomotor import ivideogpt`."""
    context: int
    """Context frames of the result. The newest keep what was learned of them; added ones begin as the oldest known."""
    out: Path
    """New folder."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.ivideogpt_resize import resize_ivideogpt

        for line in resize_ivideogpt(self.folder, self.context, self.out):
            console.print(line, markup=False, highlight=False)


@dataclass(frozen=True, kw_only=True)
class WorldQuickstart:
    """Everything, end to end: record experience in Meta-World, tokenizer, world, a copy without actions, a page.

    About half an hour on two cores. Stopped at any point, the same command goes on.
    """

    out: Path = Path("runs/world")
    """Folder of the run; the page is OUT/report.html, the numbers OUT/scores/scores.json."""
    tasks: tuple[str, ...] = ("button-press-topdown-wall", "plate-slide")
    """Tasks of Meta-World, without "-v3"."""
    episodes: int = 60
    """Episodes recorded a task: of a scripted expert whose hand shakes, and by turns of a hand that wanders."""
    demonstrations: Path | None = None
    """A folder of published demonstrations (npz, replay layout); it is only read, and joins the data."""
    budget_minutes: float = 30.0
    """Scales the training steps of both stages (the defaults are planned for 30 minutes on two idle cores)."""
    clips: int = 64
    """Held-out clips that are scored."""
    samples: int = 3
    """Futures shown of a clip."""
    seed: int = 0
    """Seed of everything."""
    preset: str = DEFAULT
    """Model preset: cpu, or another of 64 px with actions of width 4."""
    workers: int = 2
    """Simulator processes."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems import ivideogpt_quickstart as recipe

        config = recipe.WorldQuickstart(
            tasks=self.tasks,
            episodes=self.episodes,
            demonstrations=self.demonstrations,
            budget_minutes=self.budget_minutes,
            clips=self.clips,
            samples=self.samples,
            seed=self.seed,
            preset=self.preset,
        )
        console.print(f"report: {recipe.quickstart(config, self.out, self.workers)}", markup=False)


@dataclass(frozen=True, kw_only=True)
class WorldDream(StageOptions):
    """Trains an agent on a task of Meta-World from pictures, in the real world and inside the one it learns (MBPO).

    OUT holds the agent, the world as the other stages leave one, trials/ (a row an episode), world_scores/ (how well
    the world foretold, with videos). With --arm drqv2 the same agent learns from real steps alone.
    """

    task: tyro.conf.Positional[str]
    """Task of Meta-World without "-v3", e.g. plate-slide; or red, green, blue of the toy world (--preset tiny)."""
    demonstrations: Path | None = None
    """Folder of episodes of this task in the replay layout; they are only read."""
    world_from: Path | None = None
    """OUT of a world stage, or of `ideomotor import ivideogpt`, that the world begins with; its sizes count then."""
    episodes: int = 20
    """Episodes of each trial, with goals that were never trained on (at most 20)."""
    config: Annotated[Dream, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(
        default_factory=DREAMS[DEFAULT]
    )

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.dream import for_task, run_dream

        run_dream(
            for_task(self.config, self.task, self.config.arm, self.demonstrations),
            self.out,
            episodes=self.episodes,
            world_from=self.world_from,
            seed=self.seed,
            fresh=self.fresh,
        )


@dataclass(frozen=True, kw_only=True)
class WorldPlan(Planning):
    """Acts on a task by search alone: candidate actions are imagined, the best are carried out in the real world."""

    task: tyro.conf.Positional[str]
    """Task of Meta-World without "-v3", or of the toy world."""
    world: Path
    """OUT of `ideomotor ivideogpt dream`, or of a world stage (then with --goal, as it foretells no reward)."""
    goal: Path | None = None
    """An episode in the replay layout, whose last picture is to be brought about; without it, rewards count."""
    episodes: int = 5
    """Episodes, each from a held-out start (at most 20)."""
    steps: int = 100
    """Steps of an episode."""
    out: Path = Path("runs/plan")
    """Folder of the rows (plan.jsonl) and videos. Episodes that are there are not run again."""
    device: str = "cpu"
    """Where the learned world computes: cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Seed of the draws."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.plan import run_plan

        def told(row: EpisodeResult) -> None:
            outcome = "success" if row.success else "no success"
            console.print(f"{row.task}, start {row.goal}: {outcome}, return {row.total_reward:.1f}", markup=False)

        run_plan(
            self.task, self.world, self.out, self, goal=self.goal, episodes=self.episodes, steps=self.steps,
            device=self.device, seed=self.seed, told=told,
        )  # fmt: skip


def stages(config: IVideoGPT, dream: Dream) -> Any:
    """Returns the command group; its stages start from the preset's configs."""
    missing = tyro.MISSING
    stages = (
        Annotated[
            WorldTokenizer,
            tyro.conf.subcommand("tokenizer", default=WorldTokenizer(out=missing, config=config)),
        ]
        | Annotated[
            WorldModel,
            tyro.conf.subcommand("world", default=WorldModel(out=missing, tokenizer_from=missing, config=config)),
        ]
        | Annotated[
            WorldFinetune,
            tyro.conf.subcommand(
                "finetune", default=WorldFinetune(out=missing, data=missing, world_from=missing, config=config)
            ),
        ]
        | Annotated[WorldEvaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[WorldResize, tyro.conf.subcommand("resize")]
        | Annotated[WorldQuickstart, tyro.conf.subcommand("quickstart")]
        | Annotated[
            WorldDream, tyro.conf.subcommand("dream", default=WorldDream(out=missing, task=missing, config=dream))
        ]
        | Annotated[WorldPlan, tyro.conf.subcommand("plan")]
    )
    group = make_dataclass("IVideoGPTStages", [("command", Annotated[stages, tyro.conf.arg(name="")])], frozen=True)
    group.__doc__ = (
        "iVideoGPT, a world to act in: its stages (tokenizer, world, finetune), its trial (evaluate), resize, dream, "
        "plan."
    )
    return group
