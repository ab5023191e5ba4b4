"""Clips that a stage held out: which are taken, of which cameras."""

from pathlib import Path

import numpy as np
import torch

from ideomotor.data.mixture import Source
from ideomotor.data.segments import SegmentWindow
from ideomotor.systems.held_out import HeldOut, clips_of, held_out_clips, shown
from ideomotor.systems.sources import DataFacts, Sources

WINDOW = SegmentWindow(frames=3, context=1)


def recorded(folder: Path, episodes: int = 5, frames: int = 10) -> Path:
    """Episodes of two cameras whose pictures tell the number of the frame, the second's from 100 on."""
    folder.mkdir()
    for number in range(episodes):
        grey = np.arange(frames, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
        np.savez(folder / f"{number}.npz", image=grey, wrist_image=grey + 100, action=np.zeros((frames, 2), np.float32))
    return folder


def noted(folder: Path, path: Path, held_out: list[str], cameras: str) -> Path:
    folder.mkdir()
    facts = DataFacts(
        path=str(path), camera=cameras, stride=2, learned=1, held_out=held_out, left_out=[], domain="unknown"
    )
    Sources([], [], [facts]).note(folder)
    return folder


def test_clips_are_spread_over_all_episodes(tmp_path: Path) -> None:
    from ideomotor.data.formats import open_dataset

    source = Source(open_dataset(recorded(tmp_path / "data")), window=WINDOW)  # 5 episodes of 8 windows
    for count in (5, 25, 40, 99):
        clips = clips_of([source], 8, count)
        assert len(clips.names) == len(set(clips.names)) == min(count, 40)
        assert len(set(clips.episodes)) == 5, count


def test_every_camera_of_what_was_held_out(tmp_path: Path) -> None:
    data = recorded(tmp_path / "data")
    clips = held_out_clips(noted(tmp_path / "run", data, ["1", "3"], "image,wrist_image"), (), WINDOW, 8, 4)
    assert {name.split("/")[-1] for name in clips.episodes} == {"1", "3"}
    first = clips.frames[:, :, 0, 0, 0].int()
    assert first.diff(dim=1).eq(2).all()  # the stride that was noted
    assert {value >= 100 for value in first[:, 0].tolist()} == {False, True}
    for name, value in zip(clips.names, first[:, 0].tolist(), strict=True):
        camera, frame = name.split(", ")[1:]
        assert int(frame.removeprefix("frame ")) + 100 * (camera == "wrist_image") == value


def test_lively_clips_are_shown() -> None:
    frames = torch.zeros(6, 2, 3, 4, 4, dtype=torch.uint8)
    frames[3:, 1] = 100
    names = list("abcdef")
    clips = HeldOut(frames=frames, actions=None, rewards=None, episodes=names, texts=names, names=names)
    assert shown(clips, 2) == [3, 4]
