"""The benchmark of served policies runs and keeps the form of its rows."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_act_latency_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("websockets")
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import act_latency

    monkeypatch.setattr(sys, "argv", ["act_latency.py", "--tiny", "--json", str(tmp_path / "rows.json")])
    act_latency.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 12 and {row["clients"] for row in rows} == {1, 8}
    assert all(row["overhead p50 ms"] > 0 for row in rows if row["clients"] == 1)
    busy = [row for row in rows if row["clients"] == 8]
    assert all(row["requests"] >= 8 and row["max/min served"] >= 1 for row in busy)
    assert any(row["mean batch"] > 1.5 for row in busy)
    assert "overhead p50 ms" in capsys.readouterr().out
