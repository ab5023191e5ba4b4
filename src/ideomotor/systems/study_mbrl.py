"""The recipe "mbrl": agents that learn Meta-World from pictures, inside a learned world or without one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.systems.dream import DREAMS, Arm, Dream, for_task, run_dream
from ideomotor.systems.experience import experts
from ideomotor.systems.ivideogpt_stages import load_world
from ideomotor.systems.study_cells import Cell, Done
from ideomotor.training.checkpoint import fingerprint


@dataclass(frozen=True, kw_only=True)
class MBRL:
    """Settings of "mbrl". A study's ``at`` counts agent steps here; one holds an action for as many steps of Meta-World
    as the preset says (eight in "cpu").

    Attributes:
        learner: "mbpo", or "drqv2", the same agent without a world.
        preset: of ``systems.dream``, which the settings below change.
        demonstrations: episodes of the scripted expert that both learn from, the same for every arm and seed.
        world_from: folder of a world to begin with, as seen from where the study is started; "" begins from nothing.
            Its frames must be as far apart as the agent's (stride 4 of recordings with two steps each), mirrored as
            the agent sees them, and it must not have learned from the study's tasks.
        world_is: fingerprint of that world. Where a declaration leaves it out, it is filled in before anything runs,
            so that the rows of two worlds are rows of two declarations.
        random_steps: at the beginning, with random actions.
        updates: of the agent after each later step.
        noise_start: deviation of the noise on the actions in the beginning.
        noise_steps: until it has come down to ``noise``.
        noise: deviation at its end.
        cloning: price of actions unlike the demonstrations', see ``DrQv2Config``.
        world_start: step at which the world begins to learn.
        world_initial: updates of each of its parts then.
        transformer_every: steps between later updates of the transformer.
        tokenizer_every: steps between later updates of the tokenizer.
        imagine_every: steps between batches of rollouts.
        imagine_batch: rollouts of a batch.
        horizon: steps of a rollout.
        real_ratio: share of an agent's batch that is real.
    """

    learner: Arm = "mbpo"
    preset: str = "cpu"
    demonstrations: int = 5
    world_from: str = ""
    world_is: str = ""
    random_steps: int = 50
    updates: int = 3
    noise_start: float = 0.4
    noise_steps: int = 500
    noise: float = 0.2
    cloning: float = 0.3
    world_start: int = 50
    world_initial: int = 200
    transformer_every: int = 10
    tokenizer_every: int = 40
    imagine_every: int = 25
    imagine_batch: int = 16
    horizon: int = 10
    real_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.preset not in DREAMS or self.demonstrations < 0:
            raise ValueError(
                f"preset is {self.preset!r}, demonstrations {self.demonstrations}; wanted one of {', '.join(DREAMS)}, "
                "and 0 or more"
            )
        if self.world_is and not self.world_from:
            raise ValueError(
                f"world_is {self.world_is[:12]} is the fingerprint of a world: name its folder, world_from"
            )


def run_mbrl(cell: Cell, folder: Path, done: Done) -> None:
    """Trains one agent on one task, and tells of its trials as they end.

    Raises:
        ValueError: ``at`` is not in equal strides from 0 on, as a run takes its trials.
    """
    from ideomotor.envs.world import GOALS

    (task,) = cell.tasks
    stride = cell.at[0]
    if stride < 1 or list(cell.at) != [stride * (i + 1) for i in range(len(cell.at))]:
        raise ValueError(
            f"at is {list(cell.at)}; the recipe mbrl wants equal strides from 0 on, e.g. [500, 1000, 1500]"
        )

    def told(step: int, result: EpisodeResult) -> None:
        done(
            cell.row(
                task, step, result.goal - GOALS["test"].start, success=result.success, steps=result.steps,
                total_reward=result.total_reward, seconds=result.seconds,
            )
        )  # fmt: skip

    settings: MBRL = cell.settings
    reading(settings)
    run_dream(
        dream_of(cell, demonstrated(task, settings, folder / "demonstrations")),
        folder / "run",
        episodes=cell.episodes,
        world_from=Path(settings.world_from) if settings.world_from else None,
        seed=cell.seed,
        told=told,
    )


def reading(settings: MBRL) -> dict[str, str]:
    """Returns what of the settings follows from what is read: the fingerprint of the world, where there is one.

    Raises:
        ValueError: there is no world in that folder, or another one than was declared.
    """
    if not settings.world_from or settings.learner == "drqv2":
        return {}
    folder = Path(settings.world_from).resolve()
    _, predictor = load_world(folder)
    found = fingerprint(predictor, predictor.config)
    if settings.world_is not in ("", found):
        raise ValueError(
            f"the world in {folder} has the fingerprint {found}, and {settings.world_is} is declared (world_is): give "
            "the declared world, or declare this one and choose another --out"
        )
    return {"world_is": found}


def dream_of(cell: Cell, demonstrations: Path | None) -> Dream:
    """Returns the settings of the cell's run."""
    settings: MBRL = cell.settings
    config = for_task(DREAMS[settings.preset](), cell.tasks[0], settings.learner, demonstrations)
    learning = config.learning
    noise = ((0, settings.noise_start), (settings.noise_steps, settings.noise))
    agent = replace(learning.real.agent, noise=noise, cloning=settings.cloning)
    real = replace(
        learning.real, steps=cell.at[-1], evaluate_every=cell.at[0], random_steps=settings.random_steps,
        updates=settings.updates, agent=agent,
    )  # fmt: skip
    return replace(
        config,
        learning=replace(
            learning, real=real, world_start=settings.world_start, world_initial=settings.world_initial,
            imagine_every=settings.imagine_every, imagine_batch=settings.imagine_batch, horizon=settings.horizon,
            real_ratio=settings.real_ratio,
        ),
        transformer_every=settings.transformer_every,
        tokenizer_every=settings.tokenizer_every,
        videos=False,
    )  # fmt: skip


def demonstrated(task: str, settings: MBRL, folder: Path) -> Path | None:
    """Records what is missing of the expert's episodes and returns their folder; None where there shall be none."""
    if not settings.demonstrations:
        return None
    preset = DREAMS[settings.preset]()
    return experts(task, folder, settings.demonstrations, preset.learning.real.replay.stack, preset.repeat)
