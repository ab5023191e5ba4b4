"""The benchmark of ranking runs, tries nothing twice, and keeps the form of its rows."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import world_ranking

    words = ["--tiny", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows")]
    monkeypatch.setattr(sys, "argv", ["world_ranking.py", *words])
    world_ranking.main()
    rows = json.loads((tmp_path / "rows").read_text())["rows"]
    assert len(rows) == 10 and all(row["imagined return"] != 0 for row in rows[:8])
    assert [row["policy"] for row in rows[7:]] == [
        "8 updates, noise 1", "imagined return and real return", "imagined return and real success",
    ]  # fmt: skip
    assert set(rows[8]) == {"policy", "Spearman", "low", "high"}
    assert (tmp_path / "out/policies/ranking.svg").read_text().startswith("<svg xmlns")
    assert len(list((tmp_path / "out/experts").glob("*.npz"))) == world_ranking.EPISODES
