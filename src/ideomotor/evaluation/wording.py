"""Figures and values in the words of the page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Protocol


class Interval(Protocol):
    """What has two ends, both shares in 0..1."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def escaped(value: object) -> str:
    """Returns the value's text, safe between tags and in a quoted attribute."""
    return escape(str(value), quote=True)


def percent(part: float) -> str:
    """Returns a share of 0..1 in percent."""
    return f"{100 * part:.0f}%"


def span(interval: Interval) -> str:
    """Returns an interval of shares in percent."""
    return f"{100 * interval.low:.0f}–{100 * interval.high:.0f}%"


def points(part: float) -> str:
    """Returns a difference of shares in percentage points, with its sign (a true minus) unless it rounds to nothing."""
    rounded = round(100 * part)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def decibel(value: float) -> str:
    """Returns a PSNR."""
    return f"{value:.1f} dB"


def duration(seconds: float) -> str:
    """Returns seconds as a person would say them."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(size: int) -> str:
    """Returns bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def value(item: Any) -> str:
    """Returns a setting's value, escaped; lists and mappings on one line."""
    if isinstance(item, Mapping):
        return ", ".join(f"{escaped(name)} {value(inner)}" for name, inner in item.items())
    if isinstance(item, list | tuple | range):
        return ", ".join(value(inner) for inner in item)
    if item is None or isinstance(item, bool):
        return {True: "yes", False: "no", None: "none"}[item]
    return escaped(f"{item:,}" if isinstance(item, int) and abs(item) >= 10_000 else item)
