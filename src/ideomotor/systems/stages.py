"""What the stages of all systems share: the run and its settings, a look at the data, the encoder, the fit.

A stage's folder says by its config file which form it is of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ideomotor.layers.text import ClipText, HashedWords, SentenceEncoder
from ideomotor.systems.ivideogpt import IVideoGPT
from ideomotor.systems.sources import DataOptions, Sources, TrainingClips, read_facts
from ideomotor.systems.trials import View
from ideomotor.systems.vpdd import VPDD, Stage, view_names
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.systems.vpp import VPP
from ideomotor.training.checkpoint import read_json, read_model_info, write_json
from ideomotor.training.config import config_from_json, config_to_json, differences
from ideomotor.training.run import Run

System = VPDD | PublishedVPDD | IVideoGPT | VPP
Config = TypeVar("Config", VPDD, PublishedVPDD, IVideoGPT, VPP)
IMPORT_FILE = "import.json"  # beside models that were imported
FAST_FILE, PUBLISHED_FILE, WORLD_FILE = "vpdd.json", "vpdd_published.json", "ivideogpt.json"
VPP_FILE = "vpp.json"
CONFIG_FILES: dict[type, str] = {
    VPDD: FAST_FILE, PublishedVPDD: PUBLISHED_FILE, IVideoGPT: WORLD_FILE, VPP: VPP_FILE
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """All that decides what a stage leaves; a resumed run must have the same."""

    model: System
    data: DataOptions | None = None
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the data sets, by path, and of the models of earlier stages."""


def open_run(
    out: Path,
    config: System,
    seed: int,
    fresh: bool = False,
    data: DataOptions | None = None,
    trained_on: Mapping[str, str] | None = None,
) -> Run:
    """Returns the stage's run, and leaves the model's config beside it.

    Data sets that moved since the run was begun are the same data; where they lie now is noted.
    """
    seen = dict(trained_on or {})
    now = [] if data is None else [str(path.resolve()) for path in data.data]
    if data is not None:  # a command's own options are a DataOptions and more; where the cache lies decides nothing
        moved = {} if fresh else _moved(out, now, seen)
        seen = {moved.get(name, name): value for name, value in seen.items()}
        facts = {option.name: getattr(data, option.name) for option in fields(DataOptions)}
        data = DataOptions(**facts | {"cache": Path(), "data": tuple(Path(moved.get(path, path)) for path in now)})
    settings = StageSettings(model=config, data=data, trained_on=seen)
    run = Run(out, seed=seed, config=settings, fresh=fresh, save_steps=config.save_every)
    if run.processes.is_main:
        if run.finished:
            _note_places(out, now)
        ours = CONFIG_FILES[type(config)]
        write_json(out / ours, config_to_json(config))
        for other in set(CONFIG_FILES.values()) - {ours}:
            (out / other).unlink(missing_ok=True)  # of a run that --fresh threw away
    return run


def _moved(out: Path, now: Sequence[str], seen: Mapping[str, str]) -> dict[str, str]:
    """From where data sets lie now to where they lay when the run in ``out`` was begun, if their fingerprints say that
    they are the same ones in the same order; nothing where they did not move, or are others.
    """
    if not (out / "run.json").is_file():
        return {}
    begun = read_json(out / "run.json").get("config") or {}
    then, known = (begun.get("data") or {}).get("data", []), begun.get("trained_on", {})
    alike = len(then) == len(now) and all(
        there in known and known[there] == seen.get(here) for there, here in zip(then, now, strict=True)
    )
    return dict(zip(now, then, strict=True)) if alike and then != list(now) else {}


def _note_places(out: Path, now: Sequence[str]) -> None:
    """Notes where the data sets of a finished stage lie now; one that trains on notes it anyway."""
    facts = read_facts(out)
    if len(facts) == len(now) and [one.path for one in facts] != list(now):
        Sources([], [], [replace(one, path=path) for one, path in zip(facts, now, strict=True)]).note(out)


def refuse_as_out(out: Path, data: DataOptions, earlier: Path | None = None) -> None:
    """Refuses to train in the folder that is read from: ``--fresh`` and the stage's notes would destroy what is there.

    Raises:
        ValueError: ``out`` is a data set, or lies in one, or is the folder of the earlier stage.
    """
    for path in (*data.data, *([earlier] if earlier is not None else [])):
        if path.resolve() == out.resolve():
            raise ValueError(f"--out is {out}, which this stage reads from and would overwrite: choose another --out")
    for path in data.data:
        if out.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"--out is {out}, in the data set {path}, which it would change: choose another --out")


def learned_with(folder: Path, *names: str) -> dict[str, Any]:
    """Returns what a model notes of those in ``folder`` that it learned with, saved before it: their fingerprints."""
    there = [name for name in names if (folder / name).is_dir()]
    return {"learned_with": {name: read_model_info(folder / name)["fingerprint"] for name in there}}


