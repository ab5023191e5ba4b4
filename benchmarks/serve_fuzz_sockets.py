"""Clients that misbehave below the level of messages; each ends when the server has cut it off."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import numpy as np

from serve_fuzz_messages import good

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Attack = Callable[[Reader, Writer], Awaitable[None]]
MASK = b"\0\0\0\0"


async def cut_off(host: str, port: int, attack: Attack, seconds: float) -> bool:
    """Returns whether the server ended the connection on which that was done, within those seconds."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (host, port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
        try:
            async with asyncio.timeout(seconds):
                await attack(reader, writer)
            return True
        except (ConnectionError, BrokenPipeError, asyncio.IncompleteReadError):
            return True
        except TimeoutError:
            return False
        finally:
            writer.transport.abort()


async def silent(reader: Reader, writer: Writer) -> None:
    """Connects and says nothing: half open."""
    await reader.read()


async def half_a_handshake(reader: Reader, writer: Writer) -> None:
    """Begins a request and leaves it at that."""
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nUpgr")
    await reader.read()


async def dripping_handshake(reader: Reader, writer: Writer) -> None:
    """A request without end, a few bytes at a time."""
    await _drip(writer, b"GET / HTTP/1.1\r\n", b"X-A: b\r\n")


async def no_http(reader: Reader, writer: Writer) -> None:
    """Bytes that are no request."""
    writer.write(os.urandom(1000) + b"\r\n\r\n")
    await reader.read()


async def long_headers(reader: Reader, writer: Writer) -> None:
    """A request with more headers than anybody needs."""
    writer.write(b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * 5000)
    await reader.read()


async def posting(reader: Reader, writer: Writer) -> None:
    """A request with a body."""
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
    await reader.read()


async def dripping_message(reader: Reader, writer: Writer) -> None:
    """Declares a message and writes it a byte at a time."""
    await _open(reader, writer)
    await _drip(writer, b"\x82\xff" + struct.pack("!Q", 200_000) + MASK, b"\0")


async def declared_frame(reader: Reader, writer: Writer) -> None:
    """Declares a frame of more bytes than there are."""
    await _open(reader, writer)
    writer.write(b"\x82\xff" + struct.pack("!Q", 2**62) + MASK + bytes(1000))
    await reader.read()


async def unmasked(reader: Reader, writer: Writer) -> None:
    """A frame as only servers send it."""
    await _open(reader, writer)
    writer.write(b"\x82\x04abcd")
    await reader.read()


async def broken_text(reader: Reader, writer: Writer) -> None:
    """A text frame that is not UTF-8."""
    await _open(reader, writer)
    writer.write(_frame(0x81, b"\xff\xfe"))
    await reader.read()


async def broken_close(reader: Reader, writer: Writer) -> None:
    """Half a message, and the end of the connection within it."""
    await _open(reader, writer)
    writer.write(_frame(0x02, b"half") + _frame(0x88, b"\x00"))
    await reader.read()


async def endless_fragments(reader: Reader, writer: Writer) -> None:
    """One message in empty fragments without end."""
    await _open(reader, writer)
    writer.write(_frame(0x02, b""))
    await _flood(writer, _frame(0x00, b"") * 100)


async def pings(reader: Reader, writer: Writer) -> None:
    """Pings without end, whose answers nobody reads."""
    await _open(reader, writer)
    await _flood(writer, _frame(0x89, b"x" * 100) * 20)


async def tiny_messages(reader: Reader, writer: Writer) -> None:
    """Empty messages as fast as they can be written; answers are not read."""
    await _open(reader, writer)
    await _flood(writer, _frame(0x82, b"") * 100)


async def deaf(reader: Reader, writer: Writer) -> None:
    """Good requests as fast as they can be written; answers are not read."""
    await _open(reader, writer)
    await _flood(writer, _frame(0x82, good(np.random.default_rng(0))))


async def gone(reader: Reader, writer: Writer) -> None:
    """Asks and is gone without a word; that it is cut off needs no proof."""
    await _open(reader, writer)
    writer.write(_frame(0x82, good(np.random.default_rng(0))) * 5)
    await writer.drain()


ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        *(silent, half_a_handshake, dripping_handshake, no_http, long_headers, posting, dripping_message),
        *(declared_frame, unmasked, broken_text, broken_close, endless_fragments, pings, tiny_messages, deaf, gone),
    )
}


async def _open(reader: Reader, writer: Writer) -> None:
    """Shakes hands and reads the beginning of the metadata."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = ("GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}")
    writer.write("\r\n".join((*lines, "Sec-WebSocket-Version: 13", "", "")).encode())
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(2)


def _frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    short = bytes((first, 0x80 | length)) if length < 126 else bytes((first, 0xFE)) + struct.pack("!H", length)
    return short + MASK + payload


async def _flood(writer: Writer, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0)


async def _drip(writer: Writer, first: bytes, again: bytes) -> None:
    writer.write(first)
    while True:
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(again)
