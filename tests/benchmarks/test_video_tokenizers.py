"""The benchmark of tokenizers runs, keeps every row it has made, and goes on where it was killed."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytest.importorskip("metaworld")
pytestmark = pytest.mark.sim


@pytest.mark.slow
def test_tokenizer_benchmark_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("IDEOMOTOR_SHARED", raising=False)
    import video_tokenizers

    said = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["it", "--tiny", "--json", str(said), "--data", str(tmp_path), "--seconds", "0.1"])
    video_tokenizers.main()
    rows = json.loads(said.read_text())["rows"]
    names = [candidate.name for candidate in video_tokenizers.CANDIDATES]
    assert [row["tokenizer"] for row in rows] == ["first frame repeated", "no tokenizer", *names]
    for row in rows[2:]:
        assert row["data"] == "metaworld" and row["steps"] >= 1 and row["encode_fps"] > 0 and row["decode_fps"] > 0
        assert 0 < row["code_share"] <= 1 and 1 <= row["perplexity"] <= row["vocab"] and row["probe_r2"] <= 1
        assert 0 < row["psnr"] < 60 and 0 < row["object_psnr"] < 60
    assert {row["tokens"] for row in rows[2:]} == {36, 144, 576}
    assert "object_psnr" in capsys.readouterr().out

    # A kill in the middle of the last row: only that tokenizer is trained again.
    lines = (tmp_path / "rows.jsonl").read_text().rstrip()
    (tmp_path / "rows.jsonl").write_text(lines[:-20])
    trained = []
    fit = video_tokenizers.fit
    monkeypatch.setattr(video_tokenizers, "fit", lambda *given: trained.append(given[1].name) or fit(*given))
    video_tokenizers.main()
    assert trained == names[-1:]
    again = json.loads(said.read_text())["rows"]
    assert again[:-1] == rows[:-1] and again[-1]["tokenizer"] == names[-1]


def test_masks_and_actions_belong_to_the_clips_frames(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch

    import tokenizer_clips

    recording = tokenizer_clips.Recording(
        frames=torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 2, 2),
        masks=(torch.arange(20) % 8 == 0)[:, None, None].expand(20, 2, 2),
        actions=torch.arange(20.0)[:, None].expand(20, 4),
    )
    clips = tokenizer_clips.clips_of([recording], every=4)
    assert clips.frames[:, :, 0, 0, 0].tolist() == [[0, 4, 8, 12], [4, 8, 12, 16]]
    assert clips.masks[:, :, 0, 0].tolist() == [[True, False, True, False], [False, True, False, True]]
    assert clips.actions[:, 0].tolist() == [5.5, 9.5]  # of steps 0..11 and 4..15: what led from first frame to last
    batch = next(tokenizer_clips.random_clips([recording], 50, seed=0))[:, :, 0, 0, 0]
    assert (batch.int().diff(dim=1) == 4).all() and set(batch[:, 0].tolist()) == set(range(8))
