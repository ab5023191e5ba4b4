"""Demonstrations of the play table: the same whoever made them, however often interrupted, and they do the task."""

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")
pytest.importorskip("av")

from ideomotor.data.formats import lerobot
from ideomotor.envs.play_table_tasks import SENTENCES
from ideomotor.systems import play_table_collection as collection
from ideomotor.systems.play_table_collection import EpisodeMaker, Job, PlayTableCollectionConfig, collect_play_table

pytestmark = pytest.mark.sim
TASKS = ("turn_on_led", "place_in_drawer")


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dataset_with_both_cameras_sentence_state_and_actions(tmp_path):
    told = []
    config = PlayTableCollectionConfig(out=tmp_path / "play", tasks=TASKS, demonstrations=1, workers=0)
    assert collect_play_table(config, lambda *now: told.append(now)) == tmp_path / "play"
    assert told == [(1, 2, TASKS[0]), (2, 2, TASKS[1])]
    dataset = lerobot.read(tmp_path / "play")
    assert len(dataset.episodes) == 2
    for episode, task in zip(dataset.episodes, TASKS, strict=True):
        assert set(episode.frames) == {"rgb_static", "rgb_gripper"} and episode.text in SENTENCES[task]
        actions = episode.read_actions()
        assert actions.shape[1] == 7 and set(np.unique(actions[:, 6]).tolist()) <= {-1.0, 1.0}
        assert np.abs(actions).max() <= 1 and 10 < len(actions) < 120


def test_taken_up_again_and_in_processes_it_is_the_same_to_the_byte(tmp_path, monkeypatch):
    settings = {"tasks": TASKS[:1], "demonstrations": 2, "seed": 4}
    whole = collect_play_table(PlayTableCollectionConfig(out=tmp_path / "whole", workers=0, **settings))

    def stop(done: int, *_: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    again = PlayTableCollectionConfig(out=tmp_path / "again", workers=2, **settings)
    with pytest.raises(KeyboardInterrupt):
        collect_play_table(again, stop)
    assert not again.out.exists()
    assert files(collect_play_table(again)) == files(whole)
    with pytest.raises(ValueError, match="seed was 4 and is 5"):
        collect_play_table(PlayTableCollectionConfig(out=again.out, tasks=TASKS[:1], demonstrations=2, seed=5))


def test_what_was_recorded_does_the_task_again():
    maker = EpisodeMaker(seed=0, noise=0.1)
    take = maker.answer(Job(task="move_slider_left", index=0, place=0))
    assert take is not None and take.success
    assert len(take.actions) == len(take.states) == len(take.frames["rgb_static"])
    rng = np.random.default_rng(0)
    again = maker.answer(Job(task="move_slider_left", index=0, place=5))
    assert again is not None and np.array_equal(again.actions, take.actions)
    assert torch.equal(torch.from_numpy(again.frames["rgb_gripper"]), torch.from_numpy(take.frames["rgb_gripper"]))
    other = maker.answer(Job(task="move_slider_left", index=1, place=1))
    assert other is not None and not np.array_equal(other.frames["rgb_static"][0], take.frames["rgb_static"][0])
    assert np.any(collection._shaken(np.zeros(7, np.float32), 0.1, rng)[:6]) and maker.answer(None) is None
    maker.close()


def test_half_of_the_episodes_begin_where_another_task_ended(monkeypatch):
    maker = EpisodeMaker(seed=0, noise=0.1)
    blank = {"rgb_static": np.zeros((200, 200, 3), np.uint8), "rgb_gripper": np.zeros((84, 84, 3), np.uint8)}
    monkeypatch.setattr(maker._table, "observe", lambda: blank | maker._table.state())
    takes = [maker.answer(Job(task="turn_on_led", index=index, place=index)) for index in range(20)]
    low = sum(take.states[0, 2] < 0.515 for take in takes)  # lower than any start that is not another task's end
    other = sum(abs(take.states[0, 2] - 0.5713) > 0.055 for take in takes)
    assert low and 4 <= other <= 16 and all(take.success for take in takes)
    maker.close()


def test_what_cannot_be_collected_is_refused(tmp_path):
    for wrong in ({"tasks": ()}, {"demonstrations": 0}, {"noise": 2.0}, {"workers": -1}):
        with pytest.raises(ValueError, match="wanted"):
            PlayTableCollectionConfig(out=tmp_path, **wrong)
    with pytest.raises(ValueError, match="fly"):
        collect_play_table(PlayTableCollectionConfig(out=tmp_path / "none", tasks=("fly",)))
    maker = EpisodeMaker(seed=0, noise=0.0)
    maker._oracle.completed = lambda *_: set()
    with pytest.raises(RuntimeError, match="not done in 5 tries"):
        maker.answer(Job(task="turn_on_led", index=0, place=0))
    maker.close()
