import errno
import hashlib
import os
from pathlib import Path

import pytest

from ideomotor.files import drafted, read_settings, replacing, sha256, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_killed_process_of_the_same_number_leaves_a_clean_draft(tmp_path: Path) -> None:
    """In a container each run of a command may be process 1, or 7."""
    left = tmp_path / f".model.new-{os.getpid()}"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    with drafted(tmp_path / "model") as draft:
        draft.mkdir()
        assert list(draft.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write or a sync says it: without a name

    write_text(path := tmp_path / "page.html", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*page.html'"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_settings_of_others_are_objects_or_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1]}')
    assert read_settings(path) == {"a": [1]}
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is damaged .*: copy it anew"):
        read_settings(path)


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
