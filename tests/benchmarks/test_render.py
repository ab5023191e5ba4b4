"""The benchmark of rendering runs, and its shared table and file keep their form."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _table

    return _table


def test_table_lines_up_and_the_file_holds_the_same_rows(table, tmp_path, capsys):
    rows = [{"name": "a", "rate": 12345.678, "count": 12000}, {"name": "longer", "rate": 0.12345, "note": "new"}]
    args = table.parse("what it measures", ["--tiny", "--json", str(tmp_path / "new" / "rows.json")])
    table.publish("example", rows, args)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["name", "rate", "count", "note"]
    assert printed[2].split() == ["a", "12,346", "12,000"] and printed[3].split() == ["longer", "0.1235", "new"]
    written = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert written["rows"] == rows and written["benchmark"] == "example" and written["tiny"] is True
    assert set(written) == {"benchmark", "command", "tiny", "machine", "date", "rows"}
    assert {"processor", "cores", "memory_bytes", "python", "packages"} <= set(written["machine"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.json"]


@pytest.mark.sim
def test_render_benchmark_runs(table, tmp_path, monkeypatch, capsys):
    pytest.importorskip("metaworld")
    import render

    monkeypatch.setattr(sys, "argv", ["render.py", "--tiny", "--json", str(tmp_path / "render.json")])
    render.main()
    rows = {row["look"]: row for row in json.loads((tmp_path / "render.json").read_text())["rows"]}
    assert set(rows) == {"default", "fast"} and rows["default"]["times_default"] == 1
    # The target is 8; processor time is what a shared machine can promise.
    assert rows["default"]["cpu_ms_per_frame"] > 4 * rows["fast"]["cpu_ms_per_frame"]
    assert "frames_per_s" in capsys.readouterr().out
