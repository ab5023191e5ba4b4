"""The release's sentences as data."""

import pytest

from ideomotor.envs.metaworld_tasks import TASKS
from ideomotor.systems.vpdd_prompts import HUMAN_VIDEO, METAWORLD, token_ids


def test_every_task_has_a_sentence():
    assert sorted(METAWORLD) == sorted(TASKS)
    for sentence in (*METAWORLD.values(), HUMAN_VIDEO):
        ids = token_ids(sentence)
        end = ids.tolist().index(49407)
        assert ids.shape == (77,) and ids[0] == 49406
        assert end > len(sentence.split()) and not ids[end + 1 :].any()


def test_other_sentences_are_refused():
    with pytest.raises(ValueError, match="use CLIP's tokenizer"):
        token_ids("open the door")
