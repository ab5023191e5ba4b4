"""ideomotor <verb> ...: each command is a small dataclass; its fields are its options, its ``run`` calls a recipe."""

from __future__ import annotations

import difflib
import errno
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import tyro
from rich.console import Console

from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import PRESETS, VPDD
from ideomotor.systems.vpdd_published_config import PRESETS as PUBLISHED_PRESETS
from ideomotor.systems.vpdd_published_config import PublishedVPDD

console = Console(soft_wrap=True)
ABOUT = """Robot policies learned from video: pre-train on video without actions, fine-tune on few demonstrations, act.

Start with `ideomotor quickstart`. Every verb explains itself: `ideomotor vpdd pretrain --help`."""


class Command(Protocol):
    """What every verb is."""

    def run(self) -> None:
        """Does it."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Everything, end to end: collect, pre-train, fine-tune, try out, the control without pre-training, a report page.

    Meta-World on a laptop CPU, about 20 minutes. Stopped at any point, the same command goes on.
    """

    out: Path = Path("runs/quickstart")
    """Folder of the run; the page is OUT/report.html, the numbers OUT/report.json."""
    world: Literal["metaworld", "toy"] = "metaworld"
    """The simulator; "toy" is a small 2-D world, to see everything run in two minutes."""
    tasks: tuple[str, ...] = ()
    """Tasks of the world, Meta-World's without "-v3". Default: button-press-topdown drawer-open door-open window-open
    plate-slide, or all three of the toy world."""
    budget_minutes: float = 25.0
    """Scales the training steps of all stages (the defaults are meant for 25 minutes on two idle cores)."""
    videos: Path | None = None
    """A folder of your own actionless video; it joins the pre-training mixture."""
    demonstrations: int = 20
    """Expert demonstrations a task, with actions."""
    episodes: int = 20
    """Evaluation episodes a task, with goals that were never trained on (at most 20)."""
    seed: int = 0
    """Seed of everything."""
    workers: int = 2
    """Simulator processes."""
    preset: str = "fast"
    """Model preset: "fast", or "tiny" to try the plumbing in a minute."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.quickstart import quickstart
        from ideomotor.systems.quickstart_report import DEFAULT_TASKS, QuickstartConfig

        config = QuickstartConfig(
            world=self.world,
            tasks=self.tasks or DEFAULT_TASKS[self.world],
            budget_minutes=self.budget_minutes,
            videos=self.videos,
            demonstrations=self.demonstrations,
            episodes=self.episodes,
            seed=self.seed,
            preset=self.preset,
        )
        page = quickstart(config, preset(self.preset, PRESETS), self.out, self.workers)
        console.print(f"report: {page}")


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Records Meta-World episodes of scripted experts: demonstrations, and video without actions.

    Two LeRobot v3 data sets are written, OUT/demonstrations and OUT/video (expert, noisy and failed episodes).
    Same seed, same bytes; a killed run goes on.
    """

    simulator: tyro.conf.Positional[Literal["metaworld"]]
    """Which simulator."""
    out: Path = Path("data/metaworld")
    """Folder of the two data sets."""
    tasks: tuple[str, ...] = ("button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide")
    """Task names without "-v3", or "all" for the 50."""
    demonstrations: int = 20
    """Episodes a task with actions."""
    expert: int = 20
    """Actionless expert episodes a task."""
    noisy: int = 12
    """Actionless episodes a task of an expert whose hand is pushed about."""
    failed: int = 8
    """Actionless episodes a task that do not succeed."""
    cameras: tuple[str, ...] = ("corner2",)
    """topview, corner, corner2, corner3, corner4, behindGripper, gripperPOV."""
    size: int = 96
    """Height and width of the frames in pixels."""
    look: Literal["fast", "default"] = "fast"
    """"fast" leaves out shadows, reflections and multisampling (about ten times quicker)."""
    seed: int = 0
    """Seed of goals and noise."""
    workers: int = 2
    """Simulator processes."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.collection import CollectionConfig, collect_with_progress

        collect_with_progress(
            CollectionConfig(
                tasks=self.tasks,
                demonstrations=self.demonstrations,
                expert=self.expert,
                noisy=self.noisy,
                failed=self.failed,
                cameras=self.cameras,
                size=self.size,
                look=self.look,
                seed=self.seed,
                workers=self.workers,
                out=self.out,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Says what is in a data set and what is wrong with it: folder of videos, LeRobot v3, annotated JSON, or npz."""

    action: tyro.conf.Positional[Literal["inspect"]]
    """What to do."""
    path: tyro.conf.Positional[Path]
    """Folder (or file) to look at."""
    deep: bool = False
    """Decode every frame, to find damage that headers do not show."""
    format: str | None = None
    """Name of the reader, where it should not be guessed: lerobot, annotated_json, npz, folder."""
    json: Path | None = None
    """Also write the findings to this file."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.data.formats import open_dataset
        from ideomotor.data.inspection import inspect

        found = inspect(open_dataset(self.path, self.format, allow_empty=True), deep=self.deep)
        for line in found.lines():
            console.print(line, markup=False, highlight=False)
        if self.json is not None:
            self.json.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turns a published checkpoint into folders of this library: its tokenizer and its networks, number for number."""

    system: tyro.conf.Positional[Literal["vpdd"]]
    """Whose checkpoint it is."""
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

        for line in import_vpdd(self.source, self.out, self.weights, self.demonstrations, self.text):
            console.print(line, markup=False, highlight=False)


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
    """Tasks of the world, Meta-World's without "-v3"; by default those of the quickstart."""
    dial: Literal["none", "features", "half", "full"] | None = None
    """How far it imagines before it acts: no foresight, that of one pass, of a future decoded in half of the passes, or
    in all. By default as fine-tuned. For a report, write RUN/rollouts-dial-full.jsonl and the like (--out)."""
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

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.quickstart import one_thread
        from ideomotor.systems.quickstart_report import DEFAULT_TASKS
        from ideomotor.systems.trials import success_table
        from ideomotor.systems.vpdd_stages import evaluate

        with one_thread():  # as in the quickstart: costs can then be compared, and two would spin as much as they work
            rows = evaluate(
                self.policy,
                self.tasks or DEFAULT_TASKS[self.world],
                self.episodes,
                self.out or self.policy / "rollouts.jsonl",
                self.workers,
                dial=self.dial,
                world=self.world,
                camera=self.camera,
                look=self.look,
            )
        console.print(success_table(rows))


