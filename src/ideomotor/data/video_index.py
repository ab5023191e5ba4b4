"""What a video file holds, frame by frame, found from its packets: the ground that exact random access stands on.

A container knows packets, not frames. The index lists the shown frames of a file in presentation order with their time
stamps, and which of them a decoder can start from. It is built once a file by reading the packets (nothing but the
first frame is decoded), and kept in memory until the file's size or modification time changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ideomotor.extras import require

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp"),
)

# Only these demuxers are let near a file: libav also reads play lists, which would make a file named .mp4 open other
# files and addresses.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,flv,mpeg,mpegts,asf,ogg"
# Containers whose packets carry the true presentation time; in the others libav guesses, and guesses anew after a seek.
_EXACT = ("mov", "matroska", "gif")


class VideoError(ValueError):
    """A file cannot be read as video.

    Attributes:
        path: the file.
        reason: what is wrong with it, without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known of a video file.

    Attributes:
        frames: how many frames are shown (exact, counted).
        fps: frames per second; the mean where the rate varies, 1.0 for a lone frame without a rate.
        width: in pixels as shown, after the file's own rotation. Pixels are taken as square.
        height: like ``width``.
        codec: libav's name of the decoder.
        container: libav's name of the container.
        duration: seconds from the first frame to the end of the last.
        variable_rate: whether some gap between frames differs from the mean gap by more than a tenth.
        seekable: False where time stamps cannot be trusted (MPEG-PS and -TS, FLV, WMV, and AVI with B-frames): any
            frame can still be read exactly, but the decoder starts from the first.
    """

    frames: int
    fps: float
    width: int
    height: int
    codec: str
    container: str
    duration: float
    variable_rate: bool
    seekable: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """The frames of a file in presentation order.

    Attributes:
        pts: time stamp of each frame, in ticks, rising; the ordinals where ``info.seekable`` is False.
        times: seconds of each frame since the first.
        keys: ordinals of the frames a decoder can start from; the first is 0.
        tick: seconds a tick.
        transpose: whether rows and columns are exchanged before showing; after it come the flips.
        flips: dimensions of a ``c h w`` picture to flip.
    """

    path: str
    info: VideoInfo
    pts: Int[np.ndarray, " t"]
    times: Float[np.ndarray, " t"]
    keys: Int[np.ndarray, " keyframes"]
    tick: float
    transpose: bool
    flips: tuple[int, ...]


def probe(path: str | Path) -> VideoInfo:
    """Returns what ``path`` holds, counting every frame and decoding only the first.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is empty, no video, has no frame, is cut short, or its first frame does not decode.
    """
    return index_of(path).info


def index_of(path: str | Path) -> VideoIndex:
    """Returns the index of ``path``, from memory where the file has not changed since. Raises as ``probe`` does."""
    absolute = os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow links, and the user named the link
    stat = Path(absolute).stat()
    return _index(absolute, stat.st_size, stat.st_mtime_ns)


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Yields the open container of a file and its video stream, set to decode on the calling thread."""
    container = _open(str(path))
    try:
        yield container, video_stream(str(path), container)
    finally:
        container.close()


def _open(path: str) -> Any:
    """Opens a container for reading, telling what is wrong with it in plain words."""
    av = require("av", "video")
    if Path(path).is_dir():
        raise VideoError(path, "is a folder; a video file was wanted")
    if not Path(path).stat().st_size:
        raise VideoError(path, "is empty (0 bytes)")
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        try:
            return av.open(path, options=options)
        except UnicodeDecodeError:  # a title in another encoding; PyAV 19 takes any, and no longer has the argument
            return av.open(path, options=options, metadata_errors="replace")
    except EOFError as error:
        raise VideoError(path, "ends before its first frame") from error
    except (av.FFmpegError, ValueError) as error:
        with Path(path).open("rb") as file:
            head = file.read(512)
        reason = "holds text, not video" if _is_text(head) else f"is cut short, damaged or no video ({_said(error)})"
        raise VideoError(path, reason) from error


