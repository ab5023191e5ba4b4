"""Acting by search: with a world that is known it gets where it is to go, and the command leaves rows and videos."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

import gymnasium as gym

from ideomotor.systems.plan import Planning, act_by_planning
from ideomotor.training.folder import lock
from ideomotor.types import Imagined


class Dots(gym.Env):
    """A bright dot is moved by an action; the reward is what the dot comes nearer to the right edge."""

    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.place = np.full(2, 4.0 + options["goal"], np.float32)
        return np.stack([picture(self.place)] * 2), {}

    def step(self, action):
        before, self.place = self.place, np.clip(self.place + 2 * action, 0, 15)
        frames = np.stack([picture(before), picture(self.place)])
        return frames, float(self.place[0] - before[0]), False, False, {"success": self.place[0] > 14}


class Inside:
    """The same, as a learned world knows it: from pictures alone."""

    context, action_width = 2, 2

    def reset(self, frames):
        light = frames[:, -1, 0].float()
        axis, total = torch.arange(16.0), light.sum((1, 2))
        return torch.stack([(light.sum(1) * axis).sum(1) / total, (light.sum(2) * axis).sum(1) / total], 1)

    def step(self, state, action=None):
        place = (state + 2 * action).clamp(0, 15)
        frames = torch.from_numpy(np.stack([picture(row.numpy()) for row in place]))
        return Imagined(frames, (place - state)[:, 0], place)

    def fork(self, state, times):
        return state.repeat_interleave(times, 0)


def picture(place: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:16, :16]
    light = 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 4)
    return np.broadcast_to(light.astype(np.uint8), (3, 16, 16)).copy()


@pytest.mark.parametrize("planner", ["cem", "mppi"])
@pytest.mark.parametrize("goal", [False, True])
def test_it_gets_where_it_is_to_go(planner: str, goal: bool) -> None:
    planning = Planning(planner=planner, horizon=3, samples=32, execute=1, temperature=0.1)
    wanted = picture(np.array([9.0, 3.0])) if goal else None
    acted = act_by_planning(Dots(), Inside(), planning, 8, start=2, goal=wanted)
    assert acted.seen.shape == acted.foreseen.shape == (9, 3, 16, 16) and acted.rewards.shape == (8,)
    light = torch.from_numpy(acted.seen[-1:, None])
    place = Inside().reset(light.repeat(1, 2, 1, 1, 1))[0]
    assert torch.allclose(place, torch.tensor([9.0, 3.0]), atol=1.0) if goal else acted.success
    error = np.abs(acted.seen[1:].astype(int) - acted.foreseen[1:]).mean()
    assert error < 8, "what a plan foresaw is shown beside what came of it"


def test_worlds_that_do_not_fit_are_refused() -> None:
    wide = Inside()
    wide.action_width = 4
    with pytest.raises(ValueError, match="width 2 and the learned world's 4"):
        act_by_planning(Dots(), wide, Planning(), 1, start=0)
    long = Inside()
    long.context = 3
    with pytest.raises(ValueError, match="2 frames, the learned world begins with 3"):
        act_by_planning(Dots(), long, Planning(), 1, start=0)
    with pytest.raises(ValueError, match="execute is 9"):
        Planning(execute=9)


def test_the_command_leaves_a_row_and_a_video_an_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    from test_dream import ideomotor, toy

    from ideomotor.systems import plan
    from ideomotor.systems.dream import run_dream

    repeats, plain = [], plan.pixel_world
    monkeypatch.setattr(plan, "pixel_world", lambda *given: (repeats.append(given[3]), plain(*given))[1])

    run_dream(toy(None), tmp_path / "world", episodes=1)
    words = ("ivideogpt", "plan", "red", "--world", tmp_path / "world", "--episodes", 1, "--steps", 3)
    words += ("--samples", 3, "--elites", 2, "--rounds", 1, "--horizon", 2, "--out", tmp_path / "out")
    assert ideomotor(*words) == 0
    before = (tmp_path / "out/plan.jsonl").read_text()
    assert before.count("\n") == 1 and (tmp_path / "out/plan-30.mp4").stat().st_size > 500
    assert ideomotor(*words) == 0 and (tmp_path / "out/plan.jsonl").read_text() == before, "it is not run again"
    noted = tmp_path / "world/run.json"
    noted.write_text(noted.read_text().replace('"repeat": 2', '"repeat": 4'))
    assert ideomotor(*words) == 2 and "repeat: 2 -> 4" in capsys.readouterr().err
    assert ideomotor(*words, "--out", tmp_path / "dreamt") == 0
    noted.unlink()  # as a stage leaves a world, of recorded experience
    settings = tmp_path / "world/ivideogpt.json"
    settings.write_text(
        settings.read_text().replace('"pooled": false', '"pooled": true').replace('"stride": 1', '"stride": 4', 1)
    )
    assert ideomotor(*words, "--out", tmp_path / "held") == 0
    assert repeats == [2, 2, 4, 4, 8], "an action is held as long as the world takes it"
    with lock(tmp_path / "out"):
        assert ideomotor(*words) == 2 and "choose another --out" in capsys.readouterr().err
    goal = next((tmp_path / "world/replay").glob("*.npz"))
    others = (*words, "--goal", goal, "--planner", "mppi", "--seed", 1)
    assert ideomotor(*others) == 2, "rows of other settings are not mixed"
    said = capsys.readouterr().err
    assert "planning.planner: 'cem' -> 'mppi'" in said and (tmp_path / "out/plan.jsonl").read_text() == before
    assert ideomotor(*others, "--out", tmp_path / "other") == 0
    assert "red" in capsys.readouterr().out
    np.savez(tmp_path / "no.npz", image=np.zeros((3, 8, 8, 3), np.uint8))
    for wrong, why in ((tmp_path / "no.npz", "has no observation, action"), (tmp_path / "lost", "no such file")):
        assert ideomotor(*words, "--goal", wrong, "--out", tmp_path / "none") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert why in said and wrong.name in said and not (tmp_path / "none").exists()
