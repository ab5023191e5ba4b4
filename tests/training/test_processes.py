import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toy_stage import clip

from ideomotor.training import OptimConfig, Run
from ideomotor.training.checkpoint import load_state
from ideomotor.training.processes import PeakMemory, Processes, caught_signals
from ideomotor.types import Clip, Losses

STEPS = 3


class Linear(nn.Module):
    def __init__(self, config: None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, batch: Clip) -> Losses:
        wanted = batch.actions[:, 0]
        error = (self.linear(wanted) - wanted.flip(1)).square().mean()
        return Losses(total=error, terms={"mse": error.detach()})


def part(step: int, rank: int, world_size: int) -> Clip:
    """This process's share of the joint batch of a step."""
    whole = clip(step, samples=8)
    share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    return Clip(text=whole.text[share], actions=whole.actions[share])


def train(folder: Path, accumulate: int = 1, **settings) -> None:
    """Trains on shares of the joint batch; rank 0 writes down the gradients of the first step."""
    with Run(folder, log_steps=1, device="cpu", **settings) as run:
        rank, world_size = run.processes.rank, run.processes.world_size
        objective = Linear()
        learner = run.learner(
            objective, OptimConfig(lr=0.1, warmup=0, clip_norm=None, ema=0.9, accumulate=accumulate), STEPS
        )
        first = folder / "gradients.safetensors"

        def note(optimizer, args, kwargs) -> None:
            if rank == 0 and not first.exists():
                save_file({name: weight.grad for name, weight in objective.named_parameters()}, first)

        learner.optimizer.register_step_pre_hook(note)

        def clips(start: int) -> Iterator[Clip]:
            for step in range(start, 1000):
                yield part(step, rank, world_size)

        run.fit(clips, learner, steps=STEPS)


def launch(folder: Path, world_size: int, *arguments: str, script: str = __file__) -> list[subprocess.CompletedProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world_size):
        env = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        command = [sys.executable, script, str(folder), *arguments]
        children.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    done = []
    for child in children:
        try:
            out, errors = child.communicate(timeout=120)
        finally:
            child.kill()
        done.append(subprocess.CompletedProcess(child.args, child.returncode, out, errors))
    return done


@pytest.mark.slow
def test_two_processes_equal_one_on_the_joint_batch(tmp_path: Path) -> None:
    """Gradients, weights, averages and logged losses agree to 1e-6 (sums in another order), also after resume."""
    pytest.importorskip("accelerate")
    train(tmp_path / "one")
    for arguments in (["2"], []):  # paused after 2 steps, then to the end, each with parts of 2 samples
        for done in launch(tmp_path / "two", 2, *arguments):
            assert done.returncode == 0, done.stderr
        if arguments:
            one, two = (load_file(tmp_path / name / "gradients.safetensors") for name in ("one", "two"))
            for name in one:
                torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    one, two = (load_state(tmp_path / name / "state")[1]["Linear"] for name in ("one", "two"))
    assert one.values["step"] == two.values["step"] == STEPS
    for name in one.tensors:
        torch.testing.assert_close(two.tensors[name], one.tensors[name], rtol=0, atol=1e-6)

    losses = [
        [json.loads(line)["Linear/loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(losses[0]) == STEPS
    with pytest.raises(ValueError, match="world_size: 2 -> 1"):
        Run(tmp_path / "two")


def test_one_process_needs_no_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    train(tmp_path)
    assert load_state(tmp_path / "state")[0]["step"] == STEPS


def test_several_processes_without_accelerate_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"ideomotor\[train\]\""):
        Processes()


def test_signals_are_noted_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_nobody_looked_at_is_not_lost() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin deaf to it
    try:
        with pytest.raises(KeyboardInterrupt), caught_signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_peak_memory_is_in_bytes_and_counts_children() -> None:
    peak = PeakMemory()
    filled = "import time; held = bytearray(b'x') * 300_000_000; time.sleep(2.5)"
    subprocess.run([sys.executable, "-c", filled], check=True)
    most = peak.end()
    alone = PeakMemory().end()
    assert 50e6 < alone < 1e12 and most > alone + 250e6


if __name__ == "__main__":
    train(Path(sys.argv[1]), accumulate=2, pause_at=int(sys.argv[2]) if len(sys.argv) > 2 else None)
