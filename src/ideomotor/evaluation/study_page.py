"""The page of a study: what may be claimed, one figure, one table, and what was declared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from string import Template

from ideomotor.evaluation import charts, page
from ideomotor.evaluation import wording as say
from ideomotor.evaluation.statistics import Estimate
from ideomotor.evaluation.study_summary import ArmFigures, Difference, StudySummary


def study_page(summary: StudySummary, versions: Mapping[str, str]) -> str:
    """Returns the page, one HTML file that asks nothing of any network."""
    study = summary.study
    text, policy = page.template("study_page.html")
    banner = ""
    if summary.missing:
        banner = (
            f'<p class="banner" role="status"><strong>This study is not finished.</strong> {summary.missing:,} of '
            f"{study.num_rows:,} episodes are missing. The same command goes on where it stopped.</p>"
        )
    declared = {
        "recipe": study.recipe,
        "arms": {arm: _settings(settings) for arm, settings in study.arms.items()},
        "control": study.control,
        "settings of all arms": _settings(study.settings),
        "seeds": study.seeds,
        "tasks": study.tasks,
        "episodes a task": study.episodes,
        "evaluated after": [f"{at:,} steps" for at in study.at],
        "metric": study.metric,
        "digest": study.digest,
    }
    return Template(text).substitute(
        policy=policy,
        mark="ideomotor study",
        title=say.escaped(study.title),
        question=say.escaped(study.question),
        banner=banner,
        verdicts="".join(
            f'<p class="verdict">{say.escaped(verdict(item, summary))}</p>' for item in summary.differences
        )
        or '<p class="missing">Nothing can be said before a seed is complete in the control and in another arm.</p>',
        figure=_figure(summary),
        table=_table(summary),
        notes=f'<p class="note">{say.escaped(" ".join([_HOW, *summary.notes()]))}</p>',
        declared=page.pairs(declared, "The declaration"),
        versions=page.pairs(versions, "Versions"),
    )


def verdict(item: Difference, summary: StudySummary) -> str:
    """Returns what may be claimed of an arm, in a sentence."""
    study = summary.study
    success = study.metric == "success"
    size = f"{gap(item.over_seeds.value, success)}{' points' if success else ''}"
    if not math.isfinite(item.over_seeds.low):
        return (
            f"{item.arm} against {study.control}: {size}, of {item.seeds} complete seed{'s' * (item.seeds != 1)}. So "
            "few cannot tell."
        )
    interval = f"95% interval {gap(item.over_seeds.low, success)} to {gap(item.over_seeds.high, success)}"
    if item.verdict == "cannot tell":
        return f"These episodes cannot tell {item.arm} from {study.control}: {size} ({interval})."
    what = "succeeds more often" if item.verdict == "better" else "succeeds less often"
    if not success:
        what = f"earns {'more' if item.verdict == 'better' else 'less'}"
    return f"{item.arm} {what} than {study.control} on these tasks: {size} ({interval})."


def mean(estimate: Estimate | None, success: bool) -> str:
    """Returns a mean with its interval."""
    if estimate is None:
        return "not yet"
    if success:
        return f"{say.percent(estimate.value)} ({say.span(estimate)})"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})".replace("-", "−")


def gap(value: float, success: bool) -> str:
    """Returns a difference with its sign, in points of success or in the unit of the reward."""
    return say.points(value) if success else f"{value:+.4g}".replace("-", "−")


def gap_interval(estimate: Estimate, success: bool) -> str:
    """Returns a difference with its interval."""
    if not math.isfinite(estimate.low):
        return f"{gap(estimate.value, success)} (no interval)"
    return f"{gap(estimate.value, success)} ({gap(estimate.low, success)} to {gap(estimate.high, success)})"


_HOW = (
    "All intervals are at 95%. Those of means: seeds, then tasks, then episodes resampled; Wilson's where all "
    "episodes ended alike. The difference: Student's t over the seeds' paired differences, which claims what is not "
    "there in 5% of studies; that called resampled: as for the means."
)


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()) or "(defaults)"


def _figure(summary: StudySummary) -> str:
    study = summary.study
    success = study.metric == "success"
    series = []
    for arm in summary.arms:
        known = [(point.at, point.mean) for point in arm.curve if point.mean is not None]
        series.append(
            charts.Band(
                arm.name,
                [at for at, _ in known],
                [found.value for _, found in known],
                [found.low for _, found in known],
                [found.high for _, found in known],
            )
        )
    if not any(band.steps for band in series):
        return '<p class="missing">The figure comes with the first complete seed.</p>'
    what = "Mean success" if success else "Mean total reward"
    said = "; ".join(f"{arm.name} {mean(arm.curve[-1].mean, success)}" for arm in summary.arms)
    if len(study.at) == 1:
        drawn = charts.intervals([band for band in series if band.steps], f"{what}: {said}", shares=success)
        return (
            f'<figure class="study">{drawn}<figcaption>{what} over the tasks, with 95% intervals.</figcaption></figure>'
        )
    drawn = charts.bands(series, f"{what}, at the end: {said}", "environment steps learned from", shares=success)
    legend = charts.legend([band.name for band in series])
    return (
        f'<figure class="study">{drawn}<figcaption>{legend}<br>{what} over the tasks, with 95% intervals.'
        "</figcaption></figure>"
    )


def _table(summary: StudySummary) -> str:
    study = summary.study
    differences = {item.arm: item for item in summary.differences}
    body = "".join(_rows(arm, summary, differences.get(arm.name)) for arm in summary.arms)
    after = f"after {study.at[-1]:,} steps" if len(study.at) > 1 else "of all episodes"
    heads = "".join(
        f'<th scope="col" class="number{kind}">{name}</th>'
        for name, kind in (
            ("Success" if study.metric == "success" else "Reward", ""),
            ("Difference" + ("" if study.metric != "success" else ", points"), ""),
            ("Wins on a task", " spare"),
            ("Time", " spare"),
        )
    )
    return (
        f'<table><caption>Each arm {after}, and each of its tasks</caption><thead><tr><th scope="col">Arm</th>{heads}'
        f"</tr></thead><tbody>{body}</tbody></table>"
    )


def _rows(arm: ArmFigures, summary: StudySummary, item: Difference | None) -> str:
    success = summary.study.metric == "success"
    shown, chance = "–", "–"
    if arm.name == summary.study.control:
        shown = chance = "control"
    elif item is not None:
        drawn = gap_interval(item.bootstrap, success).partition(" (")[2].rstrip(")")
        shown = _stacked(gap_interval(item.over_seeds, success)) + f'<span class="small">resampled {drawn}</span>'
        chance = _stacked(f"{say.percent(item.improvement.value)} ({say.span(item.improvement)})")
    lacking = f'<span class="small">{arm.missing:,} episodes missing</span>' if arm.missing else ""
    rows = (
        f'<tr><th scope="row">{say.escaped(arm.name)}{lacking}</th>'
        f'<td class="number">{_stacked(mean(arm.curve[-1].mean, success))}</td>'
        f'<td class="number">{shown}</td><td class="number spare">{chance}</td>'
        f'<td class="number spare">{say.duration(arm.seconds)}</td></tr>'
    )
    if len(arm.tasks) > 1:
        rows += "".join(
            f'<tr class="part"><th scope="row">{say.escaped(task)}</th>'
            f'<td class="number">{_stacked(mean(found, success))}</td><td></td><td class="spare"></td>'
            '<td class="spare"></td></tr>'
            for task, found in arm.tasks.items()
        )
    return rows


def _stacked(text: str) -> str:
    """Returns a figure with its interval, which stands in brackets, below it."""
    figure, _, interval = text.partition(" (")
    under = f'<span class="small">{say.escaped(interval.rstrip(")"))}</span>' if interval else ""
    return f"<strong>{say.escaped(figure)}</strong>{under}"
