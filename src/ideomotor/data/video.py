"""Video files in and out: any frame of any file, exactly, as a tensor; and tensors as files.

Frame ``n`` is the n-th shown frame in presentation order, whatever its time stamp says; where the frame rate varies,
``VideoFrames.at_times`` finds the frame on the screen at a second. Pictures come out as they are shown: turned as the
file asks, RGB, uint8.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.data.video_index import (
    VIDEO_SUFFIXES,
    VideoError,
    VideoIndex,
    VideoInfo,
    index_of,
    open_video,
    probe,
)
from ideomotor.data.video_writing import encode_bytes, write_video
from ideomotor.extras import require

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoError",
    "VideoFrames",
    "VideoInfo",
    "count_decodable",
    "encode_bytes",
    "probe",
    "write_video",
]

# Containers that a thread keeps open between calls. Each holds a decoder: at 640x480 some megabytes.
_OPEN_FILES = 8


class VideoFrames:
    """Frames of a video file, or of a stretch of one (the ``Frames`` protocol).

    It holds a path and numbers only, so it can be pickled and sent to workers; open files live in a small pool of the
    thread that reads, and a forked process starts its own.

    Args:
        path: the file.
        start: first frame of the stretch.
        count: frames in the stretch; to the end of the file by default.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file cannot be read (see ``probe``), or is shorter than the stretch.
    """

    def __init__(self, path: str | Path, *, start: int = 0, count: int | None = None) -> None:
        self.info = probe(path)
        self.path = os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow links
        self.start = start
        self.count = self.info.frames - start if count is None else count
        if start < 0 or self.count < 1 or start + self.count > self.info.frames:
            raise VideoError(
                self.path, f"has {self.info.frames} frames; frames {start}..{start + self.count - 1} were wanted"
            )

    @classmethod
    def between(cls, path: str | Path, start: float, end: float) -> VideoFrames:
        """Returns the frames whose time lies in ``[start, end)`` seconds after the file's first frame.

        Both ends are rounded to the nearest border between frames, so that times computed from a frame rate fall
        where they were meant to.
        """
        index = index_of(path)
        slack = 0.5 / index.info.fps
        first, beyond = np.searchsorted(index.times, (start - slack, end - slack), side="left").tolist()
        if beyond <= first:
            raise VideoError(index.path, f"has no frame from {start} to {end} s; it lasts {index.info.duration:.3f} s")
        return cls(path, start=first, count=beyond - first)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"VideoFrames({self.path!r}, start={self.start}, count={self.count})"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(t, 3, h, w)``."""
        return self.count, 3, self.info.height, self.info.width

    def times(self) -> Float[np.ndarray, " t"]:
        """Returns the seconds of each frame since the first of the stretch."""
        times = self._index().times[self.start : self.start + self.count]
        return times - times[0]

    def at_times(self, seconds: Sequence[float]) -> list[int]:
        """Returns which frame is on the screen at each moment, counted in seconds from the first frame of the stretch.

        Raises:
            ValueError: a moment lies before the first frame or after the end of the last.
        """
        times, wanted = self.times(), np.asarray(seconds, dtype=np.float64)
        end = float(times[-1]) + 1 / self.info.fps
        # Containers round times to ticks (WebM: a millisecond), so a moment may stand half a tick before its frame.
        slack = 0.5 * self._index().tick + 1e-6
        if wanted.size and not (wanted.min() >= -slack and wanted.max() <= end + slack):
            raise ValueError(
                f"moments {wanted.min():.3f} to {wanted.max():.3f} s; {self.path} shows frames from 0 to {end:.3f} s"
            )
        return np.maximum(np.searchsorted(times, wanted + slack, side="right") - 1, 0).tolist()

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Returns those frames in the order asked for, RGB, resized to ``size`` (height, width).

        Shrinking averages over the area of each new pixel; growing interpolates linearly.

        Raises:
            IndexError: an index is outside ``0..t-1``.
            VideoError: the file does not give that frame; says how many it gives.
        """
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if not 0 <= index < self.count:
                raise IndexError(f"frame {index} of {self.path}: it has frames 0..{self.count - 1}")
            places.setdefault(self.start + int(index), []).append(place)
        height, width = size or (self.info.height, self.info.width)
        out = torch.empty(len(indices), 3, height, width, dtype=torch.uint8)
        reader = _POOL.reader(self._index()) if places else None
        for wanted in sorted(places):
            assert reader is not None
            picture = reader.picture(wanted, height, width)
            for place in places[wanted]:
                out[place] = picture
        return out

    def _index(self) -> VideoIndex:
        index = index_of(self.path)
        if index.info != self.info:
            raise VideoError(self.path, "was changed after it was opened: open the dataset again")
        return index


def count_decodable(path: str | Path) -> tuple[int, str]:
    """Decodes a whole file and returns how many frames come out whole before the first damage, and what the damage is.

    The second is "" where every frame decodes. Damage that a decoder does not notice (some bytes of VP9) stays unseen.
    """
    index = index_of(path)
    count = 0
    with closing(_Reader(index)) as reader:
        try:
            for frame in reader.frames():
                if frame.is_corrupt:
                    return count, f"frame {count} is damaged"
                count += 1
        except require("av", "video").FFmpegError as error:
            return count, f"frame {count} does not decode ({error.strerror})"
    missing = index.info.frames - count
    return count, f"{missing} of {index.info.frames} frames do not decode" if missing > 0 else ""


class _Reader:
    """An open file, and where its decoder stands."""

    def __init__(self, index: VideoIndex) -> None:
        self.index = index
        self.reformatter = require("av.video.reformatter", "video").VideoReformatter()
        self._open()

    def _open(self) -> None:
        self._files = ExitStack()
        self.container, self.stream = self._files.enter_context(open_video(self.index.path))
        self.position, self.decoding = -1, False
        self.last: Any = None

    def close(self) -> None:
        self._files.close()

    def frames(self) -> Iterator[Any]:
        """The frames from where the decoder stands to the end."""
        return self.container.decode(self.stream)

    def picture(self, wanted: int, height: int, width: int) -> UInt8[Tensor, "3 h w"]:
        """Returns one frame as it is shown, at that size."""
        frame = self._frame(wanted)
        rows, columns = (width, height) if self.index.transpose else (height, width)
        flag = require("av.video.reformatter", "video").Interpolation
        shrinks = rows <= frame.height and columns <= frame.width
        # Without the last three flags swscale is quicker, a level too dark on average, and differs between processors.
        way = (flag.AREA if shrinks else flag.BILINEAR) | flag.FULL_CHR_H_INT | flag.ACCURATE_RND | flag.BITEXACT
        rgb = self.reformatter.reformat(frame, columns, rows, "rgb24", interpolation=int(way), threads=1)
        order = (2, 1, 0) if self.index.transpose else (2, 0, 1)
        return torch.from_numpy(rgb.to_ndarray()).permute(order).flip(self.index.flips)

    def _frame(self, wanted: int) -> Any:
        """Decodes up to one frame, from where the decoder stands or from the last key frame before it."""
        if wanted == self.position and self.last is not None:
            return self.last
        av = require("av", "video")
        key = int(self.index.keys[np.searchsorted(self.index.keys, wanted, side="right") - 1])
        try:
            if not self.decoding or wanted < self.position or key > self.position:
                self._seek(key)
            while self.position < wanted:
                self._step()
                # Pictures before the key frame may lack what they refer to; nobody asked for them.
                if self.last.is_corrupt and self.position >= key:
                    raise self._damage(wanted, "its data are damaged")
            if self.position > wanted:
                raise self._damage(wanted, "the decoder skips it")
        except StopIteration as end:
            raise self._damage(wanted, "the file ends before it") from end
        except av.FFmpegError as error:
            raise self._damage(wanted, str(error.strerror)) from error
        return self.last

    def _seek(self, key: int) -> None:
        """Puts the decoder so that its next frames are ``key`` or earlier ones."""
        while key > 0:
            self.container.seek(int(self.index.pts[key]), stream=self.stream)
            self._frames, self.decoding = self.frames(), True
            self._step()
            if self.position <= key:
                return
            # The container's own table led past it: try the key frame before.
            key = int(self.index.keys[np.searchsorted(self.index.keys, key) - 1])
        self.close()
        self._open()
        self._frames, self.decoding = self.frames(), True

    def _step(self) -> None:
        frame = next(self._frames)
        if self.index.info.seekable:
            place = int(np.searchsorted(self.index.pts, frame.pts))
            if place == len(self.index.pts) or self.index.pts[place] != frame.pts:
                raise VideoError(self.index.path, f"shows a frame at tick {frame.pts} that its packets do not announce")
            self.position = place
        else:
            self.position += 1
        self.last = frame

    def _damage(self, wanted: int, why: str) -> VideoError:
        self.decoding, self.position, self.last = False, -1, None
        good, _ = count_decodable(self.index.path)
        return VideoError(
            self.index.path,
            f"frame {wanted} does not decode ({why}); the first {good} of {self.index.info.frames} frames do",
        )


class _Pool(threading.local):
    """The files a thread keeps open, the least used closed first."""

    def __init__(self) -> None:
        self.process, self.readers = os.getpid(), OrderedDict[str, _Reader]()

    def reader(self, index: VideoIndex) -> _Reader:
        if self.process != os.getpid():
            # A fork shares the parent's file offsets: reading on would disturb it. The old readers are kept, unused,
            # because closing them would end decoders that the parent owns.
            _FORKED.append(self.readers)
            self.process, self.readers = os.getpid(), OrderedDict()
        reader = self.readers.pop(index.path, None)
        if reader is None or reader.index is not index:
            if reader is not None:
                reader.close()
            reader = _Reader(index)
        self.readers[index.path] = reader
        while len(self.readers) > _OPEN_FILES:
            self.readers.popitem(last=False)[1].close()
        return reader


_POOL = _Pool()
_FORKED: list[OrderedDict[str, _Reader]] = []
