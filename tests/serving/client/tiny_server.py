"""A server of a few lines, written from the protocol and with the reference codec, to try the clients on.

    python tiny_server.py PORT ours|openpi|world|other|late|small

Its policy answers ``[requests seen in this session, the request's prompt length]`` four times. A prompt "sleep 0.3" is
answered late, "wrong" with an error, "hang up" with the connection's end, "die" with the server's, "part" with half a
message. A world ends the connection at a negative action. A small one takes messages of 1000 bytes.
"""

import os
import sys
import time

import msgpack
import numpy as np
from websockets.sync.server import serve

CHUNK, WIDTH = 4, 2
OURS = "ideomotor"


def pack(value):
    def default(array):
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}

    return msgpack.packb(value, default=default)


def unpack(data):
    def hook(found):
        if b"__ndarray__" in found:
            return np.ndarray(found[b"shape"], found[b"dtype"], buffer=found[b"data"])
        return found

    return msgpack.unpackb(data, object_hook=hook)


def metadata(kind):
    if kind == "openpi":
        return {"model": "someone else's"}
    contract = {"chunk": CHUNK, "execute": 2, "width": WIDTH + (kind == "other"), "rate_hz": None}
    extensions = ["sessions", "deadlines", "imagine", "prefix"]
    served = "world" if kind == "world" else "policy"
    return {OURS: {"version": 1, "kind": served, "system": "tiny", "actions": contract, "extensions": extensions}}


def answer(message, asked, seen):
    name, op = asked.get("session", ""), asked.get("op", "infer")
    if asked.get("reset") or op == "reset":
        seen[name] = 0
    if op == "reset":
        return {}
    if op == "step":
        if name not in seen:
            return {"error": {"code": "bad_observation", "message": "reset the world first"}}
        return {"frames": {"main": np.full((4, 4, 3), int(message["actions"][0]), np.uint8)}, "reward": 0.5}
    seen[name] = seen.get(name, 0) + 1
    prompt = message.get("prompt", "")
    if prompt.startswith("sleep"):
        time.sleep(float(prompt.split()[1]))
    if prompt == "die":
        os._exit(1)
    if prompt == "wrong":
        return {"error": {"code": "bad_observation", "message": "camera 'main' is missing"}}
    actions = np.tile(np.array([seen[name], len(prompt)], np.float32), (CHUNK, 1))
    if "prefix" in asked:
        actions[: len(asked["prefix"])] = asked["prefix"]
    return {"actions": actions, "server_timing": {"infer_ms": 1.5}}


def handle(connection, kind):
    connection.send(pack(metadata(kind)))
    seen = {}
    for data in connection:
        message = unpack(data)
        if message.get("prompt") == "hang up" or message.get("actions", [0])[0] < 0:
            return
        if message.get("prompt") == "part":
            connection.send(pack({"actions": np.zeros((CHUNK, WIDTH))})[:-3])
            continue
        asked = message.get(OURS)
        reply = answer(message, asked or {}, seen)
        if asked is None:
            connection.send(reply["error"]["message"] if "error" in reply else pack(reply))
            continue
        key = asked["request_id"]
        connection.send(pack({**reply, OURS: {"request_id": key, "session": asked.get("session", ""), "batch": 3}}))
        for part in range(3 if asked.get("imagine") else 0):
            frames = {"main": np.full((2, 4, 4, 3), 10 * key + part, np.uint8)}
            connection.send(pack({"imagined": frames, OURS: {"request_id": key, "part": part, "last": part == 2}}))


def make(port, kind, key=""):
    """Returns a server that listens; ``serve_forever`` runs it."""

    def guard(connection, request):
        if key and request.headers.get("Authorization") != f"Api-Key {key}":
            return connection.respond(401, "no\n")
        return None

    settings = {"max_size": 1000 if kind == "small" else None, "compression": None, "process_request": guard}
    return serve(lambda connection: handle(connection, kind), "127.0.0.1", port, **settings)


if __name__ == "__main__":
    if sys.argv[2] == "late":
        time.sleep(0.7)
    make(int(sys.argv[1]), sys.argv[2]).serve_forever()
