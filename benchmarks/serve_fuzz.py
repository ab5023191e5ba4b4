"""What a server of policies does under messages that nobody should send: 100,000 of them, against a real process.

Seeded messages of sixteen kinds go over eight connections at once, each after the answer to the one before. Beside them
clients misbehave below the level of messages (half-open sockets, slow writers, who never reads, floods), each kind
again and again, and one well-behaved client asks twenty times a second (before that "alone", to compare with: both
depend on what else the machine does). A message is "answered" with actions, "refused" with an error, or its connection
is "closed"; "silent" counts those where nothing came within 30 seconds and has to be 0, as have the well-behaved
client's wrong answers. RSS is that of the server's process, sampled ten times a second;
"start" is after the first 500 messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect as connect_calmly

from ideomotor.serving.limits import Limits
from ideomotor.serving.server import ServerConfig, serve
from ideomotor.serving.wire import Codec
from serve_fuzz_messages import KINDS, SIZE, STATE, good
from serve_fuzz_sockets import ATTACKS, cut_off

CODEC = Codec(Limits())
ANSWER_SECONDS = 30.0
WARM_MESSAGES = 500
ALONE_SECONDS = 10.0


class Doubling:
    """A policy of one line, as strict about its observation as a real one; its actions are twice the state."""

    metadata: Mapping[str, Any] = MappingProxyType({})
    max_batch = 16

    def session(self) -> None:
        """Keeps nothing."""

    def prepare(self, session: None, message: dict[str, Any]) -> np.ndarray:
        """Returns the state."""
        images, state = message.get("images"), message.get("state")
        picture = images.get("main") if isinstance(images, dict) else None
        if not isinstance(picture, np.ndarray) or (picture.dtype, picture.shape) != (np.uint8, (SIZE, SIZE, 3)):
            raise ValueError("'images' has to hold a camera 'main' of the right size")
        if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.shape != (STATE,):
            raise ValueError("'state' has to be the right number of floats")
        if not np.isfinite(state).all() or not isinstance(message.get("prompt"), str):
            raise ValueError("the state has to be finite, and the prompt a text")
        return state

    def infer(self, batch: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Returns twice the states."""
        with np.errstate(over="ignore"):
            return [{"actions": np.tile(2 * state, (4, 1)).astype(np.float32)} for state in batch]

    def imagine(self, prepared: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Never asked for: the metadata do not say that it imagines."""
        return iter(())


class Process:
    """The server in a process of its own; its memory is sampled until it has ended."""

    def __init__(self, ping_seconds: float) -> None:
        command = [sys.executable, __file__, "--serve", str(ping_seconds)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.rss: list[float] = []
        self.events: Counter[str] = Counter()
        self.url = self._listening()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._sample)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """Tells it to stop; returns its exit status."""
        self._process.terminate()
        status = self._process.wait(60)
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return status

    def memory(self) -> float:
        """Returns its resident memory in MiB."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ValueError("the server's process has ended")

    def _listening(self) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("{") and json.loads(line)["event"] == "listening":
                return str(json.loads(line)["url"])
            print(line, end="", file=sys.stderr)
        raise RuntimeError("the server did not begin to listen")

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.events[json.loads(line)["event"] if line.startswith("{") else "no JSON"] += 1

    def _sample(self) -> None:
        while not self._ended.wait(0.1):
            try:
                self.rss.append(self.memory())
            except (OSError, ValueError):
                return  # it has ended


class WellBehaved:
    """Asks twenty times a second over one connection, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.url, self.wrong, self.joined = url, 0, 0
        self.seconds: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Notes that from now on it is not alone."""
        self.joined = len(self.seconds)

    def stop(self) -> None:
        """Ends it."""
        self._ended.set()
        self._thread.join(60)

    def row(self, kind: str, first: int, last: int) -> dict[str, Any]:
        """Returns how long these of its requests took, and how many answers were wrong in all."""
        asked = np.array(self.seconds[first:last] or [np.nan]) * 1000
        times = dict(zip(("p50 ms", "p99 ms", "max ms"), np.quantile(asked, (0.5, 0.99, 1.0)), strict=True))
        rounded = {name: round(float(value), 2) for name, value in times.items()}
        return {"what": "well-behaved client", "kind": kind, "sent": last - first, "wrong": self.wrong, **rounded}

    def _ask(self) -> None:
        rng = np.random.default_rng(1)
        try:
            with connect_calmly(self.url, compression=None) as client:
                client.recv(timeout=ANSWER_SECONDS)
                while not self._ended.wait(0.05):
                    request, began = good(rng), time.perf_counter()
                    client.send(request)
                    answer = client.recv(timeout=ANSWER_SECONDS)
                    self.seconds.append(time.perf_counter() - began)
                    self.wrong += not _is_right(request, answer)
        except (ConnectionClosed, OSError, TimeoutError) as error:
            print(f"the well-behaved client was disturbed: {error!r}", file=sys.stderr)
            self.wrong += 1


class Fuzz:
    """The messages of one run, how many there still are, and what became of them."""

    def __init__(self, url: str, messages: int, seed: int) -> None:
        self.url, self.left, self.seed = url, messages, seed
        self.outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.codes: Counter[str] = Counter()
        self.not_opened = 0
        self.sockets: dict[str, Counter[str]] = {attack: Counter() for attack in ATTACKS}

    async def run(self, connections: int, patience: float) -> None:
        """Sends all messages; meanwhile every attack below the level of messages at least once."""
        senders = [asyncio.create_task(self._send(number)) for number in range(connections)]
        attackers = [asyncio.create_task(self._attack(name, patience, senders)) for name in ATTACKS]
        await asyncio.gather(*senders, *attackers)

    async def _send(self, number: int) -> None:
        rng = np.random.default_rng((self.seed, number))
        while self.left > 0:
            try:
                async with connect(self.url, compression=None, max_size=None, ping_interval=None) as client:
                    await client.recv()
                    await self._send_over(client, rng)
            except (OSError, ConnectionClosed, InvalidHandshake):
                self.not_opened += 1  # the machine is too busy to shake hands in time, or a socket too many was open

    async def _send_over(self, client: ClientConnection, rng: np.random.Generator) -> None:
        while self.left > 0:
            self.left -= 1
            kind = list(KINDS)[int(rng.integers(len(KINDS)))]
            outcome = await self._one(client, KINDS[kind](rng))
            self.outcomes[kind][outcome] += 1
            if outcome in ("closed", "silent"):
                return

    async def _one(self, client: ClientConnection, message: bytes | str) -> str:
        try:
            await client.send(message)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await client.recv()
        except ConnectionClosed:
            return "closed"
        except TimeoutError:
            return "silent"
        text = answer if isinstance(answer, str) else None
        if text is None:
            read = CODEC.unpack(answer)
            if "actions" in read:
                return "answered"
            text = f"{read['error']['code']}: {read['error']['message']}"
        if "Traceback" in text or 'File "' in text:
            return "leaked"
        self.codes[text.split(":")[0]] += 1
        return "refused"

    async def _attack(self, name: str, patience: float, senders: Sequence[asyncio.Task[None]]) -> None:
        host, port = self.url.removeprefix("ws://").split(":")
        while True:
            cut = await cut_off(host, int(port), ATTACKS[name], patience)
            self.sockets[name]["closed" if cut else "silent"] += 1
            if all(sender.done() for sender in senders):
                return
            await asyncio.sleep(0.2)


def rows_of(fuzz: Fuzz, client: WellBehaved, server: Process, start: float, seconds: float) -> list[dict[str, Any]]:
    """Returns the table: a row a kind, the attacks below messages, the well-behaved client, the server."""
    columns = ("answered", "refused", "closed", "silent", "leaked")
    rows: list[dict[str, Any]] = []
    for kind, outcomes in (*fuzz.outcomes.items(), *fuzz.sockets.items()):
        what = "message" if kind in KINDS else "socket"
        rows.append(
            {"what": what, "kind": kind, "sent": outcomes.total(), **{name: outcomes[name] for name in columns}}
        )
    rows += [client.row("20 Hz, alone", 0, client.joined), client.row("20 Hz", client.joined, len(client.seconds))]
    totals = {name: sum(counts[name] for counts in fuzz.outcomes.values()) for name in columns}
    rows.append(
        {
            "what": "server",
            "kind": "all messages",
            "sent": sum(totals.values()),
            **totals,
            "not opened": fuzz.not_opened,
            "seconds": round(seconds, 1),
            "RSS start MiB": round(start, 1),
            "RSS peak MiB": round(max(server.rss), 1),
            "RSS end MiB": round(server.rss[-1], 1),
            "codes": dict(sorted(fuzz.codes.items())),
            "journal": dict(sorted(server.events.items())),
        }
    )
    return rows


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of a whole run."""
    server = Process(args.ping_seconds)
    try:
        asyncio.run(Fuzz(server.url, WARM_MESSAGES, args.seed + 1).run(8, 0.0))
        start = server.memory()
        client, fuzz = WellBehaved(server.url), Fuzz(server.url, args.messages, args.seed)
        time.sleep(1.0 if args.tiny else ALONE_SECONDS)
        client.join()
        began = time.monotonic()
        asyncio.run(fuzz.run(8, 10 * args.ping_seconds + 10))
        seconds = time.monotonic() - began
        client.stop()
        end = server.memory()
    finally:
        status = server.stop()
    server.rss.append(end)
    rows = rows_of(fuzz, client, server, start, seconds)
    rows[-1]["exit status"] = status
    return rows


def _is_right(request: bytes, answer: bytes | str) -> bool:
    if isinstance(answer, str):
        return False
    state, actions = CODEC.unpack(request)["state"], CODEC.unpack(answer).get("actions")
    return actions is not None and bool((actions == 2 * state).all())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs it, or the server alone."""
    parser = _table.parser(__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="of the messages")
    parser.add_argument("--ping-seconds", type=float, default=4.0, help="after which the server gives up on a client")
    parser.add_argument("--serve", type=float, metavar="PING_SECONDS", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve is not None:
        times = dict.fromkeys(("open_seconds", "ping_seconds", "send_seconds"), args.serve)
        limits = Limits(message_bytes=2**18, rate=1e6, burst=10**6, waiting_bytes=2**24, connections=64, **times)
        serve(Doubling(), ServerConfig(port=0, limits=limits))
        return
    if args.tiny:
        args.messages = min(args.messages, 2000)
    _table.publish("serve_fuzz", measure(args), args)


if __name__ == "__main__":
    main()
