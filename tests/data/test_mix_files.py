"""Mixes as files: what a table says becomes a sampling, and what it should not say is named with its table."""

from pathlib import Path

import pytest

from ideomotor.data.mix_files import find_mix, packaged_mixes, read_mix
from ideomotor.data.sampling import StridedWindow
from ideomotor.data.whole_clips import WholeClip

GOOD = """
[films]
path = "data/films"
window = "whole"
longest = 100
weight = 3
domain = "human"

["two arms"]
window = "strided"
seconds = 1
start_step = 4
cameras = { front = 3, wrist = 1.0 }
"""


def written(folder: Path, text: str) -> Path:
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


def test_tables_become_samplings(tmp_path: Path) -> None:
    films, arms = read_mix(written(tmp_path, GOOD), frames=8)
    assert (films.name, films.path) == ("films", tmp_path / "data/films")
    assert films.sampling.window == WholeClip(frames=8, longest=100)
    assert (films.sampling.weight, films.sampling.domain, dict(films.sampling.cameras)) == (3.0, "human", {})
    assert (arms.name, arms.path) == ("two arms", tmp_path / "two arms")
    assert arms.sampling.window == StridedWindow(frames=8, seconds=1.0, start_step=4)
    assert arms.sampling.cameras == {"front": 3.0, "wrist": 1.0} and arms.sampling.weight == 1.0
    elsewhere = read_mix(tmp_path / "mine.toml", Path("/else"))
    assert [part.path for part in elsewhere] == [Path("/else/data/films"), Path("/else/two arms")]


def test_the_published_mix_comes_with_the_package(tmp_path: Path) -> None:
    parts = {part.name: part for part in read_mix(find_mix("published"), tmp_path)}
    assert {name: part.sampling.weight for name, part in parts.items()} == {
        "sthv2": 0.4, "bridge": 0.2, "rt1": 0.2, "calvin": 0.2
    }  # fmt: skip
    assert {part.path for part in parts.values()} == {tmp_path / name for name in parts}
    assert parts["rt1"].sampling.window == WholeClip(frames=16, longest=100)
    assert parts["calvin"].sampling.cameras == {"camera0": 0.75, "camera1": 0.25}
    for file in packaged_mixes().values():
        assert read_mix(file)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("windows = 'whole'", r"\[a\]: there is no key 'windows'; did you mean 'window'\?"),
        ("weight = 1", r"\[a\]: window is not said: write window = \"whole\", or"),
        ("window = 'all'", r"\[a\]: window is 'all': write window"),
        ("window = 'strided'", r"\[a\]: stride=None and seconds=None: give one of them"),
        ("window = 'strided'\nstride = 2\nseconds = 0.5", r"\[a\]: stride=2 and seconds=0.5: give one"),
        ("window = 'whole'\nstride = 2", r"\[a\]: stride is of strided windows, and window is 'whole': leave one out"),
        ("window = 'strided'\nstride = 2\nlongest = 9", r"\[a\]: longest is of whole windows"),
        ("window = 'whole'\nlongest = 0", r"\[a\]: whole clips have frames=16, longest=0"),
        ("window = 'whole'\nlongest = true", r"\[a\]: longest is True; wanted a whole number"),
        ("window = 'whole'\nweight = 0", r"\[a\]: the data set has weight 0.0; weights are positive: leave out"),
        ("window = 'whole'\nweight = nan", r"\[a\]: the data set has weight nan"),
        ("window = 'whole'\nweight = '2'", r"\[a\]: weight is '2'; wanted a number"),
        ("window = 'whole'\ncameras = { up = -1 }", r"\[a\]: up has weight -1.0; weights are positive"),
        ("window = 'whole'\ncameras = ['up']", r"\[a\]: cameras is \['up'\]; wanted a table of weights, e.g. { front"),
        ("window = 'whole'\ncameras = {}", r"\[a\]: cameras is {}; wanted a table of weights"),
        ("window = 'whole'\ndomain = 'robots'", r"\[a\]: there is no domain 'robots': take one of unknown, human"),
        ("window = 'whole'\npath = 3", r"\[a\]: path is 3; wanted a text in quotes"),
    ],
)
def test_what_a_table_should_not_say_is_named(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.toml " + words):
        read_mix(written(tmp_path, f"[a]\n{table}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"holds no table: write one for each data set, \[NAME\]"),
        ("weight = 2\n[a]\nwindow = 'whole'", "'weight' stands outside any table: write it below"),
        ("[a]\nwindow = 'whole'\n[a]\nwindow = 'whole'", "is no TOML file: Cannot declare .*twice"),
        ("[a", "is no TOML file: "),
    ],
)
def test_a_file_that_is_no_mix_says_so(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_mix(written(tmp_path, text))


def test_an_unknown_mix_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no mix 'publisched': name one of published, or the path of a file"):
        find_mix("publisched")
    with pytest.raises(ValueError, match="there is no mix"):
        find_mix(str(tmp_path / "mine.toml"))
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no mix: wanted a file whose name ends in \.toml"):
        find_mix(str(tmp_path / "mine.json"))
    assert find_mix(str(written(tmp_path, GOOD))) == tmp_path / "mine.toml"
