import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import NO_VIDEO, TASKS, made_up_report, made_up_results

from ideomotor.evaluation import charts
from ideomotor.evaluation import wording as say
from ideomotor.evaluation.report import (
    Curve,
    Imagination,
    ReportData,
    as_json,
    compare,
    render,
    summarize,
    write_report,
)
from ideomotor.evaluation.statistics import mean_success, paired_difference, wilson

NASTY = "<script>alert(1)</script> \"'&<img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    """Collects tags with their attributes, and complains of those that are left open."""

    VOID = frozenset({"meta", "link", "br", "rect", "line", "path", "circle", "img"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_json_is_the_agreed_one(report):
    content = as_json(report)
    assert content["protocol"]["demonstrations a task"] == 20
    assert set(content["arms"]) == {"pretrained", "control"}
    rows = made_up_results("pretrained")
    for arm in content["arms"].values():
        assert list(arm["tasks"]) == list(TASKS)
        shares = [task["successes"] / task["episodes"] for task in arm["tasks"].values()]
        assert arm["mean_success"] == pytest.approx(np.mean(shares))
    door = content["arms"]["pretrained"]["tasks"]["door-open"]
    wins = sum(row.success for row in rows if row.task == "door-open")
    assert door == {"episodes": 20, "successes": wins, "interval": list(wilson(wins, 20)[1:])}
    assert content["imagination"]["moving_psnr"] == 23.4
    assert content["imagination"]["repeat_last_moving_psnr"] == 18.9
    assert content["stages"][0] == {"name": "collect", "seconds": 212.4, "peak_rss_bytes": 1_210_000_000}
    assert content["missing"] == []


def test_figures_that_are_not_finite_become_null(report):
    broken = dataclasses.replace(
        report,
        imagination=Imagination(moving_psnr=math.inf, repeat_last_moving_psnr=math.nan, num_clips=1),
        settings={"rate": math.nan, "tasks": range(2), "path": re},
    )
    content = json.loads(json.dumps(as_json(broken), allow_nan=False))
    assert content["imagination"] == {"moving_psnr": None, "repeat_last_moving_psnr": None, "clips": 1}
    assert content["settings"]["rate"] is None and content["settings"]["tasks"] == [0, 1]


def test_summary_and_comparison_are_the_statistics_of_the_rows():
    ours, control = made_up_results("pretrained"), made_up_results("control", (0.9, 0.75, 0.7, 0.5, 0.35))

    def table(rows):
        return [[[float(r.success) for r in rows if r.task == task] for task in sorted(TASKS)]]

    assert summarize(ours).mean == mean_success(table(ours))
    got = compare(ours, list(reversed(control)))
    assert got.difference == paired_difference(table(ours), table(control))
    assert (got.episodes, got.seeds) == (100, 1)


def test_an_unfinished_run_compares_what_pairs():
    ours, control = made_up_results("pretrained"), made_up_results("control")
    assert compare(ours, control[:33]).episodes == 33  # a task and a half, and no more
    assert compare(ours, []) is None
    second = [dataclasses.replace(row, seed=1) for row in ours[:20]]
    both = compare(ours + second, control + second)
    assert (both.episodes, both.seeds) == (40, 2)  # only the first task has been met by both seeds
    assert summarize(ours + second).mean is not None
    assert summarize([ours[0], dataclasses.replace(ours[20], seed=1)]).mean is None
    with pytest.raises(ValueError, match="all of one arm"):
        summarize(ours + control)


def test_the_page_is_whole_and_asks_for_nothing(report):
    page = render(report)
    tags = Tags(page)
    assert not re.search(r"https?://|url\(|@import", page)
    for tag, attrs in tags.tags:
        assert "style" not in attrs and not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    videos = tags.all("video")
    assert len(videos) == 3 * 4 + 6
    for video in videos:
        assert {"muted", "autoplay", "loop", "playsinline", "controls"} <= set(video) and video["aria-label"]
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in tags.all("svg"))
    assert len(tags.all("caption")) == len(tags.all("table"))
    assert all(head.get("scope") in ("row", "col") for head in tags.all("th"))
    assert {link["href"][1:] for link in tags.all("a")} <= {section["id"] for section in tags.all("section")}


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.02, 0.2, "raised mean success"), (-0.2, -0.02, "lowered mean success"), (-0.1, 0.1, "cannot tell the effect")],
)
def test_the_verdict_says_what_the_interval_allows(report, low, high, says):
    gap = report.comparison.difference._replace(value=(low + high) / 2, low=low, high=high)
    page = render(dataclasses.replace(report, comparison=dataclasses.replace(report.comparison, difference=gap)))
    assert says in page
    assert sum(said in page for said in ("raised mean success", "lowered mean success", "cannot tell the effect")) == 1


def test_a_worse_imagination_is_not_called_nearer(report):
    worse = Imagination(moving_psnr=17.0, repeat_last_moving_psnr=18.9, num_clips=3)
    page = render(dataclasses.replace(report, imagination=worse))
    assert "no nearer to what happened than" in page and "−1.9" in page


def test_one_seed_and_no_width_are_owned_up_to(report):
    assert "One training seed" in render(report)
    sure = summarize(made_up_results("pretrained", (1.0,) * 5))
    page = render(dataclasses.replace(report, arms={"pretrained": sure}))
    assert "not certainty" in page and "not certainty" not in render(report)


def test_an_empty_run_says_what_is_missing(tmp_path):
    data = ReportData(title="Just begun", command="ideomotor quickstart")
    page = write_report(tmp_path, data).read_text()
    Tags(page)
    assert "This run is not finished" in page and "No stage has finished yet" in page
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["arms"] == {} and content["imagination"] is None and "training curves" in content["missing"]


@pytest.mark.parametrize("absent", ["arms", "comparison", "imagination", "rollouts", "curves", "stages", "protocol"])
def test_each_part_may_be_missing(report, absent):
    empty = getattr(ReportData(title="", command=""), absent)
    page = render(dataclasses.replace(report, **{absent: empty}))
    Tags(page)
    assert absent == "protocol" or "This run is not finished" in page
    assert "This run is not finished" not in render(report)


def test_every_text_is_escaped(report):
    rows = [dataclasses.replace(row, task=NASTY, arm="pretrained") for row in made_up_results("pretrained")[:3]]
    clip = dataclasses.replace(report.imagination.clips[0], text=NASTY, source=NASTY)
    page = render(
        dataclasses.replace(
            report,
            title=NASTY,
            subtitle=NASTY,
            created=NASTY,
            command=NASTY,
            protocol={NASTY: [NASTY, {NASTY: NASTY}]},
            arms={"pretrained": summarize(rows)},
            imagination=dataclasses.replace(report.imagination, clips=[clip]),
            rollouts=[dataclasses.replace(report.rollouts[0], result=dataclasses.replace(rows[0], arm=NASTY))],
            curves=[Curve(stage=NASTY, name=NASTY, steps=[0, 1], values=[1, math.nan])],
            stages=[dataclasses.replace(report.stages[0], name=NASTY, note=NASTY)],
            settings={NASTY: NASTY},
            environment={NASTY: NASTY},
        )
    )
    tags = Tags(page)
    assert len(tags.all("script")) == 1 and not tags.all("img")


def test_bytes_that_are_no_mp4_are_refused(report):
    with pytest.raises(ValueError, match="no mp4"):
        render(dataclasses.replace(report, rollouts=[dataclasses.replace(report.rollouts[0], video=b"GIF89a......")]))


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch, report):
    write_report(tmp_path, report)
    old = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(old) == {"report.html", "report.json"}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ideomotor.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, dataclasses.replace(report, title="new"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


def test_the_same_data_give_the_same_page():
    assert render(made_up_report()) == render(made_up_report())
    assert NO_VIDEO[4:8] == b"ftyp"


def test_a_long_curve_is_thinned_to_the_means_of_neighbours():
    values = np.arange(1000.0)
    values[10:15] = np.nan
    steps, means = charts._thinned(charts.Line("loss", np.arange(1000), values))
    assert len(steps) == 200
    assert means[:2].tolist() == [2.0, 7.0] and math.isnan(means[2]) and means[3] == 17.0


def test_a_chart_breaks_at_nan_and_survives_odd_curves():
    drawing = charts.lines([charts.Line("a", [0, 1, 2, 3], [1.0, math.nan, 3.0, 2.0])], "a")
    assert len(re.findall(r"M[\d.]", re.search(r' d="([^"]*)"', drawing)[1])) == 2
    for steps, values in (([0], [5.0]), ([0, 1], [0.0, 0.0]), ([5, 5], [1e-9, 1e9]), ([0, 1], [-3.0, 4e6])):
        assert "nan" not in charts.lines([charts.Line("a", steps, values)], "a")
    assert "No finite value" in charts.lines([charts.Line("a", [0], [math.nan])], "a")
    with pytest.raises(ValueError, match="one finite step for each value"):
        charts.lines([charts.Line("a", [0, 1], [1.0])], "a")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.013), (-7, 3), (0, 123456), (2.5, 2.6)])
def test_ticks_are_round_few_and_inside(low, high):
    ticks = charts._ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    gaps = np.diff(ticks)
    assert np.allclose(gaps, gaps[0]) and f"{gaps[0]:.0e}"[0] in "125"


def test_wording():
    assert [say.points(x) for x in (0.173, -0.04, 0.004, -0.004)] == ["+17", "−4", "0", "0"]
    assert [say.duration(s) for s in (3.21, 59.97, 192, 3720)] == ["3.2 s", "1 min 00 s", "3 min 12 s", "1 h 02 min"]
    assert [say.memory(n) for n in (300 * 2**20, 2 * 2**30)] == ["300 MiB", "2.00 GiB"]
    assert say.value({"a": [1, True, None], "b<": 20000}) == "a 1, yes, none, b&lt; 20,000"
