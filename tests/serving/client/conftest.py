"""Servers of the clients' tests."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TINY = Path(__file__).with_name("tiny_server.py")


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(port: int) -> Iterator[Callable[..., object]]:
    """Starts a tiny server of a kind in a thread."""
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    import tiny_server

    started = []

    def begin(kind: str = "ours", key: str = "") -> object:
        started.append(tiny_server.make(port, kind, key))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return started[-1]

    yield begin
    for server in started:
        server.shutdown()


@pytest.fixture
def start(port: int) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a tiny server of a kind as a process, so that it can be killed; what still runs at the end is killed."""
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    started: list[subprocess.Popen] = []

    def begin(kind: str = "ours") -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, str(TINY), str(port), kind]))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def url(port: int) -> str:
    """Where the server listens."""
    return f"ws://127.0.0.1:{port}"
