"""The imagine dial: what each of its settings costs and how often it succeeds, and its part of the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ideomotor.evaluation import charts
from ideomotor.evaluation import wording as say
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.evaluation.statistics import Estimate, wilson

MEANINGS = {
    "none": "no foresight",
    "features": "one pass over an unknown future",
    "half": "a future decoded in half of the passes",
    "full": "a future decoded in all passes, as a video",
}
"""The settings from the cheapest to the dearest, and what the policy acts on at each."""


@dataclass(frozen=True, kw_only=True)
class DialPoint:
    """One setting of the dial.

    Attributes:
        name: of the setting.
        cpu_ms: processor time of the policy per environment step, in milliseconds.
        successes, episodes: over all tasks.
        interval: Wilson's at 95 %, of the share of successes.
    """

    name: str
    cpu_ms: float
    successes: int
    episodes: int
    interval: tuple[float, float]


def dial_point(name: str, results: Collection[EpisodeResult]) -> DialPoint:
    """Returns the setting's point, from its episodes.

    Raises:
        ValueError: no episode.
    """
    estimate = wilson(sum(result.success for result in results), len(results))
    cpu = 1000 * sum(result.inference_cpu_seconds for result in results)
    return DialPoint(
        name=name,
        cpu_ms=cpu / max(1, sum(result.steps for result in results)),
        successes=sum(result.success for result in results),
        episodes=len(results),
        interval=(estimate.low, estimate.high),
    )


def section(points: Sequence[DialPoint]) -> str:
    """Returns the dial's section of the page; nothing where no point is."""
    if not points:
        return ""
    shares = [point.successes / point.episodes for point in points]
    marks = [
        charts.Mark(point.name, point.cpu_ms, share, *point.interval)
        for point, share in zip(points, shares, strict=True)
    ]
    said = "; ".join(f"{mark.name} {mark.cost:.3g} ms, success {say.percent(mark.share)}" for mark in marks)
    rows = "".join(
        f'<tr><th scope="row">{say.escaped(point.name)}'
        f'<span class="small">{say.escaped(MEANINGS.get(point.name, ""))}</span></th>'
        f'<td class="number">{point.cpu_ms:.3g} ms</td>'
        f'<td class="number"><strong>{point.successes}</strong> of {point.episodes}'
        f'<span class="small">{say.span(Estimate(share, *point.interval))}</span></td></tr>'
        for point, share in zip(points, shares, strict=True)
    )
    note = "Across: processor time of the policy per environment step, logarithmic. Up: success, with Wilson intervals."
    if len({point.episodes for point in points}) > 1:
        note += (
            " The settings have not all met the same number of episodes; costs then differ also because more or fewer "
            "worlds shared a pass."
        )
    return (
        '<section id="dial" aria-labelledby="h-dial"><h2 id="h-dial">How much to imagine</h2>'
        "<p>The same policy, which imagines less or more before it acts: what that costs, and what it gains.</p>"
        f'<div class="dial"><figure>{charts.costs(marks, f"Success over cost: {said}")}</figure>'
        "<table><caption>Cost and success of each setting</caption><thead><tr>"
        '<th scope="col">Dial</th><th scope="col" class="number">CPU time a step</th>'
        f'<th scope="col" class="number">Success</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="note">{say.escaped(note)}</p></section>'
    )
