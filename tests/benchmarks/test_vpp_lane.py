"""The GPU lane of VPP: in small it runs here, stopped and taken up again it ends alike, and its files are small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="the svd extra is not installed")
    pytest.importorskip("transformers", reason="the text extra is not installed")
    pytest.importorskip("av", reason="the video extra is not installed")
    pytest.importorskip("gymnasium", reason="the metaworld extra is not installed")
    monkeypatch.syspath_prepend(str(GPU.parent))
    monkeypatch.syspath_prepend(str(GPU))


def run(out: Path, *options: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "OUT"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(GPU / "vpp.py"), "--tiny", "--world", "toy", "--out", str(out), *options]
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


@pytest.mark.slow
def test_stopped_and_taken_up_again_it_ends_alike(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(straight, "--no-speed") == 0
    assert run(broken, "--no-speed", "--minutes", "0.15") in (75, 0)
    assert run(broken, "--no-speed") == 0
    shards = sorted((straight / "out").glob("*.safetensors"))
    assert shards and all(file.read_bytes() == (broken / "out" / file.name).read_bytes() for file in shards)
    rows = {row["what"]: row for row in json.loads((broken / "out" / "vpp.json").read_text())["rows"]}
    assert rows["mean of 2 tasks"]["whole"] and rows["stage policy"]["loss"] > 0
    assert all(row["done"] for what, row in rows.items() if what.startswith("stage"))


@pytest.mark.slow
def test_all_ways_to_act_are_timed_and_see_the_same() -> None:
    import vpp_speed

    rows = vpp_speed.speed_rows(tiny=True)
    assert [row["what"] for row in rows] == ["act: plain", "act: as published", "act: agent"]
    assert all(row["ms an act"] > 0 and row["ms a look"] > 0 for row in rows)
    assert rows[1]["features off by"] < 1e-5 < rows[2]["features off by"] < 0.1, "float32 on a CPU, and bf16"


def test_what_is_replayed_is_the_pass_of_the_predictor() -> None:
    import torch
    import vpp_speed

    from svd_sized import published_sizes, sized

    predictor = sized(published_sizes(True, 3))
    replayed = vpp_speed.Replayed(predictor)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # the second look has other inputs
        first, noise = (
            torch.randn(1, 2, 4, 8, 8, generator=generator),
            torch.randn(1, 1, 3, 4, 8, 8, generator=generator),
        )
        text = torch.randn(1, 20, 512, generator=generator)
        with torch.inference_mode():
            wanted = predictor.features(first, text, 700.0, (0, 1), noise=noise)
            got = replayed.features(first, text, 700.0, (0, 1), noise=noise, steps=1)
        assert (got - wanted).square().mean().sqrt() < 1e-4 * wanted.std()


def test_the_full_lane_is_what_was_asked_for_and_its_weights_are_few() -> None:
    import torch
    import vpp_lane

    from ideomotor.policies.edm_transformer import EDMTransformer
    from ideomotor.predictors.latent_diffusion import LatentDiffusion
    from ideomotor.systems.shards import LIMIT
    from ideomotor.systems.vpp import Looking
    from ideomotor.tokenizers.patch_pca import PatchPCA

    full = vpp_lane.full()
    assert len(full.tasks) == 50 and full.demonstrations == 20 and full.episodes == 10
    config = full.model
    assert config.policy.proprio_width == 0, "image-only"
    with torch.device("meta"):
        parts = (
            PatchPCA(config.vae), LatentDiffusion(config.video), Looking(config), EDMTransformer(config.policy)
        )  # fmt: skip
    size = 2 * sum(weight.numel() for part in parts for weight in part.parameters())
    assert 45e6 < size < 58e6 < 4 * LIMIT, "four files of weights"
