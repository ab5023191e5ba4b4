"""Times VPP at full size on one GPU (target: 40 ms an act), and learns all 50 tasks of Meta-World with a smaller one.

The smaller one learns from nothing, on data that this records: 20 demonstrations a task, images only, and is tried 10
times a task. Every call goes on where the last one stopped and ends by itself before ``--minutes`` are over: with exit
code 75 where there is more to do, so give the same command again, and with 0 at the end. See README.md beside it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # so that this package itself need not be installed

import _calls

import _table

_NEEDED = {
    "torch": "", "safetensors": "", "einops": "", "jaxtyping": "", "rich": "", "av": "[video]", "pyarrow": "[video]",
    "diffusers": "[svd]", "transformers": "[text]", "gymnasium": "[metaworld]", "metaworld": "[metaworld]",
    "mujoco": "[metaworld]",
}  # fmt: skip


def go_on(args: Any, lane: Any, notes: Any) -> None:
    """Times first, which takes minutes, and then trains; each is done once."""
    import vpp_lane
    import vpp_speed

    from ideomotor.training.checkpoint import write_json

    if args.speed and not (args.out / "speed.json").is_file():
        write_json(args.out / "speed.json", {"rows": vpp_speed.speed_rows(args.tiny)})
    if args.train:
        vpp_lane.go_on(lane, args.out, notes, args.budget)


def main() -> int:
    """Goes on for ``--minutes``, then writes the rows and the weights that there are."""
    parser = _table.parser((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that is kept from call to call")
    parser.add_argument("--minutes", type=float, default=9.5, help="this call ends before they are over")
    parser.add_argument("--budget", type=float, default=25.0, help="minutes from the first call to the end of training")
    parser.add_argument("--world", choices=("metaworld", "toy"), default="metaworld", help="toy only with --tiny")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="train only")
    parser.add_argument("--no-train", dest="train", action="store_false", help="time only")
    args = parser.parse_args()
    if args.world == "toy" and not args.tiny:
        parser.error("--world toy is for trying things out: give --tiny too")
    skipped = () if args.train and args.world == "metaworld" else ("metaworld", "mujoco")
    if absent := _calls.missing({name: extra for name, extra in _NEEDED.items() if name not in skipped}):
        parser.exit(1, "packages are missing on this machine:\n  " + "\n  ".join(absent) + "\n")

    # Not above: the simulators' processes import this file, and need none of it.
    import torch
    import vpp_lane

    from ideomotor.training.checkpoint import read_json
    from ideomotor.training.run import Stopped

    if not (args.tiny or torch.cuda.is_available()):
        parser.exit(1, "torch sees no GPU: give --tiny, or for a CPU `ideomotor vpp` with its preset cpu\n")
    lane = vpp_lane.tiny(args.world) if args.tiny else vpp_lane.full()
    notes = vpp_lane.Notes.read(args.out / "notes.json")
    over = True
    try:
        with _calls.ended_in_time(args.minutes):
            go_on(args, lane, notes)
    except Stopped:
        over = False
    home = Path(os.environ["OUT"]) if "OUT" in os.environ else args.out / "out"
    args.json = args.json or home / "vpp.json"
    if "policy" in notes.done:
        vpp_lane.pack(args.out / "policy", home)
    if (args.out / "rollouts.jsonl").is_file():
        shutil.copy(args.out / "rollouts.jsonl", home)
    timed = read_json(args.out / "speed.json")["rows"] if (args.out / "speed.json").is_file() else []
    _table.publish("vpp", [*timed, *vpp_lane.rows(lane, args.out, notes)], args)
    print(f"what is to be kept is in {home}" + ("" if over else "; there is more to do: give the same command again"))
    return 0 if over else _calls.AGAIN


if __name__ == "__main__":
    sys.exit(main())
