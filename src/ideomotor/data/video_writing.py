"""Tensors to video files: H.264 in mp4, VP9 in WebM, and GIF, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from ideomotor.extras import require
from ideomotor.files import replacing

Codec = Literal["h264", "vp9", "gif"]

# Container by suffix, and the codecs it may hold, the default first.
_CONTAINERS: dict[str, tuple[str, tuple[Codec, ...]]] = {
    ".mp4": ("mp4", ("h264", "vp9")),
    ".mov": ("mov", ("h264",)),
    ".mkv": ("matroska", ("h264", "vp9")),
    ".webm": ("webm", ("vp9",)),
    ".gif": ("gif", ("gif",)),
}
_ENCODERS: dict[Codec, str] = {"h264": "libx264", "vp9": "libvpx-vp9", "gif": "gif"}
_CRF: dict[Codec, int] = {"h264": 20, "vp9": 30, "gif": 0}
_FASTEST_GIF = 50  # frames a second; viewers slow a shorter delay than 2/100 s down to 10/100 s


def write_video(
    path: str | Path,
    frames: Iterable[UInt8[Tensor, "c h w"]] | UInt8[Tensor, "t c h w"],
    fps: float,
    codec: Codec | None = None,
    crf: int | None = None,
    keyframe_every: int = 30,
) -> Path:
    """Writes frames to a file and returns its path. What stood there before is replaced only by a whole new file.

    The same frames and settings give the same bytes, whatever the number of cores. H.264 needs even sizes: an odd
    height or width gets one more row below or column to the right, the last one repeated, and reads back that much
    larger. VP9 and GIF keep odd sizes.

    Args:
        path: ends in .mp4, .mov, .mkv, .webm or .gif; missing folders are made.
        frames: RGB (or one channel: grey), 0..255, all of one size; a generator is read as it is written.
        fps: frames per second; a GIF holds hundredths of a second, and at most 50 frames in one.
        codec: the usual one of the suffix by default (mp4: h264, webm: vp9).
        crf: quality, less is better: h264 0..51 (20 by default), vp9 0..63 (30). A GIF has none.
        keyframe_every: frames between key frames; fewer make random access quicker and files larger.

    Raises:
        TypeError, ValueError: the frames or settings cannot be written.
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    container, codec = container_of(path, codec)
    if fps <= 0 or (codec == "gif" and fps > _FASTEST_GIF):
        raise ValueError(f"{fps} frames per second: wanted more than 0" + (", at most 50" if codec == "gif" else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        settings = {"h264": _h264, "vp9": _vp9, "gif": _gif}[codec](_CRF[codec] if crf is None else crf, keyframe_every)
        with replacing(path) as draft:
            _encode(draft, container, codec, settings, _pictures(frames, even=codec == "h264"), fps)
    except require("av", "video").FFmpegError as error:
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; nothing was written", str(path)) from error
        raise
    return path


def container_of(path: Path, codec: Codec | None = None) -> tuple[str, Codec]:
    """Returns the container and the codec that the path's suffix stands for; asked early, it saves work in vain.

    Raises:
        ValueError: it stands for none that we write, or for one that cannot hold ``codec``.
    """
    container, codecs = _CONTAINERS.get(path.suffix.lower(), ("", ()))
    codec = codec or (codecs[0] if codecs else None)
    if codec is None or codec not in codecs:
        known = ", ".join(f"{suffix} ({' or '.join(names)})" for suffix, (_, names) in _CONTAINERS.items())
        raise ValueError(f"{path}: cannot hold {codec or 'video that we write'}; choose one of {known}")
    return container, codec


def encode_bytes(
    frames: Iterable[UInt8[Tensor, "c h w"]] | UInt8[Tensor, "t c h w"],
    fps: float,
    codec: Literal["h264", "vp9"] = "h264",
    crf: int | None = None,
) -> bytes:
    """Returns a video file in memory, to be embedded in a page: mp4 (h264) or WebM (vp9), playable while it loads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "v.mp4" if codec == "h264" else "v.webm")
        return write_video(path, frames, fps, codec, crf).read_bytes()


def _h264(crf: int, keyframe_every: int) -> dict[str, str]:
    # mbtree: with B-frames, x264's vector code for it reads memory nobody set, and every run makes other bytes.
    return {"crf": str(crf), "preset": "veryfast", "g": str(keyframe_every), "mbtree": "0"}


def _vp9(crf: int, keyframe_every: int) -> dict[str, str]:
    return {"crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "5", "g": str(keyframe_every)}


def _gif(crf: int, keyframe_every: int) -> dict[str, str]:
    return {}


def _pictures(frames: Iterable[Tensor], even: bool) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Checks frames one by one and brings them to the encoder's layout."""
    first: torch.Size | None = None
    for number, frame in enumerate(frames):
        if frame.dtype != torch.uint8:
            raise TypeError(f"frame {number} is {frame.dtype}; wanted uint8, 0..255")
        if frame.ndim != 3 or frame.shape[0] not in (1, 3) or 0 in frame.shape:
            raise ValueError(f"frame {number} has shape {tuple(frame.shape)}; wanted (3, h, w), or (1, h, w) for grey")
        first = first or frame.shape
        if frame.shape != first:
            raise ValueError(f"frame {number} has shape {tuple(frame.shape)}; the first has {tuple(first)}")
        picture = frame.cpu().expand(3, -1, -1).permute(1, 2, 0)
        if even and picture.shape[0] % 2:
            picture = torch.cat([picture, picture[-1:]])
        if even and picture.shape[1] % 2:
            picture = torch.cat([picture, picture[:, -1:]], dim=1)
        yield picture.contiguous()
    if first is None:
        raise ValueError("no frames to write; a video needs at least one")


def _encode(
    draft: Path, container: str, codec: Codec, settings: dict[str, str], pictures: Iterator[Tensor], fps: float
) -> None:
    av = require("av", "video")
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 is 30000/1001
    picture = next(pictures)
    # bitexact: no random segment id in WebM. faststart: the table of an mp4 before its data, so players begin at once.
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if container in ("mp4", "mov") else {})
    with av.open(str(draft), "w", format=container, container_options=options) as output:
        stream = output.add_stream(_ENCODERS[codec], rate=rate, options=settings)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "pal8" if codec == "gif" else "yuv420p"
        stream.codec_context.thread_count = 1  # the number of threads changes the bytes
        if codec != "gif":
            stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1  # BT.601, 16..235
        frames = _video_frames(picture, pictures, rate)
        convert = _indexed_colours(frames, picture.shape, rate) if codec == "gif" else _halved_colours(frames)
        for frame in convert:
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _video_frames(first: Tensor, rest: Iterator[Tensor], rate: Fraction) -> Iterator[Any]:
    av = require("av", "video")
    number, picture = 0, first
    while True:
        frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        yield frame
        following = next(rest, None)
        if following is None:
            return
        number, picture = number + 1, following


def _halved_colours(frames: Iterator[Any]) -> Iterator[Any]:
    """Turns RGB into luma, and colour at half the size: what H.264 and VP9 store."""
    module = require("av.video.reformatter", "video")
    flag, reformatter = module.Interpolation, module.VideoReformatter()
    # As in reading: without these flags the result is a little too dark and differs between processors.
    way = int(flag.AREA | flag.FULL_CHR_H_INP | flag.ACCURATE_RND | flag.BITEXACT)
    for frame in frames:
        turned = reformatter.reformat(frame, format="yuv420p", dst_colorspace=5, interpolation=way, threads=1)
        turned.pts, turned.time_base = frame.pts, frame.time_base
        yield turned


def _indexed_colours(frames: Iterator[Any], shape: torch.Size, rate: Fraction) -> Iterator[Any]:
    """Gives all frames one palette of 256 colours, made from all of them: GIF has no more."""
    av = require("av", "video")
    graph = av.filter.Graph()
    source = graph.add_buffer(width=shape[1], height=shape[0], format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, palette, use = graph.add("split"), graph.add("palettegen", "reserve_transparent=0"), graph.add("paletteuse")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    for frame in frames:
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            yield graph.pull()
        except (EOFError, av.BlockingIOError):
            return
