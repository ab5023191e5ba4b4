"""The command that dreams: both arms, killed and not, from nothing and from an earlier world; and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("gymnasium")

from test_ivideogpt_resize import roomy, stage

from ideomotor import cli
from ideomotor.data.replay import Replay, ReplayConfig, Trajectory, write_trajectory
from ideomotor.evaluation.episodes import read_log
from ideomotor.rl.mbpo import taught
from ideomotor.systems import dream as dreaming
from ideomotor.systems.agent_worlds import pixel_world
from ideomotor.systems.dream import (
    DREAMS,
    Dream,
    clip_of,
    for_task,
    networks,
    published,
    refuse_other_demonstrations,
    run_dream,
    small,
    smallest,
    some_frames,
)
from ideomotor.systems.experience import shaken
from ideomotor.systems.ivideogpt import IVideoGPT, WorldModeling
from ideomotor.systems.ivideogpt_resize import resized_config
from ideomotor.systems.ivideogpt_stages import load_config
from ideomotor.systems.world import World
from ideomotor.training.run import Stopped


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of the toy world."""
    folder, world = tmp_path_factory.mktemp("shown"), pixel_world("red", "train", 2)
    replay = Replay(folder, ReplayConfig(stack=2))
    for number in range(2):
        replay.add(number, shaken(world, 0.0, False, np.random.default_rng(number)))
    return folder


@pytest.fixture(scope="module")
def whole(shown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dream")
    run_dream(toy(shown), folder, episodes=2)
    return folder


def toy(shown: Path | None, arm: dreaming.Arm = "mbpo") -> Dream:
    return for_task(smallest(), "red", arm, shown)


def ideomotor(*words: object) -> int:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_it_leaves_an_agent_a_world_and_trials(whole: Path) -> None:
    rows = [row for file in sorted((whole / "trials").iterdir()) for row in read_log(file)]
    assert len(rows) == 4 and {(row.arm, row.task) for row in rows} == {("mbpo", "red")}
    world = World.load(whole)
    imagined = world.step(world.reset(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)), torch.zeros(1, 2))
    assert imagined.reward is not None and imagined.frames.shape == (1, 3, 32, 32)
    metrics = (whole / "metrics.jsonl").read_text()
    assert all(name in metrics for name in ("Painting/loss", "WorldModeling/reward", "critic/loss", "actor/loss"))
    assert len(list((whole / "world_scores").glob("*.json"))) == 1


@pytest.mark.parametrize("pause", [13, 15, 21])  # among the world's first updates, its first rollouts, and after
def test_killed_and_run_again_equals_never_killed(
    whole: Path, shown: Path, tmp_path: Path, pause: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dreaming.Run
    monkeypatch.setattr(dreaming, "Run", lambda *given, **named: plain(*given, **named, pause_at=pause))
    with pytest.raises(Stopped):
        run_dream(toy(shown), tmp_path, episodes=2)
    monkeypatch.setattr(dreaming, "Run", plain)
    run_dream(toy(shown), tmp_path, episodes=2)
    shutil.copytree(shown, tmp_path / "moved")
    run_dream(toy(tmp_path / "moved"), tmp_path, episodes=2)  # it has ended, and where they lie decides nothing
    for model in ("agent", "tokenizer", "world"):
        ours, theirs = (load_file(folder / model / "model.safetensors") for folder in (whole, tmp_path))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), model


def test_an_earlier_world_goes_on_with_its_own_codes(whole: Path, shown: Path, tmp_path: Path) -> None:
    words = ("ivideogpt", "dream", "red", "--preset", "tiny", "--demonstrations", shown, "--episodes", 1)
    assert ideomotor(*words, "--world-from", whole, "--out", tmp_path / "later") == 0
    before, after = (json.loads((folder / "world/config.json").read_text()) for folder in (whole, tmp_path / "later"))
    assert before["config"] == after["config"] and before["fingerprint"] != after["fingerprint"]


def test_the_twin_without_a_world(shown: Path, tmp_path: Path) -> None:
    words = ("ivideogpt", "dream", "red", "--preset", "tiny", "--arm", "drqv2", "--episodes", 1, "--out", tmp_path)
    assert ideomotor(*words, "--demonstrations", shown, "--learning.real.steps", 16) == 0
    rows = [row for file in (tmp_path / "trials").iterdir() for row in read_log(file)]
    assert {row.arm for row in rows} == {"drqv2"} and not (tmp_path / "world").exists()
    assert (tmp_path / "agent/model.safetensors").is_file()


def test_demonstrations_of_another_pace_are_refused(shown: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"000000\.npz has 12 steps; an episode of this agent has 25 .*record whole"):
        run_dream(for_task(small(), "plate-slide", "drqv2", shown), tmp_path / "run")
    frames = np.zeros((101, 3, 64, 64), np.uint8)
    ones = np.ones(101, np.float32)
    coarse = Trajectory(frames=frames, actions=np.zeros((101, 4), np.float32), rewards=ones, discounts=ones)
    write_trajectory(tmp_path / "shown/a.npz", coarse)
    with pytest.raises(ValueError, match=r"has 100 steps; .* each action held for 8.*: set --repeat 2"):
        run_dream(for_task(small(), "plate-slide", "drqv2", tmp_path / "shown"), tmp_path / "run")
    refuse_other_demonstrations(for_task(published(), "plate-slide", "drqv2", None), tmp_path / "shown")
    with pytest.raises(ValueError, match="repeat is 7; episodes have 200 steps"):
        replace(small(), repeat=7)


