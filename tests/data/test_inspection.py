"""What ``inspect`` says of a dataset: for a person, for a program, and with every frame decoded."""

import json
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from ideomotor.data.formats import open_dataset
from ideomotor.data.inspection import inspect
from ideomotor.data.synthetic import SyntheticFrames, synthetic_dataset
from ideomotor.data.video import write_video
from ideomotor.types import Dataset, Quarantined


@dataclass(frozen=True)
class Still:
    """A camera that froze."""

    shape: tuple[int, int, int, int] = (12, 3, 8, 8)

    def read(self, indices, size=None):
        return torch.full((len(indices), *self.shape[1:]), 7, dtype=torch.uint8)


@dataclass(frozen=True)
class Failing:
    """A file whose damage shows only when it is decoded."""

    inner: SyntheticFrames
    good: int

    @property
    def shape(self):
        return self.inner.shape

    def read(self, indices, size=None):
        if max(indices) >= self.good:
            raise ValueError(f"frame {self.good} does not decode")
        return self.inner.read(indices, size)


def with_episode(data, number, **changes):
    episodes = list(data.episodes)
    episodes[number] = replace(episodes[number], **changes)
    return replace(data, episodes=tuple(episodes))


def test_a_sound_dataset_as_numbers():
    data = synthetic_dataset(episodes=4, length=12, size=8, cameras=("front", "wrist"))
    found = inspect(data)
    assert (found.episodes, found.frames, found.shortest, found.longest) == (4, 48, 12, 12)
    assert found.hours == pytest.approx(4.8 / 3600)
    assert found.cameras == {"front": {"8x8": 4}, "wrist": {"8x8": 4}}
    assert found.rates == {10.0: 4} and found.outcomes == {"success": 4}
    assert set(found.texts) == {f"the {colour} disc moves" for colour in ("red", "green", "blue", "yellow")}
    every = np.concatenate([episode.read_actions() for episode in data.episodes])
    assert (found.actions.episodes, found.actions.widths) == (4, (2,))
    assert found.actions.low == pytest.approx(every.min(0)) and found.actions.high == pytest.approx(every.max(0))
    assert found.proprio.widths == (2,)
    assert found.problems == () and found.warnings == () and not found.decoded


def test_a_sound_dataset_in_lines():
    text = "\n".join(inspect(synthetic_dataset(episodes=4, length=12, size=8)).lines())
    assert text.startswith("synthetic-0 (synthetic) in synthetic-0\n")
    for part in (
        "4 episodes, 48 frames (12 to 12 each), 0.00 hours, at 10 frames/s",
        "camera 'video': 8x8 (height x width)",
        "actions: in 4 episodes, width 2",
        "text: 4 of 4 episodes, 4 different",
        "1 x 'the red disc moves'",
        "outcome: success",
        "nothing was left out (headers only; --deep decodes every frame)",
    ):
        assert part in text
    assert "warning" not in text
    deep = "\n".join(inspect(synthetic_dataset(episodes=1, length=12, size=8), deep=True).lines())
    assert "nothing was left out" in deep and "--deep" not in deep


def test_the_findings_are_json():
    data = synthetic_dataset(episodes=3, length=5, size=8)
    data = replace(with_episode(data, 0, fps=29.97), quarantined=(Quarantined(path="a.mp4", reason="is empty"),))
    found = inspect(data, deep=True).as_dict()
    back = json.loads(json.dumps(found, allow_nan=False))
    assert back["rates"] == {"29.97": 1, "10": 2} and back["decoded"] is True
    assert back["problems"] == ["a.mp4: is empty"]
    assert back["actions"]["widths"] == [2] and len(back["actions"]["low"]) == 2


def test_what_differs_between_episodes_is_a_warning():
    data = synthetic_dataset(episodes=4, length=12, size=8)
    other = {"video": Still((12, 3, 4, 6)), "wrist": Still()}
    mixed = with_episode(data, 1, text="", fps=25.0, read_actions=None, read_proprio=None, outcome="", frames=other)
    found = inspect(mixed)
    text = "\n".join(found.lines())
    for part in (
        "camera 'video' has 2 sizes",
        "camera 'wrist' is in 1 of 4 episodes",
        "2 frame rates",
        "1 of 4 episodes have no text",
        "1 of 4 episodes have no actions",
        "outcome: success (3), unknown (1)",
        "at 10 frames/s (3), 25 frames/s (1)",
        "8x8 (3), 4x6 (1) (height x width)",
        "text: 3 of 4 episodes",
    ):
        assert part in text
    assert len(found.warnings) == 5 and not found.problems


def test_an_assumed_frame_rate_is_a_warning():
    found = inspect(replace(synthetic_dataset(episodes=1, length=5, size=8), format="npz"))
    assert found.warnings == ("npz files record no frame rate; the one above is assumed",)


