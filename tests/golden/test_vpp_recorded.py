"""Whether what was recorded of VPP is read: every file by a test module, every tensor of it by name."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.golden

TESTS = Path(__file__).parents[1]
WHOLE = {"tvp_unet_tiny"}  # a network's weights and nothing else


@cache
def modules():
    """Of each test module that is about VPP, its functions by name."""
    texts = [path.read_text() for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    trees = [ast.parse(text) for text in texts if "golden" in text and "vpp" in text]
    return [{node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)} for tree in trees]


@cache
def literals(function):
    """Its strings, as patterns: what an f-string fills in may be anything."""
    found = set()
    for part in ast.walk(function):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(re.escape(part.value))
        if isinstance(part, ast.JoinedStr):
            parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in part.values]
            if re.search(r"\w", "".join(parts)):
                found.add("".join(parts))
    return found


@cache
def names(function):
    """What it speaks of: its arguments, which are fixtures, and what it calls."""
    return {getattr(part, key) for part in ast.walk(function) for key in ("id", "arg") if hasattr(part, key)}


def reached(name, functions, found):
    """The function, and those of its module that it needs, itself or by others."""
    if name in functions and name not in found:
        found.add(name)
        for used in names(functions[name]):
            reached(used, functions, found)
    return found


def read_with(file):
    """The patterns in all functions that reach the file's name."""
    patterns = set()
    for functions in modules():
        for name in functions:
            texts = set().union(*(literals(functions[each]) for each in reached(name, functions, set())))
            if re.escape(file) in texts:
                patterns |= texts
    return patterns


def test_every_file(shared):
    files = [path for path in (shared / "golden" / "vpp").iterdir() if path.name not in ("README.md", "index.json")]
    strings = {text for functions in modules() for function in functions.values() for text in literals(function)}
    assert len(files) == 33
    assert not [path.name for path in files if not {re.escape(path.name), re.escape(path.stem)} & strings]


def test_every_tensor(shared):
    unread = {}
    for path in sorted((shared / "golden" / "vpp").glob("*.safetensors")):
        if path.stem in WHOLE:
            continue
        patterns = read_with(path.name)
        fits = re.compile("|".join(pattern for pattern in patterns if ".+" in pattern) or "$^").fullmatch
        prefixes = [pattern for pattern in patterns if pattern.endswith(r"\.")]
        with safe_open(path, "pt") as file:
            held = file.keys()
        for name in held:
            rests = [name[found.end() :] for prefix in prefixes if (found := re.match(prefix, name))]
            weight = rests and "state." in name  # of a network, which a strict load_state_dict reads whole
            if not weight and not any(re.escape(part) in patterns or fits(part) for part in (name, *rests)):
                unread.setdefault(path.name, []).append(name)
    assert not unread