def video_stream(path: str, container: Any) -> Any:
    """Returns the first real video stream (a cover picture of a song is none), set to decode on the calling thread."""
    found = [s for s in container.streams.video if not s.disposition & type(s.disposition).attached_pic]
    if not found:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(path, f"holds no video, only {', '.join(kinds)}" if kinds else "holds no stream at all")
    if found[0].codec_context is None:
        raise VideoError(path, f"has video of a codec that is unknown here ({container.format.name})")
    # One thread: loader workers bring the parallelism, and a decoder without threads survives a fork.
    found[0].codec_context.thread_count = 1
    return found[0]


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)


def _said(error: BaseException) -> str:
    """The cause in libav's words, without the numbers and names PyAV wraps around it."""
    return str(getattr(error, "strerror", None) or error)


class _Packet(NamedTuple):
    """What the index needs of a packet, without its data."""

    pts: int | None
    key: bool
    shown: bool
    whole: bool

    @classmethod
    def of(cls, packet: Any, codec: str) -> _Packet:
        # VP8's alternate references are packets that are decoded and never shown: bit 4 of the first byte is unset.
        hidden = codec == "vp8" and not memoryview(packet)[0] & 0x10
        return cls(packet.pts, packet.is_keyframe, not packet.is_discard and not hidden, not packet.is_corrupt)


@lru_cache(maxsize=1024)
def _index(path: str, size: int, mtime_ns: int) -> VideoIndex:
    av = require("av", "video")
    with open_video(path) as (container, stream):
        kind, codec = container.format.name.split(",")[0], stream.codec_context.name
        tick, rate = _seconds(stream.time_base), _seconds(stream.average_rate)
        try:
            packets = [_Packet.of(p, codec) for p in container.demux(stream) if p.size]
        except av.FFmpegError as error:
            raise VideoError(path, f"is damaged ({_said(error)})") from error
        _refuse_cut(path, kind, size, stream, packets)
        reorders = stream.codec_context.has_b_frames
    shown = [p for p in packets if p.shown]
    if not shown:
        raise VideoError(path, "holds no frame")
    stamps = [p.pts for p in shown]
    exact = None not in stamps and len(set(stamps)) == len(stamps) and tick > 0
    exact = exact and (kind in _EXACT or (kind == "avi" and not reorders))
    if exact:
        order = np.argsort(np.array(stamps, dtype=np.int64))
        pts = np.array(stamps, dtype=np.int64)[order]
        times = (pts - pts[0]) * tick
        keys = np.union1d(np.flatnonzero(np.array([p.key for p in shown])[order]), [0])
        first = next(_decoded(path), None)
        if first is None:
            raise VideoError(path, f"has {len(shown)} packets and no frame that decodes")
    else:
        first, times = _decode_times(path, rate)
        pts, keys = np.arange(len(times)), np.zeros(1, dtype=np.int64)
    transpose, flips = _orientation(first)
    height, width = (first.width, first.height) if transpose else (first.height, first.width)
    fps, varies = _rate(times, rate, tick)
    info = VideoInfo(
        frames=len(pts),
        fps=fps,
        width=width,
        height=height,
        codec=codec,
        container=kind,
        duration=float(times[-1]) + 1 / fps,
        variable_rate=varies,
        seekable=exact,
    )
    return VideoIndex(
        path=path, info=info, pts=pts, times=times, keys=keys, tick=tick, transpose=transpose, flips=flips
    )


