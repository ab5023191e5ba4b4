"""Learns six tasks of Meta-World from pictures on one GPU, inside a learned world (MBPO) and without one (DrQ-v2).

Both arms have the same five demonstrations a task, which it records itself. Every call goes on where the last one
stopped and ends by itself before ``--minutes`` are over: with exit code 75 where there is more to do, so give the same
command again, and with 0 at the end. See README.md beside this file.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # so that this package itself need not be installed

import _calls

import _table

TASKS = ("button-press-topdown-wall", "plate-slide", "hammer", "door-lock", "handle-pull-side", "coffee-push")
ARMS = ("drqv2", "mbpo")
_NEEDED = {
    "torch": "", "safetensors": "", "einops": "", "jaxtyping": "", "rich": "", "av": "[video]",
    "gymnasium": "[metaworld]", "metaworld": "[metaworld]", "mujoco": "[metaworld]",
}  # fmt: skip


def settings(tiny: bool, steps: int, world_from: Path | None) -> Any:
    """Returns the settings of every run; the published ones, but for the world where there is none to begin with."""
    from ideomotor.systems.dream import DREAMS

    if tiny:
        return DREAMS["tiny"]()
    config = DREAMS["published-64"]()
    if world_from is None:  # 250 M weights learn nothing from a few episodes; the small world may
        small = DREAMS["cpu"]()
        config = replace(
            config, world=small.world, transformer_optim=small.transformer_optim, tokenizer_optim=small.tokenizer_optim
        )
    real = replace(config.learning.real, steps=steps, evaluate_every=max(1, steps // 5))
    agent = replace(real.agent, noise=((0, 1.0), (steps, 0.1)), optim=replace(real.agent.optim, bf16=True))
    return replace(config, learning=replace(config.learning, real=replace(real, agent=agent)))


def go_on(config: Any, tasks: tuple[str, ...], out: Path, world_from: Path | None, episodes: int) -> None:
    """Trains what is not done yet: task by task, the arms one after the other."""
    from ideomotor.systems.dream import for_task, run_dream
    from ideomotor.systems.study_mbrl import MBRL, demonstrated

    preset = "tiny" if config.learning.real.agent.network.size == 32 else "published-64"
    for task in tasks:
        shown = demonstrated(task, MBRL(preset=preset), out / "demonstrations" / task)
        for arm in ARMS:
            begun = world_from if arm == "mbpo" else None
            run_dream(for_task(config, task, arm, shown), out / f"{arm}-{task}", episodes=episodes, world_from=begun)


def rows(tasks: tuple[str, ...], out: Path) -> list[dict[str, Any]]:
    """Returns a row a task, arm and trial, as far as they have come."""
    from ideomotor.evaluation.episodes import read_log
    from ideomotor.evaluation.statistics import wilson

    made = []
    for task in tasks:
        for arm in ARMS:
            for log in sorted((out / f"{arm}-{task}" / "trials").glob("step-*.jsonl")):
                results = read_log(log)
                successes = sum(result.success for result in results)
                value, low, high = wilson(successes, len(results))
                made.append(
                    {
                        "task": task,
                        "arm": arm,
                        "steps": int(log.stem.removeprefix("step-")),
                        "episodes": len(results),
                        "success": round(value, 4),
                        "low": round(low, 4),
                        "high": round(high, 4),
                        "return": round(sum(result.total_reward for result in results) / len(results), 1),
                    }
                )
    return made


def main() -> int:
    """Goes on for ``--minutes``, then writes the rows that there are."""
    parser = _table.parser((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that is kept from call to call")
    parser.add_argument("--minutes", type=float, default=9.5, help="this call ends before they are over")
    parser.add_argument("--steps", type=int, default=5000, help="agent steps of each run")
    parser.add_argument("--world-from", type=Path, help="folder of a world that mbpo begins with")
    args = parser.parse_args()
    if absent := _calls.missing({} if args.tiny else _NEEDED):
        parser.exit(1, "packages are missing on this machine:\n  " + "\n  ".join(absent) + "\n")
    import torch

    from ideomotor.training.run import Stopped

    if not (args.tiny or torch.cuda.is_available()):
        parser.exit(1, "torch sees no GPU, and on a CPU this takes weeks: give --tiny, or `ideomotor study mbrl_cpu`\n")
    tasks = ("red", "green") if args.tiny else TASKS
    config, over = settings(args.tiny, args.steps, args.world_from), True
    try:
        with _calls.ended_in_time(args.minutes):
            go_on(config, tasks, args.out, args.world_from, episodes=2 if args.tiny else 20)
    except Stopped:
        over = False
    home = Path(os.environ["OUT"]) if "OUT" in os.environ else args.out / "out"
    args.json = args.json or home / "mbrl.json"
    _table.publish("mbrl", rows(tasks, args.out), args)
    print(f"what is to be kept is in {home}" + ("" if over else "; there is more to do: give the same command again"))
    return 0 if over else _calls.AGAIN


if __name__ == "__main__":
    sys.exit(main())
