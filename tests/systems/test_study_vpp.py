"""The recipe "vpp": other eyes on one head, over one stage 1, in the toy world."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("gymnasium")

from test_bad_pairs import ideomotor
from test_vpp_encoder import clip

from ideomotor.evaluation.study import read_study
from ideomotor.systems.collection import CollectionConfig, collect
from ideomotor.systems.study import find_study, run_study
from ideomotor.systems.study_recipes import cells_of
from ideomotor.systems.study_vpp import VPPEyes, form_of
from ideomotor.systems.vpp_presets import cpu

TOY = """
title = "Toy"
question = "Does it run?"
recipe = "vpp"
control = "pixels"
metric = "success"
seeds = [0]
tasks = ["red"]
episodes = 2
at = [2]
[settings]
preset = "tiny"
world = "toy"
data = [{data!r}]
video_from = {video!r}
cache = {cache!r}
[arms.foresight]
[arms.some_layers]
layers = [[0, 1], 1]
[arms.encoder]
eyes = "encoder"
encoder = {encoder!r}
[arms.pixels]
eyes = "pixels"
"""


def test_every_arm_is_trained_and_tried(tmp_path: Path) -> None:
    counts = {"demonstrations": 3, "expert": 3, "noisy": 1, "failed": 1}
    collect(CollectionConfig(out=tmp_path / "data", world="toy", tasks=("red",), size=32, workers=1, **counts))
    films, cache = tmp_path / "data/video", tmp_path / "cache"
    for name, earlier in (("vae", ()), ("video", ("--vae-from", tmp_path / "vae"))):
        words = ("--preset", "tiny", "--data", films, "--out", tmp_path / name, "--cache", cache, *earlier)
        assert ideomotor("vpp", name, *words) == 0
    paths = {"data": tmp_path / "data/demonstrations", "video": tmp_path / "video", "cache": cache}
    paths["encoder"] = clip(tmp_path / "clip")
    declared = TOY.format(**{name: str(path) for name, path in paths.items()})
    (tmp_path / "toy.toml").write_text(declared)
    summary = run_study(tmp_path / "toy.toml", tmp_path / "out", workers=0)
    assert summary.missing == 0 and len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 8
    works = tmp_path / "out/cells"
    assert (works / "foresight-seed0-red/work/policy/predictor").is_dir()
    assert not (works / "pixels-seed0-red/work/policy/predictor").exists()
    assert (works / "encoder-seed0-red/work/policy/encoder").is_dir()


def test_arms_differ_in_their_eyes_alone() -> None:
    arms = {cell.arm: form_of(cell.settings, 2000) for cell in cells_of(read_study(find_study("vpp_eyes")))}
    plain = replace(cpu(), policy_stage=replace(cpu().policy_stage, steps=2000))
    assert arms["foresight"] == plain
    for name, form in arms.items():
        same = replace(form, eyes=plain.eyes, foresight=plain.foresight, former=plain.former)
        assert same == plain and (form != plain or name == "foresight")
    assert arms["last_layer"].former.feature_width < plain.former.feature_width
    assert arms["no_former"].former.kind == "linear" and arms["two_passes"].foresight.steps == 2


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="preset is 'huge'"):
        VPPEyes(preset="huge", data=("a",), video_from="b")
    with pytest.raises(ValueError, match="at least one folder"):
        VPPEyes(data=(), video_from="b")
