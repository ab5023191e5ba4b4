"""The gate between the stages of VPP: held-out clips, figures, a verdict, videos, and a page of all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from ideomotor.data.segments import SegmentWindow
from ideomotor.data.video_writing import write_video
from ideomotor.evaluation.statistics import mean_of_clips
from ideomotor.evaluation.world_page import Film, Told, WorldPage, world_page
from ideomotor.files import sole_writer, write_text
from ideomotor.systems.autoencoders import vae_fingerprint
from ideomotor.systems.held_out import WHOLE, held_out_clips, shown
from ideomotor.systems.imagination import FPS
from ideomotor.systems.panels import truth_above
from ideomotor.systems.quickstart_report import environment
from ideomotor.systems.video_scoring import JudgeOptions, open_judges
from ideomotor.systems.vpp_gate_scores import OURS, STILL, Gate, GateOptions, measure
from ideomotor.systems.vpp_videos import VideoModel
from ideomotor.training.checkpoint import read_json, read_model_info, write_json

FILE = "gate.json"
_PLAIN = ("mse", "psnr", "ssim")  # what every gate has, and the page tells
TOLD = Told(
    mark="ideomotor gate",
    lead="While the frame seen plays, all panels show it (blue). Then: what happened (green, above) and futures drawn "
    "from the model (orange).",
    question="Does it hear the sentence?",
    heard="hears what is said",
    hear_not="hear what is said",
    untold="All clips say the same, so nothing tells whether the sentence is heard.",
    numbers=FILE,
)


def gate(
    folder: Path,
    data: Sequence[Path],
    out: Path,
    options: GateOptions,
    videos: int = 6,
    against: Path | None = None,
    device: str | None = None,
    judging: JudgeOptions | None = None,
) -> dict[str, Any]:
    """Tries a finished stage 1, writes gate.json, gate.html and videos into ``out``, and returns the figures.

    Args:
        folder: of the video stage.
        data: data sets to try it on; by default the episodes that the stage held out.
        out: folder for what is written.
        options: how it is tried.
        videos: clips that are written as videos, the truth above the futures.
        against: gate.json of another checkpoint, whose losses are compared clip by clip.
        device: where to compute; CUDA where there is any, else the CPU.
        judging: further networks that tell videos apart.

    Raises:
        FileNotFoundError, ModuleNotFoundError: weights that are asked for are not there.
        ValueError: the folder holds no video model, nothing was held out, ``against`` does not pair, ``out`` cannot be
            written, or lies in the data, or another process writes its figures there.
    """
    if videos < 0:
        raise ValueError(f"videos is {videos}; wanted 0 or more")
    refuse_place(out, data)
    model = VideoModel.load(folder, device)
    config, judges = model.config, open_judges(judging or JudgeOptions(), model.device)
    window = SegmentWindow(frames=config.window.frames, context=1, stride=config.window.stride)
    clips = held_out_clips(folder, data, window, config.size, options.clips)
    plain = asdict(options) | {"sigmas": list(options.sigmas)}
    facts = {"options": plain, "vae": vae_fingerprint(model.vae), "clips": clips.names}
    tried = {"stage": str(folder), "predictor": read_model_info(folder / "predictor")["fingerprint"]}
    theirs = None if against is None else losses_of(against, facts)
    found, futures = measure(model, clips, options, judges)
    report = as_json(found) | facts | tried | {"against": None, "videos": []}
    if theirs is not None:
        gaps = [ours - other for ours, other in zip(found.clip_losses, theirs, strict=True)]
        report["against"] = {"file": str(against), "loss": mean_of_clips(gaps, clips.episodes).plain()}
    with sole_writer(out / FILE):  # figures, films and page of one trial, where two end at once
        for number in shown(clips, videos) if videos else ():
            name, frames = f"clip-{number}.mp4", clips.frames[number]
            write_video(out / name, truth_above(frames[:1], frames[1:], futures[:, number]), FPS)
            report["videos"].append({"file": name, "text": clips.texts[number], "clip": clips.names[number]})
        write_json(out / FILE, report)
        write_text(out / "gate.html", page_of(report, out))
    return report


def doubts(folder: Path) -> str | None:
    """Returns in a sentence why to think twice before acting by the video model in a stage's folder; None where it
    passed the gate, or where there is none, which whoever opens the folder says.

    Figures are looked for where ``vpp gate`` leaves them by default, and beside the folder, where the quickstart does.
    """
    if not (folder / "predictor" / "config.json").is_file():
        return None
    ours = read_model_info(folder / "predictor").get("fingerprint")
    for path in (folder / "gate" / FILE, folder.parent / "gate" / FILE):
        try:
            found = read_json(path)
        except (OSError, ValueError):
            continue  # there are no figures
        if not {"passed", "verdict"} <= set(found):
            continue  # another file of that name
        if found.get("predictor", ours) == ours:  # of before they were noted, figures are taken for this model's
            return None if found.get("passed") is True else f"{path} says of the video model: {found.get('verdict')}"
    return (
        f"the video model in {folder} was not put through the gate, so nobody knows whether its video beats repeating "
        f"the last frame: look with `ideomotor vpp gate {folder}`"
    )


def refuse_place(out: Path, data: Sequence[Path]) -> None:
    """Refuses a folder that nothing could be written to after hours of work, or that belongs to the data.

    Raises:
        ValueError: naming it.
    """
    for path in data:
        if out.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{out} lies in the data set {path}, which the videos would join: choose another --out")
    there = next(place for place in (out, *out.resolve().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{there} is {'read-only' if there.is_dir() else 'a file'}: choose another --out")


def losses_of(path: Path, facts: Mapping[str, Any]) -> list[float]:
    """Returns the clips' losses in another checkpoint's gate.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or of other clips, options or latents, so that nothing pairs the two.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the {FILE} of another checkpoint")
    theirs = read_json(path)
    if not isinstance(theirs, dict) or not {"clip_losses", *facts} <= set(theirs):
        raise ValueError(f"{path} holds no figures of a gate: give the {FILE} of another checkpoint")
    other = [name for name, value in facts.items() if theirs[name] != value]
    if other:
        raise ValueError(
            f"{path} was made with other {', '.join(other)}, so the losses do not pair: try both checkpoints with the "
            "same autoencoder, data and options"
        )
    losses = theirs["clip_losses"]
    if not isinstance(losses, list) or [type(loss) for loss in losses] != [float] * len(facts["clips"]):
        raise ValueError(f"{path} was edited: clip_losses is {losses!r}; wanted a loss for each of its clips")
    return losses


