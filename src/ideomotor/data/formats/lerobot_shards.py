"""Episodes on their way into a LeRobotDataset: each a folder, complete or absent, joined without re-encoding."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ideomotor.extras import require
from ideomotor.files import synced


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Settings of H.264; two episodes can share a file because they were encoded with the same.

    Attributes:
        crf: quality, 0 (lossless) to 51; 18 is hard to tell from the source.
        gop: frames from one key frame to the next; 2 makes any frame two decodes away, at about four times the bytes
            of 30.
        preset: x264's trade of time for bytes.
    """

    crf: int = 18
    gop: int = 2
    preset: str = "veryfast"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One recorded episode on disk.

    Attributes:
        columns: by feature, ``t`` or ``t width``.
        counts: by camera, the histogram ``c 256`` of all its frames.
        videos: by camera, an mp4 with this episode alone.
    """

    length: int
    text: str
    outcome: str
    columns: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]
    videos: Mapping[str, Path]


def encode(frames: np.ndarray, fps: int, codec: Codec) -> bytes:
    """Returns an mp4 of uint8 frames ``t c h w``; the same frames give the same bytes.

    No B-frames, so that decoding order is showing order and episodes can be joined; one thread, because x264's output
    depends on how many there are.
    """
    av, reformatter = require("av", "video"), require("av.video.reformatter", "video")
    flag = reformatter.Interpolation
    # Colours as BT.601 in 16..235, said in the file; exact rounding, or the result depends on the processor.
    exact = flag.AREA | flag.FULL_CHR_H_INP | flag.ACCURATE_RND | flag.BITEXACT
    convert, buffer = reformatter.VideoReformatter(), io.BytesIO()
    # Without mbtree: x264's code for it reads memory that nobody set, and one file in fifty comes out in other bytes.
    options = {"crf": str(codec.crf), "g": str(codec.gop), "bf": "0", "mbtree": "0", "preset": codec.preset}
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1
        for number, picture in enumerate(frames.transpose(0, 2, 3, 1)):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = convert.reformat(rgb, format="yuv420p", dst_colorspace=5, interpolation=int(exact), threads=1)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def join(videos: Sequence[Path], lengths: Sequence[int], target: Path, fps: int) -> None:
    """Writes one mp4 of several episodes by moving their packets in time; nothing is decoded.

    Raises:
        ValueError: the encoders' headers differ, or a video has not as many frames as its episode.
    """
    av = require("av", "video")
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    header, shown = None, 0
    with av.open(str(target), "w", format="mp4", options=options) as output:
        for video, length in zip(videos, lengths, strict=True):
            with av.open(str(video)) as source:
                stream = source.streams.video[0]
                if header is None:
                    header = stream.codec_context.extradata
                    written = output.add_stream_from_template(stream)
                if stream.codec_context.extradata != header:
                    raise ValueError(
                        f"{video}: encoded with other settings than the episodes before it (was the video library "
                        "changed half-way?): record into a new folder"
                    )
                packets = [packet for packet in source.demux(stream) if packet.size]
            if len(packets) != length:
                raise ValueError(f"{video}: {len(packets)} frames of video for {length} of the episode")
            for packet in packets:
                packet.time_base = Fraction(1, fps)
                packet.pts = packet.dts = shown
                packet.duration, packet.stream = 1, written
                output.mux(packet)
                shown += 1
    synced(target)


def store(
    folder: Path, facts: Mapping[str, Any], columns: Mapping[str, np.ndarray], videos: Mapping[str, bytes]
) -> None:
    """Writes an episode into ``folder`` so that a kill at any moment leaves the whole of it or nothing."""
    draft = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for camera, video in videos.items():
            (draft / f"{camera}.mp4").write_bytes(video)
        with (draft / "columns.npz").open("wb") as file:
            np.savez(file, *columns.values())
        (draft / "episode.json").write_text(json.dumps({**facts, "columns": list(columns)}))
        for path in draft.iterdir():
            synced(path)
        synced(draft)
        draft.rename(folder)
        synced(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(folder: Path) -> Shard:
    """Returns an episode that ``store`` wrote."""
    facts = json.loads((folder / "episode.json").read_text())
    with np.load(folder / "columns.npz", allow_pickle=False) as stored:
        columns = {name: stored[f"arr_{number}"] for number, name in enumerate(facts["columns"])}
    return Shard(
        length=facts["length"],
        text=facts["text"],
        outcome=facts["outcome"],
        columns=columns,
        counts={camera: np.array(counts) for camera, counts in facts["counts"].items()},
        videos={camera: folder / f"{camera}.mp4" for camera in facts["counts"]},
    )
