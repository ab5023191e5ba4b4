"""A policy is fine-tuned on demonstrations of a scripted expert, and acts in the toy world on goals that none of them
had.

    python examples/act_in_toy_world.py [OUT]

You see demonstrations being recorded, the loss fall, a table of successes with intervals, and films of the first
episodes in OUT/films: a hand pushes a disc to the goal of the named colour. It has seconds to learn, so expect few
successes.
"""

import sys
from dataclasses import replace
from pathlib import Path

from rich import print as show

from ideomotor.data.formats import open_dataset
from ideomotor.data.mixture import Source
from ideomotor.systems.collection import CollectionConfig, collect
from ideomotor.systems.sources import TrainingClips
from ideomotor.systems.trials import success_table
from ideomotor.systems.vpdd import Stage, tiny
from ideomotor.systems.vpdd_stages import evaluate, finetune, open_run
from ideomotor.training import OptimConfig

TASKS = ("red", "blue")


def main(out: Path) -> None:
    """Record, fine-tune, act."""
    wanted = {"demonstrations": 6, "expert": 0, "noisy": 0, "failed": 0}
    recorded = collect(CollectionConfig(out=out / "data", world="toy", tasks=TASKS, size=32, **wanted))
    shown = open_dataset(recorded.demonstrations)
    print(f"{len(shown.episodes)} demonstrations, e.g. {shown.episodes[0].text!r} in {shown.episodes[0].length} frames")

    # Pixels and text only: with the OUT of a pre-training stage the policy would see what the predictor foresees, too.
    policy = replace(tiny().policy, action_width=2, features=(0, 0))
    stage = Stage(steps=100, batch=16, optim=OptimConfig(lr=3e-3, warmup=10, ema=0.98))
    config = replace(tiny(), policy=policy, finetune_stage=stage, jitter=0.0, shift=2)
    with open_run(out / "policy", config, seed=0) as run:
        if not run.finished:
            source = Source(dataset=shown, window=config.window)
            finetune(config, TrainingClips([source], actions=True), None, None, run)

    # Goals 30 to 49 of each task are for trials; no demonstration has them.
    log = out / "rollouts.jsonl"
    results = evaluate(out / "policy", TASKS, 3, log, workers=0, world="toy", films=out / "films", filmed=1)
    show(success_table(results))


if __name__ == "__main__":  # recording starts worker processes, which read this file again
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/act"))
