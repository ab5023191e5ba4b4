"""A world from nothing in one command: experience, tokenizer, world, a copy that hears no actions, figures, a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from ideomotor.data.formats import open_dataset
from ideomotor.data.segments import SegmentWindow
from ideomotor.data.video_writing import write_video
from ideomotor.evaluation.report import Stage as ReportStage
from ideomotor.evaluation.world_page import Film, WorldPage, world_page
from ideomotor.files import write_text
from ideomotor.layers.sampling import Sampling
from ideomotor.systems import quickstarts
from ideomotor.systems.agent_worlds import RECORDED_REPEAT
from ideomotor.systems.collection_worlds import WORLDS, world_config
from ideomotor.systems.experience import collect_experience
from ideomotor.systems.held_out import held_out_clips, shown
from ideomotor.systems.ivideogpt import PRESETS, IVideoGPT
from ideomotor.systems.ivideogpt_scores import as_json, score
from ideomotor.systems.ivideogpt_stages import run_tokenizer, run_world
from ideomotor.systems.panels import comparison
from ideomotor.systems.quickstart_report import environment
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.vpdd import Stage
from ideomotor.systems.world import World
from ideomotor.training.checkpoint import read_json, write_json
from ideomotor.training.config import config_from_json, config_to_json

console = Console(soft_wrap=True)
FULL_BUDGET = 30.0  # minutes that the preset's steps are planned for on two idle cores; 33 were measured on busy ones
STAGES = ("experience", "tokenizer", "world", "deaf", "scores")
FPS = 5.0
FUTURES = 8  # drawn of each clip that is scored


@dataclass(frozen=True, kw_only=True)
class WorldQuickstart:
    """What is to be tried; see ``ideomotor ivideogpt quickstart --help``."""

    tasks: tuple[str, ...] = ("button-press-topdown-wall", "plate-slide")
    episodes: int = 60
    demonstrations: Path | None = None
    budget_minutes: float = FULL_BUDGET
    clips: int = 64
    samples: int = 3
    seed: int = 0
    preset: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.episodes, self.clips, self.samples) < 1 or not 0 < self.budget_minutes < float("inf"):
            raise ValueError(
                f"episodes {self.episodes}, clips {self.clips} and samples {self.samples} must be at least 1, "
                f"budget_minutes {self.budget_minutes} above 0"
            )
        if self.preset not in PRESETS:
            raise ValueError(f"there is no preset {self.preset!r} (presets: {', '.join(PRESETS)})")


def quickstart(config: WorldQuickstart, out: Path, workers: int = 2) -> Path:
    """Does everything that is not done yet and returns the page's path. Killed at any point, the same call goes on.

    Raises:
        ValueError: ``out`` holds a quickstart of other settings.
    """
    model = model_of(config)
    if config.demonstrations is not None:
        open_dataset(config.demonstrations)  # a mistyped path must not claim the folder
    for task in config.tasks:
        world_config("metaworld", {"cameras": ("corner",)}, task)
    quickstarts.claim(out, config_to_json(config))
    with quickstarts.said(out, "experience", STAGES, config.seed) as run:
        if not run.finished:
            collect_experience(out / "data", config.tasks, config.episodes, config.seed, workers)
    data = options(config, out)
    with quickstarts.threads(2):
        console.print(quickstarts.numbered("tokenizer", STAGES), markup=False)
        run_tokenizer(data, model, out / "tokenizer", config.seed, fresh=False)
    with (
        quickstarts.threads(1),
        quickstarts.beside(
            "ideomotor.systems.ivideogpt_quickstart", (str(out),), out / "deaf.log", "the copy that hears no actions"
        ) as check,
    ):
        console.print(
            f"{quickstarts.numbered('world', STAGES)}, and beside it {quickstarts.numbered('deaf', STAGES)}; its log "
            f"is {out / 'deaf.log'}",
            markup=False,
        )
        run_world(data, model, out / "tokenizer", None, 0, out / "world", config.seed, fresh=False)
        check()
    with quickstarts.said(out, "scores", STAGES, config.seed) as run, quickstarts.threads(2):
        if not run.finished:
            write_scores(config, model, out, run.dir)
    return report_of(config, out)


def deaf_copy(out: Path) -> None:
    """The same training of a world that hears no actions; settings are those noted in ``out``."""
    config = config_from_json(WorldQuickstart, read_json(out / "quickstart.json"))
    model = model_of(config)
    model = replace(model, world=replace(model.world, action_width=0))
    with quickstarts.threads(1):
        run_world(options(config, out), model, out / "tokenizer", None, 0, out / "deaf", config.seed, fresh=False)


def write_scores(config: WorldQuickstart, model: IVideoGPT, out: Path, folder: Path) -> None:
    """Scores world and deaf copy on held-out clips, and writes figures and videos into ``folder``."""
    world = World.load(out / "world")
    shape = model.window
    window = SegmentWindow(frames=shape.frames, context=shape.context, stride=shape.stride, pooled=shape.pooled)
    clips = held_out_clips(out / "world", (), window, model.size, config.clips)
    others = {
        "without actions": World.load(out / "deaf"),
        "its likeliest tokens alone": World.load(out / "world", sampling=Sampling(temperature=0)),
    }
    scores = score(world, clips, others, futures=FUTURES, seed=config.seed)
    rows = []
    for number in shown(clips, 6):
        world.seed(config.seed)
        frames, actions = clips.frames[number : number + 1], clips.actions
        assert actions is not None
        seen, truth = frames[:, : world.context], frames[0, world.context :]
        told = actions[number : number + 1, world.context - 1 : -1]
        many = [part.expand(config.samples, *(-1,) * (part.ndim - 1)) for part in (seen, told)]
        futures = world.imagine(many[0], len(truth), many[1]).frames
        write_video(folder / f"clip-{number}.mp4", comparison(seen[0], truth, futures), FPS)
        rows.append({"file": f"clip-{number}.mp4", "text": clips.texts[number], "episode": clips.episodes[number]})
    write_json(folder / "scores.json", as_json(scores) | {"videos": rows})


def report_of(config: WorldQuickstart, out: Path) -> Path:
    """Writes report.html from what the finished stages left, and returns its path."""
    scores = read_json(out / "scores" / "scores.json")
    names, shape = {"shuffled": "another clip's actions", "zero": "no action"}, model_of(config).window
    heard = scores["sensitivity"] or {}
    data = WorldPage(
        title="ideomotor: a world to act in",
        subtitle="iVideoGPT trained from nothing on this machine",
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=quickstarts.command_line("ivideogpt quickstart", out, config, WorldQuickstart()),
        moving_psnr=scores["moving_psnr"],
        gaps={said: _row(heard[name]) for name, said in names.items() if name in heard},
        reward_error=scores["reward_error"],
        strict={name: _row(row) for name, row in scores["strict"].items()},
        films=[
            Film(text=row["text"], episode=row["episode"], video=(out / "scores" / row["file"]).read_bytes())
            for row in scores["videos"]
        ],
        protocol={
            "simulator": f"Meta-World v3, camera corner, 64 px, {RECORDED_REPEAT * shape.stride} of its steps a frame",
            "actions": f"the mean of {shape.held}, which lead to a frame",
            "tasks": config.tasks,
            "episodes a task": f"{config.episodes}, of experts whose hand shakes more or less",
            "demonstrations": config.demonstrations or "none",
            "held-out clips": scores["clips"],
            "seen, foretold": f"2 frames, {scores['horizon']} frames",
            "figures": f"of the mean of {FUTURES} drawn futures, the picture expected; those shown are single ones",
            "moving pixels": "differ by more than 20 of 255 from the last frame seen, in the truth",
            "training seed": config.seed,
        },
        stages=list(costs(out)),
        environment=environment(),
    )
    write_text(out / "report.html", world_page(data))
    return out / "report.html"


def _row(row: dict[str, float | None]) -> tuple[float, float | None, float | None]:
    assert row["value"] is not None
    return row["value"], row["low"], row["high"]


def costs(out: Path) -> Iterator[ReportStage]:
    """Yields what each finished stage took."""
    for name in STAGES:
        done = out / name / "done.json"
        if done.is_file():
            facts = read_json(done)
            yield ReportStage(name=name, seconds=facts["seconds"], peak_rss_bytes=facts["peak_rss_bytes"])


def options(config: WorldQuickstart, out: Path) -> DataOptions:
    """Returns the data sets of every stage, drawn from as often as they are long: a few demonstrations are not learned
    by heart.
    """
    given = () if config.demonstrations is None else (config.demonstrations,)
    data = (out / "data", *given)
    frames = [sum(episode.length for episode in open_dataset(each).episodes) for each in data]
    return DataOptions(data=data, weights=tuple(map(float, frames)), cache=out / "cache", validation=0.1)


def model_of(config: WorldQuickstart) -> IVideoGPT:
    """Returns the preset for this robot, its stages scaled to the budget (in steps, so that kills change nothing)."""
    model = PRESETS[config.preset]()

    def scaled(part: Stage) -> Stage:
        return replace(part, steps=max(10, round(part.steps * config.budget_minutes / FULL_BUDGET)))

    return replace(
        model,
        world=replace(model.world, action_width=len(WORLDS["metaworld"].actions), action_limit=1.0, reward=True),
        tokenizer_stage=scaled(model.tokenizer_stage),
        world_stage=scaled(model.world_stage),
    )


if __name__ == "__main__":  # the process of ``beside``
    quickstarts.main(lambda out: deaf_copy(Path(out)))
