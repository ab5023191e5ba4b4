"""The bar that long work shows where no stage's own log does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Tell = Callable[..., None]


@contextmanager
def bar(title: str) -> Iterator[Tell]:
    """Shows a progress bar; yields what is to be told ``(done, total)`` or ``(done, total, title)``."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, soft_wrap=True), transient=True) as progress:
        line = progress.add_task(title, total=None)

        def tell(done: int, total: int, now: str = title) -> None:
            progress.update(line, completed=done, total=total, description=now)

        yield tell
