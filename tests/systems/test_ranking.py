"""A learned world as simulator: the same policies, starts and steps on both sides, killed and not; refusals."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from ideomotor.data.replay import Replay, ReplayConfig, Trajectory
from ideomotor.evaluation.episodes import EpisodeSpec, read_log, read_rows
from ideomotor.policies.actor_critic import ActorCritic, ActorCriticConfig
from ideomotor.predictors.autoregressive import AutoregressivePredictor
from ideomotor.systems import ranking as ranking_module
from ideomotor.systems.agent_worlds import pixel_world
from ideomotor.systems.experience import shaken
from ideomotor.systems.ivideogpt import tiny
from ideomotor.systems.ranking import ImaginedResult, Policy, RankingConfig, rank, summary, try_imagined, try_real
from ideomotor.systems.world import World
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.types import Imagined

NETWORK = ActorCriticConfig(stack=2, size=32, actions=2, filters=4, features=8, hidden=16)
CONFIG = RankingConfig(
    task="red", updates=(0, 1, 2, 4, 6), noise=(0.2, 0.5, 1.0), episodes=2, steps=3, batch=4, network=NETWORK
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, world = tmp_path_factory.mktemp("recorded"), pixel_world("red", "train", 2)
    Replay(folder, ReplayConfig(stack=2)).add(0, shaken(world, 0.3, False, np.random.default_rng(0)))
    return folder


@pytest.fixture(scope="module")
def world() -> World:
    torch.manual_seed(0)
    predictor = AutoregressivePredictor(replace(tiny().world, reward=True))
    return World(ContextVQGAN(tiny().tokenizer), predictor, horizon=2)


def rows(out: Path) -> dict[tuple, float]:
    real, imagined = read_log(out / "real.jsonl"), read_rows(out / "imagined.jsonl", ImaginedResult)
    return {row.identity: row.total_reward for row in [*real, *imagined]}


def test_killed_and_begun_again_it_tries_nothing_twice(
    recorded: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = rank(CONFIG, world, [recorded], tmp_path / "straight", lambda said: None)
    assert len(straight.rows) == 8 and straight.rows[-1]["policy"] == "6 updates, noise 1"
    ElementTree.parse(tmp_path / "straight/ranking.svg")

    plain, tried = ranking_module.append, []

    def killed(log: Path, row: object) -> None:
        plain(log, row)
        tried.append(row)
        if len(tried) == 11:  # the first of two imagined rows of the third policy
            raise KeyboardInterrupt

    monkeypatch.setattr(ranking_module, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        rank(CONFIG, world, [recorded], tmp_path / "broken", lambda said: None)
    rank(CONFIG, world, [recorded], tmp_path / "broken", lambda said: None)
    assert len(tried) == 32 and rows(tmp_path / "broken") == rows(tmp_path / "straight")
    again = rank(CONFIG, world, [recorded], tmp_path / "straight", lambda said: None)
    assert again.rows == straight.rows and len(tried) == 32
    with pytest.raises(ValueError, match="other settings"):
        rank(replace(CONFIG, steps=2), world, [recorded], tmp_path / "straight")


def test_policies_hold_their_actions_as_long_as_the_learned_world_takes_them(
    recorded: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, asked = [], []
    clone = ranking_module.clone
    monkeypatch.setattr(
        ranking_module, "clone", lambda c, run, of: (lengths.extend(len(e) for e in of), clone(c, run, of))
    )

    def real(task: str, stack: int, held: int) -> object:
        asked.append((task, stack, held))
        return pixel_world(task, "test", stack)

    rank(replace(CONFIG, held=5), world, [recorded], tmp_path, lambda said: None, real)
    assert asked == [("red", 2, 5)] and lengths == [2, 2, 2, 1, 1]  # twelve recorded steps, from each of five starts


class Told:
    """A real world that pays the sum of the action, and shows a picture of the goal that nothing changes."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.seen = np.random.default_rng(options["goal"]).integers(0, 255, (2, 3, 32, 32), dtype=np.uint8)
        self.seen[0] = self.seen[1]
        return self.seen, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.seen, float(action.sum()), False, False, {"success": action.sum() > 0}


