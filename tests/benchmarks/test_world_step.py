"""The benchmark of stepping runs, finds the same ids both ways, and keeps the form of its rows."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_world_step(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import world_step

    monkeypatch.setattr(sys, "argv", ["world_step.py", "--tiny", "--json", str(tmp_path / "rows.json")])
    world_step.main()
    every = json.loads((tmp_path / "rows.json").read_text())["rows"]
    rows, coded, whole = every[:15], every[15:17], every[17:]
    assert [row["weights"] for row in coded + whole] == ["fp32", "bf16", "fp32", "fp32", "bf16", "int8"]
    assert all(row["times faster"] > 0 for row in coded[1:] + whole[1:]) and coded[1]["same ids"] > 0.9
    assert all(row["over floor"] > 0.5 for row in coded + whole[1:])
    names = ["prefix again, as published", "prefix again, quick kernels", "stepped", "stepped", "stepped"]
    assert [row["transformer"] for row in rows] == 3 * names
    assert [(row["context"], row["batch"]) for row in rows[::5]] == [(1, 1), (2, 1), (1, 2)]
    assert all(row["CPU-s a frame"] > 0 and row["floor, s"] > 0 for row in rows)
    for row in rows:
        if row["weights"] != "fp32":
            assert row["logit error"] < 0.1 and 0.5 < row["same likeliest"] <= 1


def test_other_ids_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch

    import world_step

    predictor = world_step.AutoregressivePredictor(world_step.config_of(1, tiny=True))
    context, actions = torch.zeros(1, 1, 256).long(), torch.zeros(1, 2, 4)
    rollout = world_step.roll(predictor, context, actions)
    baseline = world_step.Reprefilling(predictor, quick=False)
    assert world_step.published(baseline, rollout, actions, (0, 1)) > 0
    rollout.ids[0, -3] = (rollout.ids[0, -3] - 40 + 1) % 30 + 40
    with pytest.raises(ValueError, match="frame 1 of the baseline has other ids"):
        world_step.published(baseline, rollout, actions, (0, 1))
