"""The agent learns from what it imagines, a run that was killed ends as one that was not, and what the faults cost."""

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

from dot_dream import OPTIM, DotDream, Painted, Rewarded, clip_of, run, settings
from dot_world import TRIALS, DotWorld, config
from test_model_free import scores

from ideomotor.data.replay import Replay, ReplayConfig, Trajectory
from ideomotor.evaluation.episodes import read_log
from ideomotor.policies.actor_critic import ActorCritic, ActorCriticConfig
from ideomotor.rl.dreams import Dreams, Rollouts, imagine
from ideomotor.rl.mbpo import WorldPart, imagined_mean, joined, taught, within
from ideomotor.rl.model_free import train
from ideomotor.rl.world_scores import foretold, scored
from ideomotor.training import Run, Stopped
from ideomotor.training.checkpoint import load_state
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Imagined

SCRIPT = Path(__file__).parent / "dot_dream.py"


def saved(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the run's state, and all rows that it has collected and imagined."""
    _, learners = load_state(folder / "state")
    rows = {f"{name}.{key}": value.numpy() for name, one in learners.items() for key, value in one.tensors.items()}
    for file in sorted([*(folder / "replay").iterdir(), *(folder / "imagined").iterdir()]):
        with np.load(file) as arrays:
            rows |= {f"{file.parent.name}/{file.name}.{key}": arrays[key] for key in arrays}
    return rows | {file.name: np.array(file.read_text()) for file in (folder / "world_scores").iterdir()}


def same(a: Path, b: Path) -> bool:
    """Says whether both hold the same; batches that no state needs any more may be there or not."""
    ours, theirs = saved(a), saved(b)
    kept = {name for name in ours if not name.startswith("imagined/")}
    assert kept == {name for name in theirs if not name.startswith("imagined/")}
    return all(np.array_equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, settings(), TRIALS[:2])
    return folder


# Before the world begins, among its first updates, among the first rollouts, amid what follows, at a trial.
@pytest.mark.parametrize("pause", [10, 16, 19, 24, 27])
def test_two_parts_are_one_whole(whole: Path, tmp_path: Path, pause: int) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, settings(), TRIALS[:2], pause_at=pause)
    run(tmp_path, settings(), TRIALS[:2])
    assert same(whole, tmp_path) and scores(whole) == scores(tmp_path)
    assert set(scores(tmp_path)) == {"step-000000020.jsonl", "step-000000026.jsonl"}
    rows = [row for file in (tmp_path / "trials").iterdir() for row in read_log(file)]
    assert {row.arm for row in rows} == {"mbpo"}


def test_killed_and_run_again_equals_never_killed(whole: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), "23"], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        for line in child.stdout:
            if line.startswith("round 29"):
                child.kill()
                break
    assert child.returncode == -signal.SIGKILL and load_state(tmp_path / "state")[0]["step"] == 23
    assert len(list((tmp_path / "imagined").iterdir())) > 3, "what it imagined after the state was saved is there"
    (tmp_path / "imagined/.000009.npz.0.part").write_bytes(b"half")
    run(tmp_path, settings())
    assert same(whole, tmp_path)


def test_a_look_at_the_world_is_taken_at_an_episode_that_nothing_has_learned_from(whole: Path) -> None:
    (file,) = (whole / "world_scores").iterdir()  # the first episode ended before the world began, the second after
    score = json.loads(file.read_text())
    assert file.name == "episode-000001.json"
    assert len(score["pixels"]) == len(score["still"]) == len(score["rewards"]) == 4 and score["constant"] > 0


