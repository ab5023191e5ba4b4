"""The device that a user names, or that is taken where none is named."""

from __future__ import annotations

import os

import torch


def device_named(name: str | torch.device) -> torch.device:
    """Returns the device of that name.

    Raises:
        ValueError: it is none, or not there; those that are there are named.
    """
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {str(name)!r}; this machine has {', '.join(there)}") from error
    if str(device) not in there and (device.index is not None or f"{device}:0" not in there):
        raise ValueError(
            f"device is {str(name)!r}, and this machine has {', '.join(there)}: take one of these (a torch without "
            "CUDA sees no GPU)"
        )
    return device


def chosen_device(named: str | torch.device | None = None) -> torch.device:
    """Returns the device of that name; where none is named, CUDA where there is any, else the CPU.

    Of several processes that were started together each has a GPU of its own, the one that the engine will train on.

    Raises:
        ValueError: as ``device_named``.
    """
    if named is not None:
        return device_named(named)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if rank is None else torch.device("cuda", int(rank) % torch.cuda.device_count())
