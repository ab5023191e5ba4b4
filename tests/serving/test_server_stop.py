"""A real server process is told to stop in the middle of a batch: no reply is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ideomotor.serving.limits import Limits
from ideomotor.serving.wire import Codec

CODEC = Codec(Limits())
HERE = Path(__file__).parent


@contextlib.contextmanager
def process(seconds):
    """A server process, where it listens, and its journal (filled when it has ended)."""
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, str(HERE / "served.py"), str(seconds), "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert server.stderr is not None
    try:
        line = server.stderr.readline()
        assert line.startswith("{"), line + server.stderr.read()
        yield server, json.loads(line)["url"]
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_middle_of_a_batch_loses_no_reply(told):
    with process(seconds=0.6) as (server, url), contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(url, compression=None)) for _ in range(6)]
        for socket in sockets:
            socket.recv(timeout=20)
        for number, socket in enumerate(sockets):
            for which in range(3):
                about = {"request_id": which, "session": str(which)}
                socket.send(CODEC.pack({"state": np.full(2, number), "ideomotor": about}))
        time.sleep(0.3)  # the first batch is being computed, the others wait
        server.send_signal(told)
        time.sleep(0.15)
        for socket in sockets:
            socket.send(CODEC.pack({"state": np.ones(2), "ideomotor": {"request_id": "late"}}))
        answers = [[CODEC.unpack(socket.recv(timeout=30)) for _ in range(4)] for socket in sockets]
        for number, mine in enumerate(answers):
            by_id = {answer["ideomotor"]["request_id"]: answer for answer in mine}
            assert by_id.pop("late")["error"]["code"] == "shutting_down"
            assert sorted(by_id) == [0, 1, 2]
            assert all((answer["actions"] == 2 * number).all() for answer in by_id.values())
        for socket in sockets:
            with pytest.raises(ConnectionClosed, match="1001"):
                socket.recv(timeout=20)
        assert server.wait(timeout=20) == 0
        lines = [json.loads(line) for line in server.stderr]
        stopped = next(line for line in lines if line["event"] == "stopped")
        assert stopped["unanswered"] == 0 and stopped["worker_ended"] is True
        with pytest.raises(OSError), connect(url):
            pass


def test_what_streams_in_while_it_stops_is_answered_or_refused():
    """Clients that go on asking: each question has an answer, a refusal, or was never taken (the last of a client)."""
    with process(seconds=0.05) as (server, url):
        asked, answered, kinds = Counter(), Counter(), Counter()

        def ask(number):
            with connect(url, compression=None) as socket, contextlib.suppress(ConnectionClosed):
                socket.recv(timeout=20)
                while True:
                    socket.send(CODEC.pack({"state": np.ones(2), "ideomotor": {"request_id": asked[number]}}))
                    asked[number] += 1
                    answer = CODEC.unpack(socket.recv(timeout=20))
                    answered[number] += 1
                    kinds["error" if "error" in answer else "actions"] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        server.terminate()
        for thread in threads:
            thread.join(timeout=30)
        assert server.wait(timeout=20) == 0
        assert all(0 <= asked[number] - answered[number] <= 1 for number in range(4))
        assert kinds["actions"] > 4


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(told):
    with process(seconds=20) as (server, url), connect(url, compression=None) as socket:
        socket.recv(timeout=20)
        socket.send(CODEC.pack({"state": np.ones(2)}))
        time.sleep(0.3)
        server.send_signal(told)
        time.sleep(0.5)
        assert server.poll() is None
        server.send_signal(told)
        assert server.wait(timeout=10) == -told
        assert server.stderr is not None and "Traceback" not in server.stderr.read()
