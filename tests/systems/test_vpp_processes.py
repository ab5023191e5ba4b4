"""Stage 1 of VPP by several processes, as torchrun starts them, through the command itself."""

import json
import os
import socket
import subprocess
import sys
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
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.systems.vpp_stages import load_models
from ideomotor.tokenizers.svd_vae import SVDVAE
from ideomotor.training.checkpoint import save_model


def together(world_size: int, *words: object) -> None:
    """Runs a command in so many processes at once, on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joint = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    joint |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "ideomotor", *map(str, words)]
    children = [
        subprocess.Popen(
            command, env=os.environ | joint | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(world_size)
    ]
    for child in children:
        try:
            _, errors = child.communicate(timeout=300)
        finally:
            child.kill()
        assert child.returncode == 0, errors.decode()


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name
    }


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    for number in range(2):
        film = synthetic_disc(0, number).render(np.arange(9, dtype=float), (32, 32))
        write_video(tmp_path / f"films/{number}.mp4", film, fps=10)
    config = replace(PRESETS["tiny"]().vae, scale=0.5)
    torch.manual_seed(0)
    save_model(tmp_path / "vae", SVDVAE(config), config)
    words = ("vpp", "video", "--preset", "tiny", "--data", tmp_path / "films", "--vae-from", tmp_path / "vae")
    words += ("--cache", tmp_path / "cache", "--video-stage.steps", 2, "--video-stage.optim.ema", 0.9)
    together(2, *words, "--out", tmp_path / "two")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1, "encoded once"
    assert ideomotor(*words, "--out", tmp_path / "one") == 0
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    assert files(tmp_path / "two") == files(tmp_path / "one")
    done = json.loads((tmp_path / "two/done.json").read_text())
    assert done["world_size"] == 2 and done["steps"] == 2
    two, one = (load_models(tmp_path / name).predictor for name in ("two", "one"))
    assert two is not None and one is not None
    ours, theirs = two.state_dict(), one.state_dict()
    assert ours.keys() == theirs.keys() and not all(value.equal(theirs[name]) for name, value in ours.items())
    assert all(value.allclose(theirs[name], atol=0.02) for name, value in ours.items()), "they began alike"
    (tmp_path / "two/done.json").unlink()
    assert ideomotor(*words, "--out", tmp_path / "two") == 2
    assert "world_size: 2 -> 1" in said(capsys)


@pytest.mark.parametrize("name", ["vae", "video", "policy"])
def test_a_batch_that_cannot_be_shared_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before data and earlier stages are opened, not to speak of the old run that --fresh throws away."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    earlier = {"vae": (), "video": ("--vae-from", tmp_path), "policy": ("--video-from", tmp_path)}[name]
    words = ("--preset", "tiny", "--data", tmp_path / "gone", "--out", tmp_path / "out", "--fresh", *earlier)
    assert ideomotor("vpp", name, *words) == 2
    assert f"3 processes cannot share a batch of 4 evenly: set --{name}-stage.batch" in said(capsys)
