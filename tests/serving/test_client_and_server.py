"""Our client on our server: what each promises holds between the two of them, also over a server that is killed."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_backend import Doubling

from ideomotor.serving.client import AsyncClient, Client, ConnectionLost, Extras, Refused, ServingError
from ideomotor.serving.limits import Limits
from ideomotor.serving.server import Server, ServerConfig, running

for module in ("websockets", "msgpack", "prometheus_client"):
    pytest.importorskip(module)

SEEN = {"state": np.array([1.0, -2.0])}


def test_replies_sessions_errors_and_imagined_frames() -> None:
    with (
        running(Server(Doubling(), ServerConfig(port=0, api_key="secret"))) as url,
        Client(url, api_key="secret") as client,
    ):
        reply = client.infer(SEEN)
        assert reply.actions.tolist() == [[2, -4]] * 4 and reply.batch == 1 and reply.session_is_new
        assert reply.queue_ms >= 0 and 0 <= reply.infer_ms < reply.round_trip_ms
        assert client.infer(SEEN).raw["count"] == 2 and client.infer(SEEN, Extras(session="b")).raw["count"] == 1
        client.reset()
        assert client.infer(SEEN).raw["count"] == 1
        with pytest.raises(Refused, match="bad_observation: the state has to be"):
            client.infer({"state": np.array([np.nan])})
        with pytest.raises(Refused, match="internal") as caught:
            client.infer({"state": np.zeros(66)})
        assert "secret" not in str(caught.value)
        imagining = client.infer(SEEN, Extras(imagine=True))
        assert client.infer(SEEN).raw["count"] == 4  # frames come meanwhile, or are still to come
        assert [part["main"].max() for part in client.imagined(imagining)] == [0, 1, 2]
        failing = client.infer({"state": np.zeros(7)}, Extras(imagine=True))
        with pytest.raises(Refused, match="internal"):
            list(client.imagined(failing))
        assert client.infer(SEEN).actions.shape == (4, 2)


def test_a_deadline_that_passes_is_told_and_passes() -> None:
    backend = Doubling()
    with running(Server(backend, ServerConfig(port=0))) as url:

        async def ask() -> list[object]:
            async with AsyncClient(url) as client:
                backend.gate.clear()
                first = asyncio.ensure_future(client.infer(SEEN))
                await asyncio.sleep(0.1)
                second = asyncio.ensure_future(client.infer(SEEN, Extras(deadline_ms=20)))
                await asyncio.sleep(0.2)
                backend.gate.set()
                return await asyncio.gather(first, second, return_exceptions=True)

        reply, error = asyncio.run(ask())
    assert reply.actions.shape == (4, 2)
    assert isinstance(error, Refused) and error.code == "expired" and error.passing


def test_requests_at_once_are_one_batch() -> None:
    backend = Doubling()
    with running(Server(backend, ServerConfig(port=0))) as url:

        async def ask() -> list[int]:
            async with AsyncClient(url) as client:
                backend.gate.clear()
                waiting = [asyncio.ensure_future(client.infer(SEEN, Extras(session=str(k)))) for k in range(6)]
                await asyncio.sleep(0.3)
                backend.gate.set()
                return [reply.batch for reply in await asyncio.gather(*waiting)]

        # What comes while the first batch is computed is the second, however many the first took.
        batches = asyncio.run(ask())
        assert max(batches) >= 3 and len(batches) == 6


def test_a_session_goes_on_over_the_kill_and_restart_of_the_server() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start() -> subprocess.Popen:
        command = [sys.executable, str(Path(__file__).with_name("served.py")), "0", str(port)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    server = start()
    try:
        with Client(f"ws://127.0.0.1:{port}", wait=100) as client:
            assert [client.infer(SEEN).raw["count"] for _ in range(2)] == [1, 2]
            server.kill()
            server.wait()
            server = start()
            try:
                reply = client.infer(SEEN)  # connects anew where the loss was noticed already
            except ConnectionLost:
                reply = client.infer(SEEN)
            assert reply.session_is_new and reply.raw["count"] == 1
            again = client.infer(SEEN)
            assert not again.session_is_new and again.raw["count"] == 2
            server.terminate()  # the graceful way: the connection ends, and there is no server
            server.wait(60)
            client.wait = 0.2
            with pytest.raises(ServingError):
                client.infer(SEEN)
    finally:
        server.kill()
        server.wait()


def test_what_cannot_pass_is_told_at_once_and_the_connection_goes_on() -> None:
    limits = Limits(message_bytes=2000, sessions=2)
    with running(Server(Doubling(), ServerConfig(port=0, limits=limits))) as url, Client(url) as client:
        with pytest.raises(Refused, match="the server takes 2000: send smaller") as caught:
            client.infer({"state": np.zeros(1000)})
        assert caught.value.code == "too_large" and not caught.value.passing
        client.infer(SEEN)
        client.infer(SEEN, Extras(session="b"))
        with pytest.raises(Refused, match="2 sessions already") as caught:
            client.infer(SEEN, Extras(session="c"))
        assert not caught.value.passing and client.infer(SEEN).raw["count"] == 2
