"""The benchmark over the user's own calvin_env reads its tables, and runs where there is one."""

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import calvin_scripted

    return calvin_scripted


def test_joints_are_read_at_the_size_they_are_loaded_at(benchmark, tmp_path):
    table = tmp_path / "data/calvin_table_B/urdf/calvin_table_B.urdf"
    table.parent.mkdir(parents=True)
    table.write_text('<robot><joint name="base__button"><origin xyz="0.5 -0.25 1"/></joint></robot>')
    assert benchmark.joint_places(tmp_path, "B")["button"].tolist() == pytest.approx([0.4, -0.2, 0.8])


@pytest.mark.sim
def test_it_runs(benchmark, tmp_path, monkeypatch):
    home = os.environ.get("IDEOMOTOR_CALVIN_ENV")
    if not home:
        pytest.skip("IDEOMOTOR_CALVIN_ENV does not name the root of your own calvin_env (it is on no registry)")
    out = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["calvin_scripted.py", "--tiny", "--home", home, "--json", str(out)])
    benchmark.main()
    assert json.loads(out.read_text())["rows"][0]["D"] == "1 of 1"
