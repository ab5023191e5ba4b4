"""The server over real sockets: the protocol, its extensions, errors, and who gets in."""

import contextlib
import errno
import json
import logging
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from made_up_backend import Doubling
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ideomotor.serving.limits import Limits
from ideomotor.serving.server import Server, ServerConfig, running
from ideomotor.serving.wire import Codec

CODEC = Codec(Limits())


@contextlib.contextmanager
def serving(backend=None, key=None, debug=False, host="127.0.0.1", **limits):
    """A running server and its URL."""
    config = ServerConfig(host=host, port=0, api_key=key, debug=debug, limits=Limits(**limits))
    server = Server(backend or Doubling(), config)
    with running(server) as url:
        yield url


class Client:
    """A client that has read the metadata."""

    def __init__(self, url, **options):
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(connect(url, compression=None, max_size=None, **options))
        self.metadata = CODEC.unpack(self.socket.recv(timeout=10))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def send(self, message):
        self.socket.send(CODEC.pack(message))

    def receive(self):
        answer = self.socket.recv(timeout=20)
        return answer if isinstance(answer, str) else CODEC.unpack(answer)

    def ask(self, state=(1, 2), **asked):
        message = {} if state is None else {"state": np.array(state, np.float64)}
        self.send(message | ({"ideomotor": asked} if asked else {}))
        return self.receive()


def opened(url, **options):
    """Only tries to connect."""
    with connect(url, **options):
        pass


def get(url, path="/healthz", **headers):
    request = urllib.request.Request(url.replace("ws:", "http:") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode(), response.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


@pytest.fixture(scope="module")
def url():
    with serving() as url:
        yield url


def test_openpis_protocol(url):
    with Client(url) as client:
        assert client.metadata["ideomotor"] == {
            "kind": "policy",
            "actions": {"chunk": 4},
            "version": 1,
            "extensions": ["sessions", "reset", "request_ids", "deadlines", "batching", "imagine"],
            "limits": {"message_bytes": Limits().message_bytes},
        }
        first, second = client.ask(), client.ask()
    assert set(first) == {"actions", "count", "server_timing"}
    assert first["actions"].dtype == np.float32 and first["actions"].tolist() == [[2, 4]] * 4
    assert set(first["server_timing"]) == {"infer_ms"}
    assert second["server_timing"]["prev_total_ms"] > first["server_timing"]["infer_ms"] > 0
    assert second["count"] == 2  # one session


def test_a_client_that_does_not_know_the_extensions_gets_errors_as_text_and_stays(url):
    with Client(url) as client:
        client.send({"image": 1})
        assert client.receive() == "bad_observation: the state has to be a finite array of one axis under 'state'"
        client.socket.send("hello")
        assert client.receive() == "bad_message: a text frame came; binary frames of msgpack are wanted"
        client.socket.send(b"\xc1")
        assert client.receive().startswith("bad_message: ")
        assert client.ask([1] * 13) == "internal: the server failed at this request; its log says why"
        assert client.ask([1] * 66) == "internal: the server failed at this request; its log says why"
        assert client.ask()["count"] == 2  # the one that could not be inferred was prepared, the others were not


def test_its_answers_come_in_the_order_of_its_questions(url):
    with Client(url) as client:
        client.send({"state": np.ones(2)})
        client.send({})
        client.send({"state": np.ones(3)})
        answers = [client.receive() for _ in range(3)]
    assert [type(answer) for answer in answers] == [dict, str, dict] and answers[2]["actions"].shape == (4, 3)


def test_ids_and_sessions_come_back(url):
    with Client(url) as client:
        counts = []
        for session, number in (("a", 1), ("b", "two"), ("a", None), ("c" * 128, 2**64 - 1)):
            answer = client.ask(session=session, **({} if number is None else {"request_id": number}))
            about = answer["ideomotor"]
            assert about.get("request_id") == number and about["session"] == session
            assert about["batch"] == 1 and about["queue_ms"] >= 0
            counts.append(answer["count"])
        assert counts == [1, 1, 2, 1]
        assert client.ask(step=3)["ideomotor"]["session"] == "default"
        assert client.ask(session="a", reset=True)["count"] == 1
        assert client.ask(session="a")["count"] == 2
        failed = client.ask([np.nan], session="a", reset=True, request_id=7)
        assert failed["error"]["code"] == "bad_observation"
        assert failed["ideomotor"] == {"request_id": 7, "session": "a"}
        assert client.ask(session="a")["count"] == 3  # a reset that was refused changed nothing
        reset = client.ask(None, op="reset", session="a", request_id=8)
        assert set(reset) == {"ideomotor", "server_timing"} and reset["ideomotor"]["batch"] == 0
        assert client.ask(session="a")["count"] == 1
    with Client(url) as other:
        assert other.ask(session="a")["count"] == 1  # a session lives in its connection


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"request_id": 1.5}, "'request_id' under 'ideomotor' is 1.5; wanted is a whole number or a text"),
        ({"request_id": "x" * 129}, "'request_id'"),
        ({"session": 3}, "'session' under 'ideomotor' is 3"),
        ({"session": "x" * 129}, "'session'"),
        ({"op": "train"}, "'op' under 'ideomotor' is 'train'; wanted is 'infer' or 'reset' or 'step'"),
        ({"op": ["infer"]}, "'op' under 'ideomotor' is a list"),
        ({"deadline_ms": "soon"}, "'deadline_ms'"),
        ({"deadline_ms": float("nan")}, "'deadline_ms'"),
        ({"deadline_ms": -1}, "'deadline_ms'"),
        ({"deadline_ms": True}, "'deadline_ms'"),
        ({"step": -1}, "'step'"),
        ({"step": 1.0}, "'step'"),
        ({"reset": 1}, "'reset'"),
        ({"imagine": "yes"}, "'imagine'"),
    ],
)
def test_what_is_asked_beside_the_observation_is_checked(url, asked, wanted):
    with Client(url) as client:
        answer = client.ask(**({"request_id": 5} | asked))
        assert answer["error"]["code"] == "bad_message" and wanted in answer["error"]["message"]
        assert answer["ideomotor"].get("request_id") == (None if "request_id" in asked else 5)
        assert client.ask()["count"] == 1


