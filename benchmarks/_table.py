"""The interface of every benchmark: `NAME.py [--tiny] [--json FILE]`, a table on screen, the same rows in FILE."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Before torch loads its OpenMP runtime: idle threads of two processes would spin each other to a halt.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_PACKAGES = ("ideomotor", "torch", "numpy", "mujoco", "metaworld", "av", "pybullet")


def parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser of the two shared options, for a benchmark that adds its own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--tiny", action="store_true", help="the smallest run that proves it works: under a minute")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    return made


def parse(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the shared options: ``tiny`` and ``json``."""
    return parser(description).parse_args(argv)


def publish(name: str, rows: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """Prints the rows as a table and, where ``--json`` was given, writes them with command, machine and date.

    Args:
        name: of the benchmark.
        rows: one mapping a line; the columns are the keys in order of first appearance.
        args: what ``parse`` returned.
    """
    print(table(rows))
    if args.json is None:
        return
    document = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "tiny": bool(args.tiny),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": [dict(row) for row in rows],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    partial = args.json.with_name(f".{args.json.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(args.json)
    finally:
        partial.unlink(missing_ok=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as aligned text, numbers to the right; None is left blank."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    right = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, cells)])


def machine() -> dict[str, Any]:
    """Returns what a figure depends on: processor, cores, memory, system and the versions of the packages used."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
