"""The wire: openpi's bytes, what is refused, and that nothing is allocated for what is only declared."""

import tracemalloc

import msgpack
import numpy as np
import pytest

from ideomotor.serving.limits import Limits, Refused
from ideomotor.serving.wire import Codec, check_outline

CODEC = Codec(Limits(array_elements=1000, arrays=3, objects=100, depth=4))
KINDS = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def array(data=b"\0" * 8, dtype="<f4", shape=(2,), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape, **more}


def number(data, dtype):
    return {b"__npgeneric__": True, b"data": data, b"dtype": dtype}


def refused(message, limits=None):
    """The code and text with which the message is refused; bytes are taken as they are."""
    data = message if isinstance(message, bytes) else msgpack.packb(message)
    with pytest.raises(Refused) as caught:
        (CODEC if limits is None else Codec(limits)).unpack(data)
    return f"{caught.value.code}: {caught.value}"


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_numbers_come_back(kind):
    values = np.array([[0, 1, 1], [1, 0, 1]], kind)
    for value in (values, values.T, values[:, ::2], values.astype(values.dtype.newbyteorder(">")), values[:0]):
        back = CODEC.unpack(CODEC.pack({"a": value}))["a"]
        assert back.dtype == values.dtype and back.dtype.isnative and not back.flags.writeable
        np.testing.assert_array_equal(back, value)
    one = CODEC.unpack(CODEC.pack({"a": values[0, 1]}))["a"]
    assert one == 1 and np.asarray(one).dtype == (float if kind == "f8" else values.dtype)
    assert CODEC.unpack(CODEC.pack({"a": np.array(1, kind)}))["a"].shape == ()


def test_the_bytes_are_those_of_openpi():
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert msgpack.unpackb(CODEC.pack({"a": value, "b": np.int16(-3)})) == {
        "a": array(value.tobytes(), "<f4", [2, 3]),
        "b": number(-3, "<i2"),
    }
    assert CODEC.unpack(msgpack.packb({"a": array(value.tobytes(), "float32", (2, 3))}))["a"].tolist() == value.tolist()


@pytest.mark.parametrize("value", [np.array([None]), np.array(["a"]), np.ones(1, "c8"), np.ones(1, "V4"), object()])
def test_what_cannot_be_sent_is_named(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        CODEC.pack({"a": value})


@pytest.mark.parametrize(
    "dtype",
    ["|O", "O", "object", "V8", "<c8", "complex64", "<U2", "|S8", ">f4", "<f16", "<M8[s]", "f4,f4", 5, b"<f4", None],
)
def test_other_dtypes_are_refused(dtype):
    assert refused({"a": array(dtype=dtype)}).startswith("bad_message: an array's dtype is")
    assert refused({"a": number(1, dtype)}).startswith("bad_message: an array's dtype is")


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ([3], "bad_message: an array's shape [3] of float32 takes 12 bytes; it came with 8"),
        ([-2], "bad_message: an array's shape is [-2]; no axis can be below 0"),
        ([-1, -2], "bad_message"),
        ([2**62], "too_large"),
        ([2**32, 2**32], "too_large"),
        ([0, 2**62], "too_large"),
        ([1001], "too_large: an array's shape is [1001]; it may have 1000 elements"),
        ([1] * 9, "bad_message: an array's shape has to be a list of at most 8 whole numbers"),
        ([2.0], "bad_message"),
        ([True, 2], "bad_message"),
        (2, "bad_message"),
        (None, "bad_message"),
    ],
)
def test_a_shape_has_to_match_the_bytes(shape, code):
    assert refused({"a": array(shape=shape)}).startswith(code)


