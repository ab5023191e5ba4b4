"""The client lives without torch, msgpack and the rest of the house, under Python 3.9, and as a package of its own."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "src/ideomotor/serving/client"
FILES = sorted(CLIENT.glob("*.py"))

BLOCKED = """
import importlib.abc, json, pkgutil, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def alone(code: str, blocked: set[str], folder: Path) -> str:
    """Runs code in a process that finds the client as a top-level package, and what is blocked not at all."""
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=known, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


EVERYTHING = """
import ideomotor_client
for found in pkgutil.walk_packages(ideomotor_client.__path__, "ideomotor_client."):
    __import__(found.name)
import numpy
outside = {name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"__main__", "__mp_main__"}
print(sorted(name for name in outside if not name.startswith("_")))
"""


def test_every_module_imports_with_numpy_alone() -> None:
    blocked = {"torch", "msgpack", "jaxtyping", "einops", "ideomotor", "websockets"}
    assert alone(EVERYTHING, blocked, ROOT / "clients/python").strip() == "['ideomotor_client', 'numpy']"


def test_what_is_missing_is_named_with_the_way_to_get_it() -> None:
    code = """
from ideomotor_client import Client
try:
    Client("ws://127.0.0.1:1")
except ModuleNotFoundError as error:
    print(error)
"""
    assert "pip install ideomotor-client" in alone(code, {"websockets"}, ROOT / "clients/python")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_grammar_is_that_of_python_3_9_and_imports_stay_inside(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    outside = {"numpy", "websockets"} | sys.stdlib_module_names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= outside
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in outside
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1  # of this folder, never of the house
        if isinstance(node, ast.Call):  # keywords that came with 3.10
            assert not {keyword.arg for keyword in node.keywords} & {"strict", "kw_only", "slots"}
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body) or (
        path.name == "__init__.py"
    )


@pytest.mark.slow
def test_the_package_holds_the_client(tmp_path: Path) -> None:
    """Its wheel, built by what this environment has, installs to a package that imports alone."""
    pytest.importorskip("setuptools")
    source = shutil.copytree(ROOT / "clients/python", tmp_path / "source")  # building leaves folders behind
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("ideomotor_client-*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if ".dist-info/" not in name}
        about = next(held.read(name).decode() for name in held.namelist() if name.endswith("METADATA"))
        held.extractall(tmp_path / "site")
    assert names == {f"ideomotor_client/{path.name}" for path in [*FILES, CLIENT / "py.typed"]}
    assert (
        "Requires-Python: >=3.9" in about and "Requires-Dist: numpy" in about and "Requires-Dist: websockets" in about
    )
    blocked = {"torch", "msgpack", "ideomotor"}
    assert "ideomotor_client" in alone(EVERYTHING, blocked, tmp_path / "site")
