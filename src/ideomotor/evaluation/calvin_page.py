"""The page of an evaluation in sequences: how many tasks in a row, which tasks fail, and films of failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from ideomotor.evaluation import charts, page
from ideomotor.evaluation import wording as say
from ideomotor.evaluation.calvin_results import SequenceResult, SequenceSummary, write_tables
from ideomotor.evaluation.report import TaskSuccess
from ideomotor.evaluation.statistics import Estimate
from ideomotor.files import write_text


@dataclass(frozen=True, kw_only=True)
class FailureFilm:
    """A sequence that was not finished, as an mp4 (h264) file."""

    result: SequenceResult
    video: bytes


@dataclass(frozen=True, kw_only=True)
class SequencePage:
    """All that the page shows.

    Attributes:
        arms: by name, at least one; the first is drawn strongest.
        wanted: how many sequences each arm shall run; with fewer the page says that it is unfinished.
        protocol: what was run, as names and values (world, cameras, steps, instructions, ...).
        command: what repeats the run, to be typed as it stands.
        environment: versions and machine, as names and values.
    """

    title: str
    command: str
    arms: Mapping[str, SequenceSummary]
    wanted: int
    subtitle: str = ""
    created: str = ""
    films: Sequence[FailureFilm] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def sequence_page(data: SequencePage) -> str:
    """Returns the page, one HTML file that asks nothing of any network.

    Raises:
        ValueError: there is no arm, or the bytes given for a film are no mp4.
    """
    if not data.arms:
        raise ValueError("a page wants at least one arm; none was given")
    text, policy = page.template("calvin_page.html")
    return Template(text).substitute(
        policy=policy,
        mark="ideomotor sequences",
        title=say.escaped(data.title),
        subtitle=say.escaped(data.subtitle),
        created=say.escaped(data.created),
        banner=_banner(data),
        verdicts="".join(f'<p class="verdict">{say.escaped(verdict(*arm))}</p>' for arm in data.arms.items()),
        figure=_figure(data.arms),
        table=_rates(data.arms),
        tasks=_tasks(data.arms),
        films=_films(data.films),
        protocol=page.pairs(data.protocol, "Protocol") or page.not_yet("The protocol was not given."),
        environment=page.pairs(data.environment, "The machine and the versions of this run"),
        command=say.escaped(data.command),
    )


def write_sequence_report(folder: Path, data: SequencePage) -> Path:
    """Writes ``report.html`` and the tables of ``write_tables`` into the folder; returns the page's path."""
    text = sequence_page(data)
    write_tables(folder, data.arms)
    write_text(folder / "report.html", text)
    return folder / "report.html"


def verdict(name: str, summary: SequenceSummary) -> str:
    """Returns how an arm fared, in a sentence."""
    length, all_five = summary.average_length, summary.rates[-1]
    return (
        f"{name}: {length.value:.2f} tasks in a row on average{_ends(length)} over {summary.sequences:,} sequences; "
        f"all five in {say.percent(all_five.value)} of them ({say.span(all_five)})."
    )


def _ends(length: Estimate) -> str:
    return f" (95% interval {length.low:.2f} to {length.high:.2f})" if length.low == length.low else ""


def _banner(data: SequencePage) -> str:
    lacking = {name: data.wanted - arm.sequences for name, arm in data.arms.items() if arm.sequences < data.wanted}
    if not lacking:
        return ""
    said = "; ".join(f"{name} lacks {number:,} of {data.wanted:,} sequences" for name, number in lacking.items())
    return (
        f'<p class="banner" role="status"><strong>This evaluation is not finished.</strong> {say.escaped(said)}. The '
        "command at the foot of the page goes on where it stopped.</p>"
    )


def _figure(arms: Mapping[str, SequenceSummary]) -> str:
    bands = [
        charts.Band(
            name,
            list(range(1, len(arm.rates) + 1)),
            [rate.value for rate in arm.rates],
            [rate.low for rate in arm.rates],
            [rate.high for rate in arm.rates],
        )
        for name, arm in arms.items()
    ]
    label = "Share of sequences with that many tasks done in a row"
    drawing = charts.bands(bands, label, "tasks in a row", shares=True)
    return (
        f'<figure class="study">{drawing}<figcaption>{charts.legend(list(arms))}<br>{label}, with 95% intervals'
        "</figcaption></figure>"
    )


def _rates(arms: Mapping[str, SequenceSummary]) -> str:
    longest = len(next(iter(arms.values())).rates)
    heads = "".join(f'<th scope="col" class="number">{row}</th>' for row in range(1, longest + 1))
    body = "".join(
        f'<tr><th scope="row">{say.escaped(name)}</th>'
        + "".join(
            f'<td class="number">{100 * rate.value:.1f}%<span class="small">{say.span(rate)}</span></td>'
            for rate in arm.rates
        )
        + f'<td class="number"><strong>{arm.average_length.value:.2f}</strong></td></tr>'
        for name, arm in arms.items()
    )
    return (
        "<table><caption>Success of 1 to 5 tasks in a row, and the mean length</caption><thead><tr><th></th>"
        f'{heads}<th scope="col" class="number">mean length</th></tr></thead><tbody>{body}</tbody></table>'
    )


def _tasks(arms: Mapping[str, SequenceSummary]) -> str:
    names = list(dict.fromkeys(task for arm in arms.values() for task in arm.tasks))
    heads = "".join(f'<th scope="col" class="number">{say.escaped(name)}</th>' for name in arms)
    body = "".join(_task(name, {arm: summary.tasks.get(name) for arm, summary in arms.items()}) for name in names)
    return (
        "<table><caption>Success where tried, with Wilson 95% intervals</caption><thead><tr>"
        '<th scope="col">Task</th><th scope="col" class="drawn"><span class="ends"><span>0%</span><span>100%</span>'
        f"</span></th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _task(name: str, rows: Mapping[str, TaskSuccess | None]) -> str:
    first = next(iter(rows))
    drawn = [
        charts.Bar(row.successes / row.episodes, *row.interval, "cost" if arm == first else "")
        for arm, row in rows.items()
        if row is not None
    ]
    told = name.replace("_", " ")
    label = f"{told}: " + "; ".join(say.percent(bar.share) for bar in drawn)
    cells = "".join(f'<td class="number">{_count(row)}</td>' for row in rows.values())
    return f'<tr><th scope="row">{say.escaped(told)}</th><td class="drawn">{charts.bars(drawn, label)}</td>{cells}</tr>'


def _count(row: TaskSuccess | None) -> str:
    if row is None:
        return '<span class="small">not tried</span>'
    interval = say.span(Estimate(row.successes / row.episodes, *row.interval))
    return f'<strong>{row.successes}</strong> of {row.episodes}<span class="small">{interval}</span>'


def _films(films: Sequence[FailureFilm]) -> str:
    if not films:
        return page.not_yet("No sequence that failed was filmed.")
    return '<div class="clips">' + "".join(_film(film) for film in films) + "</div>"


def _film(film: FailureFilm) -> str:
    result = film.result
    way = " · ".join(
        f'<span class="{"success" if done else "failure"}">{"✓" if done else "✗"} {say.escaped(task)}</span>'
        for task, done in result.attempts
    ).replace("_", " ")
    name = f"sequence {result.sequence} of {result.arm}: {result.solved} of {len(result.tasks)} tasks"
    return (
        f'<figure class="rollout">{page.video(film.video, name)}<figcaption>{way}'
        f'<span class="small">{say.escaped(name)} · {result.steps[-1]} steps at the last</span></figcaption></figure>'
    )
