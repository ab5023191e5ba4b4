"""The benchmark of a study's statistics runs, and its rows say what was simulated."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import study_aa

    monkeypatch.setattr(sys, "argv", ["study_aa.py", "--tiny", "--json", str(tmp_path / "aa.json")])
    study_aa.main()
    assert "t over seeds" in capsys.readouterr().out
    rows = json.loads((tmp_path / "aa.json").read_text())["rows"]
    assert [row["luck"] for row in rows] == list(study_aa.LUCK) and all(row["seeds"] == 3 for row in rows)
    assert all(row["low"] <= row["t over seeds"] <= row["high"] for row in rows)