@pytest.mark.parametrize("found", [3, [1], "x", np.ones(2), {b"a": 1}])
def test_the_reserved_key_holds_a_map(url, found):
    with Client(url) as client:
        client.send({"state": np.ones(2), "ideomotor": found})
        assert client.receive().startswith("bad_message: 'ideomotor' ")


def test_numbers_of_numpy_are_numbers(url):
    with Client(url) as client:
        answer = client.ask(request_id=np.int32(4), step=np.int64(2), deadline_ms=np.float32(1e6), reset=np.bool_(True))
        assert answer["ideomotor"]["request_id"] == 4


def test_concurrent_requests_are_one_batch_and_deadlines_hold():
    backend = Doubling()
    with serving(backend) as url, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(url)) for _ in range(5)]
        backend.gate.clear()
        clients[0].send({"state": np.ones(2)})
        time.sleep(0.2)  # the worker is at it
        for number, client in enumerate(clients[1:]):
            client.send({"state": np.full(2, number), "ideomotor": {"deadline_ms": 1 if number == 3 else 60_000}})
        time.sleep(0.2)
        backend.gate.set()
        assert clients[0].receive()["actions"].shape == (4, 2)
        answers = [client.receive() for client in clients[1:]]
        assert [answer["actions"][0, 0] for answer in answers[:3]] == [0, 2, 4]
        assert all(
            answer["ideomotor"]["batch"] == 3 and answer["ideomotor"]["queue_ms"] > 100 for answer in answers[:3]
        )
        assert answers[3]["error"]["code"] == "expired"
        assert backend.batches == [1, 3]


def test_imagined_frames_come_after_the_reply(url):
    with Client(url) as client:
        assert client.ask(imagine=True, request_id=9)["actions"].shape == (4, 2)
        parts = [client.receive() for _ in range(3)]
        assert [part["imagined"]["main"][0, 0, 0, 0] for part in parts] == [0, 1, 2]
        assert parts[0]["imagined"]["main"].shape == (2, 4, 4, 3)
        told = [
            (part["ideomotor"]["request_id"], part["ideomotor"]["part"], part["ideomotor"]["last"]) for part in parts
        ]
        assert told == [(9, 0, False), (9, 1, False), (9, 2, True)]
        client.ask([1] * 7, imagine=True, request_id=10)
        failed = client.receive()
        assert failed["error"]["code"] == "internal" and failed["ideomotor"]["last"] is True
        assert client.ask()["count"] == 3


