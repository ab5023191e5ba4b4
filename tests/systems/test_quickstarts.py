"""What all quickstarts share."""

from pathlib import Path

import pytest

from ideomotor.systems.quickstarts import collection_of


def test_twice_as_much_video_as_demonstrations_is_collected(tmp_path: Path) -> None:
    wanted = collection_of(tmp_path, "toy", ("red",), 5, 32, 3, 1)
    assert (wanted.demonstrations, wanted.expert, wanted.noisy, wanted.failed) == (5, 5, 3, 2)
    assert (wanted.out, wanted.tasks, wanted.size, wanted.seed) == (tmp_path / "data", ("red",), 32, 3)
    with pytest.raises(ValueError, match="demonstrations is 0"):
        collection_of(tmp_path, "toy", ("red",), 0, 32, 3, 1)
