"""The benchmark of the control loop runs and keeps the form of its row."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_control_loop_benchmark_runs(tmp_path, monkeypatch, capsys):
    for module in ("transformers", "websockets", "msgpack", "prometheus_client"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import control_loop

    monkeypatch.setattr(sys, "argv", ["control_loop.py", "--tiny", "--hz", "10", "--json", str(tmp_path / "loop.json")])
    control_loop.main()
    (row,) = json.loads((tmp_path / "loop.json").read_text())["rows"]
    assert row["policy"] == "tiny" and row["steps"] + row["missed"] >= 30 and row["chunks"] > 2
    assert 0 < row["held hz"] <= 10.5 and row["late ms p99"] >= row["late ms p50"] >= 0
    assert "held hz" in capsys.readouterr().out
