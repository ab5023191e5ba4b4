"""A data set's fingerprint follows what its files hold, and nothing else."""

import os
import shutil

import pytest

from ideomotor.data.formats.checks import fingerprint, pieces


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "small.json").write_text('{"text": "open the door"}')
    (root / "large.mp4").write_bytes(bytes(range(256)) * 4096)
    return root


def of(root):
    return fingerprint(root, root.iterdir(), "reader 1")


def test_copied_and_touched_files_are_the_same_data(folder, tmp_path):
    before = of(folder)
    shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    os.utime(folder / "small.json", ns=(1, 1))
    assert of(folder) == before == of(tmp_path / "elsewhere")


def test_changed_contents_of_the_same_size_are_other_data(folder):
    before = of(folder)
    (folder / "small.json").write_text('{"text": "shut the door"}')
    after = of(folder)
    large = bytearray((folder / "large.mp4").read_bytes())
    large[-1] ^= 1
    (folder / "large.mp4").write_bytes(large)
    assert len({before, after, of(folder)}) == 3


@pytest.mark.parametrize("change", ["name", "size", "reader", "gone"])
def test_names_sizes_and_the_reader_count(folder, change):
    before = of(folder)
    if change == "name":
        (folder / "small.json").rename(folder / "other.json")
    elif change == "size":
        (folder / "large.mp4").write_bytes(bytes(range(256)) * 4095)
    elif change == "gone":
        (folder / "large.mp4").unlink()
    assert fingerprint(folder, folder.iterdir(), "reader 2" if change == "reader" else "reader 1") != before


def test_pieces_reach_both_ends_and_between(tmp_path):
    file = tmp_path / "video.mp4"
    plain = bytes(1_000_000)
    file.write_bytes(plain)
    before = pieces(file)
    for place in (0, 500, 999_999):
        changed = bytearray(plain)
        changed[place] = 1
        file.write_bytes(changed)
        assert pieces(file) != before
    stretch = bytearray(plain)
    stretch[300_000:400_000] = b"\x01" * 100_000  # longer than the distance between pieces
    file.write_bytes(stretch)
    assert pieces(file) != before


def test_of_very_many_files_all_sizes_count(tmp_path):
    for number in range(5000):
        (tmp_path / f"{number:05d}.jpg").write_bytes(b"a")
    before = of(tmp_path)
    for name in ("00000.jpg", "04999.jpg"):
        (tmp_path / name).write_bytes(b"b")
        assert of(tmp_path) != before
        (tmp_path / name).write_bytes(b"a")
    odd = next(n for n in range(5000) if n not in {k * 4999 // 4095 for k in range(4096)})
    (tmp_path / f"{odd:05d}.jpg").write_bytes(b"b")
    assert of(tmp_path) == before  # what the docstring says
    (tmp_path / f"{odd:05d}.jpg").write_bytes(b"ab")
    assert of(tmp_path) != before
