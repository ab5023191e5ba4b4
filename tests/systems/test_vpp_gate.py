"""VPP's gate and its predictions, on a model trained for seconds: the same figures every time, and what is refused."""

import json
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import digest, ideomotor, recording, said

from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import VideoFrames, write_video
from ideomotor.files import sole_writer
from ideomotor.systems.held_out import HeldOut
from ideomotor.systems.video_scoring import Judges
from ideomotor.systems.vpp_gate import losses_of
from ideomotor.systems.vpp_gate_scores import Asked, GateOptions, denoising, measure, other_sentences
from ideomotor.systems.vpp_videos import VideoModel

QUICK = ("--clips", 6, "--samples", 2, "--steps", 2, "--noises", 1, "--sigmas", 0.5, 5.0)
OPTIONS = GateOptions(clips=6, samples=2, steps=2, noises=1, sigmas=(0.5, 5.0))


def film(number: int, size: int = 32) -> torch.Tensor:
    return synthetic_disc(0, number).render(np.arange(12, dtype=float), (size, size))


def write_png(path: Path, picture: torch.Tensor) -> None:
    import av

    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = *picture.shape[1:], "rgb24", Fraction(1, 10)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), "rgb24")
    path.write_bytes(b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films with two captions, half of them held out; an autoencoder and a video model trained on the others."""
    home = tmp_path_factory.mktemp("gate")
    for number in range(8):
        write_video(home / f"films/{number}.mp4", film(number), fps=10)
    captions = [{"file": f"{number}.mp4", "text": ("go left", "go right")[number % 2]} for number in range(8)]
    (home / "films/captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    recording(home / "one.npz")
    for name, more in (("vae", ()), ("video", ("--vae-from", home / "vae"))):
        words = ("--preset", "tiny", "--data", home / "films", "--cache", home / "cache", "--validation", 0.5)
        assert ideomotor("vpp", name, *words, "--out", home / name, *more) == 0
    return home


def clips(numbers: list[int]) -> HeldOut:
    return HeldOut(
        frames=torch.stack([film(number)[:8:2] for number in numbers]), actions=None, rewards=None,
        episodes=[str(number) for number in numbers], texts=["ab"[number % 2] for number in numbers],
        names=[str(number) for number in numbers],
    )  # fmt: skip


def test_the_same_command_gives_the_same_figures(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(home)
    words = ("vpp", "gate", home / "video", *QUICK, "--videos", 2)
    assert ideomotor(*words, "--out", tmp_path / "a") == 0
    torch.manual_seed(7)  # nothing is drawn from the global state
    against = ("--against", tmp_path / "a/gate.json", "--must-pass")
    assert ideomotor(*words, "--out", tmp_path / "b", *against) == 1, "four steps teach nobody"
    assert "beat repeating the last frame" in capsys.readouterr().out.replace("beats", "beat")
    a, b = (json.loads((tmp_path / name / "gate.json").read_text()) for name in "ab")
    gap = b["against"].pop("loss")
    assert gap == {"value": 0, "low": 0, "high": 0}
    assert a | {"against": b["against"]} == b
    held_out = json.loads((home / "video/data.json").read_text())["datasets"][0]["held_out"]
    assert {name.split(",")[0].split("/")[1] for name in a["clips"]} <= set(held_out) and len(a["clips"]) == 6
    assert not a["passed"] and a["passed"] == all(step["value"] > 0 for step in a["gain"]) == a["verdict"].startswith(
        "PASSED"
    )
    assert set(a["loss"]) == {"0.5", "5", "mean"} and set(a["sentence"]) == {"loss", "video"}
    ours, best = (a["moving_psnr"][name] for name in ("one future", "best future"))
    assert len(ours) == 3 and sum(step["value"] for step in best) >= sum(step["value"] for step in ours)
    page = (tmp_path / "a/gate.html").read_text()
    assert a["verdict"] in page and page.count("<video") == len(a["videos"]) == 2
    shape = VideoFrames(tmp_path / "a" / a["videos"][0]["file"]).shape
    assert shape == (4, 3, 2 * 72, 2 * 72)  # truth above, two futures side by side
    assert digest(home) == before


def test_judges_add_rows(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    class First:
        name = "first pixel"

        def __call__(self, video: torch.Tensor) -> torch.Tensor:
            assert video.shape[1:] == (3, 3, 32, 32), "the frames foretold"
            return video[:, :, :, 0, 0].float()

    def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).square().mean((1, 2, 3))

    found, _ = measure(VideoModel.load(home / "video"), clips([1, 2, 4, 5]), OPTIONS, Judges(distance, (First(),)))
    assert {"lpips (mean)", "lpips (best)", "first pixel (all)"} < found.strict.keys()
    for reduction in ("mean", "best"):  # of the same futures as the other figures
        assert found.strict[f"lpips ({reduction})"].value == pytest.approx(found.strict[f"mse ({reduction})"].value)
    words = ("vpp", "gate", home / "video", *QUICK, "--out", tmp_path / "gate")
    assert ideomotor(*words, "--fvd", tmp_path / "i3d.pt") == 2 and "--fvd came alone" in said(capsys)
    assert ideomotor(*words, "--lpips", tmp_path / "vgg.pth") == 2 and "vgg.pth" in said(capsys)
    assert not (tmp_path / "gate").exists()


def test_the_policy_says_what_the_gate_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line before anything else, whatever becomes of the command; it is no reason to refuse."""
    stage, ours = tmp_path / "video", {"passed": True, "verdict": "PASSED: well", "videos": []}
    shutil.copytree(home / "video", stage)
    words = ("vpp", "policy", "--preset", "tiny", "--data", tmp_path / "gone", "--out", tmp_path / "policy")

    def warned(*more: object) -> list[str]:
        assert ideomotor(*words, *more) == 2
        *before, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error:") and "gone" in error
        return before

    def note(place: Path, **facts: object) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / "gate.json").write_text(json.dumps(ours | facts))

    (line,) = warned("--video-from", stage)
    assert line.startswith("warning:") and "was not put through the gate" in line
    assert warned("--video-from", stage, "--eyes", "latents", "--former.feature-width", 4, "--former.frames", 1) == []
    fingerprint = json.loads((stage / "predictor/config.json").read_text())["fingerprint"]
    for place in (stage / "gate", tmp_path / "gate"):  # as the quickstart leaves it
        note(place, predictor=fingerprint)
        assert warned("--video-from", stage) == []
        note(place, predictor=fingerprint, passed=False, verdict="FAILED: one future does not beat")
        (line,) = warned("--video-from", stage)
        assert line == f"warning: {place / 'gate.json'} says of the video model: FAILED: one future does not beat"
        note(place, predictor="that of another model")
        (line,) = warned("--video-from", stage)
        assert "was not put through the gate" in line
        (place / "gate.json").write_text('{"predictor": "' + fingerprint + '"}')
        (line,) = warned("--video-from", stage)
        assert "was not put through the gate" in line  # a file of that name that holds no verdict
        (place / "gate.json").write_text("{")
    (line,) = warned("--video-from", stage)
    assert "was not put through the gate" in line


