"""Drawings of the report as inline SVG: no library, no script, colours by class so that dark and light both work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

NUM_COLOURS = 6
"""Lines are told apart by the classes k0 to k5; a seventh line repeats the first's."""

_MOST_POINTS = 240  # per line: more than the pixels it is drawn on, few enough for a small page


class Bar(NamedTuple):
    """A share in 0..1 with its interval, and the class that colours it."""

    share: float
    low: float
    high: float
    kind: str


class Line(NamedTuple):
    """A named line of a chart."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


class Band(NamedTuple):
    """A named line with an interval at each point."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


class Mark(NamedTuple):
    """A named choice: its cost, and a share in 0..1 with its interval."""

    name: str
    cost: float
    share: float
    low: float
    high: float


class Point(NamedTuple):
    """A named point of a plane, and an interval along each axis: value, low, high."""

    name: str
    across: tuple[float, float, float]
    up: tuple[float, float, float]


def bars(rows: Sequence[Bar], label: str, height: int = 12) -> str:
    """Returns horizontal bars from 0 to 100 % with whiskers, as wide as what holds them."""
    gap = max(3, height // 3)
    total = len(rows) * (height + gap) - gap + 2
    marks = "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="{total}"/>' for x in (25, 50, 75))
    fills, whiskers = [], []
    for i, row in enumerate(rows):
        top = 1 + i * (height + gap)
        middle, low, high = top + height / 2, 100 * row.low, 100 * row.high
        fills.append(
            f'<rect class="track" x="0" y="{top}" width="100%" height="{height}" rx="2"/>'
            f'<rect class="bar {row.kind}" x="0" y="{top}" width="{100 * row.share:.2f}%" height="{height}" rx="2"/>'
        )
        whisker = f'<line x1="{low:.2f}%" x2="{high:.2f}%" y1="{middle}" y2="{middle}"/>' + "".join(
            f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{middle - 3}" y2="{middle + 3}"/>' for x in (low, high)
        )
        whiskers.append(f'<g class="halo">{whisker}</g><g class="whisker">{whisker}</g>')
    inside = "".join(fills) + marks + "".join(whiskers)
    return f'<svg class="bars" role="img" aria-label="{escape(label)}" width="100%" height="{total}">{inside}</svg>'


def share(part: float, label: str) -> str:
    """Returns one thin bar of a part in 0..1."""
    return (
        f'<svg class="bars" role="img" aria-label="{escape(label)}" width="100%" height="8">'
        '<rect class="track" width="100%" height="8" rx="2"/>'
        f'<rect class="bar cost" width="{100 * min(max(part, 0.0), 1.0):.2f}%" height="8" rx="2"/></svg>'
    )


def legend(names: Sequence[str]) -> str:
    """Returns the names of a chart's lines, each after a stroke of its colour."""
    return "".join(
        '<span class="entry"><svg width="22" height="8" aria-hidden="true">'
        f'<path class="line k{i % NUM_COLOURS}" d="M1 4h20"/></svg>{escape(name)}</span>'
        for i, name in enumerate(names)
    )


def lines(series: Sequence[Line], label: str) -> str:
    """Returns a chart of the lines with axes; the vertical one is logarithmic where values span 1 to 30 or more.

    Values that are not finite are left out, which breaks the line. Long lines are drawn through means of neighbours.
    """
    width, height, left, right, top, bottom = 340, 190, 46, 12, 10, 24
    thinned = [_thinned(line) for line in series]
    xs = np.concatenate([steps for steps, _ in thinned])
    ys = np.concatenate([values for _, values in thinned])
    ys = ys[np.isfinite(ys)]
    if ys.size == 0:
        return (
            f'<p class="missing">No finite value of {escape(", ".join(line.name for line in series))} was logged.</p>'
        )
    logarithmic = bool(ys.min() > 0 and ys.max() >= 30 * ys.min())
    x_low, x_high = _range(min(0.0, float(xs.min())), float(xs.max()))
    y_low, y_high = (float(ys.min()), float(ys.max())) if logarithmic else _range(float(ys.min()), float(ys.max()))
    scale = math.log10 if logarithmic else float

    def across(x: float) -> float:
        return left + (width - left - right) * (x - x_low) / (x_high - x_low)

    def up(y: float) -> float:
        part = (scale(y) - scale(y_low)) / (scale(y_high) - scale(y_low))
        return height - bottom - (height - bottom - top) * part

    parts = []
    for tick in _log_ticks(y_low, y_high) if logarithmic else _ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(x_low, x_high):
        parts.append(f'<text x="{across(tick):.1f}" y="{height - 6}" text-anchor="middle">{_number(tick)}</text>')
    for i, (steps, values) in enumerate(thinned):
        points = [(across(x), up(y)) if math.isfinite(y) else None for x, y in zip(steps, values, strict=True)]
        parts.append(f'<path class="line k{i % NUM_COLOURS}" d="{_pen(points)}"/>')
    drawing = "".join(parts)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{drawing}</svg>'


def bands(series: Sequence[Band], label: str, across_says: str, *, shares: bool) -> str:
    """Returns a chart of the lines, each in the band of its interval and with a dot at each point.

    Args:
        series: at least one point in all, every number finite.
        label: for those who hear the page.
        across_says: what the horizontal axis is.
        shares: the vertical axis goes from 0 to 100 %; else it follows the values.
    """
    width, height, left, right, top, bottom = 640, 300, 52, 14, 10, 42
    xs = [x for band in series for x in band.steps]
    ys = [y for band in series for y in (*band.lows, *band.highs)]
    x_low, x_high = _range(min(xs), max(xs))
    y_low, y_high = (0.0, 1.0) if shares else _range(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        part_x, part_y = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + (width - left - right) * part_x, height - bottom - (height - bottom - top) * part_y

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1) if shares else _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        name = f"{100 * tick:.0f}%" if shares else _number(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for tick in _ticks(x_low, x_high):
        x, y = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{_number(tick)}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{escape(across_says)}</text>')
    for i, band in enumerate(series):
        up = [place(x, y) for x, y in zip(band.steps, band.highs, strict=True)]
        down = [place(x, y) for x, y in zip(band.steps, band.lows, strict=True)]
        edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*up, *down[::-1]))
        parts.append(f'<polygon class="band b{i % NUM_COLOURS}" points="{edge}"/>')
    for i, band in enumerate(series):
        points = [place(x, y) for x, y in zip(band.steps, band.values, strict=True)]
        parts.append(f'<path class="line k{i % NUM_COLOURS}" d="{_pen(points)}"/>')
        parts += [f'<circle class="dot b{i % NUM_COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in points]
    drawing = "".join(parts)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{drawing}</svg>'


def intervals(rows: Sequence[Band], label: str, *, shares: bool) -> str:
    """Returns one dot with its whisker for each row, named at the left; a row is a band of a single point."""
    width, left, right, step = 640, 170, 20, 30
    height = step * len(rows) + 30
    low, high = _range(min(row.lows[0] for row in rows), max(row.highs[0] for row in rows))
    low, high = (0.0, 1.0) if shares else (low, high)
    parts = []

    def across(x: float) -> float:
        return left + (width - left - right) * (x - low) / (high - low)

    for tick in (0, 0.25, 0.5, 0.75, 1) if shares else _ticks(low, high):
        x, name = across(tick), f"{100 * tick:.0f}%" if shares else _number(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 24}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{name}</text>')
    for i, row in enumerate(rows):
        y, ends, name = i * step + 18, (across(row.lows[0]), across(row.highs[0])), row.name
        name = name if len(name) <= 20 else name[:19] + "…"
        parts.append(f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="line b{i % NUM_COLOURS}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot b{i % NUM_COLOURS}" cx="{across(row.values[0]):.1f}" cy="{y}" r="4.5"/>')
    drawing = "".join(parts)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{drawing}</svg>'


def costs(marks: Sequence[Mark], label: str) -> str:
    """Returns a chart of shares over costs: a dot each with its whisker and name, joined in order of cost.

    The cost's axis is logarithmic; a cost below a thousandth counts as one.
    """
    width, height, left, right, top, bottom = 340, 230, 46, 16, 22, 40
    ordered = sorted((max(mark.cost, 1e-3), mark) for mark in marks)
    low, high = ordered[0][0] / 1.6, ordered[-1][0] * 1.6  # room beside the first and the last

    def across(cost: float) -> float:
        return left + (width - left - right) * math.log(cost / low) / math.log(high / low)

    def up(share: float) -> float:
        return height - bottom - (height - bottom - top) * share

    parts = []
    for level in (0, 25, 50, 75, 100):
        y = up(level / 100)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{level}%</text>')
    for tick in _one_two_five(low, high):
        x = across(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{height - bottom}" y2="{height - bottom + 4}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 17}" text-anchor="middle">{_number(tick)}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">CPU-ms a step</text>')
    places = [(across(cost), up(mark.share)) for cost, mark in ordered]
    parts.append(f'<path class="line way" d="{_pen(places)}"/>')
    ended, line = -math.inf, 0.0  # where the last name ends, and how high it stands
    for (x, y), (_, mark) in zip(places, ordered, strict=True):
        ends = (up(mark.low), up(mark.high))
        whisker = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>' + "".join(
            f'<line x1="{x - 4:.1f}" x2="{x + 4:.1f}" y1="{end:.1f}" y2="{end:.1f}"/>' for end in ends
        )
        parts.append(f'<g class="whisker">{whisker}</g><circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        above, half = ends[1] - 6, 3.4 * len(mark.name) + 2  # a letter is about 7 units wide
        if x - half < ended and abs(above - line) < 12:  # the name before is in the way
            above = line - 12
        ended, line = x + half, above
        parts.append(f'<text class="name" x="{x:.1f}" y="{above:.1f}" text-anchor="middle">{escape(mark.name)}</text>')
    drawing = "".join(parts)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{drawing}</svg>'


def scatter(points: Sequence[Point], label: str, across_says: str, up_says: str) -> str:
    """Returns a chart of named points with a whisker along each axis; every number finite, at least one point."""
    width, height, left, top, bottom = 640, 400, 52, 24, 42
    right = 12 + 7 * max(len(point.name) for point in points)  # a letter is about 7 units wide
    (x_low, x_high), (y_low, y_high) = (
        _range(min(axis[1] for axis in axes), max(axis[2] for axis in axes))
        for axes in ([point.across for point in points], [point.up for point in points])
    )

    def place(x: float, y: float) -> tuple[float, float]:
        part_x, part_y = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + (width - left - right) * part_x, height - bottom - (height - bottom - top) * part_y

    parts = []
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(x_low, x_high):
        x, y = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{_number(tick)}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{escape(across_says)}</text>')
    parts.append(f'<text x="6" y="13">{escape(up_says)}</text>')
    for name, (x, x_from, x_to), (y, y_from, y_to) in points:
        (at, over), ends = place(x, y), [place(x_from, y_from), place(x_to, y_to)]
        parts.append(
            f'<g class="whisker"><line x1="{ends[0][0]:.1f}" x2="{ends[1][0]:.1f}" y1="{over:.1f}" y2="{over:.1f}"/>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{ends[0][1]:.1f}" y2="{ends[1][1]:.1f}"/></g>'
            f'<circle class="point" cx="{at:.1f}" cy="{over:.1f}" r="4"/>'
            f'<text class="name" x="{at + 7:.1f}" y="{over - 6:.1f}">{escape(name)}</text>'
        )
    drawing = "".join(parts)
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{drawing}</svg>'


def alone(chart: str) -> str:
    """Returns a chart as an SVG file of its own, which no page gives its colours."""
    style = (
        "svg{background:#fff;font-family:sans-serif}text{fill:#555;font-size:11px}text.name{fill:#111}"
        ".grid{stroke:#ddd}.whisker line{stroke:#888;stroke-width:1.2}.point{fill:#0b6bcb}"
    )
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{style}</style>", 1
    )


def _pen(points: Sequence[tuple[float, float] | None]) -> str:
    """Returns the path through the points, lifted at None; a point alone has no length and shows as a round dot."""
    commands, down = [], False
    for point in points:
        if point is not None:
            commands.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}" + ("" if down else "h0"))
        down = point is not None
    return "".join(commands)