def test_a_lost_batch_stops_a_resumed_run(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, settings(), pause_at=24)
    (tmp_path / "imagined/000002.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"000002\.npz.* cannot be read .*--fresh"):
        run(tmp_path, settings())


def test_a_fresh_run_takes_nothing_from_the_old_one(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, settings(imagine_batch=4))
    run(tmp_path, settings(), TRIALS[:2], fresh=True)
    assert same(whole, tmp_path)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="world_start is 26 of 26"):
        settings(world_start=26)
    with pytest.raises(ValueError, match="horizon is 2 and a transition takes 3"):
        settings(horizon=2)
    with pytest.raises(ValueError, match="'imagine_every': 0"):
        settings(imagine_every=0)
    with Run(tmp_path, device="cpu") as stage, pytest.raises(ValueError, match="'cosine'"):
        learner = stage.learner(Painted(DotDream()), OptimConfig(schedule="cosine"), 1)
        WorldPart(learner=learner, every=1, batch=clip_of)


# --- imagined rollouts ------------------------------------------------------------------------------------------------


class Counting:
    """A world that shows the number of the step, and rewards the action's first number."""

    context, action_width = 2, 2

    def reset(self, frames: torch.Tensor) -> int:
        return 0

    def step(self, state: int, action: torch.Tensor) -> tuple:
        frame = torch.full((len(action), 3, 16, 16), 100 + state, dtype=torch.uint8)
        return Imagined(frame, action[:, 0].clone(), state + 1)


def test_a_rollout_sees_its_own_frames_and_is_drawn_with_its_own_rewards(tmp_path: Path) -> None:
    seen = torch.arange(3, dtype=torch.uint8)[None, :, None, None, None].expand(2, 3, 3, 16, 16)
    shown = []

    def act(frames: torch.Tensor, step: int) -> torch.Tensor:
        shown.append(frames[0, :, 0, 0, 0].tolist())
        return torch.full((2, 2), float(step))

    rollouts = imagine(Counting(), seen, 5, act)
    assert shown == [[0, 1, 2], [1, 2, 100], [2, 100, 101], [100, 101, 102], [101, 102, 103]]
    dreams = Dreams(tmp_path, ReplayConfig(stack=3, steps=1, discount=0.9), keep=2)
    dreams.add(rollouts)
    batch = dreams.transitions(200, 0, 0)
    newest, following = batch.frames[:, -1, 0, 0, 0].int(), batch.next_frames[:, -1, 0, 0, 0].int()
    assert set(newest.tolist()) == {2, 100, 101, 102, 103} and len(dreams) == 10
    step = following - 100
    assert torch.equal(batch.rewards, step.float()) and torch.equal(batch.actions[:, 0], step.float())
    assert torch.equal(newest, torch.where(step == 0, 2, 99 + step)) and torch.allclose(
        batch.discounts, torch.tensor(0.9)
    )


def test_imagined_rewards_are_cut_to_the_range_of_the_real_ones(tmp_path: Path) -> None:
    def episode(*rewards: float) -> Trajectory:
        rows = len(rewards) + 1
        frames, actions = np.zeros((rows, 3, 16, 16), np.uint8), np.zeros((rows, 2), np.float32)
        return Trajectory(
            frames=frames,
            actions=actions,
            rewards=np.array([0, *rewards], np.float32),
            discounts=np.ones(rows, np.float32),
        )

    frames = torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8)
    dreamt = Rollouts(frames=frames, actions=torch.zeros(1, 3, 2), rewards=torch.tensor([[-5.0, 2.5, 470.0]]))
    cut = within(dreamt, [episode(3.0, 2.0), episode(120.0)])
    assert cut.rewards.tolist() == [[2.0, 2.5, 120.0]] and cut.frames is frames


def test_a_bounded_run_keeps_no_reward_that_the_world_has_not_paid(whole: Path, tmp_path: Path) -> None:
    def imagined(folder: Path) -> np.ndarray:
        return np.concatenate([np.load(file)["rewards"] for file in sorted((folder / "imagined").glob("*.npz"))])

    run(tmp_path, replace(settings(), bounded=True))
    real = np.concatenate([np.load(file)["reward"][1:] for file in sorted((tmp_path / "replay").glob("*.npz"))])
    assert real.min() <= imagined(tmp_path).min() and imagined(tmp_path).max() <= real.max()
    assert imagined(whole).max() > real.max()  # or this would show nothing


