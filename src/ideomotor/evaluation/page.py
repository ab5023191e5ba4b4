"""The report's page: figures in, one HTML text out. Every text is escaped; videos are data URIs; nothing is fetched.

The template beside this file holds style, script and skeleton. Its content security policy forbids any other script,
style or address, so that a browser enforces what this file promises.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from ideomotor.evaluation import charts, dial
from ideomotor.evaluation import wording as say
from ideomotor.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from ideomotor.evaluation.report import Arm, Comparison, ImaginedClip, ReportData, RolloutVideo, Stage, TaskSuccess

ARMS = {"pretrained": "With pre-training", "control": "Without (control)"}
"""The two arms, in the order shown, and what the page calls them."""


def missing(data: ReportData) -> tuple[str, ...]:
    """Returns the parts that an unfinished run does not have yet, in plain words."""
    parts = {
        "the roll-outs of the pre-trained arm": "pretrained" in data.arms,
        "the roll-outs of the control": "control" in data.arms,
        "the comparison of both arms": data.comparison is not None,
        "the imagination on held-out clips": data.imagination is not None,
        "roll-out videos": bool(data.rollouts),
        "training curves": bool(data.curves),
        "the cost of the stages": bool(data.stages),
    }
    return tuple(name for name, there in parts.items() if not there)


def render(data: ReportData) -> str:
    """Returns the whole page."""
    page, policy = template("report_page.html")
    lacking = missing(data)
    banner = ""
    if lacking:
        banner = (
            f'<p class="banner" role="status"><strong>This run is not finished.</strong> Not there yet: '
            f"{say.escaped(', '.join(lacking))}. The command at the foot of the page goes on where it stopped.</p>"
        )
    return Template(page).substitute(
        policy=policy,
        mark="ideomotor",
        title=say.escaped(data.title),
        subtitle=f'<p class="subtitle">{say.escaped(data.subtitle)}</p>' if data.subtitle else "",
        created=f'<p class="created">{say.escaped(data.created)}</p>' if data.created else "",
        banner=banner,
        result=_result(data),
        protocol=pairs(data.protocol, "The protocol of this run") or not_yet("The protocol was not given."),
        imagination=_imagination(data),
        tasks=_tasks(data.arms),
        dial=dial.section(data.dial),
        dial_link='<a href="#dial">Dial</a>' if data.dial else "",
        rollouts=_rollouts(data.rollouts),
        training=_training(data),
        cost=_cost(data.stages),
        settings=_settings(data.settings),
        command=say.escaped(data.command),
        environment=pairs(data.environment, "The machine and the versions of this run"),
    )


@cache
def template(name: str, package: str = "ideomotor.evaluation") -> tuple[str, str]:
    """Returns a template in the frame and the style of all pages, and the policy that allows these and its own script
    by their hashes, and nothing else. The template is a file of ``package``.
    """
    folder, own = files("ideomotor.evaluation"), files(package)
    text = folder.joinpath("page_frame.html").read_text(encoding="utf-8")
    for place, file in (("<!-- style -->", folder / "page_style.css"), ("<!-- page -->\n", own / name)):
        text = text.replace(place, file.read_text(encoding="utf-8"))
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
            for body in re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        )
        for tag in ("style", "script")
    }
    script = hashes["script"] or "'none'"
    policy = (
        f"default-src 'none'; style-src {hashes['style']}; script-src {script}; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    return text, policy


def _result(data: ReportData) -> str:
    cards, rows = [], []
    for name, label in ARMS.items():
        arm = data.arms.get(name)
        figure, under = "–", ["not there yet"]
        if arm is not None and arm.mean is not None:
            figure, under = say.percent(arm.mean.value), ["95% interval", say.span(arm.mean)]
            rows.append(charts.Bar(arm.mean.value, arm.mean.low, arm.mean.high, name))
        cards.append(_card(name, label, figure, under))
    figure, under = "–", ["needs both arms"]
    if data.comparison is not None:
        gap = data.comparison.difference
        figure, under = (
            f"{say.points(gap.value)} points",
            ["paired, 95% interval", f"{say.points(gap.low)} to {say.points(gap.high)}"],
        )
    cards.append(_card("difference", "Difference", figure, under))
    sketch = ""
    if rows:
        said = "; ".join(f"{ARMS[row.kind]} {say.percent(row.share)}, interval {say.span(row)}" for row in rows)
        axis = "".join(f"<span>{tick}%</span>" for tick in (0, 25, 50, 75, 100))
        drawn = charts.bars(rows, f"Mean success: {said}", 22)
        sketch = (
            f'<figure class="headline">{drawn}<div class="axis" aria-hidden="true">{axis}</div><figcaption>'
            "Mean success over the tasks, with 95% intervals.</figcaption></figure>"
        )
    return f'<div class="cards">{"".join(cards)}</div>{_verdict(data.comparison)}{sketch}{_how_sure(data)}'


def _card(kind: str, label: str, figure: str, under: Sequence[str]) -> str:
    """Returns one large figure; what follows its number is set small."""
    number, _, unit = figure.partition(" ")
    figure = say.escaped(number) + (f'<span class="unit"> {say.escaped(unit)}</span>' if unit else "")
    parts = "".join(f"<span>{say.escaped(part)}</span> " for part in under)
    return (
        f'<div class="card {kind}"><div class="label">{say.escaped(label)}</div>'
        f'<div class="figure">{figure}</div><div class="under">{parts}</div></div>'
    )


def _verdict(comparison: Comparison | None) -> str:
    if comparison is None:
        return not_yet("Whether pre-training helped is told when both arms have met the same episodes.")
    gap = comparison.difference
    interval = f"95% interval {say.points(gap.low)} to {say.points(gap.high)} points"
    if gap.low > 0 or gap.high < 0:
        verb = "raised" if gap.low > 0 else "lowered"
        size = f"{abs(100 * gap.value):.0f} points"
        said = f"Pre-training on video without actions {verb} mean success by {size} ({interval})."
    else:
        said = (
            "These episodes cannot tell the effect of pre-training on video without actions from chance: the "
            f"difference is {say.points(gap.value)} points ({interval})."
        )
    chance = comparison.improvement
    more = (
        f"{comparison.episodes} pairs of episodes, each pair with the same task and goal. Probability that "
        f"pre-training does better on a task drawn at random: {say.percent(chance.value)} ({say.span(chance)})."
    )
    return f'<p class="verdict">{say.escaped(said)}</p><p>{say.escaped(more)}</p>'


def _how_sure(data: ReportData) -> str:
    """Returns what the intervals hold, and what they do not."""
    means = [arm.mean for arm in data.arms.values() if arm.mean is not None]
    if not means:
        return ""
    notes = ["Intervals of means: seeds, then tasks, then episodes resampled 10,000 times. Intervals of tasks: Wilson."]
    if data.comparison is not None and data.comparison.seeds == 1:
        notes.append("One training seed: the intervals hold the luck of tasks and episodes, not that of training.")
    if any(mean.low == mean.high for mean in means):
        notes.append("An interval of no width means that all episodes ended alike, not certainty: see the tasks' own.")
    return f'<p class="note">{say.escaped(" ".join(notes))}</p>'


def _imagination(data: ReportData) -> str:
    imagination = data.imagination
    if imagination is None:
        return not_yet("No clip has been imagined yet; this comes after pre-training.")
    ours, still = imagination.moving_psnr, imagination.repeat_last_moving_psnr
    word = "nearer to what happened than" if ours > still else "no nearer to what happened than"
    said = (
        f"On the pixels that move, imagination is {word} repeating the last frame: {say.decibel(ours)} against "
        f"{say.decibel(still)}, pooled over {imagination.num_clips} clips of held-out episodes."
    )
    cards = (
        _card("pretrained", "Imagination", say.decibel(ours), ["moving-pixel PSNR,", "more is nearer"])
        + _card("control", "Repeating the last frame", say.decibel(still), ["the same pixels"])
        + _card("difference", "Difference", f"{ours - still:+.1f} dB".replace("-", "−"), [])
    )
    clips = "".join(_clip(i, clip) for i, clip in enumerate(imagination.clips, start=1))
    lead = "<p>Context is what the model saw, truth what then happened, imagination what it foretold.</p>"
    clips = f'{lead}<div class="clips">{clips}</div>' if clips else not_yet("No clip was kept to be shown.")
    return f'<div class="cards">{cards}</div><p class="verdict">{say.escaped(said)}</p>{clips}'


def _clip(number: int, clip: ImaginedClip) -> str:
    name = clip.text or f"clip {number}"
    shown = {
        "Context": (clip.context, ""),
        "Truth": (clip.truth, "together"),
        "Imagination": (clip.imagination, "together"),
    }
    videos = "".join(
        f"<figure>{video(content, f'{label}: {name}', kind)}<figcaption>{label}</figcaption></figure>"
        for label, (content, kind) in shown.items()
    )
    facts = [say.escaped(clip.source)] if clip.source else []
    if clip.moving_psnr is not None:
        facts.append(f"{say.decibel(clip.moving_psnr)} on moving pixels")
    if clip.repeat_last_moving_psnr is not None:
        facts.append(f"last frame repeated {say.decibel(clip.repeat_last_moving_psnr)}")
    return (
        f'<article class="clip"><h3>{say.escaped(name)}</h3><div class="trio">{videos}</div>'
        f'<p class="note">{" · ".join(facts)}</p></article>'
    )


def _tasks(arms: Mapping[str, Arm]) -> str:
    present = {name: arms[name].tasks for name in ARMS if name in arms}
    names = list(dict.fromkeys(task for tasks in present.values() for task in tasks))
    if not names:
        return not_yet("No episode has been run yet; this comes after fine-tuning.")
    heads = "".join(
        f'<th scope="col" role="columnheader" class="number"><span class="key {arm}"></span>{ARMS[arm]}</th>'
        for arm in present
    )
    body = []
    for name in names:
        rows = {arm: tasks.get(name) for arm, tasks in present.items()}
        drawn = [
            charts.Bar(row.successes / row.episodes, *row.interval, arm) for arm, row in rows.items() if row is not None
        ]
        label = f"{name}: " + "; ".join(f"{ARMS[bar.kind]} {say.percent(bar.share)}" for bar in drawn)
        cells = "".join(f'<td role="cell" class="number">{_count(row)}</td>' for row in rows.values())
        drawing = charts.bars(drawn, label)
        body.append(
            f'<tr role="row"><th scope="row" role="rowheader">{say.escaped(name)}</th>'
            f'<td role="cell" class="drawn">{drawing}</td>{cells}</tr>'
        )
    # The roles say again what the tags say: on a phone rows are laid out as grids, and browsers then forget the tags.
    return (
        '<table class="tasks" role="table"><caption>Success per task, with Wilson 95% intervals</caption>'
        '<thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader">Task</th>'
        '<th scope="col" role="columnheader" class="drawn">'
        '<span class="ends"><span>0%</span><span>100%</span></span></th>'
        f'{heads}</tr></thead><tbody role="rowgroup">{"".join(body)}</tbody></table>'
    )


def _count(row: TaskSuccess | None) -> str:
    if row is None:
        return '<span class="small">not there yet</span>'
    low, high = row.interval
    return (
        f"<strong>{row.successes}</strong> of {row.episodes}"
        f'<span class="small">{say.span(Estimate(row.successes / row.episodes, low, high))}</span>'
    )


def _rollouts(videos: Sequence[RolloutVideo]) -> str:
    if not videos:
        return not_yet("No episode was recorded yet.")
    groups: dict[str, list[str]] = {}
    for item in videos:
        result = item.result
        ended = ("success", "✓ success") if result.success else ("failure", "✗ no success")
        arm = ARMS.get(result.arm, result.arm)
        seen = f"{arm}, {result.task}, goal {result.goal}: {ended[1][2:]} after {result.steps} steps"
        groups.setdefault(result.task, []).append(
            f'<figure class="rollout {_kind(result.arm)}">{video(item.video, seen)}<figcaption>'
            f'<span class="key {_kind(result.arm)}"></span>{say.escaped(arm)}<br>'
            f'<span class="{ended[0]}">{ended[1]}</span> '
            f'<span class="small">{result.steps} steps · goal {result.goal}</span></figcaption></figure>'
        )
    drawn = "".join(
        f'<div class="group"><h3>{say.escaped(task)}</h3><div class="rollouts">{"".join(items)}</div></div>'
        for task, items in groups.items()
    )
    return f'<div class="groups">{drawn}</div>'


def _training(data: ReportData) -> str:
    if not data.curves:
        return not_yet("No stage has logged a curve yet.")
    stages: dict[str, list[charts.Line]] = {}
    for curve in data.curves:
        stages.setdefault(curve.stage, []).append(charts.Line(curve.name, curve.steps, curve.values))
    figures = []
    for stage, series in stages.items():
        names = ", ".join(line.name for line in series)
        legend = "".join(
            '<span class="entry"><svg width="22" height="8" aria-hidden="true">'
            f'<path class="line k{i % charts.NUM_COLOURS}" d="M1 4h20"/></svg>{say.escaped(line.name)}</span>'
            for i, line in enumerate(series)
        )
        drawing = charts.lines(series, f"{stage}: {names} over training steps")
        figures.append(
            f'<figure class="curve"><h3>{say.escaped(stage)}</h3>{drawing}<figcaption>{legend}</figcaption></figure>'
        )
    return f'<div class="curves">{"".join(figures)}</div>' + (
        '<p class="note">Across: optimizer steps. Up: the loss, logarithmic where it spans 1 to 30 or more.</p>'
    )


def _cost(stages: Sequence[Stage]) -> str:
    if not stages:
        return not_yet("No stage has finished yet.")
    total, most = (
        sum(stage.seconds for stage in stages if not stage.beside),
        say.memory(max(stage.peak_rss_bytes for stage in stages)),
    )
    body = "".join(
        f'<tr><th scope="row">{say.escaped(stage.name)}'
        f"{_small(', '.join(filter(None, (stage.note, 'beside the others' * stage.beside))))}</th>"
        ""
        f'<td class="drawn spare">{_part(stage.seconds, total)}</td>'
        f'<td class="number">{say.duration(stage.seconds)}</td>'
        f'<td class="number">{say.memory(stage.peak_rss_bytes)}</td></tr>'
        for stage in stages
    )
    return (
        '<table><caption>Time and memory of each stage</caption><thead><tr><th scope="col">Stage</th>'
        '<th scope="col" class="spare">Share</th><th scope="col" class="number">Time</th>'
        '<th scope="col" class="number">Peak memory</th></tr></thead>'
        f'<tbody>{body}</tbody><tfoot><tr><th scope="row">All, one after the other</th><td class="spare"></td>'
        f'<td class="number">{say.duration(total)}</td><td class="number">{most}</td></tr></tfoot></table>'
    )


def _part(seconds: float, total: float) -> str:
    return charts.share(seconds / total if total else 0.0, f"{seconds:.0f} s of {total:.0f} s")


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return not_yet("The settings were not given.")
    text = json.dumps(settings, indent=2, default=str, ensure_ascii=False)
    return f'<details><summary>All settings of this run</summary><pre tabindex="0">{say.escaped(text)}</pre></details>'


def pairs(values: Mapping[str, Any], caption: str) -> str:
    """Returns a table of names and values; nothing where there are none."""
    if not values:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{say.escaped(name)}</th><td>{say.value(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="pairs"><caption>{say.escaped(caption)}</caption><tbody>{rows}</tbody></table>'


def video(content: bytes, label: str, kind: str = "") -> str:
    """Returns an mp4 (h264) as part of the page itself."""
    if content[4:8] != b"ftyp":
        raise ValueError(f"{label!r} begins with {content[:12]!r}, which is no mp4: encode it as h264 in mp4 first")
    data = base64.b64encode(content).decode()
    return (
        f'<video class="{kind}" src="data:video/mp4;base64,{data}" aria-label="{say.escaped(label)}" '
        'muted autoplay loop playsinline controls disablepictureinpicture preload="auto"></video>'
    )


def not_yet(said: str) -> str:
    """Returns what stands where something is missing."""
    return f'<p class="missing">{say.escaped(said)}</p>'


def _small(text: str) -> str:
    return f'<span class="small">{say.escaped(text)}</span>' if text else ""


def _kind(arm: str) -> str:
    return arm if arm in ARMS else ""