def test_who_does_not_imagine_says_so():
    backend = Doubling()
    backend.metadata = {}
    with serving(backend) as url, Client(url) as client:
        assert client.metadata["ideomotor"]["extensions"][-1] == "batching"
        answer = client.ask(imagine=True)
        assert answer["error"] == {
            "code": "bad_message",
            "message": "'imagine' was asked for; what is served here imagines no video",
        }


@pytest.mark.parametrize("size", [13, 66])
def test_a_traceback_is_told_only_in_debugging(size, caplog):
    with serving() as url, Client(url) as client, caplog.at_level(logging.ERROR):
        answer = client.ask([1] * size, request_id=1)
        assert "secret" not in str(answer) and "Traceback" not in str(answer)
    assert "secret" in caplog.text  # of whoever runs the server
    with serving(debug=True) as url, Client(url) as client:
        assert "RuntimeError: secret" in client.ask([1] * size, request_id=1)["error"]["message"]


def test_a_reply_that_cannot_be_packed_is_the_servers_fault(monkeypatch):
    backend = Doubling()
    monkeypatch.setattr(backend, "infer", lambda batch: [{"actions": np.array([None])} for _ in batch])
    with serving(backend) as url, Client(url) as client:
        assert client.ask(request_id=1)["error"]["code"] == "internal"


def test_health_and_metrics(url):
    assert get(url)[:2] == (200, "OK\n")
    assert get(url, "/nothing")[0] == 404
    with Client(url) as client:
        client.ask()
        client.ask(None)
        time.sleep(0.05)
        status, text, kind = get(url, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["ideomotor_requests_total"]) >= 2 and float(values["ideomotor_connections"]) >= 1
    assert float(values['ideomotor_errors_total{code="bad_observation"}']) >= 1
    assert float(values['ideomotor_batch_size_bucket{le="1.0"}']) >= 1
    assert float(values["ideomotor_waiting"]) == 0 == float(values["ideomotor_waiting_bytes"])
    recent = [float(values[f'ideomotor_latency_recent_seconds{{quantile="{q}"}}']) for q in (0.5, 0.95, 0.99)]
    assert 0 < recent[0] <= recent[1] <= recent[2]


def test_the_key():
    with serving(key="s3cret") as url:
        assert get(url)[0] == 200
        assert get(url, "/metrics")[0] == 401 == get(url, "/metrics", Authorization="Api-Key s3cre")[0]
        assert get(url, "/metrics", Authorization="Api-Key s3cret\xff")[0] == 401
        assert get(url, "/metrics", Authorization="Bearer s3cret")[0] == 200
        for wrong in (
            {},
            {"Authorization": "s3cret"},
            {"Authorization": "Api-Key s3cret2"},
            {"Authorization": "Basic s3cret"},
        ):
            with pytest.raises(InvalidStatus, match="401"):
                opened(url, additional_headers=wrong)
        for right in ("Api-Key s3cret", "Bearer s3cret", "api-key s3cret"):
            with Client(url, additional_headers={"Authorization": right}) as client:
                assert client.ask()["count"] == 1
        assert (
            'ideomotor_rejected_total{reason="unauthorized"} 7.0'
            in get(url, "/metrics", Authorization="Bearer s3cret")[1]
        )


@pytest.mark.parametrize("key", ["", " a", "ü"])
def test_a_key_has_to_be_one(key):
    with pytest.raises(ValueError, match="API key"):
        ServerConfig(api_key=key)


def test_pages_of_other_sites_are_kept_out(url):
    host = url.removeprefix("ws://")
    for origin in ("https://example.com", "null", "http://127.0.0.1:1", f"http://{host}.example.com", "http://[::1"):
        with pytest.raises(InvalidStatus, match="403"):
            opened(url, origin=origin)
    twice = [("Origin", f"http://{host}"), ("Origin", "https://example.com")]
    with pytest.raises(InvalidStatus, match=r"40[03]"):
        opened(url, additional_headers=twice)
    port = int(host.split(":")[1])
    name = f"robot.example.com:{port}"  # one that was made to point here: page and address are alike
    with socket.create_connection(("127.0.0.1", port)) as here, pytest.raises(InvalidStatus, match="403"):
        opened(f"ws://{name}", origin=f"http://{name}", sock=here)
    with Client(url, origin=f"http://{host}") as client:
        assert client.ask()["count"] == 1


