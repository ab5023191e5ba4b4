"""The benchmark of acting runs and keeps the form of its rows."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_act_benchmark_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import act

    monkeypatch.setattr(sys, "argv", ["act.py", "--tiny", "--json", str(tmp_path / "act.json")])
    act.main()
    rows = json.loads((tmp_path / "act.json").read_text())["rows"]
    assert {row["policy"] for row in rows} == {"fast, with foresight", "fast, pixels only"}
    assert all(row["CPU-ms a step and robot"] > 0 for row in rows)
    assert "CPU-ms a step" in capsys.readouterr().out
