"""Futures of any clip or picture and any instruction, as a video: what stage 1 of VPP foretells."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from ideomotor.data.pictures import decode_picture
from ideomotor.data.transforms import resize_and_crop
from ideomotor.data.video_writing import write_video
from ideomotor.data.windows import read_frames
from ideomotor.systems.held_out import whole_clips
from ideomotor.systems.imagination import FPS, check_written, measured, pick_episode
from ideomotor.systems.panels import truth_above
from ideomotor.systems.sources import read_facts
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_gate import refuse_place
from ideomotor.systems.vpp_videos import VideoModel, refuse_sampling

PICTURES = (".png", ".jpg", ".jpeg")
_FEWEST = 4  # times smaller than the model's frames an input may be: enlarged further it shows blocks, not things


class Shown(NamedTuple):
    """An input: the frame the future is asked of, what then happened as far as it is known, and what to call it."""

    seen: UInt8[Tensor, "c h w"]
    truth: UInt8[Tensor, "known c h w"]
    text: str
    name: str


def predict(
    folder: Path,
    source: Path,
    out: Path,
    *,
    text: str | None = None,
    episode: str | None = None,
    camera: str | None = None,
    start: int = 0,
    stride: int | None = None,
    frames: int | None = None,
    steps: int = 10,
    guidance: float = 2.0,
    samples: int = 3,
    seed: int = 0,
    device: str | None = None,
) -> list[str]:
    """Writes futures side by side, the truth above them where it is known; returns lines that say what it shows.

    Args:
        folder: of a finished video (or policy) stage.
        source: a video, a picture (PNG, JPEG), or a data set.
        out: video file to write.
        text: what should happen; by default the clip's own caption. Where there is none the sentence is
            withheld, as in some of the training.
        episode: of a data set; by default the first that the stage held out, else the first.
        camera: of an episode; by default one that the stage looked through, else the first.
        start: frame that is seen.
        stride: frames of the source from one foretold frame to the next; by default as in training, spread evenly to
            the last where that was of whole clips.
        frames: foretold; by default as many as in training.
        steps: of Euler's method.
        guidance: how far the sentence pushes; 1 is as learned.
        samples: futures.
        seed: of their noise; the same seed gives the same futures.
        device: where to compute; CUDA where there is any, else the CPU.

    Raises:
        FileNotFoundError: there is no input.
        ValueError: the input cannot be read, is too small, has no such frame, or a setting makes no sense.
    """
    refuse_sampling(samples, steps, guidance)
    if (frames is not None and frames < 1) or (stride is not None and stride < 1):
        raise ValueError(f"frames is {frames}, stride is {stride}; both start at 1")
    check_written(source, out, None)
    refuse_place(out.resolve().parent, ())
    model = VideoModel.load(folder, device)
    horizon = model.config.window.horizon if frames is None else frames
    if source.suffix.lower() in PICTURES:
        input = picture(source, model.config, start)
    else:
        input = clip(folder, source, model.config, episode, camera, start, stride, horizon)
    said = input.text if text is None else text
    told = said or None
    noise = torch.stack([model.noise(seed, "future", k, frames=1 + horizon) for k in range(samples)])
    seen = input.seen[None].expand(samples, -1, -1, -1)
    futures = model.foretell(seen, [told] * samples, noise, steps, guidance)
    known = len(input.truth)
    truth = None
    if known:
        truth = torch.cat([input.truth, input.truth[-1:].expand(horizon - known, -1, -1, -1)])
    write_video(out, truth_above(input.seen[None], truth, futures), FPS)
    above = "truth (green) above " if known else ""
    lines = [
        f"{out}: the frame seen (blue), then {above}{samples} foretold (orange); {horizon} frames after {input.name}",
        "no sentence was told" if told is None else f'text: "{said}"',
    ]
    if truth is None:
        return lines
    return lines + measured(input.seen[None, None], input.truth[None], futures[:, :known], horizon - known)


def picture(source: Path, config: VPP, start: int) -> Shown:
    """Returns a picture as the frame seen.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or too small, or another frame than its only one was asked for.
    """
    if not source.is_file():
        raise FileNotFoundError(f"there is no picture at {source}")
    if start:
        raise ValueError(f"start is {start}; {source} is a picture, whose only frame is 0")
    pixels = torch.from_numpy(decode_picture(source.read_bytes(), source).copy()).permute(2, 0, 1)
    refuse_small(source, pixels.shape[1], pixels.shape[2], config.size)
    seen = resize_and_crop(pixels[None], (config.size, config.size))
    return Shown(seen[0], seen[:0], "", source.name)


def clip(
    folder: Path,
    source: Path,
    config: VPP,
    episode: str | None,
    camera: str | None,
    start: int,
    stride: int | None,
    horizon: int,
) -> Shown:
    """Returns a frame of a video or an episode, and those after it; see ``predict``.

    Raises:
        ValueError: there is no such episode, camera or frame, or its frames are too small.
    """
    chosen, facts = pick_episode(folder, source, episode)
    whole = whole_clips(read_facts(folder), source) if facts is None else facts.whole
    if stride is None and not whole:
        stride = config.window.stride if facts is None else facts.stride
    if not chosen.frames:
        raise ValueError(f"{chosen.id} in {source} has no video, only latents: give a video, a picture or a data set")
    looked = [name for one in read_facts(folder) for name in one.camera.split(",") if name in chosen.frames]
    camera = camera or [*looked, *chosen.frames][0]
    if camera not in chosen.frames:
        raise ValueError(f"{chosen.id} has no camera {camera!r}; it has {', '.join(chosen.frames)}")
    if not 0 <= start < chosen.length:
        raise ValueError(f"start is {start}; {chosen.id} has frames 0..{chosen.length - 1}: take one of these")
    refuse_small(chosen.id, *chosen.frames[camera].shape[2:], config.size)
    last, pace = chosen.length - 1, f"{stride} apart" if stride is not None else "spread evenly to its last"
    if stride is not None:
        indices = list(range(start, min(start + stride * horizon, last) + 1, stride))
    else:
        steps = range(1 + min(horizon, config.window.horizon) if start < last else 1)
        indices = [start + step * (last - start) // config.window.horizon for step in steps]
    frames = read_frames(chosen, camera, indices, (config.size, config.size))
    name = f"frame {start} of {chosen.id}, {pace}"
    return Shown(frames[0], frames[1:], chosen.text, name)


def refuse_small(name: Path | str, height: int, width: int, size: int) -> None:
    """Refuses frames far smaller than those the model looks at.

    Raises:
        ValueError: naming both sizes.
    """
    if min(height, width) * _FEWEST < size:
        raise ValueError(
            f"{name} shows {width}x{height} pixels; the model looks at {size}x{size}: give a picture of at least "
            f"{-(-size // _FEWEST)} pixels a side"
        )
