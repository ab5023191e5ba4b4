"""The worlds of agents that look at pictures: Meta-World, and the toy world to try things out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ideomotor.systems.collection_worlds import tasks_of
from ideomotor.training.checkpoint import read_json

if TYPE_CHECKING:
    from ideomotor.envs.pixels import PixelWorld

HORIZON = 200  # steps of Meta-World that an episode has
PACE_FILE = "pace.json"  # beside the world of a dream that was made another of: for how long its actions were held
RECORDED_REPEAT = 2  # steps of Meta-World from one frame of recorded experience to the next, as published


def pixel_world(
    task: str, goals: Literal["train", "test"], stack: int = 3, repeat: int = RECORDED_REPEAT
) -> PixelWorld:
    """Returns a task's world for an agent that looks at pictures: Meta-World at 64 px, or the toy world at 32 px in
    short episodes, to try things out.

    An action is held for ``repeat`` steps of Meta-World, and one of the toy world's. What a solved step brings more
    grows with it, so that a step of 8 earns what four of 2 do (but for the one in which it is solved).

    Raises:
        ValueError: there is no such task.
    """
    from ideomotor.envs.pixels import PixelConfig, PixelWorld, metaworld_pixels

    if task not in tasks_of("toy"):
        bonus = PixelConfig().success_bonus * repeat / PixelConfig().repeat
        config = PixelConfig(stack=stack, repeat=repeat, duration=HORIZON // repeat, success_bonus=bonus, mirrored=True)
        return metaworld_pixels(task, goals=goals, config=config)
    from ideomotor.envs.toy import ToyConfig, ToyEnv

    pixels = PixelConfig(stack=stack, repeat=1, duration=12)
    return PixelWorld(ToyEnv(ToyConfig(task=task, size=32, horizon=pixels.horizon, goals=goals)), pixels)


def repeat_of(folder: Path) -> int | None:
    """Returns for how many steps of Meta-World the agent of a dream held its actions, which is as far as the frames of
    its world are apart; None where the folder is of no dream.

    Raises:
        ValueError: the folder's run.json or pace.json was damaged.
    """
    if (folder / PACE_FILE).is_file():
        held: int = read_json(folder / PACE_FILE)["repeat"]
        return held
    settings = folder / "run.json"
    noted = (read_json(settings).get("config") or {}) if settings.is_file() else {}
    if "dream" not in noted:
        return None
    repeat: int = noted["dream"].get("repeat", RECORDED_REPEAT)  # runs from before it could be set held so long
    return repeat