def test_the_address_has_to_be_free(url):
    with (
        pytest.raises(ValueError, match=r"cannot listen at 127\.0\.0\.1:\d+ \(.*: take another"),
        running(Server(Doubling(), ServerConfig(port=int(url.rsplit(":", 1)[1])))),
    ):
        pass


def test_open_to_everyone_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING), serving(host="0.0.0.0"):
        pass
    assert "open to everyone" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), serving(host="0.0.0.0", key="k"), serving():
        pass
    assert "open to everyone" not in caplog.text


def test_too_many_connections_sessions_and_requests():
    with serving(connections=2, sessions=2, rate=20.0, burst=3) as url:
        with Client(url) as client, Client(url):
            with pytest.raises((InvalidStatus, ConnectionClosed), match=r"503|1013"):
                Client(url)
            client.ask(session="a")
            client.ask(session="b")
            answer = client.ask(session="c", request_id=1)
            assert answer["error"]["code"] == "too_many" and "2 sessions already" in answer["error"]["message"]
            began = time.monotonic()
            for _ in range(30):
                client.send({"state": np.ones(2), "ideomotor": {"session": "a"}})
            answers = [client.receive() for _ in range(30)]
            codes = [answer["error"]["code"] for answer in answers if "error" in answer]
            assert len(codes) > 5 and set(codes) == {"rate_limited"}
            assert time.monotonic() - began > 0.4  # each refusal waits for the next one's turn
        for _ in range(100):
            with contextlib.suppress(InvalidStatus, ConnectionClosed), Client(url) as client:
                assert client.ask()["count"] == 1
                return
            time.sleep(0.05)
        raise AssertionError("places were not given free")


def test_a_message_that_is_too_large_ends_its_connection_alone():
    with serving(message_bytes=10_000) as url, Client(url) as other:
        with Client(url) as client:
            client.send({"state": np.zeros(10_000)})
            with pytest.raises(ConnectionClosed, match="1009"):
                client.receive()
        assert other.ask()["count"] == 1


def test_who_sends_nothing_but_rubbish_is_cut_off():
    with serving(unreadable=5) as url, Client(url) as client:
        for _ in range(4):
            client.socket.send(b"\xc1")
            client.receive()
        assert client.ask()["count"] == 1  # begins to count anew
        answers = []
        with pytest.raises(ConnectionClosed, match="1008"):
            for _ in range(6):
                client.socket.send(b"\xc1")
                answers.append(client.receive())
        assert len(answers) == 5


def test_the_journal_is_json_and_bounded(capsys):
    import io

    from ideomotor.serving.journal import note, writing_journal

    stream = io.StringIO()
    with writing_journal(stream):
        with serving() as url, Client(url) as client:
            client.ask(None)
            client.ask([1] * 13)
        for number in range(200):
            note("flood", number=number, odd=object())
        note("fault", logging.ERROR)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    events = {line["event"]: line for line in lines}
    assert set(events) >= {
        "listening",
        "connected",
        "disconnected",
        "preparing failed",
        "stopping",
        "stopped",
        "flood",
        "fault",
    }
    assert events["disconnected"]["errors"] == {"bad_observation": 1, "internal": 1}
    assert events["disconnected"]["requests"] == 2 and "secret" in events["preparing failed"]["traceback"]
    assert all(line["time"].endswith("+00:00") and line["level"] in ("info", "error") for line in lines)
    assert sum(line["event"] == "flood" for line in lines) <= 101  # at most two seconds' worth


@pytest.mark.parametrize("size", [20_000, 200_000])
def test_who_never_reads_hears_of_the_end_all_the_same(size, monkeypatch):
    """Else the system goes on offering the answers (320 KB, or 3.2 MB) to a client whose window is shut."""
    monkeypatch.setattr("ideomotor.serving.server._CLOSE_SECONDS", 0.3)
    with serving(ping_seconds=0.4, send_seconds=0.4) as url, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("ws://").split(":")
        deaf.connect((host, int(port)))
        lines = ("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        deaf.sendall("\r\n".join((*lines, f"Sec-WebSocket-Key: {'a' * 22}==", "", "")).encode())
        asked = CODEC.pack({"state": np.zeros(size, np.float32)})
        deaf.sendall(b"\x82\xff" + len(asked).to_bytes(8, "big") + bytes(4) + asked)
        until = time.monotonic() + 10
        while time.monotonic() < until and not (error := deaf.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            time.sleep(0.02)
        assert error == errno.ECONNRESET
