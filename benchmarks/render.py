"""Frames per second of Meta-World's pictures: the fast look against the simulator's own, in one process."""

from __future__ import annotations

import time
from typing import Any

from _table import parse, publish
from ideomotor.envs.metaworld import MetaWorldConfig, MetaWorldEnv

_SIZE = 96
_LOOKS = ("default", "fast")


def main() -> None:
    """Runs the benchmark."""
    args = parse(__doc__ or "")
    tasks = ("door-open",) if args.tiny else ("door-open", "button-press-topdown", "reach")
    # Rounds take turns, so that whatever else the machine does falls on both looks.
    rounds, frames = (2, {"default": 3, "fast": 30}) if args.tiny else (5, {"default": 12, "fast": 120})
    rows = [row for task in tasks for row in measure(task, rounds, frames)]
    publish("render", rows, args)


def measure(task: str, rounds: int, frames: dict[str, int]) -> list[dict[str, Any]]:
    """Returns a row a look; drawing alone is timed, after the first picture, while the scripted expert moves."""
    worlds = {look: MetaWorldEnv(MetaWorldConfig(task=task, size=_SIZE, look=look)) for look in _LOOKS}
    seconds, processor = dict.fromkeys(_LOOKS, 0.0), dict.fromkeys(_LOOKS, 0.0)
    for world in worlds.values():
        world.reset(options={"goal": 0})
    for _ in range(rounds):
        for look, world in worlds.items():
            for count in range(frames[look]):
                if count % 60 == 0:
                    world.reset(options={"goal": 0})
                world.advance(world.expert_action())
                began, used = time.perf_counter(), time.process_time()
                world.observe()
                seconds[look] += time.perf_counter() - began
                processor[look] += time.process_time() - used
    for world in worlds.values():
        world.close()
    drawn = {look: rounds * frames[look] for look in _LOOKS}
    rates = {look: drawn[look] / seconds[look] for look in _LOOKS}
    return [
        {
            "task": task,
            "look": look,
            "size": _SIZE,
            "frames": drawn[look],
            "frames_per_s": round(rates[look], 2),
            "cpu_ms_per_frame": round(1000 * processor[look] / drawn[look], 2),
            "times_default": round(rates[look] / rates["default"], 2),
        }
        for look in _LOOKS
    ]


if __name__ == "__main__":
    main()
