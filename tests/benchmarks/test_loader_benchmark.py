"""The benchmark of the loader runs, and loading from the cache is quicker than decoding by as much as was asked."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_loader_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("av")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import loader

    monkeypatch.setattr(sys, "argv", ["loader.py", "--tiny", "--json", str(tmp_path / "loader.json")])
    loader.main()
    assert "clips_per_s" in capsys.readouterr().out
    decoded, cached = json.loads((tmp_path / "loader.json").read_text())["rows"]
    assert decoded["way"] == "mp4 per clip" and cached["way"] == "cache" and decoded["clips"] == cached["clips"]
    # By processor time, which other jobs on the machine disturb less than the clock.
    assert decoded["cpu_ms_per_clip"] > 20 * cached["cpu_ms_per_clip"]
