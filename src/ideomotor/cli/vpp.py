"""The stages of VPP as commands: prepare, vae, video, policy, evaluate; gate and predict between them; quickstart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from ideomotor.cli.vpp_videos import VPPGate, VPPPredict
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_mix import SampledOptions
from ideomotor.systems.vpp_prepare import PrepareOptions
from ideomotor.systems.vpp_presets import PRESETS

console = Console(soft_wrap=True)
warnings = Console(stderr=True, soft_wrap=True)
DEFAULT = "cpu"
Config = Annotated[VPP, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


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
    """Model preset: cpu (minutes on two cores), svd (the published sizes), published (with the published faults), or
    tiny to try the plumbing. Every field below can be changed, e.g. --foresight.sigma 28."""


@dataclass(frozen=True, kw_only=True)
class VPPPrepare(PrepareOptions):
    """Encodes data sets with an autoencoder, once, into a cache that later stages and other machines can read."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpp_prepare import prepare

        for done in prepare(self):
            console.print(done.line, markup=False)


@dataclass(frozen=True, kw_only=True)
class VPPAutoencoder(StageOptions, SampledOptions):
    """Trains a small autoencoder of our own, or fits a map of patches (preset cpu). With that of SVD there is no need
    to: give its folder as --vae-from.
    """

    config: Config = field(default_factory=PRESETS[DEFAULT])

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpp_stages import run_vae

        run_vae(self.chosen(self.config.window.frames), self.config, self.out, self.seed, self.fresh)


