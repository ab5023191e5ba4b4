"""Imports of optional packages, with an error that names the extra to install."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional package when a feature first needs it.

    Args:
        module: importable name, e.g. ``"av"``.
        extra: the extra of ideomotor that brings it, e.g. ``"video"``.

    Raises:
        ModuleNotFoundError: the package is absent; the message holds the pip command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"this needs the package {module.split('.')[0]!r}, which is not installed: "
            f'pip install "ideomotor[{extra}]"',
            name=error.name,
        ) from error