def test_video_alone_and_no_episodes():
    found = inspect(synthetic_dataset(episodes=2, length=5, size=8, actions=False))
    assert found.actions is None and found.proprio is None
    assert "  actions: none" in found.lines() and not found.warnings
    empty = inspect(Dataset(name="none", path="none", format="folder", episodes=()), deep=True)
    assert (empty.episodes, empty.frames, empty.shortest, empty.longest) == (0, 0, 0, 0)
    assert json.dumps(empty.as_dict()) and empty.lines()


def test_actions_that_cannot_be_read_are_a_problem():
    data = synthetic_dataset(episodes=3, length=5, size=8)
    broken = with_episode(data, 1, read_actions=lambda: np.full((5, 2), np.nan))
    broken = with_episode(broken, 2, read_proprio=lambda: np.zeros((4, 2)))
    found = inspect(broken)
    assert found.actions.episodes == 2 and found.proprio.episodes == 2
    assert [problem.split(":")[0] for problem in found.problems] == ["disc-0-0001", "disc-0-0002"]
    assert "not finite" in found.problems[0] and "for 5 frames" in found.problems[1]


@pytest.mark.parametrize("width", [3, 7])
def test_no_ranges_over_numbers_that_mean_different_things(width):
    data = synthetic_dataset(episodes=2, length=5, size=8)
    found = inspect(with_episode(data, 1, read_actions=lambda: np.zeros((5, width))))
    assert found.actions.widths == (2, width) and found.actions.low == ()
    assert f"  actions: in 2 episodes, width 2, {width}" in found.lines()
    only = inspect(with_episode(synthetic_dataset(1, 5, 8), 0, read_actions=lambda: np.full((5, 2), np.inf)))
    assert only.actions.episodes == 0 and only.actions.widths == ()
    assert "  actions: none that can be read" in only.lines()


def test_only_decoding_finds_a_frozen_and_a_damaged_video():
    data = synthetic_dataset(episodes=3, length=100, size=8)
    frozen = with_episode(data, 0, frames={"video": Still((100, 3, 8, 8))})
    damaged = with_episode(frozen, 2, frames={"video": Failing(data.episodes[2].frames["video"], good=70)})
    assert inspect(damaged).problems == ()
    found = inspect(damaged, deep=True)
    assert found.decoded and found.episodes == 3
    first, second = found.problems
    assert first == "disc-0-0000, camera 'video': all 100 frames are the same picture"
    assert second == "disc-0-0002, camera 'video': frame 70 does not decode (after 64 of 100 frames)"
    assert any(line == f"  left out: {first}" for line in found.lines())


def test_a_lone_frame_is_not_frozen():
    data = synthetic_dataset(episodes=1, length=1, size=8)
    assert inspect(data, deep=True).problems == ()


def test_what_the_files_clocks_say_is_a_warning(tmp_path):
    frames = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    write_video(tmp_path / "even.mp4", frames, 10)
    assert not [warning for warning in inspect(open_dataset(tmp_path)).warnings if "videos" in warning]
    for name, stamps in (("gap.mp4", [0, 1, 2, 3, 40, 41]), ("old.avi", range(6))):
        with av.open(str(tmp_path / name), "w") as output:
            stream = output.add_stream("libx264", rate=10, options={"bf": "2"})
            stream.height = stream.width = 16
            stream.pix_fmt = "yuv420p"
            for stamp, picture in zip(stamps, frames, strict=False):
                frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
                frame.pts, frame.time_base = stamp, Fraction(1, 10)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    found = inspect(open_dataset(tmp_path)).warnings
    assert "1 of 3 videos vary in frame rate, or lack frames in places, e.g. gap.mp4" in found
    assert any(warning.startswith("1 of 3 videos are decoded from their start") for warning in found)
    assert sum("old.avi" in warning for warning in found) == 1


def test_damage_in_real_files(tmp_path):
    """A still video, a broken stretch inside a whole file, and a file that is no video, beside a sound one."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (12, 3, 32, 32), dtype=np.uint8))
    write_video(tmp_path / "still.mp4", torch.full((6, 3, 32, 32), 99, dtype=torch.uint8), 10)
    data = bytearray(write_video(tmp_path / "torn.mp4", noise, 10, keyframe_every=4).read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    (tmp_path / "torn.mp4").write_bytes(data)
    (tmp_path / "text.mp4").write_text("no video\n")
    write_video(tmp_path / "whole.mp4", noise, 10)
    opened = open_dataset(tmp_path)
    assert inspect(opened).problems == ("text.mp4: holds text, not video",)
    problems = {problem.split(",")[0].split(":")[0]: problem for problem in inspect(opened, deep=True).problems}
    assert set(problems) == {"text.mp4", "still.mp4", "torn.mp4"}
    assert "all 6 frames are the same picture" in problems["still.mp4"]
    assert "does not decode" in problems["torn.mp4"]