def _refuse_cut(path: str, kind: str, size: int, stream: Any, packets: list[_Packet]) -> None:
    """Refuses a file that ends before what its own header promises."""
    there = sum(p.whole for p in packets)
    if kind == "mov":
        entries = getattr(stream, "index_entries", ())  # absent before PyAV 17, where a torn last packet still tells
        promised = sum(1 for _ in entries)
        if any(entry.pos + entry.size > size for entry in entries):
            raise VideoError(path, f"is cut short: {there} of {promised} frames are there")
    with Path(path).open("rb") as file:
        head = file.read(64)
        file.seek(max(0, size - 16))
        tail = file.read()
    promise = {"matroska": _matroska_end, "avi": _riff_end}.get(kind, lambda head: 0)(head)
    # A GIF ends with ";"; some writers add a few bytes after it.
    if promise > size or (kind == "gif" and b";" not in tail) or (packets and not packets[-1].whole):
        raise VideoError(path, f"is cut short: the file ends after {there} frames, before the end it announces")


def _riff_end(head: bytes) -> int:
    """The length that the RIFF header announces; files of over a gigabyte have several, and the first is checked."""
    return 8 + int.from_bytes(head[4:8], "little")


def _matroska_end(head: bytes) -> int:
    """The length that a Matroska or WebM file announces: header and segment. 0 where a live writer left it open."""

    def number(at: int) -> tuple[int, int]:
        width = 9 - head[at].bit_length()
        value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
        return (-1 if value == (1 << 7 * width) - 1 else value), at + width

    ebml, after = number(4)
    segment = after + ebml
    if ebml < 0 or segment + 12 > len(head) or head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    length, start = number(segment + 4)
    return 0 if length < 0 else start + length


def _decoded(path: str) -> Iterator[Any]:
    av = require("av", "video")
    with open_video(path) as (container, stream):
        count = 0
        try:
            for frame in container.decode(stream):
                yield frame
                count += 1
        except av.FFmpegError as error:
            raise VideoError(path, f"is damaged: {count} frames decode, then {_said(error)}") from error


def _decode_times(path: str, rate: float) -> tuple[Any, Float[np.ndarray, " t"]]:
    """Decodes a whole file whose time stamps cannot be trusted; returns its first frame and the seconds of each."""
    first, seconds = None, []
    for frame in _decoded(path):
        first = first if first is not None else frame
        seconds.append(float("nan") if frame.time is None else frame.time)
    if first is None:
        raise VideoError(path, "holds no frame that decodes")
    times = np.array(seconds)
    if not (np.diff(times) > 0).all():
        if rate <= 0:
            raise VideoError(path, f"has {len(times)} frames, but neither time stamps nor a frame rate")
        times = np.arange(len(times)) / rate
    return first, times - times[0]


def _orientation(frame: Any) -> tuple[bool, tuple[int, ...]]:
    """Whether to exchange rows and columns, and what to flip then, from the display matrix of the file."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, ()
    # x' = a x + c y, y' = b x + d y, in 16.16 fixed point; the nearest of the eight upright orientations is taken.
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="<i4")[:5].tolist()
    transpose = abs(b) > abs(a)
    down, right = (b, c) if transpose else (d, a)
    return transpose, tuple(dim for dim, value in ((-2, down), (-1, right)) if value < 0)


def _rate(times: Float[np.ndarray, " t"], header: float, tick: float) -> tuple[float, bool]:
    """Frames per second, and whether it varies by more than a tenth (and more than the rounding to ticks explains)."""
    if len(times) < 2:
        return (header if header > 0 else 1.0), False
    gaps = np.diff(times)
    mean = float(gaps.mean())
    varies = bool(np.abs(gaps - mean).max() > max(0.1 * mean, 1.5 * tick))
    # Ticks of a millisecond make 83, 83, 84 ms of 12 frames a second; the header knows the number that was meant.
    meant = not varies and header > 0 and abs(header * mean - 1) < 0.01
    return (header if meant else 1 / mean), varies


def _seconds(value: Fraction | None) -> float:
    """A rational of libav as a number; 0 where unset (PyAV before 19 says None, later 0/1)."""
    return float(Fraction(value.numerator, value.denominator)) if value else 0.0
