"""The benchmarks of VPDD run and keep the form of their rows."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def rows(name, tmp_path, monkeypatch):
    """Runs ``NAME.py --tiny`` in this process and returns its rows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = __import__(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny", "--json", str(tmp_path / "rows.json")])
    module.main()
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


def test_act_cost(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    found = rows("act_cost", tmp_path, monkeypatch)
    assert [row["policy"].split()[-1] for row in found] == ["published", "none", "features", "half", "full"]
    assert found[0]["CPU-s a step"] > 100 * found[-1]["CPU-s a step"] > 0


def test_nfe_sweep(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("av")
    found = rows("nfe_sweep", tmp_path, monkeypatch)
    assert [row["evaluations"] for row in found] == [1, 4] and all(row["nats a video token"] > 0 for row in found)
    assert all(0 <= row["success"] <= 1 and row["episodes"] == 1 for row in found)
