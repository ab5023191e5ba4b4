import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_stage import Judging, Regression, StageConfig, Toy, ToyConfig, clip, clips, stage

from ideomotor.training import OptimConfig, Run, SaveError, Stopped, load_model, read_model_info
from ideomotor.training.checkpoint import load_state

CONFIG = StageConfig()
SCRIPT = Path(__file__).parent / "toy_stage.py"


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the training state, and of the saved model."""
    _, learners = load_state(folder / "state")
    tensors = {f"{name}.{key}": value for name, one in learners.items() for key, value in one.tensors.items()}
    return tensors | load_model(folder / "model", Toy, ToyConfig).state_dict()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_steps_and_two_more_are_four(tmp_path: Path) -> None:
    straight = stage(tmp_path / "a", CONFIG, log_steps=1)
    with pytest.raises(Stopped) as stopped:
        stage(tmp_path / "b", CONFIG, log_steps=1, pause_at=2)
    assert stopped.value.code == 0 and not (tmp_path / "b" / "done.json").exists()
    torch.manual_seed(999)
    assert same(straight, stage(tmp_path / "b", CONFIG, log_steps=1))
    assert any("average" in name for name in straight) and any("optimizer.exp_avg_sq" in name for name in straight)
    assert same(saved(tmp_path / "a"), saved(tmp_path / "b"))
    numbers = [
        [{key: value for key, value in row.items() if "second" not in key} for row in rows(tmp_path / name)]
        for name in "ab"
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 4


@pytest.mark.parametrize("when", [1, 5])
def test_killed_and_run_again_equals_never_killed(tmp_path: Path, when: int) -> None:
    """SIGKILL before the first state is saved (step 1), and between two (saved each 3 steps)."""
    steps = 8
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "b"), str(steps), str(when)], stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout:
            if line.startswith(f"step {when}"):
                child.kill()
                break
    assert child.returncode == -signal.SIGKILL
    state = load_state(tmp_path / "b" / "state")
    assert (state is None) if when == 1 else (state[0]["step"] == 3)
    config = replace(CONFIG, steps=steps)
    stage(tmp_path / "a", config)
    stage(tmp_path / "b", config)
    assert same(saved(tmp_path / "a"), saved(tmp_path / "b"))


def test_sigterm_saves_and_exits_with_143(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), "100000"], stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout:
            if line.startswith("step 2"):
                child.send_signal(signal.SIGTERM)
                break
        rest = child.stdout.read()
    assert child.returncode == 143
    last = max([2, *(int(line.split()[1]) for line in rest.splitlines() if line.startswith("step"))])
    assert load_state(tmp_path / "state")[0]["step"] == last
    assert f"stopped after step {last} of 100000; its state is saved" in rest
    assert not (tmp_path / "done.json").exists()


def test_ctrl_c_saves_and_exits_with_130(tmp_path: Path) -> None:
    def interrupt(step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        stage(tmp_path, CONFIG, hooks=[interrupt])
    assert stopped.value.code == 130 and load_state(tmp_path / "state")[0]["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before
    straight = stage(tmp_path / "a", CONFIG)
    assert same(straight, stage(tmp_path, CONFIG))


def test_a_finished_run_returns_at_once_with_the_last_weights(tmp_path: Path) -> None:
    first = stage(tmp_path, CONFIG)
    done = json.loads((tmp_path / "done.json").read_text())
    assert done["steps"] == 4 and done["seconds"] > 0 and done["peak_rss_bytes"] > 50e6 and done["finished"]
    calls = []
    again = stage(tmp_path, CONFIG, hooks=[lambda step, metrics: calls.append(step)])
    assert same(first, again) and calls == []
    assert json.loads((tmp_path / "done.json").read_text()) == done
    assert Run(tmp_path, seed=3, config=CONFIG).finished


def test_seconds_add_up_over_resumes(tmp_path: Path) -> None:
    def slow(step: int, metrics: Mapping[str, float]) -> None:
        time.sleep(0.05)

    with pytest.raises(Stopped):
        stage(tmp_path, CONFIG, hooks=[slow], pause_at=3)
    stage(tmp_path, CONFIG)
    assert json.loads((tmp_path / "done.json").read_text())["seconds"] > 0.1


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        stage(tmp_path, CONFIG, pause_at=2)
    other = replace(CONFIG, model=ToyConfig(width=9), optim=replace(CONFIG.optim, lr=0.5))
    with pytest.raises(
        ValueError, match=r"config\.model\.width: 8 -> 9; config\.optim\.lr: 0\.01 -> 0\.5\..*--out, or --fresh"
    ):
        stage(tmp_path, other)
    with pytest.raises(ValueError, match="seed: 3 -> 4"):
        Run(tmp_path, seed=4, config=CONFIG)
    stage(tmp_path, other, fresh=True)
    assert saved(tmp_path)["net.0.weight"].shape == (9, 4)


def test_learner_settings_are_compared_even_without_a_config(tmp_path: Path) -> None:
    def train(lr: float, **settings) -> None:
        with Run(tmp_path, **settings) as run:
            run.fit(clips, run.learner(Regression(Toy(ToyConfig())), OptimConfig(lr=lr), 4), steps=4)

    with pytest.raises(Stopped):
        train(0.1, pause_at=2)
    with pytest.raises(ValueError, match=r"Regression\.optim\.lr: 0\.1 -> 0\.2"):
        train(0.2)
    train(0.1)


def test_fresh_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    stage(tmp_path, CONFIG)
    (tmp_path / "mine.txt").write_text("keep")
    with Run(tmp_path, seed=8, fresh=True) as run:
        assert not run.finished
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "mine.txt", "run.json"]


def test_what_a_kill_left_half_written_is_cleared(tmp_path: Path) -> None:
    stage(tmp_path, CONFIG)
    (tmp_path / f".metrics.jsonl.{'0a' * 16}.part").write_text("half")
    (tmp_path / ".mine.part").write_text("keep")
    (tmp_path / ".probe-99999999").write_bytes(b"x")
    (leftover := tmp_path / f".{next(tmp_path.glob('*/model.safetensors')).parent.name}.new-99999999").mkdir()
    stage(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.glob(".*")] == [".mine.part"] and not leftover.exists()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with Run(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()} trains in .*choose another --out"):
        Run(tmp_path)
    with Run(tmp_path):  # and the lock is given back
        pass


def test_a_plain_iterable_is_replayed_up_to_the_step(tmp_path: Path) -> None:
    batches = [clip(step) for step in range(4)]

    def train(folder: Path, data, **settings) -> dict[str, torch.Tensor]:
        with Run(folder, **settings) as run:
            learner = run.learner(Regression(Toy(ToyConfig())), OptimConfig(warmup=0), 4)
            run.fit(data, learner, steps=4)
            return learner.state().tensors

    straight = train(tmp_path / "a", clips)
    with pytest.raises(Stopped):
        train(tmp_path / "b", batches, pause_at=2)
    assert same(straight, train(tmp_path / "b", batches))
    with pytest.raises(ValueError, match="the data ended after 3 of 4 steps; repeat the loader"):
        train(tmp_path / "c", batches[:3])


def test_hooks_see_step_and_metrics_after_the_save(tmp_path: Path) -> None:
    seen = []

    def look(step: int, metrics: Mapping[str, float]) -> None:
        seen.append((step, sorted(metrics), load_state(tmp_path / "state")[0]["step"]))

    stage(tmp_path, CONFIG, hooks=[look], save_steps=1)
    names = [
        f"{one}/{term}"
        for one, terms in (("Judging", ()), ("Regression", ("mse",)))
        for term in ("grad_norm", "loss", "lr", *terms)
    ]
    assert seen == [(step, sorted(names), step) for step in range(1, 5)]


def test_states_are_saved_by_time_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken hook"):
        stage(tmp_path, CONFIG, hooks=[_break_at_two], save_seconds=0.0)
    assert load_state(tmp_path / "state")[0]["step"] == 2


def _break_at_two(step: int, metrics: Mapping[str, float]) -> None:
    if step == 2:
        raise RuntimeError("broken hook")


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        model = Toy(ToyConfig())
        learner = run.learner(Regression(model), OptimConfig(lr=0.1, warmup=0, ema=0.99), 3)
        run.fit(clips, learner, steps=3)
        last = {name: value.clone() for name, value in model.state_dict().items()}
        averaged = load_model(
            run.save(model, ToyConfig(), "averaged", meta={"data": "toy"}), Toy, ToyConfig
        ).state_dict()
        plain = load_model(run.save(model, ToyConfig(), "plain", averaged=False), Toy, ToyConfig).state_dict()
        assert same(plain, last) and same(model.state_dict(), last)
        assert same(averaged, {name.removeprefix("model."): value for name, value in learner.average.tensors.items()})
        assert not same(averaged, plain)
        with pytest.raises(ValueError, match="give the model another name than 'state'"):
            run.save(model, ToyConfig(), "state")
        assert same(run.load(Toy, ToyConfig, tmp_path / "averaged").state_dict(), averaged)
    assert read_model_info(tmp_path / "averaged")["meta"] == {"run": {"seed": 0, "steps": 3}, "data": "toy"}


def test_learners_are_checked(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        model, judge = Toy(ToyConfig()), Toy(ToyConfig())
        one = run.learner(Regression(model), OptimConfig(), 4)
        with pytest.raises(ValueError, match="already has a learner 'Regression'"):
            run.learner(Regression(judge), OptimConfig(), 4)
        with pytest.raises(ValueError, match="also belongs to learner 'Regression'"):
            run.learner(Regression(model), OptimConfig(), 4, name="other")
        run.learner(Judging(judge, model), OptimConfig(), 4)
        with pytest.raises(ValueError, match=r"would leave out \['Judging'\]"):
            run.fit(clips, one, steps=4)
    with Run(tmp_path / "b") as run:
        learner = run.learner(Regression(Toy(ToyConfig())), OptimConfig(), 4)
        with pytest.raises(ValueError, match="schedule of 4 steps, and fit runs 5"):
            run.fit(clips, learner, steps=5)
        with pytest.raises(ValueError, match="a stage is one fit"):
            run.fit(clips, learner, steps=4)


def test_a_full_disk_in_training_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ideomotor.training import checkpoint

    write, calls = checkpoint.save_file, []

    def filling(tensors, path: Path) -> None:
        calls.append(path)
        if len(calls) > 4:  # two learners, two saves
            raise OSError(28, "No space left on device")
        write(tensors, path)

    straight = stage(tmp_path / "a", CONFIG)
    with monkeypatch.context() as patch, pytest.raises(SaveError, match=r"No space left on device.*free some space"):
        patch.setattr(checkpoint, "save_file", filling)
        stage(tmp_path / "b", CONFIG, save_steps=1)
    assert load_state(tmp_path / "b" / "state")[0]["step"] == 2
    assert same(straight, stage(tmp_path / "b", CONFIG, save_steps=1))


def test_a_finished_run_whose_state_is_gone_says_what_to_do(tmp_path: Path) -> None:
    import shutil

    stage(tmp_path, CONFIG)
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(ValueError, match=r"is finished, but its state folder is gone: .*--fresh"):
        stage(tmp_path, CONFIG)


def test_held_out_batches_are_measured_and_change_nothing(tmp_path: Path) -> None:
    plain = stage(tmp_path / "plain", CONFIG, log_steps=1)
    watched = stage(tmp_path / "watched", CONFIG, log_steps=1, held_out=[clip(99), clip(98)])
    assert same(plain, watched)
    for row in rows(tmp_path / "watched"):
        assert row["Regression/validation_loss"] > 0 and row["Judging/validation_loss"] > 0
    losses = [row["Regression/validation_loss"] for row in rows(tmp_path / "watched")]
    assert len(set(losses)) == len(losses)  # the weights move, and the average with them
    assert not any("validation" in name for row in rows(tmp_path / "plain") for name in row)