class Foretold:
    """A world that foretells just that."""

    context, action_width = 2, 2

    def reset(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, -1]

    def step(self, state: torch.Tensor, action: torch.Tensor) -> Imagined:
        return Imagined(state, action.sum(1), state)

    def seed(self, seed: int) -> None:
        pass


def test_a_world_that_is_right_ranks_right(tmp_path: Path) -> None:
    """Fails if one side takes other steps, starts or actions than the other."""
    specs = [EpisodeSpec(task="t", seed=0, goal=goal) for goal in range(3)]
    starts = ranking_module.first_frames(Told(), specs)
    policies = []
    for number in range(5):
        torch.manual_seed(number)
        policies.append(Policy(ActorCritic(NETWORK), number))
        policies[-1].network.actor.head[-1].bias.data += 0.1 * (number - 2)
    policies.append(Policy(policies[0].network, 0, noise=0.5))
    for policy in policies:
        try_real(policy, Told(), specs, CONFIG.steps, tmp_path / "real.jsonl")
        try_imagined(CONFIG, policy, Foretold(), starts, specs, tmp_path / "imagined.jsonl")
    found = summary(CONFIG, tmp_path)
    assert len({row["return"] for row in found.rows}) == 6
    for row in found.rows[:5]:
        assert row["imagined return"] == pytest.approx(row["return"], abs=1e-4)
    assert found.rows[5]["imagined return"] != pytest.approx(found.rows[0]["return"], abs=1e-4)
    assert found.of_return.value > 0.8


def test_a_clone_does_what_was_done(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (9, 3, 32, 32), dtype=np.uint8)
    actions = rng.uniform(-0.8, 0.8, (9, 2)).astype(np.float32)
    ones = np.ones(9, np.float32)
    episode = Trajectory(frames=frames, actions=actions, rewards=ones, discounts=ones)
    config = replace(CONFIG, updates=(0, 20, 150), noise=(0.1, 0.2, 0.3, 0.4, 0.5), batch=8, shift=0)
    with ranking_module.Run(tmp_path, seed=0) as run:
        ranking_module.clone(config, run, [episode])
        made = list(ranking_module.policies(config, run))
    seen = torch.from_numpy(np.stack([episode.stacked(row, 2) for row in range(8)]))
    wanted = torch.from_numpy(actions[1:])  # row k + 1 was done at frame k
    errors = [float((policy.network.mean_action(seen) - wanted).square().mean()) for policy in made[:3]]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.1 * errors[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"updates": (5, 2)}, "wanted rising numbers"),
        ({"updates": (0,)}, "the last above 0"),
        ({"noise": (0.2, 0.2, 0.4)}, "each once"),
        ({"noise": ()}, "few policies: give 8"),
        ({"steps": 0}, "must be 1 or more"),
    ],
)
def test_settings_that_rank_nothing_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)


def test_worlds_that_do_not_fit_are_refused(world: World, recorded: Path, tmp_path: Path) -> None:
    blind = SimpleNamespace(predictor=AutoregressivePredictor(tiny().world))
    with pytest.raises(ValueError, match=r"train it with --world\.reward"):
        rank(CONFIG, blind, [recorded], tmp_path / "out")
    with pytest.raises(ValueError, match=r"\(32, 2\) and begins with 2"):
        rank(replace(CONFIG, network=replace(NETWORK, size=64)), world, [recorded], tmp_path / "out")
    with pytest.raises(ValueError, match="there are 20 test goals"):
        rank(replace(CONFIG, episodes=21), world, [recorded], tmp_path / "out")
    assert not (tmp_path / "out").exists()
