"""The command that runs a declared study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Runs a declared study: its arms on the same seeds, tasks and episodes, with a table, a figure and a page.

    One TOML file declares it before anything runs, and the file's digest is in every row: rows of two declarations are
    never mixed. Stopped at any point, the same command goes on; no episode is there twice, none is missing.
    """

    name: tyro.conf.Positional[str]
    """A study that comes with the package ("toy" takes a minute), or the path of your own declaration, e.g. mine.toml;
    "list" names those that come with the package."""
    out: Path | None = None
    """Folder of the study: rows.jsonl (a line an episode), study.json, study.html. runs/study-NAME by default."""
    workers: int = 2
    """Cells (an arm with a seed) at once, each in a process of its own; 0 runs them one by one in this process."""
    fresh: bool = False
    """Throw away the rows that OUT holds, and begin anew."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.evaluation.study import read_study
        from ideomotor.evaluation.study_page import gap_interval, mean, verdict
        from ideomotor.systems.study import find_study, packaged_studies, run_study

        if self.name == "list":
            for name, path in packaged_studies().items():
                console.print(f"{name}: {read_study(path).question}", markup=False, highlight=False)
            return
        path = find_study(self.name)
        out = self.out or Path("runs") / f"study-{path.stem}"
        summary = run_study(path, out, self.workers, fresh=self.fresh)
        success = summary.study.metric == "success"
        table = Table("arm", summary.study.metric, "difference", "verdict")
        differences = {item.arm: item for item in summary.differences}
        for arm in summary.arms:
            item = differences.get(arm.name)
            shown = (gap_interval(item.over_seeds, success), item.verdict) if item else ("", "control")
            table.add_row(arm.name, mean(arm.curve[-1].mean, success), *shown)
        console.print(table)
        for line in [*(verdict(item, summary) for item in summary.differences), *summary.notes()]:
            console.print(line, markup=False, highlight=False)
        console.print(
            f"{summary.rows:,} of {summary.study.num_rows:,} episodes, none twice. Page: {out / 'study.html'}"
        )
