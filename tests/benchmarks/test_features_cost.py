"""The benchmark of looking ahead runs in small, its rungs see the same, and its rows keep their form."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="the svd extra is not installed")
    pytest.importorskip("transformers", reason="the text extra is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_features_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import features_cost

    monkeypatch.setattr(sys, "argv", ["features_cost.py", "--tiny", "--json", str(tmp_path / "rows.json")])
    features_cost.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["weights"] for row in rows] == ["fp32", "fp32", "fp32", "bf16"]
    plain, batched, early, fast = rows
    assert plain["times cheaper"] == 1 and plain["difference"] == 0
    assert max(batched["difference"], early["difference"]) < 1e-4, "the same features at float32"
    assert 1e-4 < fast["error"] < 0.1
    assert early["CPU-s text"] < plain["CPU-s text"], "the sentence is remembered"
    # Counted, not timed: what the early exit leaves out, and that weights of bf16 are half as long.
    assert all(row["floor, s"] > 0 and row["over floor"] > 0.5 for row in rows)


def test_other_features_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import features_cost

    predictor = features_cost.sized(features_cost.published_sizes(True, 2))
    vae = features_cost.filled(lambda: features_cost.SVDVAE(features_cost.SVDVAEConfig(widths=(32,) * 4, blocks=1)))
    rungs = features_cost.ladder((predictor, vae), (predictor, vae), features_cost.Film(2, 8, 1), True)
    plain, ours = rungs[0](), rungs[2]()
    torch.testing.assert_close(ours[0], plain[0], atol=1e-4, rtol=0)
    monkeypatch.setattr(features_cost, "SIGMA", 5.0)
    assert (rungs[2]()[0] - plain[0]).abs().max() > 1e-2
    assert rungs[0].weights_read > rungs[2].weights_read