@dataclass(frozen=True, kw_only=True)
class Imagine:
    """Writes a video from a clip and a sentence: the context, then truth | imagined futures | the first one's error."""

    model: tyro.conf.Positional[Path]
    """OUT of a VPDD pre-training (or fine-tuning) stage."""
    input: Path
    """A video file, or a data set (then --episode picks one)."""
    out: Path = Path("imagined.mp4")
    """Video file to write (mp4, webm or gif)."""
    text: str | None = None
    """What should happen; by default the clip's own caption."""
    episode: str | None = None
    """Episode id in a data set; by default the first that the model's stage held out, else the first."""
    start: int | None = None
    """Last context frame; by default a third into the clip."""
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

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.imagination import imagine_file

        summary = imagine_file(
            self.model,
            self.input,
            self.out,
            text=self.text,
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
        for line in summary:
            console.print(line, markup=False, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Writes the page of a quickstart run anew from what the run holds so far, finished or not."""

    run_dir: tyro.conf.Positional[Path] = Path("runs/quickstart")
    """Folder of the run."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.quickstart_report import report_of

        console.print(f"report: {report_of(self.run_dir)}")


Preset = TypeVar("Preset", VPDD, VPDD | PublishedVPDD)
ALL_PRESETS: dict[str, Callable[[], VPDD | PublishedVPDD]] = {**PRESETS, **PUBLISHED_PRESETS}


def preset(name: str, presets: Mapping[str, Callable[[], Preset]]) -> Preset:
    """Returns the named one of the presets.

    Raises:
        ValueError: there is none of that name; the message suggests the nearest.
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no preset {name!r}{hint} (presets: {', '.join(presets)})")
    return presets[name]()


def main(argv: list[str] | None = None) -> None:
    """The console script. What a user can mend is one line on stderr and exit status 2; with --debug, a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    presets = ALL_PRESETS if "vpdd" in arguments[:1] else PRESETS
    try:
        command = tyro.cli(
            _commands(preset(_named_preset(arguments), presets)), args=arguments, prog="ideomotor", description=ABOUT
        )
        getattr(command, "command", command).run()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError, RuntimeError) as error:
        if debug:
            raise
        said = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            said = f"{error.filename}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
                said += ". Free some space, choose another place, or make it writable, and run the same command again"
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC and len(error.args) < 3 and "free" not in said:
            said += ": the disk is full. Free some space and run the same command again"
        if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
            said = f"{error.filename} is a file where a folder is needed: choose another place, or move the file away"
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error


def _named_preset(arguments: list[str]) -> str:
    """The preset decides the defaults of every other option, so it is read first."""
    for place, word in enumerate(arguments):
        if word == "--preset" and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith("--preset="):
            return word.partition("=")[2]
    return "fast"


def _commands(config: VPDD | PublishedVPDD) -> Any:
    """The tree of verbs; the stages of VPDD start from the preset's config."""
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
    return (
        Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
        | Annotated[Collect, tyro.conf.subcommand("collect")]
        | Annotated[Inspect, tyro.conf.subcommand("data")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[group, tyro.conf.subcommand("vpdd")]
        | Annotated[Imagine, tyro.conf.subcommand("imagine")]
        | Annotated[Report, tyro.conf.subcommand("report")]
    )
