"""The loop learns, and a run that was stopped or killed ends as one that was not."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from dot_world import STEPS, TRIALS, DotWorld, config, run

from ideomotor.data.replay import Replay, ReplayConfig
from ideomotor.evaluation.episodes import read_log
from ideomotor.training import Stopped
from ideomotor.training.checkpoint import load_state

SCRIPT = Path(__file__).parent / "dot_world.py"
# Random steps, then learning, and a stop in the middle of the second episode.
SHORT = config(steps=20, random_steps=13, batch=8, evaluate_every=10)


def saved(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the run's state, and all rows of its replay."""
    _, learners = load_state(folder / "state")
    rows = {f"{name}.{key}": value.numpy() for name, one in learners.items() for key, value in one.tensors.items()}
    for file in sorted((folder / "replay").iterdir()):
        with np.load(file) as arrays:
            rows |= {f"{file.name}.{key}": arrays[key] for key in arrays}
    return rows


def same(a: Path, b: Path) -> bool:
    ours, theirs = saved(a), saved(b)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def scores(folder: Path) -> dict[str, list]:
    return {
        file.name: [(row.key, row.total_reward, row.success) for row in read_log(file)]
        for file in (folder / "trials").iterdir()
    }


def test_it_learns_to_beat_random_actions(tmp_path):
    run(tmp_path, config(), TRIALS)
    rows = read_log(tmp_path / "trials" / "step-000000400.jsonl")
    assert len(rows) == len(TRIALS) and all(row.steps == STEPS for row in rows)
    rng, world, random = np.random.default_rng(0), DotWorld(), []
    for spec in TRIALS:
        world.reset(seed=spec.seed)
        random.append(sum(world.step(rng.uniform(-1, 1, 2))[1] for _ in range(STEPS)))
    learned = np.array([row.total_reward for row in rows])
    assert learned.mean() > np.mean(random) + 0.7  # of about -4.5; standing in the middle at once would be about -0.7


@pytest.mark.parametrize("pause", [13, 17, 10])  # before the first update, amid an episode, at a trial
def test_two_parts_are_one_whole(tmp_path, pause):
    straight = run(tmp_path / "a", SHORT, TRIALS[:2])
    with pytest.raises(Stopped):
        run(tmp_path / "b", SHORT, TRIALS[:2], pause_at=pause)
    again = run(tmp_path / "b", SHORT, TRIALS[:2])
    assert same(tmp_path / "a", tmp_path / "b") and scores(tmp_path / "a") == scores(tmp_path / "b")
    ours, theirs = straight.network.state_dict(), again.network.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert not ours["target.trunk.0.weight"].equal(ours["critic.trunk.0.weight"])
    assert set(scores(tmp_path / "a")) == {"step-000000010.jsonl", "step-000000020.jsonl"}


def test_killed_and_run_again_equals_never_killed(tmp_path):
    torch.set_num_threads(1)  # as the child's: sums depend on it
    settings = config(steps=20, random_steps=13, batch=8)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "b"), "20", "15"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        for line in child.stdout:
            if line.startswith("step 18"):
                child.kill()
                break
    assert child.returncode == -signal.SIGKILL and load_state(tmp_path / "b/state")[0]["step"] == 15
    # What a kill in the writing of the next episode would leave, and an episode that the saved state does not know.
    (tmp_path / "b/replay/.000001.npz.0.part").write_bytes(b"half")
    (tmp_path / "b/replay/000001.npz").write_bytes((tmp_path / "b/replay/000000.npz").read_bytes())
    run(tmp_path / "a", settings, save_steps=15)
    run(tmp_path / "b", settings, save_steps=15)
    assert same(tmp_path / "a", tmp_path / "b")


def test_rows_of_a_trial_that_a_kill_took_are_made_up_for(tmp_path):
    run(tmp_path, SHORT, TRIALS[:2])
    wanted = scores(tmp_path)
    file = tmp_path / "trials" / "step-000000020.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    run(tmp_path, SHORT, TRIALS[:2])
    assert scores(tmp_path) == wanted


def test_a_fresh_run_takes_nothing_from_the_old_one(tmp_path):
    run(tmp_path, SHORT, TRIALS[:2])
    wanted = saved(tmp_path)
    run(tmp_path, replace(SHORT, steps=22, random_steps=20), TRIALS[:3], fresh=True)
    again = scores(tmp_path)
    assert [len(rows) for rows in again.values()] == [3, 3, 3] and "step-000000022.jsonl" in again
    assert not np.array_equal(
        saved(tmp_path)["critic.weights.encoder.convs.0.weight"], wanted["critic.weights.encoder.convs.0.weight"]
    )


def test_a_lost_episode_stops_a_resumed_run(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, SHORT, pause_at=17)
    (tmp_path / "replay/000000.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"no readable episode 000000\.npz of the 1 .*--fresh"):
        run(tmp_path, SHORT)


def test_it_does_as_was_shown_where_that_is_priced(tmp_path):
    run(tmp_path / "first", replace(SHORT, steps=13))
    shown, learned = tmp_path / "first" / "replay", {}
    for cloning in (0.0, 100.0):
        agent = replace(SHORT.agent, cloning=cloning, reward_scale=0.1, shift=2)
        settings = replace(SHORT, agent=agent, steps=40, random_steps=0, batch=16, demonstrations=shown)
        learned[cloning] = run(tmp_path / str(cloning), settings).network
    episode = Replay(tmp_path / "first/replay", settings.replay).own(0)
    frames = torch.from_numpy(np.stack([episode.stacked(row, 2) for row in range(len(episode))]))
    off = {
        cloning: np.square(network.mean_action(frames).numpy() - episode.actions[1:]).mean()
        for cloning, network in learned.items()
    }
    assert off[100.0] < 0.6 * off[0.0]
    rewards = (tmp_path / "0.0/metrics.jsonl").read_text()
    assert "critic/batch_reward" in rewards


def test_rewards_are_scaled_for_learning_and_nowhere_else(tmp_path):
    said = []
    for scale in (1.0, 0.01):
        folder = tmp_path / str(scale)
        run(folder, replace(SHORT, agent=replace(SHORT.agent, reward_scale=scale), steps=14), TRIALS[:1])
        said.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["critic/batch_reward"])
    assert said[1] == pytest.approx(0.01 * said[0], rel=1e-4)  # the first update's batches are the same
    own = [np.load(tmp_path / f"{scale}/replay/000000.npz")["reward"] for scale in (1.0, 0.01)]
    assert np.array_equal(*own)


def test_demonstrations_are_drawn_and_never_touched(tmp_path):
    run(tmp_path / "first", replace(SHORT, steps=13))
    shown = tmp_path / "first" / "replay"
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in shown.iterdir()}
    settings = config(steps=4, random_steps=0, batch=8, demonstrations=shown)
    settings = replace(settings, replay=ReplayConfig(stack=2, capacity=1))
    run(tmp_path / "second", settings)  # updates from the first step on: there is something to draw
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in shown.iterdir()} == before
    assert len(Replay(tmp_path / "empty", settings.replay, shown).demonstrations) == 1
    rows = (tmp_path / "second/metrics.jsonl").read_text()
    assert "critic/loss" in rows
