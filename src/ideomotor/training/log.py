"""What a run writes down while it trains: JSON lines, TensorBoard, and a line or bar on the screen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ideomotor.extras import require
from ideomotor.training.checkpoint import write_text, writing

Mean = Callable[[Mapping[str, float]], dict[str, float]]


class Log:
    """Averages the metrics over intervals of steps and writes each interval as one row.

    ``<folder>/metrics.jsonl`` has one object a line: ``step``, ``seconds`` (of the stage, over all its resumes),
    ``steps_per_second``, and the metrics. Rows after ``start`` are dropped: a resumed run writes them anew.
    TensorBoard's files lie in ``<folder>/tensorboard`` where it is installed.

    Args:
        folder: of the run; made before.
        steps: of the whole stage.
        start: step from which it goes on.
        seconds: spent before ``start``.
        every: steps of an interval.
        main: False in the processes that neither write nor talk.
        mean: averages metrics over the processes.
        console: where to show progress; the terminal where None.
        plain_seconds: between two lines, where the console is no terminal.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        start: int = 0,
        seconds: float = 0.0,
        every: int = 20,
        main: bool = True,
        mean: Mean = dict,
        console: Console | None = None,
        plain_seconds: float = 30.0,
    ) -> None:
        self.steps, self.start, self.every, self.main, self.mean = steps, start, every, main, mean
        self._folder = folder
        self.console = console or Console()
        self.plain_seconds = plain_seconds
        self._began, self._before = time.monotonic(), seconds
        self._marked = self._shown = self._began
        self._sums: dict[str, list[float]] = {}
        self._last = start
        self._rows: Any = None
        self._board: Any = None
        self._bar: Progress | None = None
        if main:
            self._rows = _open_rows(folder / "metrics.jsonl", start)
            self._board = self._open_board(folder / "tensorboard")
            self._bar = self._open_bar(folder.name) if self.console.is_terminal else None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes in the metrics of one step; writes a row at the end of an interval and at the last step."""
        for name, value in metrics.items():
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += 1
        if step % self.every == 0 or step >= self.steps:
            self._write(step)
        if self._bar is not None:
            self._bar.update(TaskID(0), completed=step)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._bar is not None:
            self._bar.stop()
        if self._rows is not None:
            self._rows.close()
        if self._board is not None:
            with writing(self._folder / "tensorboard"):
                self._board.close()

    def _write(self, step: int) -> None:
        means = self.mean({name: total / count for name, (total, count) in self._sums.items()})
        self._sums.clear()
        now = time.monotonic()
        rate = (step - self._last) / max(now - self._marked, 1e-9)
        self._last, self._marked = step, now
        if not self.main:
            return
        row = {"step": step, "seconds": round(self._before + now - self._began, 3), "steps_per_second": rate, **means}
        with writing(self._folder / "metrics.jsonl"):
            self._rows.write((json.dumps(row) + "\n").encode())
        if self._board is not None:
            with writing(self._folder / "tensorboard"):
                for name, value in (means | {"steps_per_second": rate}).items():
                    self._board.add_scalar(name, value, step)
        self._show(step, now, rate, _losses(means))

    def _show(self, step: int, now: float, rate: float, losses: str) -> None:
        if self._bar is not None:
            self._bar.update(TaskID(0), completed=step, rate=f"{rate:.2f} steps/s", losses=losses)
        elif now - self._shown >= self.plain_seconds or step >= self.steps:
            self._shown = now
            left = (self.steps - step) * (now - self._began) / max(step - self.start, 1)
            line = f"step {step}/{self.steps}  {rate:.2f} steps/s  {losses}  {left / 60:.1f} min left"
            self.say(line)

    def say(self, line: str) -> None:
        """Shows a line, in the main process."""
        if self.main:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _open_board(self, folder: Path) -> Any:
        try:
            require("tensorboard", "train")
        except ModuleNotFoundError as error:
            self.console.print(
                f"no TensorBoard files, only metrics.jsonl: {error}", markup=False, highlight=False, soft_wrap=True
            )
            return None
        from torch.utils import tensorboard

        assert isinstance(tensorboard, ModuleType)
        return tensorboard.SummaryWriter(str(folder), purge_step=self.start + 1 if self.start else None)

    def _open_bar(self, name: str) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        bar = Progress(*columns, TextColumn("{task.fields[losses]}"), TimeRemainingColumn(), console=self.console)
        bar.add_task(name, total=self.steps, completed=self.start, rate="", losses="")
        bar.start()
        return bar


def _open_rows(path: Path, start: int) -> Any:
    """Opens the rows for appending, after dropping those past ``start`` and a last line cut by a kill."""
    if path.is_file():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= start]
        write_text(path, "".join(line + "\n" for line in kept))
    return path.open("ab", buffering=0)  # no rest in a buffer that a full disk would bring up again at close


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _losses(means: Mapping[str, float]) -> str:
    """The losses, and the share of steps that were left out since fp16 did not hold their gradients."""
    losses = {name: value for name, value in means.items() if name.endswith("/loss")}
    parts = [f"{name if len(losses) > 1 else 'loss'} {value:.4f}" for name, value in losses.items()]
    skipped = [value for name, value in means.items() if name.endswith("/skipped") and value]
    return "  ".join([*parts, *(f"{value:.0%} of steps skipped" for value in skipped)])
