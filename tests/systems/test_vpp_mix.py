"""A mix of data sets by the commands of VPP: prepared, learned from, gone on with, and tried by the gate."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import ideomotor, said

from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.systems.autoencoders import load_vae
from ideomotor.systems.sources import read_facts
from ideomotor.systems.vpp_latents import latent_sources
from ideomotor.systems.vpp_mix import SampledOptions, frame_sources
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.tokenizers.svd_vae import SVDVAE
from ideomotor.training.checkpoint import save_model

MIX = """
[films]
window = "whole"
longest = 12
weight = 0.5
domain = "human"

[arms]
path = "robots/arms"
window = "strided"
stride = 3
start_step = 2
cameras = { camera1 = 1, camera0 = 3 }
weight = 0.25
domain = "robot"

[bare]
window = "whole"
weight = 0.25
"""
WITHOUT_BARE = MIX[: MIX.index("[bare]")]
LENGTHS = (5, 9, 12, 13)  # of films; the last is too long


def disc(number: int, frames: int) -> torch.Tensor:
    return synthetic_disc(0, number).render(np.arange(frames, dtype=float), (32, 32))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of one camera, arms of two, latents without video, a mix of them, and an autoencoder nobody trained."""
    home = tmp_path_factory.mktemp("mix")
    for number, length in enumerate(LENGTHS):
        write_video(home / f"films/{number}.mp4", disc(number, length), fps=10)
    for number in range(3):
        paths = [f"videos/{number}-{camera}.mp4" for camera in range(2)]
        for camera, path in enumerate(paths):
            write_video(home / "robots/arms" / path, disc(7 * camera + number, 10), fps=10)
        annotate(home / "robots/arms", number, {"videos": [{"video_path": path} for path in paths]})
        latents = [{"latent_video_path": f"latent_videos/{number}.pt"}]
        annotate(home / "bare", number, {"latent_videos": latents})
        (home / "bare/latent_videos").mkdir(exist_ok=True)
        torch.save(0.18215 * torch.randn(8, 4, 16, 16), home / f"bare/latent_videos/{number}.pt")
    (home / "mine.toml").write_text(MIX)
    config = replace(PRESETS["tiny"]().vae, scale=0.5)
    torch.manual_seed(0)
    save_model(home / "vae", SVDVAE(config), config)
    return home


