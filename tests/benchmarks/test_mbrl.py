"""The lane of model-based RL: in small it runs here, and stopped and taken up again it ends alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "mbrl.py"


def run(out: Path, *options: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "OUT"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out), *options]
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


@pytest.mark.slow
def test_stopped_and_taken_up_again_it_ends_alike(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(straight) == 0
    assert run(broken, "--minutes", "0.15") in (75, 0)
    assert run(broken) == 0
    ours, theirs = (json.loads((out / "out/mbrl.json").read_text())["rows"] for out in (straight, broken))
    assert ours == theirs and len(ours) == 8
    assert {(row["task"], row["arm"]) for row in ours} == {(t, a) for t in ("red", "green") for a in ("drqv2", "mbpo")}
