import io
import json

import numpy as np
import pytest

from ideomotor.data.formats import frame_lists, open_dataset

image = pytest.importorskip("PIL.Image", reason="an independent encoder of pictures")
pytest.importorskip("av", reason="the video extra is not installed")


def folder(root, name, count, size=(12, 16), shift=0):
    (root / name).mkdir(parents=True)
    for number in range(1, count + 1):
        picture = np.full((*size, 3), 20 * number + shift, np.uint8)
        image.fromarray(picture).save(root / name / f"{number:06d}.jpg", quality=100)


@pytest.fixture
def lists(tmp_path):
    for name, count in (("7823", 6), ("12", 4), ("99", 5)):
        folder(tmp_path / "frames", name, count)
    (tmp_path / "train_video_folder.txt").write_text("7823 6 45\n12 4 32\n\n")
    (tmp_path / "val_video_folder.txt").write_text("99 5 93\n")
    return tmp_path


def test_a_list_of_folders(lists):
    (lists / "labels.json").write_text(json.dumps({"Moving [something] up": "45", "Pushing it": "93"}))
    data = open_dataset(lists)
    assert data.format == "frame_lists" and not data.quarantined
    assert [(e.id, e.length, e.text, e.fps) for e in data.episodes] == [
        ("train/7823", 6, "Moving something up", 12.0),
        ("train/12", 4, "", 12.0),
        ("val/99", 5, "Pushing it", 12.0),
    ]
    frames = data.episodes[0].frames["image"]
    assert frames.shape == (6, 3, 12, 16)
    shown = frames.read([5, 0, 5])
    assert shown.shape == (3, 3, 12, 16) and np.abs(shown[:, 0, 0, 0].numpy() - [120.0, 20, 120]).max() <= 2
    assert frames.read([1], size=(6, 8)).shape == (1, 3, 6, 8)
    with pytest.raises(IndexError, match=r"0\.\.5"):
        frames.read([6])
    assert [e.id for e in frame_lists.read(lists / "val_video_folder.txt").episodes] == ["val/99"]
    assert [e.id for e in frame_lists.read(lists, labels=frame_lists.KEPT_LABELS).episodes] == ["train/7823", "val/99"]
    assert frame_lists.read(lists).fingerprint != frame_lists.read(lists, labels=[45]).fingerprint


def test_the_labels_of_the_release():
    assert len(frame_lists.KEPT_LABELS) == 95 and max(frame_lists.KEPT_LABELS) == 173
    for dropped in (0, 2, 32, 41, 44, 59, 84, 121, 151, 163, 165, 172):  # cameras, bending, pouring, pretending, ...
        assert dropped not in frame_lists.KEPT_LABELS


def test_what_is_wrong_with_a_list_is_said(lists):
    (lists / "train_video_folder.txt").write_text(
        "7823 6 45\n7823 6 45\ngone 6 45\n12 5 45\ntwo words\n99 x 3\n/etc 1 1\n../frames/12 4 1\n12 0 1\n"
    )
    data = frame_lists.read(lists)
    assert [e.id for e in data.episodes] == ["train/7823", "val/99"]
    reasons = {entry.path.rsplit(" ", 1)[1]: entry.reason for entry in data.quarantined}
    assert set(reasons) == set("23456789")
    assert "second time" in reasons["2"] and "000006.jpg is not there" in reasons["3"]
    assert "000005.jpg" in reasons["4"] and "wanted: folder" in reasons["5"] and "not below" in reasons["8"]
    (lists / "labels.json").write_text('["a"]')
    with pytest.raises(ValueError, match="no mapping from sentence to number"):
        frame_lists.read(lists)


def test_damaged_pictures_are_named_when_read(lists):
    frames = frame_lists.read(lists).episodes[0].frames["image"]
    file = lists / "frames" / "7823" / "000002.jpg"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"000002\.jpg holds a damaged picture"):
        frames.read([1])
    other = io.BytesIO()
    image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(other, "JPEG")
    file.write_bytes(other.getvalue())
    with pytest.raises(ValueError, match="pictures of different sizes"):
        frames.read([0, 1])
    file.unlink()
    with pytest.raises(ValueError, match="is not there"):
        frames.read([1])
    file.write_bytes(b"hello")
    with pytest.raises(ValueError, match="no JPEG or PNG"):
        frames.read([1])
