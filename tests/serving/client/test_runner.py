"""Chunks asked for in a thread, over a real socket, from a server that goes away and comes back."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from ideomotor.serving.client import Client, Contract, Extras, Refused, run_chunks
from ideomotor.serving.client.runner import BackgroundAsker

Serve = Callable[..., object]
SEEN = {"images": {"main": np.zeros((4, 4, 3), np.uint8)}, "prompt": "abc"}


def until(check: Callable[[], object], seconds: float = 30.0) -> object:
    """Waits until something is so, and returns it."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def test_a_request_is_made_in_the_background(serve: Serve, url: str) -> None:
    serve()
    with Client(url) as client:
        asker = BackgroundAsker(client)
        began = time.monotonic()
        asker.submit({**SEEN, "prompt": "sleep 0.3"}, Extras())
        assert asker.busy and asker.poll() is None and time.monotonic() - began < 0.25
        with pytest.raises(ValueError, match="poll for its answer"):
            asker.submit(SEEN, Extras())
        answer = until(asker.poll)
        assert answer.actions.shape == (4, 2) and answer.error is None and not asker.busy
        assert len(asker.round_trips_ms) == 1 and asker.round_trips_ms[0] >= 300
        asker.submit({**SEEN, "prompt": "wrong"}, Extras())
        assert isinstance(until(asker.poll).error, Refused)
        asker.close()


def test_a_loop_goes_on_over_the_end_of_a_connection(serve: Serve, url: str) -> None:
    serve()
    with Client(url) as client:
        chunks = run_chunks(client)
        assert chunks.contract == Contract(chunk=4, execute=2, prefix=True)

        def act(prompt: str = "abc") -> np.ndarray | None:
            time.sleep(0.01)
            return chunks.act({**SEEN, "prompt": prompt}).action

        assert until(lambda: act() is not None)
        # The server ends the connection at such a prompt: the request fails, the next one connects anew.
        until(lambda: (act("hang up"), chunks.failures)[1])
        assert "went away" in str(chunks.last_error)
        assert until(lambda: (act(), chunks.failures == 0)[1])
        assert until(lambda: act() is not None) is not None
        chunks.reset()
        until(
            lambda: (action := act()) is not None and action[0] == 1
        )  # the first request of a session that begins anew


def test_a_request_that_fails_in_an_unforeseen_way_ends_no_thread(
    serve: Serve, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop would else wait for its answer for ever, and never hear why."""
    serve()

    def broken(*request: object) -> None:
        raise AttributeError("a list has no get")

    with Client(url) as client:
        asker = BackgroundAsker(client)
        with monkeypatch.context() as patched:
            patched.setattr(client, "infer", broken)
            asker.submit(SEEN, Extras())
            assert isinstance(until(asker.poll, 5).error, AttributeError)
        asker.submit(SEEN, Extras())
        assert until(asker.poll).actions is not None
        asker.close()


def test_what_is_wrong_with_an_observation_reaches_the_loop(serve: Serve, url: str) -> None:
    serve()
    with Client(url) as client:
        chunks = run_chunks(client)
        with pytest.raises(Refused, match="camera 'main' is missing"):
            until(lambda: chunks.act({**SEEN, "prompt": "wrong"}).action is not None)


def test_someone_elses_server_wants_a_contract(serve: Serve, url: str) -> None:
    serve("openpi")
    with Client(url) as client:
        with pytest.raises(ValueError, match="write a Contract"):
            run_chunks(client)
        chunks = run_chunks(client, contract=Contract(chunk=4, execute=4, plain=True))
        action = until(lambda: (time.sleep(0.01), chunks.act(SEEN).action)[1] is not None)
        assert action