def test_files_are_kept_as_long_as_a_saved_state_needs_them(tmp_path: Path) -> None:
    rollouts = Rollouts(
        frames=torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8), actions=torch.zeros(1, 3, 2), rewards=torch.zeros(1, 3)
    )
    dreams = Dreams(tmp_path, ReplayConfig(stack=2), keep=2)
    for _ in range(5):
        dreams.add(rollouts)
    first = dreams.state()
    assert len(list(tmp_path.iterdir())) == 5, "no state was saved yet that needs fewer"
    for _ in range(3):
        dreams.add(rollouts)
    dreams.state()  # may not have been saved when the machine stops
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == [3, 4, 5, 6, 7]
    again = Dreams(tmp_path, ReplayConfig(stack=2), keep=2)
    again.load_state(first)
    assert again.made == 5 and len(again) == 6 and sorted(int(path.stem) for path in tmp_path.iterdir()) == [3, 4]


def test_a_batch_is_mixed_by_the_real_ratio(tmp_path: Path) -> None:
    replay = recorded(tmp_path)
    batch = joined([replay.transitions(3, 0, 0), replay.transitions(5, 0, 1)])
    assert len(batch) == 8 and torch.equal(batch.rewards[:3], replay.transitions(3, 0, 0).rewards)


# --- the published faults ---------------------------------------------------------------------------------------------


def recorded(folder: Path, episodes: int = 2) -> Replay:
    """Random episodes of the dot whose reward is what the hand did: nothing but the action tells it."""

    class Told(DotWorld):
        def step(self, action):
            frames, _, *rest = super().step(action)
            return frames, float(action[0]), *rest

    run_settings = config(steps=12 * episodes, random_steps=12 * episodes)
    with Run(folder / "random", seed=0, config=run_settings, device="cpu") as stage:
        train(stage, run_settings, Told(), Told())
    return Replay(folder / "random/replay", ReplayConfig(stack=2))


def test_double_scaling_makes_the_agent_blind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ActorCritic(ActorCriticConfig(stack=2, size=16, actions=2, filters=8, features=16, hidden=64))
    frames = recorded(tmp_path).transitions(64, 0, 0).frames
    seeing = imagined_mean(network, frames).std(0)
    blind = imagined_mean(network, frames, ("double_scaling",)).std(0)
    assert torch.equal(imagined_mean(network, frames), network.mean_action(frames)), "else it sees as in the real world"
    assert bool((seeing > 100 * blind).all()), (seeing, blind)


def test_a_late_reward_cannot_be_foretold(tmp_path: Path) -> None:
    replay, errors = recorded(tmp_path, 100), {}
    for faults in ((), ("late_reward",)):
        torch.manual_seed(0)
        with Run(tmp_path / "-".join(["world", *faults]), device="cpu") as stage:
            dream = DotDream()
            learners = [stage.learner(part(dream), OPTIM, 1) for part in (Painted, Rewarded)]
            for draw in range(100):
                for learner in learners:
                    learner.update(clip_of(taught(replay.segments(16, 6, 0, draw), faults), 0))
        held_out = replay.segments(64, 6, 1, 0)
        errors[faults] = scored(2, held_out, *foretold(dream.eval(), held_out))
    right, late = errors[()], errors["late_reward",]
    assert np.mean(right.rewards) < 0.1 * right.constant, "taught rightly, the action tells the reward"
    assert np.mean(late.rewards) > 0.7 * late.constant, "one step late, it is told by an action yet to come"


def test_faults_are_made_where_they_are_asked_for(tmp_path: Path, whole: Path) -> None:
    run(tmp_path / "a", settings(faults=("double_scaling",)))
    ours, theirs = saved(whole), saved(tmp_path / "a")
    first = "imagined/000003.npz.actions"
    assert not np.array_equal(ours[first], theirs[first])
    run(tmp_path / "b", settings(faults=("late_reward",)))
    name = "Rewarded.weights.reward.0.weight"
    assert not np.array_equal(ours[name], saved(tmp_path / "b")[name])