@pytest.mark.parametrize("losses", [[1.0], ["a", "b"], [None, 1.0], "ab", {"a": 1}])
def test_edited_losses_do_not_pair(losses: object, tmp_path: Path) -> None:
    facts = {"options": {}, "vae": "its fingerprint", "clips": ["one", "other"]}
    (tmp_path / "gate.json").write_text(json.dumps(facts | {"clip_losses": losses}))
    with pytest.raises(ValueError, match=r"gate.json was edited: clip_losses is .*; wanted a loss for each"):
        losses_of(tmp_path / "gate.json", facts)


def test_two_gates_do_not_write_into_one_folder(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole_writer(tmp_path / "gate.json"):
        assert ideomotor("vpp", "gate", home / "video", *QUICK, "--out", tmp_path) == 2
    assert f"process {os.getpid()} adds to" in said(capsys)
    assert not list(tmp_path.glob("*.html"))


def test_data_that_moved_are_the_same_data(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after ``mv`` of data and stage: the gate says what to do, and the stage's own command does it."""
    stage, films = tmp_path / "video", tmp_path / "elsewhere/films"
    shutil.copytree(home / "video", stage)
    shutil.copytree(home / "films", films)
    for name in ("run.json", "data.json"):
        (stage / name).write_text((stage / name).read_text().replace(str(home / "films"), str(tmp_path / "gone")))
    words = ("vpp", "video", "--preset", "tiny", "--data", films, "--cache", home / "cache", "--validation", 0.5)
    words += ("--vae-from", home / "vae", "--out", stage)
    before = (stage / "predictor/model.safetensors").read_bytes()
    assert ideomotor("vpp", "gate", stage, *QUICK, "--videos", 0) == 2
    shown = said(capsys)
    assert "gone, of which the stage" in shown and "with its new --data" in shown
    for place in (tmp_path / "for a while", films):
        films.rename(place)
        words = tuple(place if word == films else word for word in words)
        films = place
        assert ideomotor(*words) == 0
        assert json.loads((stage / "data.json").read_text())["datasets"][0]["path"] == str(films)
    assert ideomotor("vpp", "gate", stage, *QUICK, "--videos", 0) == 0
    (stage / "done.json").unlink()  # as if it had been killed while it saved
    shutil.rmtree(stage / "predictor")
    assert ideomotor("vpp", "gate", stage, *QUICK) == 2
    assert "has not finished: run its command again" in said(capsys)
    assert ideomotor(*words) == 0 and (stage / "done.json").is_file()
    assert (stage / "predictor/model.safetensors").read_bytes() == before
    next(films.glob("*.mp4")).unlink()
    assert ideomotor(*words) == 2 and "of other settings" in said(capsys)


def test_an_edited_config_of_stage_1_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = tmp_path / "video"
    shutil.copytree(home / "video", stage)
    path = stage / "vpp.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"size": 64}))
    assert ideomotor("vpp", "gate", stage, *QUICK) == 2
    shown = said(capsys)
    assert str(path) in shown and "size: 32 -> 64" in shown and "run its command again" in shown
    assert not (stage / "gate").exists()


def test_a_clip_has_the_same_figures_whoever_stands_beside(home: Path) -> None:
    model = VideoModel.load(home / "video")
    all_of_them, futures = measure(model, clips([1, 2, 4, 5]), OPTIONS)
    two, theirs = measure(model, clips([4, 5]), OPTIONS)
    np.testing.assert_allclose(two.clip_losses, all_of_them.clip_losses[2:], rtol=1e-4)
    assert (theirs.int() - futures[:, 2:].int()).abs().max() <= 1
    other, changed = measure(model, clips([4, 5]), replace(OPTIONS, seed=1))
    assert not torch.equal(theirs, changed) and other.clip_losses != two.clip_losses


def test_the_loss_is_that_of_training_under_the_same_draws(home: Path) -> None:
    model, some = VideoModel.load(home / "video"), clips([1, 2])
    asked = Asked(some.frames, some.names, some.texts, other_sentences(some.texts, 0))
    found = denoising(model, asked, OPTIONS)  # own, another's, none
    latents = model.vae.moments(some.frames)[0]
    draws = model.predictor.noising(latents)._replace(
        sigma=torch.full((2,), 5.0), told=torch.ones(2, dtype=torch.bool), seen=torch.ones(2, dtype=torch.bool),
        noise=torch.stack([model.noise(0, "loss", 0, name) for name in some.names]),
    )  # fmt: skip
    with torch.no_grad():
        own = model.predictor.loss(latents, latents[:, 0], model.text(some.texts), draws).total
        none = model.predictor.loss(
            latents, latents[:, 0], model.text(some.texts), draws._replace(told=torch.zeros(2, dtype=torch.bool))
        ).total
    torch.testing.assert_close(found[0, 1].mean(), own)
    torch.testing.assert_close(found[2, 1].mean(), none)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_another_sentence_is_never_ones_own() -> None:
    texts = ["a", "a", "b", "c", "a"]
    others = other_sentences(texts, 0)
    assert others is not None and all(mine != other for mine, other in zip(texts, others, strict=True))
    assert other_sentences(["a", "a"], 0) is None


def test_one_sentence_for_all_tells_nothing_of_hearing(home: Path) -> None:
    some = clips([2, 4])
    found, _ = measure(VideoModel.load(home / "video"), some, OPTIONS)
    assert some.texts == ["a", "a"] and found.heard is None and len(found.gain) == 3


@pytest.mark.parametrize("input", ["films/3.mp4", "films", "one.npz", "frame.png"])
def test_futures_of_any_input(home: Path, tmp_path: Path, input: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = home / input
    if input == "frame.png":
        source = tmp_path / input
        write_png(source, film(0, 48)[0])
    words = ("vpp", "predict", home / "video", "--input", source, "--steps", 2, "--samples", 2, "--text", "go up")
    for name in ("a", "b"):
        assert ideomotor(*words, "--out", tmp_path / f"{name}.mp4") == 0
    shown = capsys.readouterr().out
    assert 'text: "go up"' in shown and ("truth (green)" in shown) == (input != "frame.png")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    rows = 1 if input == "frame.png" else 2
    assert VideoFrames(tmp_path / "a.mp4").shape == (4, 3, rows * 72, 2 * 72)


def test_the_end_of_a_clip_and_no_sentence(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("vpp", "predict", home / "video", "--input", home / "films/3.mp4", "--steps", 1, "--samples", 1)
    assert ideomotor(*words, "--start", 11, "--text", "", "--out", tmp_path / "end.mp4") == 0
    shown = capsys.readouterr().out
    assert "no sentence was told" in shown and "truth" not in shown
    assert VideoFrames(tmp_path / "end.mp4").shape == (4, 3, 72, 72)
    words = ("vpp", "predict", home / "video", "--input", home / "films", "--steps", 1, "--samples", 1)
    late = ("--episode", "3.mp4", "--start", 8, "--frames", 5, "--out", tmp_path / "late.mp4")
    assert ideomotor(*words, *late) == 0
    shown = capsys.readouterr().out
    assert 'text: "go right"' in shown and "ends 4 frames before the horizon" in shown
    assert VideoFrames(tmp_path / "late.mp4").shape == (6, 3, 144, 72)


def test_what_cannot_be_foretold_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(home)
    write_png(tmp_path / "small.png", film(0, 4)[0])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "notes.txt").write_text("no film")
    (tmp_path / "folder.mp4").mkdir()
    one = home / "films/3.mp4"
    for source, more, why in [
        (tmp_path / "small.png", (), "shows 4x4 pixels; the model looks at 32x32"),
        (tmp_path / "broken.png", (), "holds a damaged picture"),
        (tmp_path / "gone.png", (), "there is no picture at"),
        (tmp_path / "broken.mp4", (), "cannot be read"),
        (tmp_path / "notes.txt", (), "no data set was found in"),
        (tmp_path / "gone.mp4", (), "there is nothing at"),
        (one, ("--start", 12), "frames 0..11"),
        (one, ("--start", -1), "frames 0..11"),
        (one, ("--camera", "wrist"), "has no camera 'wrist'"),
        (one, ("--episode", "wrist"), "has no episode 'wrist'"),
        (one, ("--out", one), "would overwrite"),
        (one, ("--out", tmp_path / "a.txt"), ".txt"),
        (one, ("--out", tmp_path / "folder.mp4"), "folder.mp4 is a folder"),
        (one, ("--out", tmp_path / "notes.txt/a.mp4"), "notes.txt is a file"),
        (one, ("--frames", 0), "both start at 1"),
        (one, ("--samples", 0), "at least 1 sample"),
        (one, ("--guidance", "nan"), "guidance nan"),
    ]:
        out = () if "--out" in more else ("--out", tmp_path / "a.mp4")
        assert ideomotor("vpp", "predict", home / "video", "--input", source, *out, *more) != 0, why
        assert why in said(capsys)
    assert ideomotor("vpp", "predict", home / "vae", "--input", one, "--out", tmp_path / "a.mp4") != 0
    assert "holds no video model" in said(capsys)
    assert digest(home) == before and not (tmp_path / "a.mp4").exists()


def test_what_the_gate_cannot_try_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("vpp", "gate", home / "video", *QUICK, "--out", tmp_path / "a")
    (tmp_path / "odd.json").write_text("{}")
    write_video(tmp_path / "still.mp4", film(0)[:1].expand(12, -1, -1, -1), fps=10)
    for more, why in [
        (("--against", tmp_path / "gone.json"), "there is no"),
        (("--against", tmp_path / "odd.json"), "holds no figures of a gate"),
        (("--clips", 0), "must be at least 1"),
        (("--videos", -1), "wanted 0 or more"),
        (("--data", tmp_path / "still.mp4"), "nothing moves at step 1, 2, 3"),
        (("--sigmas", "inf"), "must be at least 1, and sigmas"),
        (("--data", home / "films", "--out", home / "films/gate"), "lies in the data set"),
        (("--out", tmp_path / "odd.json"), "odd.json is a file"),
    ]:
        assert ideomotor(*words, *more) != 0
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())  # some are told in a box
        assert why in shown and "Traceback" not in shown
    assert not (tmp_path / "a").exists()
    assert ideomotor(*words, "--videos", 0) == 0
    capsys.readouterr()
    assert ideomotor(*words, "--seed", 1, "--against", tmp_path / "a/gate.json") != 0
    assert "with other options, so the losses do not pair" in said(capsys)


@pytest.mark.browser
def test_a_film_of_one_future_is_not_drawn_large(home: Path, tmp_path: Path, browser: Any) -> None:
    words = ("vpp", "gate", home / "video", *QUICK, "--videos", 2, "--out", tmp_path)
    for samples, widest in ((1, 224), (2, 448)):
        assert ideomotor(*words, "--samples", samples) == 0
        for screen in (1280, 360):
            metrics = {"width": screen, "height": 844, "deviceScaleFactor": 1, "mobile": screen < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get((tmp_path / "gate.html").as_uri())
            browser.execute_async_script(
                "const done = arguments[0], videos = [...document.querySelectorAll('video')];"
                "(function look() { videos.every(v => v.videoWidth) ? done() : setTimeout(look, 30); })();"
            )
            for shown in (video.rect for video in browser.find_elements("tag name", "video")):
                assert 160 <= shown["width"] <= widest and shown["x"] + shown["width"] <= screen
                assert shown["height"] == pytest.approx(shown["width"] * 2 / samples, rel=0.02)
