"""What can run a cell of a study: the explicit dict of recipes, their settings, and the first of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.evaluation.study import Study, check_keys
from ideomotor.systems.collection_worlds import tasks_of
from ideomotor.systems.study_cells import Cell, Done, Recipe
from ideomotor.systems.study_mbrl import MBRL, reading, run_mbrl
from ideomotor.systems.study_vpp import VPPEyes, run_vpp
from ideomotor.training.config import config_from_json, config_to_json


@dataclass(frozen=True, kw_only=True)
class ToyExpert:
    """Settings of "toy_experts": a scripted hand that trembles.

    Attributes:
        noise: spread of what is added to each action, where an action is at most 1.
        luck: spread of the noise between seeds, as a share of it.
        horizon: steps an episode has at most.
        halving: environment steps of practice that halve the noise.
        pause: seconds an episode takes longer; it stands for training in trials of the runner.
    """

    noise: float = 1.0
    luck: float = 0.2
    horizon: int = 60
    halving: int = 400
    pause: float = 0.0

    def __post_init__(self) -> None:
        if min(self.noise, self.luck, self.pause) < 0 or min(self.halving, self.horizon) < 1:
            raise ValueError(f"{self}: wanted noise, luck and pause of 0 or more, halving and horizon of 1 or more")


def run_toy_expert(cell: Cell, folder: Path, done: Done) -> None:
    """Tries a trembling hand in the toy world. It does not learn: its noise falls with steps of practice by rule."""
    from ideomotor.envs.toy import ToyConfig, ToyEnv

    settings: ToyExpert = cell.settings
    lucky = 1 + settings.luck * np.random.Generator(np.random.Philox(key=cell.seed)).normal()
    for at in cell.at:
        noise = settings.noise * abs(lucky) * 0.5 ** (at / settings.halving)
        for place, task in enumerate(cell.tasks):
            world = ToyEnv(ToyConfig(task=task, size=16, horizon=settings.horizon))
            for episode in range(cell.episodes):
                if (task, at, episode) in cell.recorded:
                    continue
                began = time.perf_counter()
                # The tremble depends on the episode and not on the arm, so that arms are paired and restarts equal.
                rng = np.random.Generator(np.random.Philox(key=[cell.seed, (at * 100 + episode) * 100 + place]))
                success, steps, total = _toy_episode(world, episode, noise, rng)
                time.sleep(settings.pause)
                spent = time.perf_counter() - began
                done(cell.row(task, at, episode, success=success, steps=steps, total_reward=total, seconds=spent))


def _toy_episode(world: Any, episode: int, noise: float, rng: np.random.Generator) -> tuple[bool, int, float]:
    """Returns success, steps and total reward of the scripted hand under noise, from the n-th held-out start."""
    from ideomotor.envs.world import GOALS

    world.reset(options={"goal": GOALS["test"][episode]})
    total, steps, success, over = 0.0, 0, False, False
    while not over:
        action = world.expert_action() + noise * rng.normal(size=2)
        reward, success, truncated, _ = world.advance(np.clip(action, -1, 1).astype(np.float32))
        total, steps, over = total + reward, steps + 1, success or truncated
    return bool(success), steps, total


def recipe_of(study: Study) -> Recipe:
    """Returns the study's recipe, after a look at whether it can run the study.

    Raises:
        ValueError: there is none of that name, it has not those tasks, or not so many starts.
    """
    recipes = _recipes()
    if study.recipe not in recipes:
        raise ValueError(f"there is no recipe {study.recipe!r} (recipes: {', '.join(recipes)})")
    recipe = recipes[study.recipe]
    unknown = [task for task in study.tasks if task not in recipe.tasks]
    if unknown:
        raise ValueError(
            f"the recipe {study.recipe} has no task {', '.join(unknown)} (tasks: {', '.join(recipe.tasks)})"
        )
    if study.episodes > recipe.most_episodes:
        raise ValueError(
            f"episodes is {study.episodes}; the recipe {study.recipe} has {recipe.most_episodes} different starts a "
            "task: take no more, and more seeds or tasks instead"
        )
    return recipe


def settings_of(recipe: Recipe, study: Study, arm: str) -> Any:
    """Returns the settings of one arm: its own over the shared ones over the recipe's defaults.

    Raises:
        ValueError: a key is unknown, or its value is of another type; the message names arm and key.
    """
    given: Mapping[str, Any] = {**study.settings, **study.arms[arm]}
    where = f"arms.{arm}"
    check_keys(given, recipe.settings, where)
    defaults: dict[str, Any] = {}
    for f in dataclasses.fields(recipe.settings):
        if f.name not in given:  # then it has a default, or check_keys had missed it
            defaults[f.name] = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    return config_from_json(recipe.settings, {**_as_json(defaults), **given}, where)


def with_reading(study: Study) -> Study:
    """Returns the study with what its arms' settings say of the files that they read, so that its digest tells of them.

    Raises:
        ValueError: the recipe cannot run the study, or such files are missing or others than declared.
    """
    recipe = recipe_of(study)
    if recipe.reading is None:
        return study
    arms = {arm: {**given, **recipe.reading(settings_of(recipe, study, arm))} for arm, given in study.arms.items()}
    return dataclasses.replace(study, arms=arms)


def cells_of(study: Study) -> list[Cell]:
    """Returns the cells of a study, seeds outermost: stopped half-way, all arms have the same seeds as far as can be.

    Raises:
        ValueError: the recipe cannot run the study, or an arm's settings are wrong.
    """
    recipe = recipe_of(study)
    settings = {arm: settings_of(recipe, study, arm) for arm in study.arms}
    parts = [(task,) for task in study.tasks] if recipe.per_task else [study.tasks]
    return [
        Cell(
            study=study.digest,
            arm=arm,
            seed=seed,
            tasks=tasks,
            at=study.at,
            episodes=study.episodes,
            settings=settings[arm],
        )
        for seed in study.seeds
        for tasks in parts
        for arm in study.arms
    ]


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns defaults as a declaration would give them: dataclasses as tables, tuples as lists."""
    made = dataclasses.make_dataclass("Defaults", list(values))
    return config_to_json(made(**values))


def _recipes() -> dict[str, Recipe]:
    """Returns all recipes by name."""
    return {
        "toy_experts": Recipe(
            settings=ToyExpert, tasks=tasks_of("toy"), most_episodes=20, per_task=False, run=run_toy_expert
        ),
        "mbrl": Recipe(
            settings=MBRL,
            tasks=(*tasks_of("metaworld"), *tasks_of("toy")),
            most_episodes=20,
            per_task=True,
            run=run_mbrl,
            reading=reading,
        ),
        "vpp": Recipe(
            settings=VPPEyes,
            tasks=(*tasks_of("metaworld"), *tasks_of("toy")),
            most_episodes=20,
            per_task=False,
            run=run_vpp,
        ),
    }
