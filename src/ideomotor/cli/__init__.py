"""ideomotor <verb> ...: each command is a small dataclass; its fields are its options, its ``run`` calls a recipe."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import tyro
from rich.console import Console

from ideomotor.cli import ivideogpt, vpdd, vpp
from ideomotor.cli.collect import CollectVerbs
from ideomotor.cli.constructors import registry
from ideomotor.cli.data import DataVerbs
from ideomotor.cli.dry_run import DryRunCommand
from ideomotor.cli.imagine import Imagine
from ideomotor.cli.presets import SystemConfigs, preset, system_configs
from ideomotor.cli.published import Export, ImportVerbs
from ideomotor.cli.serve import Serve
from ideomotor.cli.study import StudyCommand
from ideomotor.systems.vpdd import PRESETS

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

    Meta-World on a laptop CPU, half an hour or less. Stopped at any point, the same command goes on.
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
class Report:
    """Writes the page of a quickstart run anew from what the run holds so far, finished or not."""

    run_dir: tyro.conf.Positional[Path] = Path("runs/quickstart")
    """Folder of the run."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.systems.quickstart_report import report_of

        console.print(f"report: {report_of(self.run_dir)}")


def main(argv: list[str] | None = None) -> None:
    """The console script. What a user can mend is one line on stderr and exit status 2; with --debug, a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        tree = _commands(system_configs(arguments))
        command = tyro.cli(tree, args=arguments, prog="ideomotor", description=ABOUT, registry=registry())
        getattr(command, "command", command).run()
    except (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError, RuntimeError) as error:
        if debug:
            raise
        said = str(error).removeprefix(f"[Errno {getattr(error, 'errno', None)}] ")  # a number tells nobody anything
        if isinstance(error, OSError) and error.filename and error.strerror:
            said = f"{error.filename}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
                said += ". Free some space, choose another place, or make it writable, and run the same command again"
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC and len(error.args) < 3 and "free" not in said:
            said += ": the disk is full. Free some space and run the same command again"
        if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
            said = f"{error.filename} is a file where a folder is needed: choose another place, or move the file away"
        if isinstance(error, IsADirectoryError) and error.filename:
            said = f"{error.filename2 or error.filename} is a folder where a file is needed: give the name of a file"
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("stopped; what was finished stays", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from error


def _commands(configs: SystemConfigs) -> Any:
    """The tree of verbs; the stages of a system start from its preset's config."""
    group, worlds = vpdd.stages(configs.vpdd), ivideogpt.stages(configs.world, configs.dream)
    return (
        Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
        | Annotated[CollectVerbs, tyro.conf.subcommand("collect")]
        | Annotated[DataVerbs, tyro.conf.subcommand("data")]
        | Annotated[ImportVerbs, tyro.conf.subcommand("import")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[group, tyro.conf.subcommand("vpdd")]
        | Annotated[worlds, tyro.conf.subcommand("ivideogpt")]
        | Annotated[vpp.stages(configs.vpp), tyro.conf.subcommand("vpp")]
        | Annotated[Imagine, tyro.conf.subcommand("imagine")]
        | Annotated[Serve, tyro.conf.subcommand("serve")]
        | Annotated[DryRunCommand, tyro.conf.subcommand("dry_run")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[StudyCommand, tyro.conf.subcommand("study")]
    )
