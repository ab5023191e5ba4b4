"""How often a study claims a difference that is not there: two arms of equal quality, simulated many times.

A claim is an interval of the paired difference that leaves out zero; at 95 % it should happen in 5 % of studies. Seeds,
tasks and episodes vary as in `evaluation/study_simulation.py`: training runs that differ not at all, on all tasks alike
(`seed`), on each task apart (`cell`), or both; and, beyond the same method twice, methods that differ on every single
task but not on average (`task`). The last column
says how often a difference of 0.7 logits (about 10 points) is claimed.
"""

from __future__ import annotations

import functools

import _table
from ideomotor.evaluation.statistics import difference_over_seeds, paired_difference
from ideomotor.evaluation.study_simulation import Luck, share_of_claims

DESIGNS = [(3, 2, 20), (3, 6, 20), (5, 10, 10), (1, 50, 20), (5, 50, 10)]
LUCK = {
    "none": Luck(seed=0, cell=0),
    "seed": Luck(seed=0.8, cell=0),
    "cell": Luck(seed=0, cell=0.8),
    "both": Luck(seed=0.5, cell=0.5),
    "task": Luck(seed=0.4, cell=0.4, task=0.8),
}


def main() -> None:
    """Simulates every design under every kind of luck."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--comparisons", type=int, default=2000, help="simulated studies a row")
    parser.add_argument("--bootstraps", type=int, default=100, help="of which the bootstrap, far slower, is tried on")
    parser.add_argument("--resamples", type=int, default=300, help="of one bootstrap")
    args = parser.parse_args()
    designs = [(3, 2, 5)] if args.tiny else DESIGNS
    many, few = (200, 50) if args.tiny else (args.comparisons, args.bootstraps)
    bootstrap = functools.partial(paired_difference, resamples=args.resamples)
    rows = []
    for design in designs:
        for name, luck in LUCK.items():
            row: dict[str, object] = {"seeds": design[0], "tasks": design[1], "episodes": design[2], "luck": name}
            found = share_of_claims(difference_over_seeds, design, luck, many)
            row |= {"t over seeds": found.value, "low": found.low, "high": found.high}
            found = share_of_claims(bootstrap, design, luck, few)
            row |= {"bootstrap": found.value, "its low": found.low, "its high": found.high}
            row["t finds 0.7"] = share_of_claims(difference_over_seeds, design, luck, many // 4, better=0.7).value
            rows.append(row)
            print(_table.table(rows[-1:]).splitlines()[-1], flush=True)
    _table.publish("study_aa", rows, args)


if __name__ == "__main__":
    main()
