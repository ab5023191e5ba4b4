"""The page of an evaluation in sequences; every figure in it is invented."""

import json

import pytest
from made_up import NO_VIDEO

from ideomotor.evaluation.calvin_page import FailureFilm, SequencePage, sequence_page, verdict, write_sequence_report
from ideomotor.evaluation.calvin_protocol import evaluation_sequences
from ideomotor.evaluation.calvin_results import SequenceResult, summarize_sequences


def rows(arm, solved):
    return [
        SequenceResult(
            arm=arm,
            sequence=sequence.number,
            state=sequence.state,
            tasks=list(sequence.tasks),
            solved=solved(sequence.number),
            steps=[30] * solved(sequence.number) + [360] * (solved(sequence.number) < 5),
            seconds=1.0,
            inference_cpu_seconds=0.5,
        )
        for sequence in evaluation_sequences()[:100]
    ]


OURS, THEIRS = rows("ours", lambda number: 5 - number % 3), rows("theirs <b>", lambda number: number % 3)


def page(**changes):
    given = {
        "title": "Five in a row & more",
        "command": "ideomotor vpp evaluate --world <x>",
        "arms": {"ours": summarize_sequences(OURS), "theirs <b>": summarize_sequences(THEIRS)},
        "wanted": 100,
        "protocol": {"world": "scripted", "steps a task": 360},
        "films": [FailureFilm(result=THEIRS[0], video=NO_VIDEO)],
    }
    return SequencePage(**(given | changes))


def test_the_page_shows_the_figures_and_escapes_what_it_was_given():
    text = sequence_page(page())
    assert "<b>" not in text and "theirs &lt;b&gt;" in text and "--world &lt;x&gt;" in text
    assert text.count("<video") == 1 and "$" not in text
    assert "ours: 4.01 tasks in a row on average" in text
    assert "all five in 34% of them" in text
    assert "not finished" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_verdict_without_an_interval():
    one = [row for row in OURS if row.state == OURS[0].state][:1]
    assert verdict("x", summarize_sequences(one)).startswith("x: 5.00 tasks in a row on average over 1 sequences")


def test_an_unfinished_evaluation_says_so():
    text = sequence_page(page(wanted=1000, films=()))
    assert "ours lacks 900 of 1,000 sequences" in text and "No sequence that failed was filmed" in text


def test_page_and_tables_are_written_together(tmp_path):
    path = write_sequence_report(tmp_path / "made", page())
    assert path.read_text() == sequence_page(page())
    assert json.loads((path.parent / "results.json").read_text())["ours"]["avg_seq_len"] == 4.01
    assert (path.parent / "tasks.csv").exists() and (path.parent / "in_a_row.csv").exists()


def test_no_arm_and_no_film_are_refused():
    with pytest.raises(ValueError, match="at least one arm"):
        sequence_page(page(arms={}))
    with pytest.raises(ValueError, match="no mp4"):
        sequence_page(page(films=[FailureFilm(result=THEIRS[0], video=b"GIF89a etc.")]))
