import random

import numpy as np
import pytest
from tfrecord_writing import encoded, write_records

from ideomotor.data.conversion.checksum import crc32c
from ideomotor.data.conversion.tfrecord import parse_example, records


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", 0x00000000),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next three: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_check_sums_of_known_bytes(data, wanted):
    assert crc32c(data) == wanted


@pytest.mark.parametrize("length", [2, 3, 4, 1023, 1024, 1025, 3000, 70001])
def test_check_sums_bit_by_bit(length):
    data = random.Random(length).randbytes(length)
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_records_and_examples_of_other_writers(tmp_path):
    numbers = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)]
    features = {"numbers": numbers, "floats": [0.5, -2.0, 1e30], "bytes": [b"one", b"", b"\x80" * 300]}
    path = write_records(tmp_path / "a.tfrecord", [encoded(features), b"", encoded({"x": [7]})])
    first, empty, last = (record.read() for record in records(path))
    found = parse_example(first)
    assert set(found) == set(features)
    assert found["numbers"].dtype == np.int64 and found["numbers"].tolist() == numbers
    assert found["floats"].tolist() == np.array(features["floats"], np.float32).tolist()
    assert found["bytes"] == features["bytes"]
    assert empty == b"" and parse_example(b"") == {}
    assert parse_example(last)["x"].tolist() == [7]


def test_numbers_that_stand_one_by_one():
    """Old writers do not pack them: field 1 again and again, floats as four bytes, whole numbers as varints."""
    floats = b"".join(b"\x0d" + np.float32(value).tobytes() for value in (1.5, -3.0))
    varints = b"\x08\x05\x08\xac\x02"

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    entries = b"".join(
        field(1, field(1, name) + field(2, field(number, content)))
        for name, number, content in ((b"f", 2, floats), (b"i", 3, varints))
    )
    found = parse_example(field(1, entries))
    assert found["f"].tolist() == [1.5, -3.0] and found["i"].tolist() == [5, 300]


def test_damage_is_found(tmp_path):
    path = write_records(tmp_path / "a.tfrecord", [encoded({"x": [1]}), encoded({"y": [1.0] * 100})])
    whole = bytearray(path.read_bytes())
    flipped = bytearray(whole)
    flipped[-40] ^= 1
    path.write_bytes(flipped)
    good, bad = records(path)
    assert good.read()
    with pytest.raises(ValueError, match="does not fit its check sum"):
        bad.read()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="cut short"):
        list(records(path))
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="damaged at byte 0, or no TFRecord"):
        list(records(path))
    message = encoded({"x": [1, 2, 3], "y": [b"abc"]})
    for end in range(1, len(message)):
        try:
            parse_example(message[:end])
        except ValueError:
            continue
        raise AssertionError(f"cut at {end}, it was read all the same")
