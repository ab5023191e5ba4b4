"""The recipe "mbrl": both arms of a small study in the toy world, row by row, and the packaged declaration."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

from ideomotor.evaluation.study import read_study
from ideomotor.systems.study import find_study, run_study
from ideomotor.systems.study_mbrl import MBRL, dream_of, run_mbrl
from ideomotor.systems.study_recipes import cells_of

TOY = """
title = "Toy"
question = "Does it run?"
recipe = "mbrl"
control = "drqv2"
metric = "total_reward"
seeds = [0]
tasks = ["red"]
episodes = 2
at = [8, 16]
[settings]
preset = "tiny"
demonstrations = 1
random_steps = 4
world_start = 4
world_initial = 1
imagine_every = 8
imagine_batch = 2
[arms.drqv2]
learner = "drqv2"
[arms.mbpo]
learner = "mbpo"
"""


def test_both_arms_run_to_the_same_step_with_the_same_demonstrations(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(TOY)
    summary = run_study(tmp_path / "toy.toml", tmp_path / "out", workers=0)
    assert summary.missing == 0 and len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 8
    cells = [tmp_path / f"out/cells/{arm}-seed0-red/work" for arm in ("drqv2", "mbpo")]
    ours, theirs = ((cell / "demonstrations/000000.npz").read_bytes() for cell in cells)
    assert ours == theirs
    assert not (cells[0] / "run/world").exists() and (cells[1] / "run/world/config.json").is_file()
    # Begun again with nothing left but what it keeps, it tells the same rows.
    cell = next(cell for cell in cells_of(read_study(tmp_path / "toy.toml")) if cell.arm == "mbpo")
    told: list = []
    run_mbrl(cell, cells[1], told.append)
    rows = (tmp_path / "out/cells/mbpo-seed0-red/rows.jsonl").read_text()
    assert len(told) == 4 and all(f'"total_reward": {row.total_reward!r}' in rows for row in told)


def test_the_packaged_study_differs_in_nothing_but_the_world() -> None:
    cells = cells_of(read_study(find_study("mbrl_cpu")))
    assert len(cells) == 12
    dreams = {cell.arm: dream_of(cell, None) for cell in cells if cell.tasks == ("plate-slide",) and cell.seed == 1}
    assert dreams["mbpo"].arm == "mbpo" and dreams["drqv2"].learning.real == dreams["mbpo"].learning.real


def test_the_declared_settings_reach_both_arms() -> None:
    cells = cells_of(read_study(find_study("mbrl_cpu")))
    settings = replace(cells[0].settings, cloning=0.7, noise_start=0.9, updates=5, horizon=4)
    dreams = [dream_of(replace(cell, settings=replace(settings, learner=cell.arm)), None) for cell in cells[:2]]
    assert {dream.arm for dream in dreams} == {"drqv2", "mbpo"}
    for dream in dreams:
        real = dream.learning.real
        assert (real.agent.cloning, real.agent.noise[0], real.updates) == (0.7, (0, 0.9), 5)
        assert dream.learning.horizon == 4 and dream.repeat == 8 and real.steps == cells[0].at[-1]


def test_rows_tell_which_world_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TOY)
    run_study(tmp_path / "toy.toml", tmp_path / "out", workers=0)
    begun = TOY + 'world_from = "out/cells/mbpo-seed0-red/work/run"\n'
    (tmp_path / "begun.toml").write_text(begun)
    summary = run_study(tmp_path / "begun.toml", tmp_path / "again", workers=0)
    declared = json.loads((tmp_path / "again/declaration.json").read_text())["arms"]
    note = json.loads((tmp_path / "out/cells/mbpo-seed0-red/work/run/world/config.json").read_text())
    assert declared["mbpo"]["world_is"] == note["fingerprint"] and "world_is" not in declared["drqv2"]
    assert summary.study.digest in (tmp_path / "again/rows.jsonl").read_text()
    assert summary.study.digest != read_study(tmp_path / "begun.toml").digest
    # The folder's world is another one now: its rows would be mixed with those of the first.
    later = tmp_path / "again/cells/mbpo-seed0-red/work/run"
    shutil.rmtree(tmp_path / "out/cells/mbpo-seed0-red/work/run")
    shutil.copytree(later, tmp_path / "out/cells/mbpo-seed0-red/work/run")
    with pytest.raises(ValueError, match=r"again holds rows of another declaration: .*world_is"):
        run_study(tmp_path / "begun.toml", tmp_path / "again", workers=0)
    (tmp_path / "begun.toml").write_text(begun + f'world_is = "{note["fingerprint"]}"\n')
    with pytest.raises(ValueError, match=r"has the fingerprint .* is declared \(world_is\)"):
        run_study(tmp_path / "begun.toml", tmp_path / "third", workers=0)


def test_a_fingerprint_without_a_world_is_refused() -> None:
    with pytest.raises(ValueError, match="name its folder, world_from"):
        MBRL(world_is="00ff")


def test_trials_are_taken_in_equal_strides(tmp_path: Path) -> None:
    cell = cells_of(read_study(find_study("mbrl_cpu")))[0]
    with pytest.raises(ValueError, match=r"equal strides from 0 on, e\.g\."):
        run_mbrl(replace(cell, at=(10, 30)), tmp_path, lambda row: None)
