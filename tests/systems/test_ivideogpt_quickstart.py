"""The world's quickstart in small, in the real simulator: every stage, the page, a second call, other settings."""

import json
from pathlib import Path

import pytest

from ideomotor.evaluation.world_page import WorldPage, verdicts, world_page
from ideomotor.systems.ivideogpt_quickstart import WorldQuickstart, quickstart


@pytest.mark.sim
def test_a_world_from_nothing_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = WorldQuickstart(
        tasks=("plate-slide",), episodes=4, preset="tiny", clips=6, samples=2, budget_minutes=30 * 3
    )
    page = quickstart(config, tmp_path / "run", workers=1)
    scores = json.loads((tmp_path / "run/scores/scores.json").read_text())
    assert set(scores["moving_psnr"]) == {
        "world",
        "without actions",
        "its likeliest tokens alone",
        "last frame repeated",
    }
    assert scores["sensitivity"] is not None and scores["clips"] == 6 and scores["videos"]
    assert scores["reward_error"]["world"] > 0 and scores["reward_error"]["their mean"] > 0
    text = page.read_text()
    assert text.count("data:video/mp4") == len(scores["videos"]) and "http://" not in text and "$" not in text
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert quickstart(config, tmp_path / "run", workers=1) == page
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing is trained twice"
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1"):
        quickstart(WorldQuickstart(**{**config.__dict__, "seed": 1}), tmp_path / "run", workers=1)


def test_what_is_mistyped_claims_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preset 'cpi'"):
        WorldQuickstart(preset="cpi")
    with pytest.raises(ValueError, match="plate-slid"):
        quickstart(WorldQuickstart(tasks=("plate-slid",), preset="tiny"), tmp_path / "run")
    with pytest.raises(ValueError, match="must be at least 1"):
        WorldQuickstart(episodes=0)
    assert not (tmp_path / "run").exists()


def test_the_page_says_what_the_figures_say() -> None:
    data = WorldPage(
        title="t", subtitle="<b>", created="", command="", moving_psnr={"world": [20.0, 19.0], "still": [19.0, 19.5]},
        gaps={"no action": (1e-3, 5e-4, 2e-3), "another clip's actions": (1e-3, -1e-4, 2e-3), "nothing": (0.0, 0, 0)},
        reward_error={"world": 0.5, "their mean": 1.5}, strict={"psnr (mean)": (20.0, None, None)}, films=(),
        protocol={}, stages=(), environment={},
    )  # fmt: skip
    near, heard, unheard, same, rewarded = verdicts(data)
    assert "off by 0.5" in rewarded and "their mean, 1.5" in rewarded
    assert "1 of 2 steps" in near and "+0.2 dB" in near
    assert heard.endswith("It hears what is done.") and "cannot tell" in unheard and "does not hear" in same
    page = world_page(data)
    assert "&lt;b&gt;" in page and "no interval" in page and "No clip was kept" in page
