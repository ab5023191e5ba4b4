"""Settings of every test run."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported anywhere
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and real clips."""
    folder = os.environ.get("IDEOMOTOR_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("IDEOMOTOR_SHARED does not point at the folder of golden numbers and real clips")
    return Path(folder)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Commands and benchmarks choose their number of threads; sums in the next test must not depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(0)
