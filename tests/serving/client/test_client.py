"""Both clients against a server of another hand: requests, sessions, errors, waiting, and a server that is killed."""

import asyncio
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from subprocess import Popen

import numpy as np
import pytest

from ideomotor.serving.client import (
    AsyncClient,
    Client,
    ConnectionLost,
    Extras,
    NoServer,
    NotLetIn,
    Refused,
    ReplyTimeout,
    ServerChanged,
    ServingError,
)
from ideomotor.serving.client.messages import OURS, Desk

Start = Callable[..., Popen]
Serve = Callable[..., object]
SEEN = {"images": {"main": np.zeros((4, 4, 3), np.uint8)}, "state": np.zeros(3), "prompt": "abc"}


class Plain:
    """The asynchronous client, used one request at a time: so both are held to the same tests."""

    def __init__(self, url: str, **settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = AsyncClient(url, **settings)
        self.loop.run_until_complete(self.client.__aenter__())

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()

    def __getattr__(self, name: str):
        if name == "metadata":
            return self.client.metadata
        return lambda *args: self.loop.run_until_complete(getattr(self.client, name)(*args))

    def imagined(self, reply):
        async def gather():
            return [part async for part in self.client.imagined(reply)]

        return self.loop.run_until_complete(gather())


BOTH = pytest.mark.parametrize("make", [Client, Plain], ids=["blocking", "asyncio"])


def prompt(text: str) -> dict:
    return {**SEEN, "prompt": text}


@BOTH
def test_requests_sessions_and_resets(make, start: Start, url: str) -> None:
    start("late")  # comes up after the client has begun to wait
    with make(url) as client:
        assert client.metadata["ideomotor"]["actions"]["chunk"] == 4
        first = client.infer(SEEN)
        assert first.actions.tolist() == [[1, 3]] * 4 and first.actions.dtype == np.float32
        assert first.session_is_new and (first.batch, first.infer_ms) == (3, 1.5) and first.round_trip_ms > 0
        second = client.infer(SEEN)
        assert second.actions[0, 0] == 2 and not second.session_is_new
        other = client.infer(SEEN, Extras(session="b"))
        assert other.actions[0, 0] == 1 and other.session_is_new
        client.reset("b")
        assert client.infer(SEEN, Extras(session="b")).actions[0, 0] == 1
        assert client.infer(SEEN).actions[0, 0] == 3
        anew = client.infer(SEEN, Extras(reset=True))
        assert anew.actions[0, 0] == 1 and anew.session_is_new
        prefix = np.array([[7.0, 8.0]])
        assert client.infer(SEEN, Extras(prefix=prefix)).actions[:2].tolist() == [[7, 8], [2, 3]]


@BOTH
def test_errors_name_what_was_wrong_and_the_connection_goes_on(make, serve: Serve, url: str) -> None:
    serve()
    with make(url, timeout=0.5) as client:
        with pytest.raises(Refused, match="bad_observation: camera 'main' is missing") as caught:
            client.infer(prompt("wrong"))
        assert caught.value.code == "bad_observation" and not caught.value.passing
        with pytest.raises(ReplyTimeout, match=r"within 0\.5 s"):
            client.infer(prompt("sleep 0.8"))
        time.sleep(0.4)
        # The late reply (of 9 letters) is not taken for this one.
        assert client.infer(SEEN).actions[0].tolist() == [3, 3]
        with pytest.raises(TypeError, match="cannot be sent"):
            client.infer({"images": {1, 2}})
        assert client.infer(SEEN).actions[0, 0] == 4


@BOTH
def test_a_server_killed_in_a_request_comes_back_and_the_session_is_new(make, start: Start, url: str) -> None:
    process = start()
    with make(url) as client:
        client.infer(SEEN)
        assert client.infer(SEEN).actions[0, 0] == 2
        with pytest.raises(ConnectionLost, match="ask again"):
            client.infer(prompt("die"))
        process.wait()
        start("late")
        reply = client.infer(SEEN)  # waits for it
        assert reply.session_is_new and reply.actions[0, 0] == 1
        assert not client.infer(SEEN).session_is_new


@BOTH
def test_a_server_killed_between_requests(make, start: Start, url: str) -> None:
    process = start()
    with make(url) as client:
        client.infer(SEEN)
        process.kill()
        process.wait()
        start()
        client.reset()  # whether or not the loss was noticed by now
        assert client.infer(SEEN).actions[0, 0] == 1
        assert client.infer(SEEN).actions[0, 0] == 2


@BOTH
def test_another_policy_at_the_same_address_is_refused(make, serve: Serve, url: str) -> None:
    server = serve()
    with make(url) as client:
        server.shutdown()
        serve("other")
        with pytest.raises((ConnectionLost, ServerChanged)):
            client.infer(prompt("hang up"))
        for _ in range(2):
            with pytest.raises(ServerChanged, match="'width': 3"):
                client.infer(SEEN)


@BOTH
def test_half_a_message_is_no_reply(make, serve: Serve, url: str) -> None:
    serve()
    with make(url) as client, pytest.raises(ServingError, match="cut short"):
        client.infer(prompt("part"))


@BOTH
def test_imagined_frames_follow_the_reply(make, serve: Serve, url: str) -> None:
    serve()
    with make(url) as client:
        reply = client.infer(SEEN, Extras(imagine=True))
        client.infer(SEEN)  # is not confused by the frames in between
        parts = [part["main"] for part in client.imagined(reply)]
        assert [part.shape for part in parts] == [(2, 4, 4, 3)] * 3
        assert [int(part[0, 0, 0, 0]) for part in parts] == [10, 11, 12]
        assert list(client.imagined(reply)) == []
        assert list(client.imagined(client.infer(SEEN))) == []


@BOTH
def test_a_world_is_reset_and_stepped(make, serve: Serve, url: str) -> None:
    serve("world")
    with make(url) as client:
        with pytest.raises(Refused, match="reset the world first"):
            client.step_world(np.array([5.0]))
        client.reset_world({"main": np.zeros((2, 4, 4, 3), np.uint8)})
        reply = client.step_world(np.array([5.0]))
        assert int(reply.frames["main"][0, 0, 0]) == 5 and reply.reward == 0.5
        with pytest.raises(ConnectionLost):
            client.step_world(np.array([-1.0]))
        with pytest.raises(Refused, match="reset the world first"):
            client.step_world(np.array([5.0]))
        client.reset_world({"main": np.zeros((2, 4, 4, 3), np.uint8)})
        assert client.step_world(np.array([6.0])).reward == 0.5


@BOTH
def test_other_peoples_servers(make, serve: Serve, url: str) -> None:
    serve("openpi")
    with make(url, timeout=0.4) as client:
        assert client.metadata == {"model": "someone else's"}
        assert [client.infer(SEEN).session_is_new, client.infer(SEEN).session_is_new] == [True, False]
        client.reset()
        with pytest.raises(Refused, match=r"^camera 'main' is missing$"):
            client.infer(prompt("wrong"))
        with pytest.raises(ValueError, match="plain openpi and knows no prefix, step"):
            client.infer(SEEN, Extras(step=3, prefix=np.zeros((1, 2))))
        with pytest.raises(ReplyTimeout):
            client.infer(prompt("sleep 0.6"))
        time.sleep(0.3)
        reply = client.infer(SEEN)  # on a new connection: here replies are known by their order only
        assert reply.actions[0].tolist() == [1, 3] and reply.session_is_new


@BOTH
def test_a_key_is_told_and_a_wrong_one_is_not_tried_twice(make, serve: Serve, url: str) -> None:
    serve(key="secret")
    with make(url, api_key="secret") as client:
        assert client.infer(SEEN).actions[0, 0] == 1
    for key in (None, "wrong"):
        with pytest.raises(NotLetIn, match="without the right API key"):
            make(url, api_key=key, wait=60)


@BOTH
@pytest.mark.parametrize("key", ["secret\n", "se\r\nX-Other: cret", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused(make, url: str, key: str) -> None:
    """A key read from a file ends with a line break; sent as it is, it would break the request."""
    with pytest.raises(ValueError, match="API key") as told:
        make(url, api_key=key, wait=0.1)
    assert key not in str(told.value)


def test_who_is_closed_while_it_waits_does_not_connect_after_all(serve: Serve, url: str) -> None:
    async def run() -> None:
        client = AsyncClient(url, wait=20)
        asking = asyncio.ensure_future(client.infer(SEEN))
        await asyncio.sleep(0.2)
        await client.close()
        await asyncio.to_thread(serve)
        with pytest.raises(ConnectionLost, match="was closed"):
            await asking
        with pytest.raises(ValueError, match="not connected"):
            _ = client.metadata

    asyncio.run(run())


@BOTH
def test_waiting_ends(make, url: str) -> None:
    pytest.importorskip("websockets")
    began = time.monotonic()
    with pytest.raises(
        NoServer, match=r"no server answered at .* within 0.3 s .*(refused|Connect call failed).*ideomotor serve"
    ):
        make(url, wait=0.3)
    assert 0.1 < time.monotonic() - began < 3
    with pytest.raises(ValueError, match="wanted ws://HOST:PORT"):
        make("http://127.0.0.1:80")


def test_many_requests_at_once_on_one_connection(serve: Serve, url: str) -> None:
    serve()

    async def run() -> list[tuple[float, float]]:
        async with AsyncClient(url) as client:
            words = [client.infer(prompt("x" * k), Extras(session=str(k))) for k in range(20)]
            return [tuple(reply.actions[0].tolist()) for reply in await asyncio.gather(*words)]

    assert asyncio.run(run()) == [(1, k) for k in range(20)]


def test_one_client_in_many_threads(serve: Serve, url: str) -> None:
    serve()
    found: dict[int, tuple[float, float]] = {}
    with Client(url) as client:

        def ask(k: int) -> None:
            found[k] = tuple(client.infer(prompt("x" * k), Extras(session=str(k))).actions[0].tolist())

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {k: (1, k) for k in range(20)}
    with pytest.raises(ValueError, match="was closed"):
        client.infer(SEEN)


@BOTH
def test_a_message_that_the_server_does_not_read_is_refused_for_good(make, serve: Serve, url: str) -> None:
    """Another server than ours closes the connection without a word before; to ask again would be closed again."""
    serve("small")
    with make(url) as client:
        for _ in range(2):
            with pytest.raises(Refused, match=r"1009.*smaller or fewer pictures") as caught:
                client.infer(prompt("x" * 1500))
            assert caught.value.code == "too_large" and not caught.value.passing
        assert client.infer(SEEN).session_is_new


@BOTH
def test_a_server_that_reads_nothing_is_given_up(make, url: str, port: int) -> None:
    """Pictures of 32 MB are more than the system keeps for it."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        threading.Thread(target=shake_hands_and_sleep, args=(listening,), daemon=True).start()
        with make(url, timeout=0.4) as client:
            told: list[BaseException] = []

            def ask() -> None:
                try:
                    client.infer({"images": {"main": np.zeros((3000, 3600, 3), np.uint8)}})
                except (ServingError, OSError) as error:
                    told.append(error)

            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(5)
            assert not thread.is_alive() and isinstance(told[0], ConnectionLost)


def shake_hands_and_sleep(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        asked = connection.recv(10_000).decode()
        key = next(line.split()[1] for line in asked.splitlines() if line.startswith("Sec-WebSocket-Key"))
        accept = b64encode(sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        connection.sendall("\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept}", "", "")).encode())
        connection.sendall(b"\x82\x01\x80")  # a message: an empty map
        time.sleep(30)


def test_frames_that_nobody_reads_are_dropped(serve: Serve, url: str) -> None:
    serve()

    async def run() -> None:
        async with AsyncClient(url) as client:
            replies = [await client.infer(SEEN, Extras(imagine=True)) for _ in range(20)]
            assert client._link is not None and len(client._link.parts) == 8
            assert [part async for part in client.imagined(replies[0])] == []
            assert len([part async for part in client.imagined(replies[-1])]) == 3

    asyncio.run(run())


@pytest.mark.parametrize("limits", [7, {"message_bytes": "many"}, None])
def test_limits_that_a_foreign_server_says_otherwise_are_passed_over(limits) -> None:
    desk = Desk({OURS: {"limits": limits}})
    assert desk.write({"prompt": "go"}, Extras())[0].key == 1
