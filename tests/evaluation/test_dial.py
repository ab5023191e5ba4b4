"""The imagine dial on the page: its points, its chart, and its absence."""

import dataclasses
import json
import re

import pytest
from made_up import made_up_report, made_up_results

from ideomotor.evaluation import charts
from ideomotor.evaluation.dial import DialPoint, dial_point, section
from ideomotor.evaluation.report import as_json, render
from ideomotor.evaluation.statistics import wilson


def test_a_point_is_the_cost_and_the_successes_of_its_episodes() -> None:
    rows = made_up_results("x", (0.5,) * 5)
    point = dial_point("half", rows)
    assert (point.name, point.successes, point.episodes) == ("half", 50, 100)
    assert point.interval == wilson(50, 100)[1:]
    steps = sum(row.steps for row in rows)
    assert point.cpu_ms == pytest.approx(1000 * 0.1 * len(rows) / steps)


def test_the_section_is_there_with_the_points_and_gone_without(report) -> None:
    page, content = render(report), as_json(report)
    assert page.count('id="dial"') == 1 and page.count('href="#dial"') == 1
    assert [point["name"] for point in content["dial"]] == ["none", "features", "half", "full"]
    assert set(content["dial"][0]) == {"name", "cpu_ms", "successes", "episodes", "interval"}
    without = dataclasses.replace(report, dial=())
    page, content = render(without), as_json(without)
    assert "#dial" not in page and 'id="dial"' not in page and "This run is not finished" not in page
    assert content["dial"] == [] and json.dumps(content)


def test_unequal_trials_are_owned_up_to() -> None:
    points = made_up_report().dial
    assert "same number of episodes" not in section(points)
    assert "same number of episodes" in section([*points[1:], dataclasses.replace(points[0], episodes=99)])


def test_names_and_texts_are_escaped() -> None:
    point = DialPoint(name="<b>\"'&", cpu_ms=3.0, successes=1, episodes=2, interval=(0.1, 0.9))
    assert "<b>" not in section([point])


@pytest.mark.parametrize("costs", [(3.2,), (4.0, 4.1, 4.2, 4.3), (0.0, 1.0), (0.5, 8.0, 900.0), (1e-3, 1e6)])
def test_the_chart_holds_any_costs(costs: tuple[float, ...]) -> None:
    marks = [charts.Mark(f"n{i}", cost, i / 4, 0.0, 1.0) for i, cost in enumerate(costs)]
    drawing = charts.costs(marks, "cost")
    xs = [float(x) for x in re.findall(r'<circle class="point" cx="([\d.]+)"', drawing)]
    assert len(xs) == len(costs) and xs == sorted(xs) and xs[0] > 46 and xs[-1] < 324
    assert "nan" not in drawing
    named = re.findall(r'<text class="name" x="([\d.]+)" y="(-?[\d.]+)"', drawing)
    places = [(float(x), float(y)) for x, y in named]
    for i, (x, y) in enumerate(places):
        assert all(abs(x - u) >= 17 or abs(y - v) >= 12 for u, v in places[:i][-1:])
    ticks = re.findall(r'y="207" text-anchor="middle">([^<]*)<', drawing)
    assert 1 <= len(ticks) <= 7