def annotate(root: Path, number: int, entry: dict) -> None:
    (root / "annotation/val").mkdir(parents=True, exist_ok=True)
    (root / f"annotation/val/{number}.json").write_text(json.dumps(entry | {"texts": [f"go {number}"]}))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr in one line, without the frame around what is wrong with options."""
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def options(home: Path, **more: object) -> SampledOptions:
    given = {"mix": str(home / "mine.toml"), "cache": home / "cache", "validation": 0.3} | more
    return SampledOptions(**given)  # type: ignore[arg-type]


def stage(home: Path, name: str, out: Path, *more: object) -> int:
    words = ("--preset", "tiny", "--cache", home / "cache", "--validation", 0.3, "--out", out)
    earlier = ("--vae-from", home / "vae") if name == "video" else ()
    return ideomotor("vpp", name, *words, *earlier, f"--{name}-stage.steps", 2, *more)


def test_clips_are_drawn_as_the_tables_say(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = options(home).chosen(4)
    sources = latent_sources(data, PRESETS["tiny"](), load_vae(home / "vae"), home / "vae")
    lines = told(capsys)
    assert "left out of films: 1 of 4 episodes, longer than 12 frames ([films] longest)" in lines
    assert "bare has no video: its latents are taken as they were published" in lines
    drawn = [(each.dataset.name, each.camera_names()["main"], each.weight, each.domain) for each in sources.train]
    assert drawn == [
        ("films", "video", 0.5, "human"), ("arms", "camera1", 0.0625, "robot"), ("arms", "camera0", 0.1875, "robot"),
        ("bare", "camera0", 0.25, "unknown"),
    ]  # fmt: skip
    assert [each.camera_names() for each in sources.validation] == [each.camera_names() for each in sources.train]
    shown = [each.window.frame_indices(0, 10).tolist() for each in sources.train]
    assert shown == [[0, 3, 6, 9]] * 4 and sources.train[0].window.frame_indices(0, 5).tolist() == [0, 1, 2, 4]
    assert sources.train[1].window.frame_indices(2, 10).tolist() == [2, 5, 8, 9]
    films, arms, bare = sources.facts
    assert (films.whole, films.weight, films.learned, len(films.held_out)) == (True, 0.5, 2, 1)
    assert "3.mp4" not in films.held_out and not films.left_out
    assert (arms.whole, arms.stride, arms.camera, arms.weight) == (False, 3, "camera1,camera0", 0.25)
    assert (bare.whole, bare.learned, len(bare.held_out)) == (True, 2, 1)


def test_a_stride_longer_than_every_film_is_told_before_anything_is_decoded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "far.toml").write_text(WITHOUT_BARE.replace("stride = 3", "seconds = 1.0"))
    films = ("--data", home / "films", "--strides", 13)
    for name, words, where in [
        ("video", films, "dataset 'films' would be taken 13 apart, and its longest episode, '3.mp4', has 13"),
        ("vae", films, "at most 12 apart (--strides"),
        (
            "video",
            ("--mix", tmp_path / "far.toml", "--root", home),
            "[arms]: frames of dataset 'arms' would be taken 10",
        ),
    ]:
        assert stage(home, name, tmp_path / "a", *words, "--cache", tmp_path / "cache") == 2
        assert where in told(capsys), words
        assert not (tmp_path / "a").exists() and not (tmp_path / "cache").exists()


def test_an_autoencoder_learns_from_the_same_views(home: Path, tmp_path: Path) -> None:
    (tmp_path / "video.toml").write_text(WITHOUT_BARE)
    mix = ("--mix", tmp_path / "video.toml", "--root", home)
    assert stage(home, "vae", tmp_path / "vae", *mix) == 0
    assert [(facts.camera, facts.whole) for facts in read_facts(tmp_path / "vae")] == [
        ("video", True), ("camera1,camera0", False)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"^\[bare\]: .* without video, and an autoencoder learns from video: take"):
        frame_sources(options(home).chosen(4), 32)


def test_prepare_encodes_the_cameras_that_the_mix_names(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_camera = MIX.replace("camera1 = 1, ", "")
    (tmp_path / "one.toml").write_text(one_camera)
    words = ("--root", home, "--vae", home / "vae", "--size", 32, "--cache", tmp_path / "cache")
    assert ideomotor("vpp", "prepare", "--mix", tmp_path / "one.toml", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["films, video", "arms, camera0", "bare, camera0"]
    assert "4 episodes, 39 frames" in lines[0] and "published latents, all sound" in lines[2]
    before = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    mix = ("--mix", tmp_path / "one.toml", "--root", home, "--cache", tmp_path / "cache")
    assert stage(home, "video", tmp_path / "out", *mix) == 0
    assert sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()) == before, "nothing more is made"
    assert ideomotor("vpp", "prepare", "--mix", home / "mine.toml", "--cameras", "camera0", *words) == 2
    assert "a mix names the cameras of each data set: leave --cameras out" in told(capsys)


def test_a_run_goes_on_with_its_mix_alone(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MIX)
    mix = ("--mix", file, "--root", home)
    assert stage(home, "video", tmp_path / "out", *mix) == 0
    file.write_text("# told otherwise, the same\n" + MIX.replace("weight = 0.5", "weight = 0.50"))
    assert stage(home, "video", tmp_path / "out", *mix) == 0
    for old, new, line in (
        ("weight = 0.5\n", "weight = 0.6\n", "[films] weight: '0.5' -> '0.6'"),
        ("longest = 12", "longest = 11", "[films] window longest: '12' -> '11'"),
        ("stride = 3", "stride = 2", "[arms] window stride: '3' -> '2'"),
        ("camera0 = 3", "camera0 = 2", "[arms] cameras camera0: '3.0' -> '2.0'"),
    ):
        capsys.readouterr()
        file.write_text(MIX.replace(old, new))
        assert stage(home, "video", tmp_path / "out", *mix) == 2
        assert line in said(capsys)


def test_the_gate_tries_whole_clips_whole_and_every_data_set(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage(home, "video", tmp_path / "out", "--mix", home / "mine.toml") == 0
    quick = ("--samples", 1, "--steps", 1, "--noises", 1, "--sigmas", 1.0, "--videos", 1)
    capsys.readouterr()
    assert ideomotor("vpp", "gate", tmp_path / "out", "--clips", 6, *quick) == 0
    shown = capsys.readouterr()
    assert "no clips are taken of" in shown.err and "bare: it has latents alone" in shown.err
    assert "1 of 6 clips are whole ones" in shown.out
    names = json.loads((tmp_path / "out/gate/gate.json").read_text())["clips"]
    facts = {Path(one.path).name: one for one in read_facts(tmp_path / "out")}
    assert (
        names[0] == f"films/{facts['films'].held_out[0]}, video, whole clip"
    )  # all there is, though its weight is 2/3
    assert Counter(name.split(", ")[1] for name in names[1:]) == {"camera1": 2, "camera0": 3}
    assert {name.split(", ")[0] for name in names[1:]} == {f"arms/{facts['arms'].held_out[0]}"}
    # A data set that is named is shown as it was learned from.
    assert ideomotor("vpp", "gate", tmp_path / "out", "--data", home / "films", "--clips", 2, *quick) == 0
    names = json.loads((tmp_path / "out/gate/gate.json").read_text())["clips"]
    assert all(name.endswith("whole clip") for name in names)
    capsys.readouterr()
    words = ("--input", home / "films", "--steps", 1, "--samples", 1, "--out", tmp_path / "a.mp4")
    assert ideomotor("vpp", "predict", tmp_path / "out", *words) == 0
    assert "spread evenly to its last" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "wanted data sets (--data A B) or a mix of them (--mix FILE.toml): give one"),
        (("--mix", "{home}/mine.toml", "--data", "{home}/films"), "give one"),
        (("--data", "{home}/films", "--root", "{home}"), "--root says where the data sets of a mix lie"),
        (("--mix", "{home}/mine.toml", "--strides", 2), "a mix sets weights, windows, cameras and domains"),
        (("--mix", "publisched"), "there is no mix 'publisched': name one of published"),
        (("--mix", "published"), "is of the data sets sthv2, bridge, rt1, calvin: say with --root FOLDER"),
        (("--mix", "published", "--root", "{home}"), "4 of 4 data sets of the mix published are not there: [sthv2] "),
        (("--mix", "{home}/mine.toml", "--root", "{home}/robots"), "3 of 3 data sets of the mix"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(
    home: Path, tmp_path: Path, given: tuple, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(word).format(home=home) for word in given]
    assert stage(home, "video", tmp_path / "out", *named) == 2
    assert words in told(capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("camera1 = 1", "camera9 = 1", "[arms]: episode 'val/0' of 'arms' has no camera 'camera9'; it has 'camera0', "),
        ("longest = 12", "longest = 4", "[films]: all 4 episodes of 'films' are longer than longest = 4, the shortest"),
        ("longest = 12", "longest = 5", "[films]: dataset 'films' has 1 episodes; a split needs at least 2"),
        ('[bare]\nwindow = "whole"', '[bare]\nwindow = "whole"\ncameras = { camera3 = 1 }', "[bare]: none of the 3"),
    ],
)
def test_a_data_set_that_does_not_fit_is_named_before_any_is_encoded(
    home: Path, tmp_path: Path, old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(MIX.replace(old, new))
    mix = ("--mix", tmp_path / "mine.toml", "--root", home, "--cache", tmp_path / "cache")
    assert stage(home, "video", tmp_path / "out", *mix) == 2
    assert words in said(capsys)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "out").exists()


def test_data_sets_one_by_one_are_as_before(home: Path) -> None:
    given = {"mix": None, "data": (home / "films", home / "robots/arms"), "weights": (2.0, 1.0), "strides": (1, 2)}
    data = options(home, **given).chosen(4)
    config = replace(PRESETS["tiny"](), views=2)
    sources = latent_sources(data, config, load_vae(home / "vae"), home / "vae")
    drawn = [(each.weight, each.camera_names()["main"], each.window.key) for each in sources.train]
    every = config.video_stage.every
    assert drawn == [
        (2.0, "video", [1, 3, 1, every]), (0.5, "camera0", [1, 3, 2, every]), (0.5, "camera1", [1, 3, 2, every])
    ]  # fmt: skip
    assert [(facts.whole, facts.weight) for facts in sources.facts] == [(False, None)] * 2