def _thinned(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values, neighbours averaged (over their finite values) until few enough are left."""
    steps, values = np.asarray(line.steps, dtype=np.float64), np.asarray(line.values, dtype=np.float64)
    if steps.shape != values.shape or steps.ndim != 1 or not np.isfinite(steps).all():
        raise ValueError(
            f"curve {line.name!r} has steps of shape {steps.shape} and values of shape {values.shape}; wanted one "
            "finite step for each value"
        )
    width = -(-len(steps) // _MOST_POINTS)
    if width <= 1:
        return steps, values
    groups = [slice(i, i + width) for i in range(0, len(steps), width)]
    finite = [values[group][np.isfinite(values[group])] for group in groups]
    means = [float(part.mean()) if part.size else math.nan for part in finite]
    return np.array([float(steps[group].mean()) for group in groups]), np.array(means)


def _range(low: float, high: float) -> tuple[float, float]:
    """Returns the ends of a linear axis: zero is shown where it is not far, and an empty range is widened."""
    if 0 < low < 0.6 * high:
        low = 0.0
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = 0.5 * abs(high) or 1.0
        return low - margin, high + margin
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Returns 2 to 6 round numbers within the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns the powers of ten within the range."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / 6))
    return [10.0**power for power in range(first, last + 1, every)]


def _one_two_five(low: float, high: float) -> list[float]:
    """Returns numbers 1, 2 and 5 times a power of ten within the range, or powers of ten alone where those are many.

    There is one at least where ``high`` is 2.5 times ``low`` or more.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for factor in (1, 2, 5) if low <= (tick := factor * 10.0**power) <= high]
    return ticks if len(ticks) <= 7 else _log_ticks(low, high)


def _number(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1e4:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"