@pytest.mark.parametrize(
    "found",
    [
        array(data="12345678"),
        array(data=None),
        array(data=[0] * 8),
        {b"__ndarray__": True},
        array(more=1),
        array(b"\0\1\2\0\0\0\0\0", "|b1", (8,)),
        number("1", "<i4"),
        number(1.5, "<i4"),
        number(True, "<f4"),
        number(1, "|b1"),
        number(300, "|u1"),
        number(-1, "<u8"),
        number(b"1", "<i4"),
        {b"__npgeneric__": True, b"data": 1},
    ],
)
def test_a_damaged_array_or_number_is_refused(found):
    assert refused({"a": {"deeper": found}}).startswith("bad_message")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", "bad_message: the message ends after 0 bytes"),
        (b"\xc1", "bad_message"),
        (
            msgpack.packb({"a": msgpack.ExtType(3, b"x" * 100)}),
            "bad_message: the message holds the extension type 0xc7",
        ),
        (msgpack.packb({"a": msgpack.Timestamp(1)}), "bad_message"),
        (msgpack.packb({"a": 1}) + b"\0", "bad_message: the message goes on for 1 bytes after its end"),
        (b"\x81\xa1\xff\x01", "bad_message: a text of the message is not UTF-8"),
        (b"\x81\x01\x01", "bad_message"),
        (b"\x81\xc4\x01a\x01", "bad_message: the message has the key b'a'"),
        (msgpack.packb([1]), "bad_message: the message is a list"),
        (msgpack.packb(array()), "bad_message: the message is a ndarray"),
        (msgpack.packb(None), "bad_message: the message is a NoneType"),
        (msgpack.packb({"a": [[[[1]]]]}), "too_large: the message is nested deeper than 4"),
        (msgpack.packb({"a": [0] * 100}), "too_large: the message holds more than 100 objects"),
        (msgpack.packb({name: array() for name in "abcd"}), "too_large: the message holds more than 3 arrays"),
        (b"\x91" * 100_000, "too_large"),
        (b"\xdd\xff\xff\xff\xff", "bad_message"),
        (b"\xdf\xff\xff\xff\xff" + b"\xa0" * 1000, "too_large"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xffabc", "bad_message"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xffabc", "bad_message"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused(message, code):
    assert refused(message).startswith(code)


def test_every_beginning_of_a_message_is_refused():
    whole = CODEC.pack(
        {"images": {"main": np.zeros((4, 4, 3), np.uint8)}, "state": np.ones(3), "prompt": "ä", "n": -1e9}
    )
    for end in range(len(whole)):
        assert refused(whole[:end]).startswith("bad_message")
    assert CODEC.unpack(whole)["prompt"] == "ä"


def test_the_outline_reads_all_that_msgpack_writes():
    """Each kind of header at the borders of its lengths, against msgpack itself: same end, same number of objects."""
    sizes = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]
    numbers = [
        sign * 2**power + more for power in (0, 5, 7, 8, 15, 16, 31, 32, 62) for more in (-1, 0, 1) for sign in (1, -1)
    ]
    values = [*numbers, 2**64 - 1, 0.5, None, True, False, *("a" * n for n in sizes), *(b"a" * n for n in sizes)]
    values += [[0] * n for n in sizes] + [{str(i): i for i in range(n)} for n in sizes]
    roomy = Limits(objects=10**6)
    for value in [*values, values]:
        data = msgpack.packb(value)
        check_outline(data, roomy)
        for damaged in (data[:-1], data + b"\0"):
            with pytest.raises(Refused):
                check_outline(damaged, roomy)
    single = msgpack.packb(0.5, use_single_float=True)
    check_outline(single, roomy)


def test_what_is_only_declared_costs_no_memory():
    declared = [b"\xdd\x00\xff\xff\xff" * 1000, b"\xdf\x0f\xff\xff\xff" * 200, b"\x91" * 10**6, b"\x90" * 10**6]
    declared = [*declared, b"\xdc\xff\xff" + b"\x80" * 65535, msgpack.packb({"a": array(shape=[2**40])})]
    for message in declared:
        tracemalloc.start()
        refused(message, Limits())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20, message[:5]


def test_limits_have_to_be_possible():
    with pytest.raises(ValueError, match="the limit rate is nan"):
        Limits(rate=float("nan"))
    with pytest.raises(ValueError, match="the limit sessions is 0"):
        Limits(sessions=0)
