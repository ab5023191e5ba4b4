"""Test files have one namespace: of two with the same name pytest reads one and stops at the other."""

from collections import Counter
from pathlib import Path


def test_no_name_stands_twice() -> None:
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
