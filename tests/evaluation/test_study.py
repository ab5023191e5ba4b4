"""A study's declaration, figures and page, and that its statistics claim as seldom as they say."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ideomotor.evaluation.episodes import append, read_rows
from ideomotor.evaluation.statistics import (
    Estimate,
    difference_over_seeds,
    paired_difference,
    student_quantile,
    wilson,
)
from ideomotor.evaluation.study import Study, StudyRow, check_rows, read_study
from ideomotor.evaluation.study_page import study_page, verdict
from ideomotor.evaluation.study_simulation import Luck, share_of_claims
from ideomotor.evaluation.study_summary import study_json, summarize_study

DECLARED = """
title = "T"
question = "Q?"
recipe = "r"
control = "b"
seeds = [0, 1, 2]
tasks = ["x", "y"]
episodes = 4
at = [10, 20]
[arms.a]
[arms.b]
rate = 0.5
"""


def declare(folder: Path, text: str = DECLARED) -> Study:
    path = folder / "study.toml"
    path.write_text(text)
    return read_study(path)


def rows_of(study: Study, success) -> list[StudyRow]:
    return [
        StudyRow(
            study=study.digest,
            arm=arm,
            seed=seed,
            task=task,
            at=at,
            episode=number,
            success=bool(success(arm, seed, task, at, number)),
            steps=5,
            total_reward=-1.0,
            seconds=0.5,
        )
        for arm, seed, task, at, number in study.keys(study.arms, study.seeds, study.tasks)
    ]


# --- the declaration --------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    study = declare(tmp_path)
    again = "# a comment\n" + DECLARED.replace("[arms.a]\n", "").replace("seeds = [0, 1, 2]", "seeds = [ 0,1, 2 ]")
    assert declare(tmp_path, again + "[arms.a]\n").digest == study.digest
    assert declare(tmp_path, DECLARED.replace("0.5", "0.6")).digest != study.digest
    assert study.num_rows == len(study.keys(study.arms, study.seeds, study.tasks)) == 2 * 3 * 2 * 2 * 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seeds =", "sedes =", "did you mean 'seeds'"),
        ('recipe = "r"\n', "", "'recipe' is missing"),
        ("episodes = 4", 'episodes = "4"', "episodes is '4'; wanted int"),
        ("seeds = [0, 1, 2]", "seeds = 3", "wanted a list"),
        ("seeds = [0, 1, 2]", "seeds = [0, 0]", "none twice"),
        ("seeds = [0, 1, 2]", 'seeds = ["0"]', "at least one int"),
        ("at = [10, 20]", "at = [20, 10]", "ascending"),
        ("episodes = 4", "episodes = 0", "1 or more"),
        ('control = "b"', 'control = "c"', "the arms are 'a', 'b'"),
        ("episodes = 4", 'episodes = 4\nmetric = "reward"', "wanted one of success, total_reward"),
        ("[arms.a]", '[arms."a/b"]', "a name that a folder can have"),
        ('title = "T"', "title = T", "is no TOML file"),
    ],
)
def test_what_is_declared_wrongly_is_named(old: str, new: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says) as told:
        declare(tmp_path, DECLARED.replace(old, new))
    assert "study.toml" in str(told.value)


def test_rows_of_another_declaration_are_refused(tmp_path: Path) -> None:
    study, other = declare(tmp_path), declare(tmp_path, DECLARED.replace("0.5", "0.6"))
    rows = rows_of(study, lambda *_: True)
    check_rows(study, rows, "here")
    with pytest.raises(ValueError, match="a row of another study"):
        check_rows(other, rows, "here")


def test_rows_come_back_from_the_disk(tmp_path: Path) -> None:
    rows = rows_of(declare(tmp_path), lambda arm, *_: arm == "a")[:3]
    log = tmp_path / "rows.jsonl"
    for row in rows[:2]:
        append(log, row)
    log.write_bytes(log.read_bytes() + b'{"study": "torn')
    assert read_rows(log, StudyRow) == rows[:2]
    append(log, rows[2])
    assert read_rows(log, StudyRow) == rows
    append(log, rows[0])
    with pytest.raises(ValueError, match=r"line 4 .* repeats"):
        read_rows(log, StudyRow)


# --- the statistics ---------------------------------------------------------------------------------------------------


def test_students_quantiles() -> None:
    table = {1: 12.7062, 2: 4.30265, 4: 2.77645, 9: 2.26216, 29: 2.04523, 1000: 1.96234}
    for freedom, value in table.items():
        assert student_quantile(0.975, freedom) == pytest.approx(value, rel=2e-5)
    assert student_quantile(0.75, 1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 1"):
        student_quantile(0.975, 0)


def test_the_difference_over_seeds_is_students() -> None:
    ours, control = [[[1, 1, 0, 1]], [[1, 0, 0, 0]], [[1, 1, 1, 1]]], [[[0, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]]]
    gaps = np.array([0.5, 0.0, 0.75])
    half = 4.302653 * gaps.std(ddof=1) / 3**0.5
    expected = (gaps.mean(), gaps.mean() - half, gaps.mean() + half)
    assert difference_over_seeds(ours, control) == pytest.approx(expected, rel=1e-5)


def test_seeds_that_agree_leave_a_width() -> None:
    won, lost = [[[1.0] * 10]] * 3, [[[0.0] * 10]] * 3
    one_more = [[[1.0] + [0.0] * 9]] * 3
    assert difference_over_seeds(won, lost).low > 0.7
    assert difference_over_seeds(one_more, lost).low < 0
    assert difference_over_seeds(won, won) == Estimate(0.0, 0.0, 0.0)


def test_two_seeds_claim_nothing() -> None:
    found = difference_over_seeds([[[1.0] * 10]] * 2, [[[0.0] * 10]] * 2)
    assert found.value == 1 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize("luck", [Luck(seed=0.8, cell=0), Luck(seed=0, cell=0.8)])
def test_equal_arms_are_told_apart_in_5_of_100_studies(luck: Luck) -> None:
    """Wilson's interval of 600 simulated comparisons holds 5 %, and power shows that the test is not asleep."""
    for design in ((3, 6, 20), (5, 10, 10)):
        found = share_of_claims(difference_over_seeds, design, luck, 600, seed=1)
        assert found.low < 0.05 < found.high, found
    assert share_of_claims(difference_over_seeds, (5, 10, 10), luck, 60, seed=1, better=2.0).value > 0.8


