"""What viewers are shown: the newest, in pictures that decode; the key; and that nobody waits for them."""

import base64
import json
import time

import numpy as np
import pytest
from made_up_backend import Doubling
from test_server import Client, get, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ideomotor.data.pictures import decode_picture, encode_png
from ideomotor.serving.viewer import page


def until(viewer, wanted, seconds=20):
    """The first message that has what is wanted, and all sessions as they were shown until then."""
    shown, began = {}, time.monotonic()
    while time.monotonic() - began < seconds:
        message = json.loads(viewer.recv(timeout=seconds))
        shown.update({session["id"]: session for session in message["sessions"]})
        if wanted(message, shown):
            return message, shown
    raise AssertionError(f"it never came: {list(shown)}")


def picture(text):
    return decode_picture(base64.b64decode(text), "shown")


def ask(client, value, name=None, size=8, **more):
    images = {"main": np.full((size, size, 3), value, np.uint8), "many": np.full((2, 4, 6, 3), value, np.uint8)}
    about = {"ideomotor": {"session": name, **more}} if name else {}
    client.send({"images": images, "state": np.full(3, value, np.float64), **about})
    return client.receive()


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (96, 96)])
def test_pictures_are_png(shape):
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_picture(encode_png(frame), "made"), frame)
    np.testing.assert_array_equal(decode_picture(encode_png(frame[::-1, :, ::-1], 9), "made"), frame[::-1, :, ::-1])


def test_the_newest_of_each_session_is_shown():
    with serving() as url, connect(url + "/viewer") as viewer, Client(url) as client:
        until(viewer, lambda message, shown: True)
        for value in range(5):
            ask(client, value)
        ask(client, 9, "left")
        _, shown = until(
            viewer, lambda message, shown: len(shown) == 2 and any(s["requests"] == 5 for s in shown.values())
        )
        first, left = sorted(shown.values(), key=lambda session: session["name"])
        assert (first["name"], left["name"]) == ("default", "left") and first["client"] == left["client"]
        assert picture(first["live"]["main"]).tolist() == np.full((8, 8, 3), 4).tolist()
        assert picture(first["live"]["many"]).shape == (4, 6, 3)
        assert first["actions"] == [[8, 8, 8]] * 4 and first["imagined"] == {}
        assert first["figures"]["batch"] == 1 and first["figures"]["total_ms"] > first["figures"]["infer_ms"] > 0
        message, _ = until(viewer, lambda message, shown: message["server"]["recent"]["answers"] == 6)
        assert 0 < message["server"]["recent"]["p50"] <= message["server"]["recent"]["p99"]
        client.socket.close()
        message, _ = until(viewer, lambda message, shown: message["server"]["gone"])
        assert sorted(message["server"]["gone"]) == sorted([first["id"], left["id"]])


def test_the_imagined_future_is_shown_and_large_pictures_are_thinned():
    with serving() as url, connect(url + "/viewer") as viewer, Client(url) as client:
        until(viewer, lambda message, shown: True)
        ask(client, 3, "a", size=700, imagine=True)
        for _ in range(3):
            client.receive()
        _, shown = until(
            viewer, lambda m, shown: shown and len(next(iter(shown.values()))["imagined"].get("main", ())) == 6
        )
        (session,) = shown.values()
        assert [int(picture(frame)[0, 0, 0]) for frame in session["imagined"]["main"]] == [0, 0, 1, 1, 2, 2]
        assert picture(session["live"]["main"]).shape == (234, 234, 3)


def test_what_a_world_answers_is_what_it_imagines(monkeypatch):
    backend = Doubling()
    frames = {"main": np.full((4, 4, 3), 77, np.uint8)}
    monkeypatch.setattr(backend, "infer", lambda batch: [{"frames": frames, "reward": 1.0} for _ in batch])
    with serving(backend) as url, connect(url + "/viewer") as viewer, Client(url) as client:
        until(viewer, lambda message, shown: True)
        client.ask(op="step")
        _, shown = until(viewer, lambda message, shown: shown)
        (session,) = shown.values()
        assert int(picture(session["imagined"]["main"][0])[0, 0, 0]) == 77 and session["actions"] == [] == list(
            session["live"]
        )


def test_odd_pictures_are_left_out():
    with serving() as url, connect(url + "/viewer") as viewer, Client(url) as client:
        until(viewer, lambda message, shown: True)
        odd = {"a": np.zeros((4, 4), np.uint8), "b": np.zeros((4, 4, 3)), "c": 3, "d": np.zeros((0, 4, 4, 3), np.uint8)}
        client.send({"images": odd | {"e": np.zeros((4, 4, 3), np.uint8)}, "state": np.ones(2)})
        client.receive()
        client.send({"images": 3, "state": np.array([3e38, 1.0])})
        client.receive()
        _, shown = until(viewer, lambda message, shown: any(s["requests"] == 2 for s in shown.values()))
        (session,) = shown.values()
        assert list(session["live"]) == ["e"]
        assert session["actions"] == [[1e6, 2]] * 4  # twice the state is no number any more; a page can draw this


def test_a_viewer_shows_the_key():
    with serving(key="s3cret") as url:
        assert get(url, "/")[0] == 200  # the page itself holds no secret
        with connect(url + "/viewer", additional_headers={"Authorization": "Bearer s3cret"}) as viewer:
            until(viewer, lambda message, shown: True)
        with connect(url + "/viewer") as viewer:
            viewer.send("s3cret")
            until(viewer, lambda message, shown: True)
        for wrong in ("s3cre", "", b"s3cret"):
            with connect(url + "/viewer") as viewer:
                viewer.send(wrong)
                with pytest.raises(ConnectionClosed, match="4401"):
                    viewer.recv(timeout=20)


def test_other_pages_and_too_many_viewers_are_kept_out():
    with serving(viewers=1) as url, connect(url + "/viewer") as viewer:
        until(viewer, lambda message, shown: True)
        for refused, options in ((503, {}), (403, {"origin": "https://example.com"})):
            with pytest.raises(InvalidStatus, match=str(refused)), connect(url + "/viewer", **options):
                pass
        with Client(url) as client:  # viewers take no client's place
            assert ask(client, 1)["count"] == 1


def test_nobody_waits_for_a_viewer_that_does_not_read():
    with serving(send_seconds=1.0) as url, connect(url + "/viewer", max_queue=1) as viewer, Client(url) as client:
        until(viewer, lambda message, shown: True)
        rng, slowest = np.random.default_rng(0), 0.0
        for _ in range(60):  # pictures that do not shrink: far more than a socket's buffers hold, were all of them sent
            client.send(
                {
                    "images": {str(i): rng.integers(0, 256, (320, 320, 3), np.uint8) for i in range(4)},
                    "state": np.ones(2),
                }
            )
            began = time.monotonic()
            client.receive()
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        assert slowest < 2


def test_the_page_is_whole_and_allows_only_this_server():
    text = page().decode()
    assert "connect-src 'self'" in text and "default-src 'none'" in text and "<!--" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