@pytest.mark.sim
def test_longer_steps_are_as_long_an_episode_and_earn_as_much() -> None:
    earned, solved = {}, {}
    for repeat in (2, 8):
        world = pixel_world("plate-slide", "train", repeat=repeat)
        try:
            episode = shaken(world, 0.0, False, np.random.default_rng(0))
        finally:
            world.close()
        assert len(episode) == 200 // repeat
        earned[repeat], solved[repeat] = float(episode.rewards.sum()), float(episode.rewards.max())
    assert solved[8] == pytest.approx(4 * solved[2], rel=0.05)  # 10 a step of the world and 5 of bonus, in either
    assert earned[8] == pytest.approx(earned[2], rel=0.15)


def test_a_video_shows_truth_beside_imagination(tmp_path: Path) -> None:
    pytest.importorskip("av")
    frames = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    dreaming.film(tmp_path / "episode-000000", frames, frames, frames)
    assert (tmp_path / "episode-000000.mp4").stat().st_size > 500


def test_the_tokenizer_paints_the_context_and_some_frames_behind_it() -> None:
    frames = torch.arange(12, dtype=torch.uint8)[None, :, None, None, None].expand(2, 12, 3, 8, 8)
    clip = clip_of(dreaming.Segments(frames=frames, actions=torch.zeros(2, 12, 2), rewards=torch.zeros(2, 12)))
    shown = [some_frames(clip, 2, 5, seed).frames["main"][0, :, 0, 0, 0].tolist() for seed in range(20)]
    assert all(len(row) == 7 and row[:2] == [0, 1] and row == sorted(set(row)) for row in shown)
    assert {number for row in shown for number in row} == set(range(12)) and shown[3] != shown[4]
    assert some_frames(clip, 2, 99, 0).frames["main"].equal(clip.frames["main"])


def test_the_world_learns_each_frames_own_reward() -> None:
    """Fails if a reward is paired with another frame; and taught one step late, it is."""
    torch.manual_seed(0)
    tokenizer, predictor = networks(smallest(), None)
    objective = WorldModeling(predictor, tokenizer.eval())
    frames = torch.randint(0, 256, (1, 6, 3, 32, 32), dtype=torch.uint8)
    zeros = dreaming.Segments(frames=frames, actions=torch.zeros(1, 6, 2), rewards=torch.zeros(1, 6))
    for faults, heard in (((), (1, 2, 3, 4)), (("late_reward",), (2, 3, 4, 5))):  # frames 2 to 5 are foretold
        plain = objective(clip_of(taught(zeros, faults))).total
        for row in range(6):
            rewards = torch.zeros(1, 6)
            rewards[:, row] = 1.0
            changed = objective(clip_of(taught(replace(zeros, rewards=rewards), faults))).total
            assert bool(changed != plain) == (row in heard), (faults, row)


@pytest.mark.parametrize("name", DREAMS)
def test_presets_fit_their_worlds(name: str) -> None:
    config = DREAMS[name]()
    if name == "published-256":
        with pytest.raises(ValueError, match="pictures of 256 px and the agent of 64"):
            dreaming.refuse_unfit(config, None)
    else:
        dreaming.refuse_unfit(config, None)
        assert config.learning.real.replay.stack >= config.world.world.context


def three() -> IVideoGPT:
    """Settings for three context frames."""
    config = roomy()
    return resized_config(config, 3, carried=True)


def test_what_does_not_fit_is_refused(whole: Path, shown: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.npz file"):
        run_dream(toy(tmp_path), tmp_path / "out")
    with pytest.raises(ValueError, match="episodes is 21"):
        run_dream(toy(shown), tmp_path / "out", episodes=21)
    with pytest.raises(ValueError, match="choose another --out"):
        run_dream(toy(shown), whole, world_from=whole)
    far = replace(toy(shown), learning=replace(toy(shown).learning, horizon=30))
    with pytest.raises(ValueError, match=r"shorten --learning\.horizon"):
        run_dream(far, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    wide = shutil.copytree(whole, tmp_path / "wide")
    actions = replace(load_config(whole), world=replace(load_config(whole).world, action_width=3, reward=True))
    stage(wide, actions)
    before = sorted(path.name for path in whole.iterdir())
    for out in (tmp_path / "out", whole):  # also --fresh throws nothing away for it
        with pytest.raises(ValueError, match="hears actions of width 3, this one of 2"):
            run_dream(toy(shown), out, world_from=wide, fresh=True)
    assert not (tmp_path / "out").exists() and sorted(path.name for path in whole.iterdir()) == before
    nothing = np.zeros(4, np.float32)
    other = Trajectory(
        frames=np.zeros((4, 3, 32, 32), np.uint8), actions=np.zeros((4, 4), np.float32), rewards=nothing,
        discounts=nothing,
    )  # fmt: skip
    write_trajectory(tmp_path / "others/a.npz", other)
    with pytest.raises(ValueError, match=r"a\.npz has frames and actions .*\(4,\)\), the agent's .*\(2,\)\): give"):
        run_dream(toy(tmp_path / "others"), whole, fresh=True)
    assert sorted(path.name for path in whole.iterdir()) == before
    shutil.rmtree(tmp_path / "others")
    with pytest.raises(ValueError, match="begins with 3 frames and the agent sees 2"):
        run_dream(toy(shown), tmp_path / "out", world_from=stage(tmp_path / "three", three()))
    with pytest.raises(ValueError, match="was begun with"):
        run_dream(toy(shown, "drqv2"), whole)
    with pytest.raises(ValueError, match=r"demonstrations: .*was begun with"):
        run_dream(toy(shutil.copytree(whole / "replay", tmp_path / "others")), whole)
    for inside in (whole, whole / "replay"):  # a run begun anew takes its replay away
        with pytest.raises(ValueError, match="is only read: choose another --out"):
            run_dream(toy(inside), whole)
