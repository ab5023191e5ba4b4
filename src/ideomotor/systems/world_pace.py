"""How far apart the frames of a learned world are, and for how long an action in it is held."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ideomotor.data.segments import SegmentWindow
from ideomotor.systems.agent_worlds import RECORDED_REPEAT, repeat_of
from ideomotor.systems.collection_worlds import tasks_of
from ideomotor.systems.sources import read_facts
from ideomotor.systems.stages import IMPORT_FILE


class Pace(NamedTuple):
    """Recorded frames from one frame of a world to the next, of each data set; and whether actions were pooled."""

    strides: tuple[int, ...]
    pooled: bool

    def __str__(self) -> str:
        apart = " or ".join(map(str, self.strides))
        return f"frames {apart} apart and, for what is done, " + ("the mean between them" if self.pooled else "a row")


def pace_of(folder: Path, window: SegmentWindow) -> Pace:
    """Returns the pace of the world in a stage's folder: as its data were read (``--strides``), else as its window."""
    return Pace(tuple(sorted({facts.stride for facts in read_facts(folder)})) or (window.stride,), window.pooled)


def other_pace(folder: Path, before: SegmentWindow, window: SegmentWindow, strides: tuple[int, ...]) -> str:
    """Returns a line on how the earlier world in ``folder`` went at another pace than is learned now; "" where not."""
    then, now = pace_of(folder, before), Pace(tuple(sorted(set(strides))) or (window.stride,), window.pooled)
    if then == now:
        return ""
    return (
        f"the world in {folder} learned from {then}; here it is {now}: it has to learn its pace anew. To keep it, set "
        f"--window.stride {then.strides[0]} --window.{'' if then.pooled else 'no-'}pooled"
    )


def steps_held(folder: Path, window: SegmentWindow) -> int:
    """Returns for how many steps of Meta-World whoever acts in the world in ``folder`` holds an action.

    Raises:
        ValueError: its data sets were pooled at several paces, so it has none of its own.
    """
    if (repeat := repeat_of(folder)) is not None:
        return repeat
    pace = pace_of(folder, window)
    if pace.pooled and len(pace.strides) > 1:
        raise ValueError(
            f"the world in {folder} learned from {pace}, so no action in it is always as long: act in one of a single "
            "stride"
        )
    return RECORDED_REPEAT * (pace.strides[0] if pace.pooled else 1)


def other_hold(folder: Path, window: SegmentWindow, task: str, repeat: int) -> str:
    """Returns a line on how frames of the earlier world in ``folder`` are farther apart, or nearer, than the steps of
    an agent that holds its actions for ``repeat`` steps of Meta-World; "" where they are not, or where nobody knows (an
    import, the toy world).
    """
    if task in tasks_of("toy") or (folder / IMPORT_FILE).is_file():
        return ""
    held = repeat_of(folder)
    apart = {RECORDED_REPEAT * stride for stride in pace_of(folder, window).strides} if held is None else {held}
    if apart == {repeat}:
        return ""
    return (
        f"frames of the world in {folder} are {' or '.join(map(str, sorted(apart)))} steps of Meta-World apart (if its "
        f"data were recorded as ours are), and the agent holds each action for {repeat}: the world has to learn its "
        f"pace anew. To keep it, set --repeat {min(apart)}"
    )
