from pathlib import Path

import numpy as np
import pytest

from ideomotor.data.formats import npz
from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixes import MIXES, every_hundredth, mix_sources
from ideomotor.data.segments import SegmentWindow


def episodes(root, names, key="image", count=20, value=0):
    for name in names:
        file = root / f"{name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            file, **{key: np.full((count, 4, 4, 3), value, np.uint8), "wrist": np.ones((count, 4, 4, 3), np.uint8)}
        )


def pictures(root, listed):
    """Something-Something as lists; what is in the files does not matter here."""
    for name, entries in listed.items():
        lines = []
        for folder, count, label in entries:
            (root / folder).mkdir(parents=True)
            (root / folder / f"{count:06d}.jpg").write_bytes(b"")
            lines.append(f"{folder} {count} {label}")
        (root / f"{name}_video_folder.txt").write_text("\n".join(lines))


def test_a_mix_becomes_sources(tmp_path):
    names = [share.dataset for share in MIXES["rtx_franka"]]
    for name in set(names):
        key = {share.dataset: share.camera for share in MIXES["rtx_franka"]}[name]
        episodes(tmp_path / name, [f"train_eps_{number:08d}" for number in range(3)], key)
    sources = mix_sources("rtx_franka", tmp_path, SegmentWindow(frames=4))
    by_name = {source.dataset.name: source for source in sources}
    assert list(by_name) == list(dict.fromkeys(names)) and len(names) == 29 and len(sources) == 25
    assert by_name["taco_play"].weight == 3.0 and by_name["viola"].weight == 3.0  # listed twice
    assert by_name["taco_play"].camera_names() == {"main": "rgb_static"} and by_name["taco_play"].window.stride == 5
    assert by_name["bridge"].camera_names() == {"main": "image"} and by_name["bridge"].window.stride == 2
    assert [e.id for e in by_name["bridge"].dataset.episodes] == ["train_eps_00000001", "train_eps_00000002"]
    clip = ClipLoader(sources, batch_size=8, seed=0, actions=False).batch(0)
    assert clip.frames["main"].shape == (8, 4, 3, 4, 4)


def test_every_hundredth_is_held_out(tmp_path):
    episodes(tmp_path / "cmu_stretch", [f"train_eps_{number:08d}" for number in range(201)], count=1)
    train, held_out = every_hundredth(npz.read(tmp_path / "cmu_stretch"))
    assert [e.id[-3:] for e in held_out.episodes] == ["000", "100", "200"] and len(train.episodes) == 198
    (source,) = mix_sources("debug", tmp_path, held_out=True)
    assert source.dataset.episodes == held_out.episodes or len(source.dataset.episodes) == 3
    (source,) = mix_sources("debug", tmp_path, left_out={"cmu_stretch": ["train_eps_00000007", "train_eps_00000100"]})
    assert len(source.dataset.episodes) == 197


def test_folders_that_say_their_side_decide(tmp_path):
    episodes(tmp_path / "bair_robot_pushing", ["train/traj_00000", "train/traj_00001", "test/traj_00000"], "aux1_image")
    episodes(tmp_path / "vp2_robodesk", ["a/train_noise1/x", "a/train_noise2/x", "a/validation_noise1/y"])
    for mix, counts in (("bair", (2, 1)), ("vp2_robodesk", (2, 1))):
        for held_out, count in enumerate(counts):
            (source,) = mix_sources(mix, tmp_path, held_out=bool(held_out))
            assert len(source.dataset.episodes) == count
    (source,) = mix_sources("bair", tmp_path)
    assert source.camera_names() == {"main": "aux1_image"}


def test_something_something_in_a_mix(tmp_path):
    listed = {"train": [("1", 30, 45), ("2", 30, 32), ("3", 9, 45)], "val": [("4", 30, 93)]}
    pictures(tmp_path / "sthsth", listed)
    (source,) = mix_sources("sthsth", tmp_path, SegmentWindow(frames=10))
    # 2 shows a moving camera, 3 is shorter than a segment.
    assert [e.id for e in source.dataset.episodes] == ["train/1"] and source.window.stride == 1
    (source,) = mix_sources("sthsth", tmp_path, SegmentWindow(frames=10), held_out=True)
    assert [e.id for e in source.dataset.episodes] == ["val/4"]
    with pytest.raises(ValueError, match=r"no episode of .*sthsth is left for training"):
        mix_sources("sthsth", tmp_path, SegmentWindow(frames=31))


def test_missing_sets_are_all_named(tmp_path: Path):
    (tmp_path / "kuka").mkdir()
    with pytest.raises(ValueError, match=r"37 of 38 data sets of the mix 'select' are not in .*: fractal\w+, bridge"):
        mix_sources("select", tmp_path)
    with pytest.raises(ValueError, match="there is no mix 'selekt'"):
        mix_sources("selekt", tmp_path)
