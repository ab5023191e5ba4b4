"""Objects in numpy files without running what they say: CALVIN keeps its sentences in a pickled dict.

A pickle is a program. Here it can make dicts, lists, tuples, strings, numbers and stand-ins for numpy's arrays. What
else it names is refused, and numpy's own functions for making arrays from a pickle are not called either.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and 2
_NUMBERS = frozenset(f"{kind}{size}" for kind, sizes in (("i", "1248"), ("u", "1248"), ("f", "248")) for size in sizes)
BROKEN = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ImportError),
    *(OverflowError, RecursionError, MemoryError),
)
"""What a damaged or malicious stream makes the unpickler, and whoever looks into what came of it, raise."""


class StoredArray:
    """What a pickle says of a numpy array; ``values`` makes it one where it holds numbers."""

    __slots__ = ("_state",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes numpy's own description: version, shape, type, order, data."""
        self._state = state

    @property
    def item(self) -> Any:
        """The one object that an array without dimensions holds.

        Raises:
            ValueError: it holds something else.
        """
        _, shape, dtype, _, objects = self._state
        if shape != () or dtype.name[:1] != "O" or type(objects) is not list or len(objects) != 1:
            raise ValueError(f"is an array of shape {shape}; wanted a lone object")
        return objects[0]

    @property
    def values(self) -> np.ndarray:
        """The numbers.

        Raises:
            ValueError: it holds none, or not as many as its shape says.
        """
        _, shape, dtype, fortran, data = self._state
        numbers = dtype.of(data)
        if not all(type(length) is int and length >= 0 for length in shape) or math.prod(shape) != len(numbers):
            raise ValueError(f"holds {len(numbers)} numbers for an array of shape {shape}")
        return numbers.reshape(shape, order="F" if fortran else "C")


class _StoredType:
    """What a pickle says of a number's type."""

    __slots__ = ("_order", "name")

    def __init__(self, name: Any, *flags: Any) -> None:
        self.name, self._order = str(name), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = str(state[1])

    def of(self, data: Any) -> np.ndarray:
        """Returns the numbers that those bytes stand for."""
        if self.name not in _NUMBERS or self._order not in "<>|" or type(data) is not bytes:
            raise ValueError(f"holds values of type {self.name!r}; wanted numbers")
        order = "<" if self._order == "|" else self._order
        return np.frombuffer(data, dtype=np.dtype(order + self.name))


class _PlainUnpickler(pickle.Unpickler):
    """Calls nothing that a stream names: each name that numpy's arrays need has a stand-in, made anew every time."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name == "_reconstruct":
            return lambda kind, shape, code: StoredArray()
        if module in _MODULES and name == "scalar":
            return lambda dtype, data: dtype.of(data).item()
        if (module, name) == ("numpy", "dtype"):
            return lambda *arguments: _StoredType(*arguments)
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # only ever an argument of _reconstruct
        raise pickle.UnpicklingError(
            f"names {module}.{name}, which is neither plain data nor an array and could run code"
        )


def load_object(file: Path) -> Any:
    """Returns the object of a file that ``numpy.save`` made of a dict or the like; arrays in it are ``StoredArray``s.

    Raises:
        ValueError: the file is damaged, holds no lone object, or something that is no plain data.
        OSError: it cannot be opened.
    """
    with file.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            header: Callable[[Any], tuple[Any, ...]] = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = header(stream)
            if shape != () or not dtype.hasobject:
                raise ValueError(f"is an array {shape} of type {dtype}; wanted a lone object")
            stored = _PlainUnpickler(stream).load()
            return stored.item if isinstance(stored, StoredArray) else stored
        except BROKEN as error:
            raise ValueError(f"{file.name} cannot be read as plain data ({error})") from error
