"""The page of a learned world: how near each step comes, its futures beside the truth, whether actions are heard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from ideomotor.evaluation import charts, page
from ideomotor.evaluation import wording as say
from ideomotor.evaluation.report import Stage

STILL = "last frame repeated"
"""The name of that baseline among the curves."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """Context, truth and futures of one clip, side by side, as an mp4 (h264) file.

    ``across`` is the number of pictures side by side, where few of them would be drawn too large.
    """

    text: str
    episode: str
    video: bytes
    across: int | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the page says of that which a model is told, in whole phrases.

    Attributes:
        mark: the page's name, beside the sign.
        lead: how the films are to be read.
        question: heading of what is found out about it.
        heard: what the model does if it matters.
        hear_not: the same after "it does not".
        untold: stands where there was nothing to be told.
        numbers: the file of the figures, beside the page.
    """

    mark: str = "ideomotor world"
    lead: str = (
        "While the context plays, all panels show it (blue). Then: what happened (green), futures drawn from the "
        "world for the same actions (orange), and how far the first of them is off (magenta)."
    )
    question: str = "Does it hear actions?"
    heard: str = "hears what is done"
    hear_not: str = "hear what is done"
    untold: str = "This world was trained without actions."
    numbers: str = "scores/scores.json"


@dataclass(frozen=True, kw_only=True)
class WorldPage:
    """All that the page shows.

    Attributes:
        ours: the name of the model's own curve.
        rivals: curves that it is set against in words; None for all others.
        told: how the page speaks of what the model is told, by default of a world that hears actions.
        tables: further figures, by caption.
        moving_psnr: by name ("world", ``STILL``, others), a figure a step, in dB.
        gaps: by what was done instead ("another clip's actions", "no action"), by how much the squared error (pixels
            in 0..1) grows: value, low, high; None for ends that cannot be had.
        reward_error: mean absolute error of the foretold rewards ("world") and of saying always their mean ("their
            mean"); None where none are foretold.
        strict: metrics of the strict protocol, as value, low, high.
    """

    title: str
    subtitle: str
    created: str
    command: str
    moving_psnr: Mapping[str, Sequence[float]]
    gaps: Mapping[str, tuple[float, float | None, float | None]]
    reward_error: Mapping[str, float] | None
    strict: Mapping[str, tuple[float, float | None, float | None]]
    films: Sequence[Film]
    protocol: Mapping[str, Any]
    stages: Sequence[Stage]
    environment: Mapping[str, Any]
    ours: str = "world"
    rivals: Sequence[str] | None = None
    told: Told = Told()
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def world_page(data: WorldPage) -> str:
    """Returns the page, one HTML file that asks nothing of any network."""
    text, policy = page.template("world_page.html")
    steps = range(1, len(data.moving_psnr[data.ours]) + 1)
    series = [charts.Line(name, list(steps), list(values)) for name, values in data.moving_psnr.items()]
    label = "Moving-pixel PSNR in dB by step of the imagination"
    return Template(text).substitute(
        policy=policy,
        title=say.escaped(data.title),
        subtitle=say.escaped(data.subtitle),
        created=say.escaped(data.created),
        verdicts="".join(f'<p class="verdict">{say.escaped(said)}</p>' for said in verdicts(data)),
        figure=f'<figure class="study">{charts.lines(series, label)}<figcaption>{charts.legend(list(data.moving_psnr))}'
        f"<br>{label}</figcaption></figure>",
        table=_steps(data.moving_psnr),
        futures=_films(data.films),
        mark=say.escaped(data.told.mark),
        lead=say.escaped(data.told.lead),
        question=say.escaped(data.told.question),
        numbers=say.escaped(data.told.numbers),
        told=_gaps(data.gaps, data.told.untold),
        protocol=page.pairs(data.protocol, "Protocol")
        + page.pairs({name: _figure(row) for name, row in data.strict.items()}, "Future frames alone (protocol strict)")
        + "".join(page.pairs(rows, caption) for caption, rows in data.tables.items()),
        cost=page.pairs({one.name: say.duration(one.seconds) for one in data.stages}, "Time of the stages"),
        environment=page.pairs(data.environment, "The machine and the versions of this run"),
        command=say.escaped(data.command),
    )


def verdicts(data: WorldPage) -> list[str]:
    """Returns what may be said, in sentences."""
    ours, said = data.moving_psnr[data.ours], []
    for name, theirs in data.moving_psnr.items():
        if name != data.ours and (data.rivals is None or name in data.rivals):
            ahead = sum(mine > other for mine, other in zip(ours, theirs, strict=True))
            mean = sum(ours) / len(ours) - sum(theirs) / len(theirs)
            gap = f"{mean:+.1f} dB".replace("-", "−")
            said.append(f"Nearer than “{name}” at {ahead} of {len(ours)} steps; {gap} on the mean of the steps.")
    for name, (value, low, high) in data.gaps.items():
        heard = low is not None and low > 0
        if value == 0:
            said.append(f"With {name} the imagination is the same: it does not {data.told.hear_not}.")
            continue
        said.append(
            f"With {name} the error {'grows' if value > 0 else 'shrinks'} by {abs(value):.2e}"
            + (f" (95% interval {low:.2e} to {high:.2e})." if low is not None and high is not None else ".")
            + (f" It {data.told.heard}." if heard else f" These clips cannot tell whether it {data.told.heard}.")
        )
    if data.reward_error is not None:
        off, constant = data.reward_error["world"], data.reward_error["their mean"]
        said.append(f"Its rewards are off by {off:.3g} on average; saying always their mean, {constant:.3g}.")
    return said


def _steps(curves: Mapping[str, Sequence[float]]) -> str:
    heads = "".join(f'<th scope="col" class="number">{say.escaped(name)}</th>' for name in curves)
    rows = "".join(
        f'<tr><th scope="row">step {step + 1}</th>'
        + "".join(f'<td class="number">{_decibel(values[step])}</td>' for values in curves.values())
        + "</tr>"
        for step in range(len(next(iter(curves.values()))))
    )
    return (
        f"<table><caption>Moving-pixel PSNR, more is nearer</caption><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _decibel(value: float) -> str:
    return say.decibel(value) if math.isfinite(value) else "∞"


def _films(films: Sequence[Film]) -> str:
    if not films:
        return page.not_yet("No clip was kept to be shown.")
    shown = "".join(
        f'<figure class="film{"" if film.across is None else f" across{film.across}"}">'
        f"{page.video(film.video, f'truth and futures: {film.text}')}"
        f"<figcaption>{say.escaped(film.text or film.episode)} · {say.escaped(film.episode)}</figcaption></figure>"
        for film in films
    )
    return f'<div class="films">{shown}</div>'


def _gaps(gaps: Mapping[str, tuple[float, float | None, float | None]], untold: str) -> str:
    if not gaps:
        return page.not_yet(untold)
    return page.pairs({f"with {name}": _figure(row) for name, row in gaps.items()}, "Growth of the squared error")


def _figure(row: tuple[float, float | None, float | None]) -> str:
    value, low, high = row
    interval = "no interval" if low is None or high is None else f"{low:.3g} to {high:.3g}"
    return f"{value:.4g} ({interval})".replace("-", "−")
