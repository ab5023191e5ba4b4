"""The small codec writes the reference's bytes, reads what it writes, and believes nothing that is not there."""

import contextlib
import random
import struct

import numpy as np
import pytest

from ideomotor.serving.client.packing import MOST_NESTED, pack, unpack

msgpack = pytest.importorskip("msgpack")


def described(value):
    """Arrays as openpi describes them, for the reference codec."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def reference_unpack(data):
    def hook(found):
        if b"__ndarray__" in found:
            return np.ndarray(found[b"shape"], found[b"dtype"], buffer=found[b"data"])
        return np.dtype(found[b"dtype"]).type(found[b"data"]) if b"__npgeneric__" in found else found

    return msgpack.unpackb(data, object_hook=hook)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


EDGES = [0, 31, 32, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
LENGTHS = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]
SINGLE = [
    None, True, False, *EDGES, *(-edge for edge in EDGES if edge <= 2**63), -33, 1.5, float("inf"), float("nan"),
    *("ü" * (n // 2) + "u" * (n % 2) for n in LENGTHS), *(b"\xff" * n for n in LENGTHS), *([0] * n for n in LENGTHS),
    *({str(k): None for k in range(n)} for n in LENGTHS[:-1]), {b"bytes": 1}, np.float32(2.5), np.int64(-7),
    np.bool_(True), np.array(3.0), np.zeros((0, 3), np.uint8), np.arange(24).reshape(2, 3, 4)[:, ::2],
    np.array(["a", "bcd"]), np.array([b"xy"]), np.arange(4, dtype=">i2"), np.array([True, False]), (1, "two"),
]  # fmt: skip


@pytest.mark.parametrize("value", SINGLE, ids=lambda value: f"{type(value).__name__}")
def test_a_value_has_the_references_bytes_and_comes_back(value) -> None:
    data = pack(value)
    assert data == msgpack.packb(value, default=described)
    assert same(unpack(data), list(value) if isinstance(value, tuple) else value)
    assert same(unpack(data), reference_unpack(data))


def made_up(draw: random.Random, depth: int = 0):
    kind = draw.choice("nifsbAG" + ("" if depth > 4 else "ldld"))
    if kind == "l":
        return [made_up(draw, depth + 1) for _ in range(draw.randrange(5))]
    if kind == "d":
        return {f"key {k}": made_up(draw, depth + 1) for k in range(draw.randrange(5))}
    shape = [draw.randrange(4) for _ in range(draw.randrange(4))]
    return {
        "n": draw.choice([None, True, False]),
        "i": draw.randrange(-(2**63), 2**64) >> draw.randrange(64),
        "f": draw.uniform(-1e9, 1e9),
        "s": "".join(chr(draw.randrange(32, 0x2FFF)) for _ in range(draw.randrange(40))),
        "b": draw.randbytes(draw.randrange(300)),
        "A": np.array(draw.choices(range(100), k=int(np.prod(shape))), draw.choice(["u1", "<f4", ">f8", "?"])).reshape(
            shape
        ),
        "G": np.float32(draw.random()),
    }[kind]


def test_made_up_messages_both_ways() -> None:
    draw = random.Random(0)
    for _ in range(400):
        message = {"root": made_up(draw)}
        data = pack(message)
        assert data == msgpack.packb(message, default=described)
        assert same(unpack(data), message)


def test_every_form_of_the_reference_is_read() -> None:
    """Also forms that our writer never picks, such as single precision."""
    assert unpack(msgpack.packb([1.5, 2], use_single_float=True)) == [1.5, 2]
    for data, value in (
        (b"\xcd\x00\x05", 5),
        (b"\xd3" + b"\xff" * 8, -1),
        (b"\xdb\0\0\0\1a", "a"),
        (b"\xdf\0\0\0\0", {}),
    ):
        assert unpack(data) == value == msgpack.unpackb(data)


def test_arrays_are_the_callers_own() -> None:
    array = unpack(pack(np.zeros(3)))
    array[0] = 1
    assert array.flags.owndata and array.flags.writeable


def test_what_is_damaged_is_a_value_error_and_nothing_else() -> None:
    draw = random.Random(1)
    whole = pack(
        {"images": {"main": np.zeros((4, 4, 3), np.uint8)}, "state": np.zeros(3), "n": np.float32(1), "l": [1, 2]}
    )
    for size in range(len(whole)):
        with pytest.raises(ValueError):
            unpack(whole[:size])
    for _ in range(4000):
        broken = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        with contextlib.suppress(ValueError):
            unpack(bytes(broken))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x91" * (MOST_NESTED + 2) + b"\x00", "nested deeper"),
        (b"\xdd\xff\xff\xff\xff", "cut short"),
        (b"\xdf\xff\xff\xff\xff", "cut short"),
        (b"\xc6\xff\xff\xff\xff", "cut short"),
        (b"\xd4\x01\x00", "extension type"),
        (b"\xc1", "nothing at all"),
        (b"\x00\x00", "behind the message"),
        (b"\x81\x01\x02", "key of type int"),
        (b"\xa1\xff", "decode"),
    ],
)
def test_bytes_that_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack(data)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "said"),
    [
        ("O", [1], 8, "dtype 'O'"),
        ("|V8", [1], 8, "dtype"),
        ("<c8", [1], 8, "dtype"),
        ("i4,f4", [1], 8, "dtype"),
        ("<U0", [2**40], 0, "dtype"),
        (b"u1", [1], 1, "dtype"),
        ("(1,8)u1", [1], 8, "dtype"),
        ("<f3", [1], 3, "array of the message is not one"),
        ("u1", [2**40, 2**40], 4, "wanted"),
        ("u1", [-1], 1, "shape"),
        ("u1", 3, 3, "array of the message is not one"),
    ],
)
def test_arrays_that_are_refused(dtype, shape, size: int, said: str) -> None:
    data = pack({b"__ndarray__": True, b"data": b"\0" * size, b"dtype": dtype, b"shape": shape})
    with pytest.raises(ValueError, match=said):
        unpack(data)


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ValueError, match="object"):
        pack(np.array([None]))
    with pytest.raises(ValueError, match="datetime64"):
        pack(np.zeros(2, "M8[s]"))
    with pytest.raises(ValueError, match="complex"):
        pack(np.complex64(1))
    with pytest.raises(ValueError, match="64 bits"):
        pack(2**64)
    with pytest.raises(TypeError, match=r"builtins\.set"):
        pack({"a": {1}})
    with pytest.raises(TypeError, match="key 1 "):
        pack({1: 2})
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested deeper"):
        pack(loop)
    assert struct.unpack(">Bd", pack(np.float64(1.5))) == (0xCB, 1.5)  # a float of Python's by inheritance
