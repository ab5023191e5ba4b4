"""Objects in numpy files without running what they say: CALVIN keeps its sentences in a pickled dict.

A pickle is a program. Here it can make dicts, lists, tuples, strings, numbers and stand-ins for numpy's arrays: other
instructions, and other names, are refused. Numpy's own functions for making arrays from a pickle are not called either.
"""

from __future__ import annotations

import ast
import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and 2
_NUMBERS = frozenset(f"{kind}{size}" for kind, sizes in (("i", "1248"), ("u", "1248"), ("f", "248")) for size in sizes)
# The instructions that plain data and arrays need, of protocols 2 to 4.
_INSTRUCTIONS = (
    *("PROTO", "FRAME", "MARK", "STOP", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
)
BROKEN = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, SyntaxError),
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
    raw = file.read_bytes()
    try:
        start = _start(raw)
        _refuse_instructions(raw[start:])
        stored = _PlainUnpickler(io.BytesIO(raw[start:])).load()
        return stored.item if isinstance(stored, StoredArray) else stored
    except BROKEN as error:
        raise ValueError(f"{file.name} cannot be read as plain data ({error})") from error


def _start(raw: bytes) -> int:
    """Where the pickle begins, after numpy's header, which must announce one."""
    if raw[:6] != b"\x93NUMPY" or raw[6:7] not in (b"\x01", b"\x02"):
        raise ValueError("is no file of numpy.save")
    begin = 10 if raw[6] == 1 else 12
    end = begin + int.from_bytes(raw[8:begin], "little")
    header = ast.literal_eval(raw[begin : min(end, begin + 10_000)].decode("latin1").strip())
    if header["descr"] != "|O" or header["shape"] != ():
        raise ValueError(f"is an array {header['shape']} of type {header['descr']}; wanted a lone object")
    return end


def _refuse_instructions(program: bytes) -> None:
    for instruction, argument, _ in pickletools.genops(program):
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"does {instruction.name}, which plain data need not")
        # A number beyond all that could be kept would make the unpickler ask for that much memory.
        if instruction.name == "LONG_BINPUT" and (argument or 0) > len(program):
            raise ValueError(f"keeps object number {argument} of a file of {len(program)} bytes")
