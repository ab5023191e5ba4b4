"""Learns all 50 tasks of Meta-World on one GPU from nothing: 20 demonstrations each, image-only; target 55 % task mean.

It makes its own data, trains tokenizer, predictor and policy, and tries the policy 10 times a task. Every call goes on
where the last one stopped and ends by itself before ``--minutes`` are over: with exit code 75 where there is more to
do, so give the same command again, and with 0 at the end. See README.md beside this file.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # so that this package itself need not be installed

import _calls

import _table

AGAIN = _calls.AGAIN
_SIMULATOR = ("metaworld", "mujoco")
_NEEDED = {
    "torch": "", "safetensors": "", "einops": "", "jaxtyping": "", "rich": "", "av": "[video]", "pyarrow": "[video]",
    "gymnasium": "[metaworld]", "metaworld": "[metaworld]", "mujoco": "[metaworld]",
}  # fmt: skip


def missing(world: str) -> list[str]:
    """Returns a line for each package that this needs and does not find."""
    return _calls.missing(
        {name: extra for name, extra in _NEEDED.items() if world == "metaworld" or name not in _SIMULATOR}
    )


def main() -> int:
    """Goes on for ``--minutes``, then writes the rows and the weights that there are."""
    parser = _table.parser((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that is kept from call to call")
    parser.add_argument("--minutes", type=float, default=9.5, help="this call ends before they are over")
    parser.add_argument("--budget", type=float, default=23.0, help="minutes from the first call to the end of training")
    parser.add_argument("--world", choices=("metaworld", "toy"), default="metaworld", help="toy only with --tiny")
    args = parser.parse_args()
    if args.world == "toy" and not args.tiny:
        parser.error("--world toy is for trying things out: give --tiny too")
    if absent := missing(args.world):
        parser.exit(1, "packages are missing on this machine:\n  " + "\n  ".join(absent) + "\n")

    # Not above: the simulators' processes import this file, and need none of it.
    import mt50_lane
    import torch

    from ideomotor.training.run import Stopped

    if not (args.tiny or torch.cuda.is_available()):
        parser.exit(
            1, "torch sees no GPU, and on a CPU this takes days: give --tiny, or see torch.cuda.is_available()\n"
        )
    lane = mt50_lane.tiny(args.world) if args.tiny else mt50_lane.full()
    notes = mt50_lane.Notes.read(args.out / "notes.json")
    over = True
    try:
        with _calls.ended_in_time(args.minutes):
            mt50_lane.go_on(lane, args.out, notes, args.budget)
    except Stopped:
        over = False
    home = Path(os.environ["OUT"]) if "OUT" in os.environ else args.out / "out"
    args.json = args.json or home / "mt50.json"
    if "finetune" in notes.done:
        mt50_lane.pack(args.out / "finetune", home)
    if (args.out / "rollouts.jsonl").is_file():
        shutil.copy(args.out / "rollouts.jsonl", home)
    _table.publish("mt50", mt50_lane.rows(lane, args.out, notes), args)
    print(f"what is to be kept is in {home}" + ("" if over else "; there is more to do: give the same command again"))
    return 0 if over else AGAIN


if __name__ == "__main__":
    sys.exit(main())
