"""A made-up run, to be shown: every figure and every video in it is invented."""

import dataclasses
import io
import math

import numpy as np

from ideomotor.evaluation.dial import DialPoint, dial_point
from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.evaluation.report import (
    Curve,
    Imagination,
    ImaginedClip,
    ReportData,
    RolloutVideo,
    Stage,
    compare,
    summarize,
)

TASKS = ("button-press-topdown", "drawer-open", "door-open", "window-open", "plate-slide")
NO_VIDEO = b"\x00\x00\x00\x18ftypmp42 begins like an mp4 and ends here"


def made_up_results(arm: str, rates=(0.95, 0.9, 0.85, 0.8, 0.6), episodes: int = 20) -> list[EpisodeResult]:
    rng = np.random.Generator(np.random.Philox(key=len(arm)))
    return [
        EpisodeResult(
            arm=arm,
            task=task,
            seed=0,
            goal=30 + goal,
            success=bool(won),
            steps=int(rng.integers(40, 120)) if won else 200,
            total_reward=1.0,
            seconds=1.0,
            inference_cpu_seconds=0.1,
        )
        for task, rate in zip(TASKS, rates, strict=True)
        for goal, won in enumerate(rng.permutation(episodes) < round(rate * episodes))
    ]


def picture(phase: float, blur: float = 0.0, size: int = 96) -> np.ndarray:
    """One frame: a table, a box, and an arm whose hand is at ``phase`` of its way."""
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.stack([200 - 60 * y, 196 - 66 * y, 188 - 70 * y], axis=-1)

    def paint(distance: np.ndarray, colour: tuple[int, int, int]) -> None:
        cover = 1 / (1 + np.exp(np.clip(distance / (0.008 + blur), -40, 40)))
        image[:] = image * (1 - cover[..., None]) + np.array(colour) * cover[..., None]

    paint(np.maximum(abs(x - 0.72), abs(y - 0.66)) - 0.11, (168, 72, 58))
    hand = np.array([0.18 + 0.42 * phase, 0.34 + 0.22 * math.sin(2.2 * phase)])
    along = np.clip(
        ((x - 0.1) * (hand[0] - 0.1) + (y - 0.02) * (hand[1] - 0.02)) / ((hand - (0.1, 0.02)) ** 2).sum(), 0, 1
    )
    paint(np.hypot(x - 0.1 - along * (hand[0] - 0.1), y - 0.02 - along * (hand[1] - 0.02)) - 0.045, (52, 60, 72))
    paint(np.hypot(x - hand[0], y - hand[1]) - 0.075, (228, 164, 60))
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(frames: list[np.ndarray], fps: int = 10) -> bytes:
    """Returns the frames as h264 in mp4."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def made_up_dial() -> list[DialPoint]:
    tried = {"none": (2.1, 0.7), "features": (4.9, 0.82), "half": (13.0, 0.83), "full": (24.5, 0.86)}
    points = [dial_point(name, made_up_results(name, (share,) * 5)) for name, (_, share) in tried.items()]
    return [dataclasses.replace(point, cpu_ms=tried[point.name][0]) for point in points]


def made_up_report(film=None) -> ReportData:
    """A whole report; ``film(first, last, blur)`` makes its videos, by default bytes that only begin like one."""
    film = film or (lambda first, last, blur=0.0: NO_VIDEO)
    ours, control = made_up_results("pretrained"), made_up_results("control", (0.9, 0.75, 0.7, 0.5, 0.35))
    rng = np.random.Generator(np.random.Philox(key=7))
    steps = np.arange(0, 1500, 3)

    def loss(start: float, end: float, name: str, stage: str) -> Curve:
        values = (
            end
            + (start - end) * np.exp(-steps / 260)
            + 0.03 * start * rng.standard_normal(len(steps)) * np.exp(-steps / 900)
        )
        return Curve(stage=stage, name=name, steps=steps.tolist(), values=np.abs(values).tolist())

    texts = ("press the button from above", "open the drawer", "open the door", "slide the plate into the goal")
    clips = [
        ImaginedClip(
            text=text,
            context=film(0.1 * i, 0.1 * i + 0.3),
            truth=film(0.1 * i + 0.3, 0.1 * i + 0.65),
            imagination=film(0.1 * i + 0.3, 0.1 * i + 0.6, 0.02),
            source=f"held-out episode {30 + i}",
            moving_psnr=22.0 + i,
            repeat_last_moving_psnr=17.5 + i,
        )
        for i, text in enumerate(texts)
    ]
    shown = [arm[20 * task + 19] for task in range(3) for arm in (ours, control)]
    return ReportData(
        title="A policy from video without actions",
        subtitle="VPDD, fast preset, on five Meta-World tasks: 20 demonstrations each, twice as much actionless video.",
        created="21 November 2026, 14:05 · ideomotor 0.1.0",
        command="ideomotor quickstart --out runs/quickstart",
        protocol={
            "simulator": "Meta-World 3.1.1, fast look",
            "tasks": list(TASKS),
            "demonstrations a task": 20,
            "actionless episodes a task": 40,
            "test episodes a task and arm": 20,
            "goals": "randomized; training 0-29, test 30-49",
            "longest episode, steps": 200,
            "success": "at any step; the episode stops there",
            "camera": "corner2, cropped as in VPDD, 96 px, images only",
            "training seeds": 1,
        },
        arms={"pretrained": summarize(ours, TASKS), "control": summarize(control, TASKS)},
        comparison=compare(ours, control),
        imagination=Imagination(moving_psnr=23.4, repeat_last_moving_psnr=18.9, num_clips=64, clips=clips),
        dial=made_up_dial(),
        rollouts=[RolloutVideo(result=result, video=film(0.0, 1.0)) for result in shown],
        curves=[
            loss(3.0, 0.02, "reconstruction", "tokenizer"),
            loss(0.9, 0.2, "codebook", "tokenizer"),
            loss(6.2, 2.1, "masked cross-entropy", "pre-training"),
            loss(3.9, 0.6, "with pre-training", "fine-tuning"),
            loss(3.9, 0.8, "control", "fine-tuning"),
        ],
        stages=[
            Stage(name="collect", seconds=212.4, peak_rss_bytes=1_210_000_000),
            Stage(name="tokenizer", seconds=181.0, peak_rss_bytes=1_905_000_000),
            Stage(name="pretrain", seconds=302.9, peak_rss_bytes=2_310_000_000),
            Stage(name="finetune", seconds=170.2, peak_rss_bytes=1_980_000_000),
            Stage(name="evaluate", seconds=118.7, peak_rss_bytes=1_400_000_000),
            Stage(
                name="control",
                seconds=171.3,
                peak_rss_bytes=1_970_000_000,
                note="the same fine-tuning, not pre-trained",
            ),
        ],
        settings={"seed": 0, "tokenizer": {"codes": 512, "width": 64}, "pretrain": {"steps": 1500, "batch": 32}},
        environment={"python": "3.11.2", "torch": "2.13.0+cpu", "processor": "2 cores, 8 GB", "commit": "0000000"},
    )


def film(first: float, last: float, blur: float = 0.0) -> bytes:
    return encode([picture(first + (last - first) * i / 9, blur) for i in range(10)])
