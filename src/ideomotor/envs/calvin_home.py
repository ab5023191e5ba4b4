"""A user's own calvin_env: found by a path or an import, checked, and its parts imported; none of it is ours."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ideomotor.extras import require

SCENES = ("A", "B", "C", "D")
ROBOT = "panda_longer_finger"  # the arm that CALVIN's data were recorded with

_NEEDS = "gym==0.26.2 hydra-core numpy-quaternion opencv-python-headless gitpython scipy"
_GET = (
    "calvin_env is on no package registry. Get your own copy with "
    "git clone https://github.com/mees/calvin_env, name its folder (path=...) or pip install -e it, and install what "
    f'it needs: pip install "ideomotor[calvin]" {_NEEDS}'
)


def find_home(path: Path | str | None) -> Path:
    """Returns the root of the user's calvin_env repository, the folder with ``calvin_env``, ``conf`` and ``data``.

    Args:
        path: that folder; None takes the calvin_env that Python can import.

    Raises:
        ModuleNotFoundError: no path was given and calvin_env cannot be imported.
        FileNotFoundError: the folder is not a whole copy; the message names what is missing.
        RuntimeError: another copy was imported in this process already.
    """
    if path is None:
        spec = importlib.util.find_spec("calvin_env")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no calvin_env can be imported: {_GET}", name="calvin_env")
        home = Path(next(iter(spec.submodule_search_locations))).resolve().parent
    else:
        home = Path(path).expanduser().resolve()
    _check_whole(home)
    loaded = sys.modules.get("calvin_env")
    if loaded is not None and loaded.__file__ and Path(loaded.__file__).resolve().parents[1] != home:
        raise RuntimeError(
            f"this process has imported calvin_env from {Path(loaded.__file__).resolve().parents[1]} and is now given "
            f"{home}: start another process for the other copy"
        )
    return home


def check_scene(home: Path, scene: str) -> None:
    """Raises ``FileNotFoundError`` where a file of that scene is missing."""
    name = f"calvin_scene_{scene}.yaml"
    table = f"data/calvin_table_{scene}/urdf/calvin_table_{scene}.urdf"
    _check_there(home, (f"conf/scene/{name}", table, f"data/calvin_table_{scene}/meshes/base_link.obj"))


def import_part(home: Path, module: str) -> ModuleType:
    """Imports a module of that calvin_env.

    Raises:
        ModuleNotFoundError: a package that calvin_env needs is missing; the message says how to get it.
    """
    require("pybullet", "calvin")
    if str(home) not in sys.path:
        sys.path.append(str(home))  # last: its tops are calvin_env and egl_check, and neither may hide another package
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"calvin_env at {home} needs the package {error.name!r}, which is not installed: pip install {_NEEDS}",
            name=error.name,
        ) from error


def _check_whole(home: Path) -> None:
    if not home.is_dir():
        raise FileNotFoundError(f"{home} is no folder: {_GET}")
    parts = ("calvin_env/envs/play_table_env.py", "conf/tasks/new_playtable_tasks.yaml")
    robot = ("conf/robot/panda.yaml", f"conf/robot/{ROBOT}.yaml")
    cameras = ("conf/cameras/cameras/static.yaml", "conf/cameras/cameras/gripper.yaml")
    data = (f"data/franka_panda/{ROBOT}.urdf", "data/plane/plane.urdf", "data/blocks/block_red_middle.urdf")
    _check_there(home, parts + robot + cameras + data)
    if not any((folder / ".git").exists() for folder in (home, *home.parents)):
        # calvin_env asks git for its commit whenever an environment is made, and gives up where there is none.
        raise FileNotFoundError(
            f"{home} is not under git, which calvin_env insists on: git clone it instead of unpacking an archive, or "
            "run git init && git add -A && git commit -m copy there"
        )


def _check_there(home: Path, wanted: tuple[str, ...]) -> None:
    missing = [part for part in wanted if not (home / part).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{home} is not a whole calvin_env, it lacks {', '.join(missing)}: name the root of a full checkout of "
            "https://github.com/mees/calvin_env (installed from an archive, it has neither conf nor data)"
        )