def refuse_strangers(folder: Path, names: Sequence[str] = ("predictor", "policy")) -> None:
    """Refuses models that did not learn together; one that notes nothing (``learned_with``) is taken as it is.

    Raises:
        ValueError: a model in ``folder`` learned with another than lies beside it; both fingerprints are named.
    """
    for name in names:
        if not (folder / name).is_dir():
            continue
        for other, known in read_model_info(folder / name).get("meta", {}).get("learned_with", {}).items():
            beside = read_model_info(folder / other)["fingerprint"] if (folder / other).is_dir() else "none"
            if beside != known:
                raise ValueError(
                    f"the {name} in {folder} learned with the {other} {known[:12]}, and beside it lies {beside[:12]}: "
                    f"they do not belong together. Put the {other} of the same run back, or train the {name} anew"
                )


def read_config(path: Path, cls: type[Config]) -> Config:
    """Returns the config that a stage left.

    Raises:
        ValueError: it was damaged, or written by another version.
    """
    try:
        return config_from_json(cls, read_json(path))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def refuse_unfinished(folder: Path) -> None:
    """Refuses a folder whose run was stopped before its end, also while it saved its models.

    Raises:
        ValueError: naming what to do.
    """
    if (folder / "run.json").is_file() and not (folder / "done.json").is_file():
        raise ValueError(f"the stage in {folder} has not finished: run its command again, it goes on where it stopped")


def refuse_edited(path: Path, config: System) -> None:
    """Refuses a stage's config that is not the one its run was begun with; a folder without a run is taken as it is.

    Raises:
        ValueError: naming what differs.
    """
    run = path.with_name("run.json")
    begun = (read_json(run).get("config") or {}).get("model") if run.is_file() else None
    changed = [] if begun is None else differences(begun, config_to_json(config))
    if changed:
        raise ValueError(
            f"{path} is not what the run beside it was begun with (begun -> {path.name}): {'; '.join(changed)}. Put "
            "the run's own back (run its command again, which trains nothing anew), or train with these settings"
        )


def look(data: DataOptions) -> dict[str, str]:
    """Opens every data set once and returns their fingerprints: a mistyped path must not claim the folder of a run."""
    return {str(path.resolve()): data.opened(path).fingerprint for path in data.data}


def to_train(out: Path, fresh: bool) -> bool:
    """Says whether the stage in ``out`` has work to do: data are opened before ``--fresh`` deletes anything."""
    return fresh or not (out / "done.json").is_file()


def refuse_uneven(stage: Stage, name: str) -> None:
    """Refuses a batch that the processes that were started cannot share, before anything is encoded or thrown away.

    Raises:
        ValueError: naming both, and the option.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if stage.batch % count:
        raise ValueError(
            f"{count} processes cannot share a batch of {stage.batch} evenly: set --{name}.batch to a multiple of "
            f"{count}, or start another number of processes"
        )


def refuse_strides(data: DataOptions, stride: int) -> None:
    """Refuses demonstrations whose frames are taken at other distances than the policy looks at when it acts.

    Raises:
        ValueError: naming both.
    """
    if any(other != stride for other in data.strides):
        raise ValueError(
            f"--strides is {data.strides}, and the policy looks every {stride} frames when it acts: "
            "leave --strides to pre-training, and set --window.stride for all stages"
        )


def encoder_named(text: str, unit: bool = True) -> SentenceEncoder | HashedWords | ClipText:
    """Returns the encoder of that name, or the CLIP in the folder of that name; ``unit`` as in ``ClipText``."""
    if text == "sentence":
        return SentenceEncoder()
    return HashedWords() if text == "hashed" else ClipText(text, unit)


def fit(objective: nn.Module, stage: Stage, clips: TrainingClips, run: Run) -> None:
    """Trains the objective for the stage's steps."""
    learner = run.learner(objective, stage.optim, stage.steps)
    run.fit(clips.loader(stage, run), learner, steps=stage.steps, held_out=clips.held_out(stage))


def view_of(config: VPDD | PublishedVPDD) -> View:
    """Returns what a policy of that config sees and does."""
    return View(
        cameras=view_names(config.views),
        size=config.size,
        context=config.window.context,
        stride=config.window.stride,
        execute=config.execute,
        action_width=config.policy.action_width,
    )


def camera_of(folder: Path) -> str | None:
    """Returns the camera that the stage in ``folder`` learned through; None where it noted none, or several."""
    cameras = {facts.camera for facts in read_facts(folder)}
    return cameras.pop() if len(cameras) == 1 else None


def domain_of(folder: Path) -> str:
    """Returns the domain that the stage in ``folder`` learned from; "unknown" where it noted none, or several."""
    domains = {facts.domain for facts in read_facts(folder)}
    return domains.pop() if len(domains) == 1 else "unknown"