def as_json(found: Gate) -> dict[str, Any]:
    """Returns the figures as plain values."""
    heard = found.heard
    return {
        "verdict": found.verdict,
        "passed": found.passed,
        "loss": {name: row.plain() for name, row in found.loss.items()},
        "clip_losses": found.clip_losses,
        "moving_psnr": {name: [row.plain() for row in rows] for name, rows in found.moving_psnr.items()},
        "gain": [row.plain() for row in found.gain],
        "strict": {name: row.plain() for name, row in found.strict.items()},
        "sentence": None if heard is None else {
            what: {"own": gaps.error.plain(), "another": gaps.shuffled.plain(), "none": gaps.zero.plain()}
            for what, gaps in heard.items()
        },
    }  # fmt: skip


def page_of(report: Mapping[str, Any], out: Path) -> str:
    """Returns the page of the figures; the videos lie in ``out``."""
    heard = report["sentence"] or {}
    names = {"another": "another clip's sentence", "none": "no sentence"}
    tables = {
        "Denoising loss by noise level, less is better": {
            f"sigma {name}" if name != "mean" else "mean of the levels": _said(row)
            for name, row in report["loss"].items()
        },
        "Nearer than the last frame repeated, in dB": {
            f"step {number}": _said(row) for number, row in enumerate(report["gain"], 1)
        },
    }
    if heard:
        tables["How much the loss grows"] = {f"with {said}": _said(heard["loss"][name]) for name, said in names.items()}
    if report["against"]:
        tables["Loss less another checkpoint's, clip by clip"] = {
            report["against"]["file"]: _said(report["against"]["loss"])
        }
    return world_page(
        WorldPage(
            title="ideomotor: is this video model fit to act by?",
            subtitle=report["verdict"],
            created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            command=f"ideomotor vpp gate {report['stage']}",
            moving_psnr={name: [row["value"] for row in rows] for name, rows in report["moving_psnr"].items()},
            ours=OURS,
            rivals=(STILL,),
            gaps={said: _row(heard["video"][name]) for name, said in names.items() if heard},
            reward_error=None,
            strict={name: _row(row) for name, row in report["strict"].items()},
            films=[
                Film(
                    text=row["text"],
                    episode=row["clip"],
                    video=(out / row["file"]).read_bytes(),
                    across=report["options"]["samples"],
                )
                for row in report["videos"]
            ],
            protocol=report["options"]
            | {"held-out clips": len(report["clips"]), "whole ones of these": _whole(report["clips"])},
            stages=(),
            environment=environment(),
            told=TOLD,
            tables=tables,
        )
    )


def _row(row: Mapping[str, float | None]) -> tuple[float, float | None, float | None]:
    assert row["value"] is not None
    return row["value"], row["low"], row["high"]


def _said(row: Mapping[str, float | None]) -> str:
    value, low, high = _row(row)
    return f"{value:.4g}" + (f" ({low:.3g} to {high:.3g})" if low is not None and high is not None else "")


def gate_table(report: Mapping[str, Any]) -> Table:
    """Returns the figures a step for the terminal, the losses and the sentence's part below."""
    curves = report["moving_psnr"]
    title = f"moving-pixel PSNR in dB, {len(report['clips'])} held-out clips"
    table = Table("step", *curves, "gain over repeating", title=title)
    for step, gain in enumerate(report["gain"]):
        table.add_row(str(step + 1), *(f"{rows[step]['value']:.2f}" for rows in curves.values()), _said(gain))
    lines = ["loss at sigma " + ", ".join(f"{name}: {row['value']:.4f}" for name, row in report["loss"].items())]
    if report["sentence"]:
        gaps = report["sentence"]["loss"]
        lines.append(f"loss with another sentence {_said(gaps['another'])} more, with none {_said(gaps['none'])} more")
    judged = [f"{name} {_said(row)}" for name, row in report["strict"].items() if name.split()[0] not in _PLAIN]
    if judged:
        lines.append(", ".join(judged))
    if report["against"]:
        lines.append(f"loss less that in {report['against']['file']}: {_said(report['against']['loss'])}")
    if whole := _whole(report["clips"]):
        lines.append(f"{whole} of {len(report['clips'])} clips are whole ones: their steps lie evenly over an episode")
    table.caption = "\n".join(lines)
    return table


def _whole(names: Sequence[str]) -> int:
    """How many of the clips show a whole episode."""
    return sum(name.endswith(WHOLE) for name in names)
