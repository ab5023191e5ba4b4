"""Planners find what a known world asks for, and refuse what makes no sense."""

from typing import NamedTuple

import pytest
import torch

from ideomotor.rl.planning import Plan, cem, imagined_score, mppi, shifted, undecided
from ideomotor.types import Imagined, WorldModel

LOW, HIGH = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])


class Where(NamedTuple):
    place: torch.Tensor  # b 2
    fresh: list[bool]  # whether it may still be stepped


class Dot:
    """A bright dot that is moved by an action: a world that is known, in the shape of a learned one."""

    context, action_width = 1, 2

    def __init__(self, reward: bool = True) -> None:
        self.reward = reward
        self.rows: list[int] = []

    def reset(self, frames: torch.Tensor) -> Where:
        return Where(torch.full((len(frames), 2), 8.0), [True])

    def step(self, state: Where, action: torch.Tensor | None = None) -> Imagined:
        assert state.fresh[0] and action is not None, "a state is used up by a step"
        state.fresh[0] = False
        place = (state.place + 2 * action).clamp(0, 15)
        self.rows.append(len(place))
        reward = -(place - 12).norm(dim=1) if self.reward else None
        return Imagined(picture(place), reward, Where(place, [True]))

    def fork(self, state: Where, times: int) -> Where:
        return Where(state.place.repeat_interleave(times, 0), [True])

    def seed(self, seed: int) -> None:
        """Nothing is drawn here."""


def picture(place: torch.Tensor) -> torch.Tensor:
    """Returns 16 x 16 pictures of a blurred dot."""
    axis = torch.arange(16.0)
    near = [(-((axis - place[:, i : i + 1]) ** 2) / 8).exp() for i in (0, 1)]
    return (255 * near[1][:, :, None] * near[0][:, None, :])[:, None].expand(-1, 3, -1, -1).to(torch.uint8)


@pytest.mark.parametrize("planner", [cem, mppi])
@pytest.mark.parametrize("goal", [False, True])
def test_a_planner_moves_the_dot_where_it_is_wanted(planner, goal: bool) -> None:
    world = Dot(reward=not goal)
    assert isinstance(world, WorldModel)
    state = world.reset(torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8))
    wanted = picture(torch.full((2, 2), 12.0)) if goal else None
    score = imagined_score(world, state, wanted)
    options = {"rounds": 4} if planner is cem else {"rounds": 6, "temperature": 0.1}
    plan = planner(
        score, undecided(2, 3, LOW, HIGH), LOW, HIGH, samples=128, generator=torch.Generator().manual_seed(0), **options
    )
    reached = 8 + 2 * plan.actions.sum(1)
    assert torch.allclose(reached, torch.tensor(12.0), atol=0.7) and plan.actions.abs().max() <= 1
    assert torch.allclose(plan.score, score(plan.actions[:, None])[:, 0]), "the score is that of the plan"
    again = planner(
        score, undecided(2, 3, LOW, HIGH), LOW, HIGH, samples=128, generator=torch.Generator().manual_seed(0), **options
    )
    assert torch.equal(plan.actions, again.actions)


def test_scores_do_not_depend_on_how_many_are_imagined_at_once() -> None:
    world = Dot()
    state = world.reset(torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8))
    actions = torch.rand(2, 7, 3, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = imagined_score(world, state)(actions)
    assert whole.shape == (2, 7)
    world.rows.clear()
    assert torch.allclose(imagined_score(world, state, at_once=4)(actions), whole)
    assert max(world.rows) <= 4


def test_a_cem_plan_is_never_worse_than_the_one_it_began_with() -> None:
    def score(actions: torch.Tensor) -> torch.Tensor:
        return -(actions - 0.9).square().sum((2, 3))

    good = Plan(torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 1.0), torch.zeros(1))
    plan = cem(score, good, LOW, HIGH, samples=4, elites=2, rounds=1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plan.actions, good.actions)


def test_what_is_left_of_a_plan_begins_the_next() -> None:
    plan = Plan(torch.arange(6.0).reshape(1, 3, 2), torch.zeros(1, 3, 2), torch.ones(1))
    rest = shifted(plan, 1, undecided(1, 3, LOW, HIGH))
    assert rest.actions.tolist() == [[[2, 3], [4, 5], [0, 0]]] and rest.score.item() == -torch.inf
    assert torch.equal(rest.deviation, torch.ones(1, 3, 2))


def test_what_makes_no_sense_is_refused() -> None:
    start = undecided(1, 2, LOW, HIGH)

    def flat(actions: torch.Tensor) -> torch.Tensor:
        return torch.zeros(actions.shape[:2])

    with pytest.raises(ValueError, match="elites 9"):
        cem(flat, start, LOW, HIGH, samples=8, elites=9)
    with pytest.raises(ValueError, match="temperature 0"):
        mppi(flat, start, LOW, HIGH, temperature=0)
    with pytest.raises(ValueError, match="room between"):
        undecided(1, 2, LOW, LOW)
    with pytest.raises(ValueError, match="wanted a finite number for each"):
        cem(lambda actions: flat(actions) / 0, start, LOW, HIGH)
    world = Dot(reward=False)
    state = world.reset(torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="foretells no reward"):
        imagined_score(world, state)(start.actions[:, None])
    goal = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), and the world's are \(3, 16, 16\)"):
        imagined_score(world, state, goal)(start.actions[:, None])