def test_the_simulation_would_notice_an_interval_that_claims_too_much() -> None:
    """With one seed the bootstrap takes the luck of training for the arm's merit."""
    bootstrap = functools.partial(paired_difference, resamples=200)
    found = share_of_claims(bootstrap, (1, 20, 10), Luck(seed=0.8, cell=0), 60)
    assert found.low > 0.05
    assert share_of_claims(difference_over_seeds, (1, 20, 10), Luck(seed=0.8, cell=0), 60).value == 0


# --- the figures and the page -----------------------------------------------------------------------------------------


def better_with_luck(arm: str, seed: int, task: str, at: int, number: int) -> bool:
    return at == 20 and number < (3 if arm == "a" else 0) + (seed == 1)


def test_figures_of_a_whole_study(tmp_path: Path) -> None:
    study = declare(tmp_path)
    summary = summarize_study(study, rows_of(study, better_with_luck))
    a, b = summary.arms
    assert [point.at for point in a.curve] == [10, 20]
    assert a.curve[0].mean == wilson(0, 24)  # all failed: no resample would show a width
    assert a.curve[1].mean.value == pytest.approx((3 + 4 + 3) / 12) and b.curve[1].mean.value == pytest.approx(1 / 12)
    assert a.tasks["x"].value == a.curve[1].mean.value and a.seconds == 0.5 * 3 * 2 * 2 * 4
    (item,) = summary.differences
    assert item.arm == "a" and item.seeds == 3 and item.verdict == "better" and summary.missing == 0
    assert item.over_seeds.value == item.bootstrap.value == pytest.approx(0.75)
    assert "a succeeds more often than b on these tasks: +75 points" in verdict(item, summary)
    content = json.loads(json.dumps(study_json(summary, {}), allow_nan=False))
    assert content["study"] == study.digest and content["differences"]["a"]["verdict"] == "better"


def test_an_unfinished_study_counts_complete_seeds_and_says_what_is_missing(tmp_path: Path) -> None:
    study = declare(tmp_path)
    rows = [row for row in rows_of(study, better_with_luck) if (row.arm, row.seed) != ("a", 2) or row.episode]
    summary = summarize_study(study, rows)
    assert summary.missing == summary.arms[0].missing == 4 and summary.arms[0].curve[1].seeds == 2
    (item,) = summary.differences
    assert item.seeds == 2 and item.verdict == "cannot tell" and item.over_seeds.value == 0.75
    assert study_json(summary, {})["differences"]["a"]["over_seeds"]["low"] is None
    page = study_page(summary, {})
    assert "This study is not finished" in page and "So few cannot tell" in page
    empty = study_page(summarize_study(study, []), {})
    assert "Nothing can be said before" in empty and "48 of" not in empty and "96 of 96 episodes" in empty


@pytest.mark.parametrize("metric", ["success", "total_reward"])
@pytest.mark.parametrize("at", ["at = [10, 20]", "at = [20]"])
def test_the_page_is_one_file(metric: str, at: str, tmp_path: Path) -> None:
    nasty = '</title><script>alert("1")</script>'
    text = DECLARED.replace("at = [10, 20]", f'{at}\nmetric = "{metric}"').replace('"T"', f"'{nasty}'")
    study = declare(tmp_path, text)
    page = study_page(summarize_study(study, rows_of(study, better_with_luck)), {"numpy": "2"})
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count('<svg class="chart"') == 1 and study.digest in page and "script-src 'none'" in page
    assert page.count("<table>") == 1 and ("polygon" in page) == (at == "at = [10, 20]")
