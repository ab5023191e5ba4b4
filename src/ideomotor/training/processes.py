"""The processes that train together: which one this is, its device, and the few words they exchange."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from ideomotor.extras import require


class Processes:
    """One process, or several started by ``accelerate launch`` or ``torchrun`` (seen by the variable WORLD_SIZE).

    One process needs nothing but torch; several need accelerate (``pip install "ideomotor[train]"``).

    Attributes:
        rank: 0 is the one that writes files and talks.
        world_size: number of processes.
        device: where this process trains.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self._accelerator: Any = None
        self.rank, self.world_size = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.world_size > 1:
            on_cpu = not torch.cuda.is_available() or (device is not None and torch.device(device).type == "cpu")
            self._accelerator = require("accelerate", "train").Accelerator(cpu=on_cpu, mixed_precision="no")
            self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device
            atexit.register(_leave)
        else:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and talks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns what must be called in place of ``module`` so that gradients are averaged over the processes."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def without_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Inside, backward of ``wrapped`` keeps its gradients to itself (all parts of a batch but the last)."""
        return nullcontext() if self._accelerator is None else self._accelerator.no_sync(wrapped)

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set in any process: all take the same decision at the same step."""
        if self._accelerator is None:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum").item())

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics averaged over the processes; all must call it at the same step with the same names."""
        if self._accelerator is None:
            return dict(metrics)
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.device)
        return dict(zip(metrics, self._accelerator.reduce(values, "mean").tolist(), strict=True))


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # gloo's threads let go of their last tensors: were Python ended by then, they would abort()


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Inside, SIGTERM and SIGINT only fill the list; the second one of a kind ends the process as usual."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # Python hands signals to the main thread alone
        return
    owner = os.getpid()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker of the loader: Ctrl-C is the owner's matter, SIGTERM ends the worker
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:  # it came too late for the caller to see it: the handlers of before shall
        os.kill(owner, caught[0])


class PeakMemory:
    """The largest resident memory of this process together with the processes it started, from here on.

    The children (simulators, the control beside) are looked at once a second, by a thread; where the kernel does not
    tell of them (not Linux), it is this process's own peak.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's own peak starts anew
        self._most, self._ended = 0, threading.Event()
        threading.Thread(target=self._watch, name="peak-memory", daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._most = max(self._most, sum(map(_rss_bytes, _family(os.getpid()))))

    def end(self) -> int:
        """Stops looking and returns the peak, in bytes."""
        self._ended.set()
        unit = 1 if sys.platform == "darwin" else 1024
        return max(self._most, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _family(pid: int) -> Iterator[int]:
    """The process and all that descend from it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _family(int(child))


def _rss_bytes(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0