@dataclass(frozen=True, kw_only=True)
class VPPVideo(StageOptions, SampledOptions):
    """Stage 1: learns to foretell video from one frame and a sentence. Needs no actions."""

    vae_from: Path
    """OUT of the vae stage, or a diffusers folder with SVD's autoencoder."""
    begin_from: Path | None = None
    """What training begins with: OUT of an earlier `vpp video` with the same autoencoder and sizes (say, of a mix, to
    go on with your own robot's video), or a diffusers folder (SVD, or a published video model), whose network alone
    is taken. By default weights are random."""
    recompute: bool = False
    """Compute activations twice in place of keeping them: less memory, about a third more time, the same result."""
    lora: int = 0
    """Rank of pairs of maps that are trained in place of the weights that training begins with (LoRA); 0 trains all."""
    config: Config = field(default_factory=PRESETS[DEFAULT])

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.vpp_stages import run_video

        run_video(
            self.chosen(self.config.window.frames), self.config, self.vae_from, self.out, self.seed, self.fresh,
            begin_from=self.begin_from, recompute=self.recompute, lora=self.lora,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VPPPolicy(StageOptions, DataOptions):
    """Stage 2: learns actions from demonstrations, by what the video model sees of the future in one pass."""

    video_from: Path | None = None
    """OUT of the video stage; left out for a control with other eyes (--eyes pixels, --eyes encoder)."""
    encoder: Path | None = None
    """A transformers folder with an image encoder (CLIP, SigLIP, DINOv2, DINOv3 or ViT), for --eyes encoder: a control
    that reads the tokens of the newest frame. It stays as it is; OUT gets a copy."""
    cache_latents: bool = False
    """Encode the demonstrations' video once, into the cache (as `prepare` does), and look at those latents in place of
    video. Data sets that were published as latents alone are looked at so in any case."""
    config: Config = field(default_factory=PRESETS[DEFAULT])

    def run(self) -> None:
        """Does it; first says where the video model has not passed its gate."""
        from ideomotor.systems.vpp_gate import doubts
        from ideomotor.systems.vpp_stages import run_policy

        if self.video_from is not None and self.config.eyes == "foresight" and (said := doubts(self.video_from)):
            warnings.print(f"warning: {said}", markup=False, highlight=False)
        run_policy(
            self, self.config, self.video_from, self.out, self.seed, self.fresh,
            cache_latents=self.cache_latents, encoder_from=self.encoder,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VPPEvaluate:
    """Tries a policy out in a simulator; success with intervals. A killed trial goes on.

    metaworld and toy: each task by itself, on goals that no demonstration used. calvin and play_table (CALVIN's tasks
    in a world of our own): CALVIN's sequences of five tasks in a row, with tables, films of failures and a page.
    """

    policy: tyro.conf.Positional[Path]
    """OUT of the policy stage."""
    world: Literal["metaworld", "toy", "calvin", "play_table"] = "metaworld"
    """The simulator."""
    execute: int | None = None
    """Actions of a chunk that are carried out before looking again. By default as trained."""
    ensemble: float | None = None
    """Average what overlapping chunks foretold for a step: the weight of each later chunk is smaller by
    exp(-ENSEMBLE)."""
    temperature: float = 1.0
    """Scale of the noise that a chunk is denoised from: 1 as in training; 0 gives what is expected in the mean, for
    policies that are not sure yet."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    """How a chunk is denoised; by default as trained."""
    camera: str | None = None
    """Cameras that the policy looks through, joined by commas; by default those it was trained on. Others are
    refused without --other-camera."""
    other_camera: bool = False
    """Look through --camera though the policy was trained on another, or the demonstrations call it otherwise."""
    out: Path | None = None
    """File of finished episodes (JSONL), POLICY/rollouts.jsonl by default; of five in a row the folder of log, tables,
    films and page, POLICY/WORLD by default. A rerun skips what is finished there."""
    workers: int = 2
    """Simulator processes; CALVIN's tables stand in one each."""
    device: str | None = None
    """Where the policy computes: cpu, cuda, cuda:1...; by default a GPU, where there is one."""
    tasks: tuple[str, ...] = ()
    """metaworld, toy: tasks of the world, Meta-World's without "-v3"; easy, middle and hard for those of a level, "all"
    for all of the world. By default those of the quickstart."""
    episodes: int | None = None
    """metaworld, toy: episodes a task; each has a goal of its own out of 20 held-out ones. 20 by default."""
    look: Literal["fast", "default"] | None = None
    """metaworld: how pictures are rendered, as in `collect`; fast by default."""
    sequences: int | None = None
    """calvin, play_table: the first that many of CALVIN's 1000 sequences; all of them by default."""
    steps: int | None = None
    """calvin, play_table: actions that each task may take; by default 360, which is CALVIN's."""
    films: int | None = None
    """calvin, play_table: the first that many sequences are filmed, and kept where one is not finished; 10 by
    default."""
    calvin: Path | None = None
    """calvin: your own calvin_env, the root of its repository; by default the one that Python can import."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.quickstarts import threads

        with threads(1):
            if self.world == "metaworld" or self.world == "toy":
                self._by_task(self.world)
            else:
                self._in_a_row(self.world)

    def _by_task(self, world: Literal["metaworld", "toy"]) -> None:
        from ideomotor.systems.quickstart_report import DEFAULT_TASKS
        from ideomotor.systems.trials import success_table
        from ideomotor.systems.vpp_trials import evaluate

        if self.calvin is not None:
            raise ValueError(f"--calvin names a calvin_env, and the world is {world}: give --world calvin too")
        why = f"{world} is tried task by task, and sequences of five are those of calvin and play_table"
        _refuse({"--sequences": self.sequences, "--steps": self.steps, "--films": self.films}, why)
        if world == "toy":
            _refuse({"--look": self.look}, "the toy world is drawn in one way")
        rows = evaluate(
            self.policy,
            self.tasks or DEFAULT_TASKS[world],
            20 if self.episodes is None else self.episodes,
            self.out or self.policy / "rollouts.jsonl",
            self.workers,
            self.device,
            execute=self.execute,
            ensemble=self.ensemble,
            temperature=self.temperature,
            sampling=self.sampling,
            world=world,
            camera=self.camera,
            other_camera=self.other_camera,
            look=self.look or "fast",
        )
        console.print(success_table(rows))

    def _in_a_row(self, world: Literal["calvin", "play_table"]) -> None:
        from ideomotor.evaluation.calvin_protocol import MAX_STEPS, NUM_SEQUENCES
        from ideomotor.systems.table_trials import TableTrial, sequence_table
        from ideomotor.systems.vpp_tables import evaluate_in_a_row

        if self.tasks:
            raise ValueError(f"--tasks chooses among single tasks; {world} runs sequences of five: leave it out")
        why = f"{world} runs sequences of five tasks, each once and drawn in one way"
        _refuse({"--episodes": self.episodes, "--look": self.look}, why)
        trial = TableTrial(
            world=world,
            sequences=NUM_SEQUENCES if self.sequences is None else self.sequences,
            steps=MAX_STEPS if self.steps is None else self.steps,
            execute=self.execute,
            ensemble=self.ensemble,
            temperature=self.temperature,
            sampling=self.sampling,
            camera=self.camera,
            calvin=self.calvin,
            films=10 if self.films is None else self.films,
            workers=self.workers,
        )
        out = self.out or self.policy / world
        summary = evaluate_in_a_row(self.policy, trial, out, self.device, self.other_camera)
        console.print(sequence_table(summary))
        console.print(f"page: {out / 'report.html'}", markup=False)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuses options that were given and would do nothing."""
    given = ", ".join(name for name, value in options.items() if value is not None)
    if given:
        raise ValueError(f"{given} would do nothing: {why}; leave out {given}")


@dataclass(frozen=True, kw_only=True)
class VPPQuickstart:
    """Everything, end to end: video and demonstrations, video model, gate, policy, its control, roll-outs, a page.

    Meant for 40 minutes on two idle cores. Stopped at any point, the same command goes on.
    """

    out: Path = Path("runs/vpp")
    """Folder of the run; the page is OUT/report.html, the same figures are in OUT/report.json, and the gate's page is
    OUT/gate/gate.html."""
    world: Literal["metaworld", "toy"] = "metaworld"
    """The simulator; the toy one is for trying the pipeline out."""
    tasks: tuple[str, ...] = ()
    """Tasks of the world, Meta-World's without "-v3"; by default three that differ."""
    budget_minutes: float = 40.0
    """Scales the training steps of both stages (the defaults are meant for 40 minutes on two idle cores)."""
    demonstrations: int = 20
    """Expert demonstrations a task; twice as many episodes are recorded as video without actions."""
    episodes: int = 20
    """Roll-outs a task and arm; each has a goal of its own out of 20 held-out ones."""
    clips: int = 64
    """Held-out clips of the gate."""
    samples: int = 1
    """Futures drawn of each."""
    sampling_steps: int = 10
    """Denoising steps of a future."""
    seed: int = 0
    """Seed of everything."""
    preset: str = DEFAULT
    """Model preset: cpu, or tiny to try the plumbing."""
    workers: int = 2
    """Simulator processes."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems import vpp_quickstart as recipe
        from ideomotor.systems import vpp_quickstart_report as settings

        config = settings.VPPQuickstart(
            world=self.world,
            tasks=self.tasks or settings.TASKS[self.world],
            budget_minutes=self.budget_minutes,
            demonstrations=self.demonstrations,
            episodes=self.episodes,
            clips=self.clips,
            samples=self.samples,
            sampling_steps=self.sampling_steps,
            seed=self.seed,
            preset=self.preset,
        )
        console.print(f"report: {recipe.quickstart(config, self.out, self.workers)}", markup=False)


def stages(config: VPP) -> Any:
    """Returns the command group; its stages start from the preset's config."""
    missing = tyro.MISSING
    vae = VPPAutoencoder(out=missing, config=config)
    video = VPPVideo(out=missing, vae_from=missing, config=config)
    policy = VPPPolicy(out=missing, data=missing, validation=0.0, config=config)
    stages = (
        Annotated[VPPPrepare, tyro.conf.subcommand("prepare")]
        | Annotated[VPPAutoencoder, tyro.conf.subcommand("vae", default=vae)]
        | Annotated[VPPVideo, tyro.conf.subcommand("video", default=video)]
        | Annotated[VPPGate, tyro.conf.subcommand("gate")]
        | Annotated[VPPPredict, tyro.conf.subcommand("predict")]
        | Annotated[VPPPolicy, tyro.conf.subcommand("policy", default=policy)]
        | Annotated[VPPEvaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[VPPQuickstart, tyro.conf.subcommand("quickstart")]
    )
    group = make_dataclass("VPPStages", [("command", Annotated[stages, tyro.conf.arg(name="")])], frozen=True)
    group.__doc__ = (
        "VPP: its stages (vae, video, policy), latents made once (prepare), looks at stage 1 (gate, predict), and its "
        "trial (evaluate); everything in one command (quickstart)."
    )
    return group
