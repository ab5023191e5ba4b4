"""Single pictures as bytes: JPEG or PNG decoded by the codecs that decode video, PNG made without any."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ideomotor.extras import require

_PNG = b"\x89PNG\r\n\x1a\n"
_CODECS = {b"\xff\xd8\xff": "mjpeg", _PNG: "png"}


def decode_picture(data: bytes, name: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture in JPEG or PNG bytes as RGB; ``name`` says in an error whose bytes they are.

    Raises:
        ValueError: they are neither, or damaged.
    """
    codec = next((codec for magic, codec in _CODECS.items() if data.startswith(magic)), None)
    if codec is None:
        raise ValueError(f"{name} holds no JPEG or PNG picture: it begins with {data[:8].hex(' ') or 'nothing'}")
    av = require("av", "video")
    context = av.CodecContext.create(codec, "r")
    context.options = {"err_detect": "explode"}  # else what is cut short comes out grey
    try:
        pictures = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.error.FFmpegError as error:
        raise ValueError(f"{name} holds a damaged picture ({error.strerror})") from error
    if len(pictures) != 1:
        raise ValueError(f"{name} holds a damaged picture (it decodes to {len(pictures)})")
    return pictures[0].to_ndarray(format="rgb24")


def encode_png(picture: UInt8[np.ndarray, "h w 3"], level: int = 1) -> bytes:
    """Returns an RGB picture as PNG; ``level`` 1 is quick, 9 is small."""
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # before each row the number of its filter: 0, none
    rows[:, 1:] = picture.reshape(height, 3 * width)
    header = struct.pack("!2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    content = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), level)), (b"IEND", b""))
    framed = (
        struct.pack("!I", len(data)) + name + data + struct.pack("!I", zlib.crc32(name + data))
        for name, data in content
    )
    return _PNG + b"".join(framed)


def decode_movie(data: bytes, name: str | Path) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns every frame of the bytes of an mp4 file as RGB; ``name`` says in an error whose bytes they are.

    Raises:
        ValueError: they are none, or damaged.
    """
    av = require("av", "video")
    try:
        with av.open(io.BytesIO(data), format="mp4") as movie:
            frames = [frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{name} holds no mp4 movie, or a damaged one ({error})") from error
    if not frames:
        raise ValueError(f"{name} holds a movie without frames")
    return np.stack(frames)
