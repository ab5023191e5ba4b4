"""How far apart the frames of a world are: told where it changes, kept where it must not, refused where unknown."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from test_ivideogpt_resize import episode, roomy, stage

from ideomotor.data.segments import SegmentWindow
from ideomotor.systems import ivideogpt_stages
from ideomotor.systems.agent_worlds import repeat_of
from ideomotor.systems.held_out import held_out_clips
from ideomotor.systems.ivideogpt import IVideoGPT, tiny
from ideomotor.systems.ivideogpt_resize import resize_ivideogpt
from ideomotor.systems.ivideogpt_scores import score
from ideomotor.systems.ivideogpt_stages import run_world
from ideomotor.systems.sources import DATA_FILE, DataFacts, DataOptions
from ideomotor.systems.stages import IMPORT_FILE
from ideomotor.systems.world import World
from ideomotor.systems.world_imagination import imagine_episode
from ideomotor.systems.world_pace import other_hold, steps_held
from ideomotor.training.checkpoint import write_json


def paced(folder: Path, *strides: int, pooled: bool = True) -> IVideoGPT:
    """Notes that a stage learned from data sets of those strides; returns its settings."""
    facts = DataFacts(path="", camera="observation", stride=1, learned=1, held_out=[], left_out=[], domain="unknown")
    rows = [asdict(replace(facts, path=f"/data/{number}", stride=stride)) for number, stride in enumerate(strides)]
    write_json(folder / DATA_FILE, {"datasets": rows})
    return replace(tiny(), window=replace(tiny().window, pooled=pooled))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stages say."""
    lines: list[str] = []
    monkeypatch.setattr(ivideogpt_stages.console, "print", lambda line, **_: lines.append(line))
    return lines


def test_an_action_is_held_as_the_data_were_read(tmp_path: Path) -> None:
    """Fails if the pace of ``--strides`` is that of the window."""
    assert steps_held(tmp_path, replace(tiny().window, pooled=True, stride=3)) == 6, "nothing was noted"
    assert steps_held(tmp_path, paced(tmp_path, 4).window) == 8
    assert steps_held(tmp_path, paced(tmp_path, 4, pooled=False).window) == 2
    with pytest.raises(ValueError, match=r"2 or 4 apart.* act in one of a single stride"):
        steps_held(tmp_path, paced(tmp_path, 4, 2).window)


def test_frames_of_another_file_are_as_far_apart_as_those_learned_from(tmp_path: Path) -> None:
    folder = stage(tmp_path / "world", paced(tmp_path, 3))
    paced(folder, 3)
    source = episode(tmp_path / "data/000000.npz")
    (line, *_) = imagine_episode(folder, source, tmp_path / "out.npz", horizon=2, greedy=True)
    assert "after frames 0 to 3" in line
    with pytest.raises(ValueError, match="3 apart: take an earlier one, a longer episode, or a smaller --stride"):
        imagine_episode(folder, episode(tmp_path / "two/a.npz", 2), tmp_path / "out.npz", horizon=1)
    with pytest.raises(ValueError, match="frame 5 is asked for: take a longer episode"):
        imagine_episode(folder, episode(tmp_path / "four/a.npz", 4), tmp_path / "out.npz", horizon=1)


def test_training_on_at_another_pace_is_told(tmp_path: Path, said: list[str]) -> None:
    folder = stage(tmp_path / "world", tiny())
    paced(folder, 2, pooled=False)
    for number in range(2):
        episode(tmp_path / f"data/{number}/a.npz", 13 - number)
    options = DataOptions(data=(tmp_path / "data",), cache=tmp_path / "cache", validation=0)
    config = replace(tiny(), window=replace(tiny().window, stride=2), world_stage=replace(tiny().world_stage, steps=1))
    run_world(options, config, folder, folder, 0, tmp_path / "same", 0, False)
    assert not said
    config = replace(config, window=replace(config.window, stride=3, pooled=True))
    run_world(options, config, folder, folder, 0, tmp_path / "other", 0, False)
    first, short = said
    assert "frames 2 apart" in first and "frames 3 apart" in first and "the mean between them" in first
    assert "set --window.stride 2 --window.no-pooled" in first
    assert (
        short.startswith("2 of 2 episodes of 'data' are shorter than the 18 frames") and "(in the shortest 2)" in short
    )


def test_an_agent_of_another_pace_than_its_world_is_told(tmp_path: Path) -> None:
    window = tiny().window
    paced(tmp_path, 4)
    assert other_hold(tmp_path, window, "plate-slide", 8) == ""
    assert "are 8 steps" in (line := other_hold(tmp_path, window, "plate-slide", 2)) and "set --repeat 8" in line
    assert other_hold(tmp_path, window, "red", 2) == ""
    write_json(tmp_path / IMPORT_FILE, {})
    assert other_hold(tmp_path, window, "plate-slide", 2) == "", "of an import nobody knows"


def test_a_resized_dream_keeps_its_pace(tmp_path: Path) -> None:
    folder = stage(tmp_path / "dream", roomy())
    (folder / "run.json").write_text(json.dumps({"config": {"dream": {"repeat": 8}}}))
    resize_ivideogpt(folder, 3, tmp_path / "three")
    resize_ivideogpt(tmp_path / "three", 2, tmp_path / "two")
    assert repeat_of(tmp_path / "three") == repeat_of(tmp_path / "two") == 8


def test_worlds_are_scored_on_actions_of_their_own_robot(tmp_path: Path) -> None:
    folder = stage(tmp_path / "world", tiny())
    for name, width in (("two", 2), ("three", 3), ("none", 0)):
        (tmp_path / name).mkdir()
        arrays = {"image": np.zeros((8, 32, 32, 3), np.uint8), "action": np.zeros((8, width), np.float32)}
        np.savez(tmp_path / name / "a.npz", **{key: rows for key, rows in arrays.items() if rows.size})
    window = SegmentWindow(frames=6, context=2)

    def clips(*names: str):
        return held_out_clips(folder, [tmp_path / name for name in names], window, 32, 4)

    with pytest.raises(ValueError, match=r"actions of widths \[2, 3\]: score on data sets of one robot"):
        clips("two", "three")
    world = World.load(folder)
    for names, words in ((["three"], "have actions of width 3"), (["two", "none"], "some clips record no actions")):
        with pytest.raises(ValueError, match=f"{words}, and 'world' hears actions of width 2"):
            score(world, clips(*names))
