"""Video tokenizers, each trained for the same CPU-seconds on Meta-World, compared on held-out episodes and real clips.

A row is a tokenizer on a data set. `tokens` stand for a clip of four frames. `object_psnr` is over the pixels of the
task's movable objects, `moving_psnr` over those that differ from the clip's first frame; `code_share` is of the
vocabulary, `perplexity` in codes; `probe_r2` is how well a linear map reads the clip's mean action from the tokens'
code vectors; frames are a CPU-second's. "first frame repeated" and "no tokenizer" (the probe on 24 x 24 grey pixels)
are yardsticks. The published network sees few steps in a budget of minutes: read `steps` before judging it.

Episodes, and each row as soon as it is there, are kept in --data: a run that was killed goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from ideomotor.evaluation.tokenizer_metrics import code_use, probe_r2
from ideomotor.evaluation.video_metrics import SquaredError, masked_error, moving_error, repeat_last, squared_error
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.training.optim import OptimConfig, build_optimizer, learning_rate
from tokenizer_clips import TASKS, Clips, Recording, clips_of, metaworld, random_clips, real

Network = AxialVQVAE | VQVAE3D
Row = dict[str, Any]
_AT_ONCE = 16  # clips coded in one call
_YARDSTICKS = ("first frame repeated", "no tokenizer")
_COLUMNS = (
    "tokenizer", "data", "tokens", "vocab", "parameters", "steps", "clips", "psnr", "moving_psnr", "object_psnr",
    "code_share", "perplexity", "probe_r2", "encode_fps", "decode_fps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A tokenizer to compare, and how it is trained; rows are kept by its name, so a changed one needs a new name."""

    name: str
    config: AxialVQVAEConfig | VQVAE3DConfig
    batch: int = 32
    lr: float = 1e-3

    def network(self) -> Network:
        """Returns it with random weights."""
        torch.manual_seed(0)
        return AxialVQVAE(self.config) if isinstance(self.config, AxialVQVAEConfig) else VQVAE3D(self.config)


_COMPACT = {"strides": (4, 16, 16), "widths": (128, 192, 256)}
CANDIDATES = (
    Candidate(name="VQVAE3D, FSQ (default)", config=VQVAE3DConfig()),
    # Four clips, because a step of 32 would take 20 s; VideoGPT's learning rate.
    Candidate(name="AxialVQVAE (published)", config=AxialVQVAEConfig(), batch=4, lr=3e-4),
    Candidate(name="VQVAE3D, compact", config=VQVAE3DConfig(**_COMPACT)),
    Candidate(name="VQVAE3D, no motion weight", config=VQVAE3DConfig(motion_weight=0.0)),
    Candidate(name="VQVAE3D, EMA codebook", config=VQVAE3DConfig(codebook="ema")),
    Candidate(name="VQVAE3D, compact, 64,000 codes", config=VQVAE3DConfig(**_COMPACT, levels=(8, 8, 8, 5, 5, 5))),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the rows depend on, beside the candidates.

    Attributes:
        seconds: CPU-seconds of training for each candidate.
        batch: at most so many clips a training step.
        train, held_out: episodes a task.
        steps: of an episode.
        every: distance of the clips' starts that are measured; the probe learns from clips a little farther apart.
    """

    seconds: float
    batch: int
    tasks: tuple[str, ...]
    train: int
    held_out: int
    steps: int
    every: int


def main() -> None:
    """Runs the benchmark."""
    args = _arguments()
    settings = Settings(seconds=args.seconds or 240.0, batch=64, tasks=TASKS, train=8, held_out=3, steps=100, every=6)
    if args.tiny:
        settings = Settings(
            seconds=args.seconds or 0.5, batch=2, tasks=TASKS[:1], train=2, held_out=1, steps=44, every=4
        )
    rows = Rows(args.data / "rows.jsonl", asdict(settings))
    train, held_out = metaworld(args.data, settings.tasks, settings.train, settings.held_out, settings.steps)
    probed, asked = clips_of(train, settings.every + 2), clips_of(held_out, settings.every)
    sets = {"metaworld": asked} | real()
    for name, clips in sets.items():
        still = repeat_last(clips.frames[:, :1], clips.frames.shape[1])
        rows.add({"tokenizer": _YARDSTICKS[0], "data": name} | quality(clips, still))
    grey = _probe(_grey(probed.frames), _grey(asked.frames), probed, asked)
    rows.add({"tokenizer": _YARDSTICKS[1], "data": "metaworld", "probe_r2": grey})
    for candidate in CANDIDATES:
        if any(not rows.has(candidate.name, name) for name in sets):
            for row in compared(candidate, settings, train, probed, sets):
                rows.add(row)
    order = [*_YARDSTICKS, *(candidate.name for candidate in CANDIDATES)]
    chosen = [row for row in rows.all() if row["data"] in sets and row["tokenizer"] in order]
    chosen.sort(key=lambda row: (list(sets).index(row["data"]), order.index(row["tokenizer"])))
    shown = [{name: row.get(name) for name in _COLUMNS} | {"train_cpu_s": settings.seconds} for row in chosen]
    _table.publish("video_tokenizers", shown, args)


class Rows:
    """Rows on disk, one a line with the settings they were made with; a half-written last line is left out."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._settings = path, json.loads(json.dumps(settings))

    def all(self) -> list[Row]:
        """Returns the rows of these settings."""
        found = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry["settings"] == self._settings:
                found.append(entry["row"])
        return found

    def has(self, tokenizer: str, data: str) -> bool:
        """Returns whether that row is there."""
        return any(row["tokenizer"] == tokenizer and row["data"] == data for row in self.all())

    def add(self, row: Row) -> None:
        """Appends a row, unless it is there."""
        if not self.has(row["tokenizer"], row["data"]):
            with self._path.open("a", encoding="utf-8") as file:
                # A newline first, in case a killed run left half a line.
                file.write("\n" + json.dumps({"settings": self._settings, "row": row}) + "\n")
            print(f"{time.strftime('%H:%M:%S')} {row['tokenizer']}, {row['data']}", flush=True)


def compared(
    candidate: Candidate, settings: Settings, train: Sequence[Recording], probed: Clips, sets: Mapping[str, Clips]
) -> Iterator[Row]:
    """Trains a candidate and yields its row on every data set."""
    network = candidate.network()
    steps = fit(network, candidate, settings, train)
    network.eval()
    facts = {"parameters": sum(weight.numel() for weight in network.parameters()), "steps": steps}
    for name, clips in sets.items():
        ids, video, rates = coded(network, clips.frames)
        tokens = {"tokenizer": candidate.name, "data": name, "tokens": ids.shape[1] * ids.shape[2]}
        use = code_use(ids, network.vocab)
        row = tokens | {"vocab": network.vocab} | facts | quality(clips, video)
        row |= {"code_share": round(use.share, 3), "perplexity": round(use.perplexity, 1)}
        if clips.actions is not None:
            learned = coded(network, probed.frames, decode=False)[0]
            row["probe_r2"] = _probe(_vectors(network, learned), _vectors(network, ids), probed, clips)
            row |= rates
        yield row


def fit(network: Network, candidate: Candidate, settings: Settings, train: Sequence[Recording]) -> int:
    """Trains until the CPU-seconds are spent, the learning rate following them; returns the number of steps."""
    optim = OptimConfig(lr=candidate.lr, warmup=5, bf16=True)
    optimizer, whole = build_optimizer(network, optim), 100  # the schedule's steps: hundredths of the budget
    spent, steps, began = 0.0, 0, time.process_time()
    for frames in random_clips(train, min(candidate.batch, settings.batch), seed=0):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, int(whole * spent / settings.seconds), whole)
        with torch.autocast("cpu", torch.bfloat16):
            total = network.loss(frames).total
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        steps, spent = steps + 1, time.process_time() - began
        if spent >= settings.seconds:
            break
    return steps


@torch.no_grad()
def coded(
    network: Network, frames: UInt8[Tensor, "b t c h w"], decode: bool = True
) -> tuple[Int[Tensor, "b latent n"], UInt8[Tensor, "b t c h w"], dict[str, float]]:
    """Returns the tokens, the video they stand for (empty without ``decode``), and frames a CPU-second both ways."""
    ids, videos, spent = [], [frames[:0]], [0.0, 0.0]
    with torch.autocast("cpu", torch.bfloat16):
        network.encode(frames[:1])  # what the first call prepares is not counted
        for part in frames.split(_AT_ONCE):
            began = time.process_time()
            ids.append(network.encode(part))
            encoded = time.process_time()
            spent[0] += encoded - began
            if decode:
                videos.append(network.decode(ids[-1]))
                spent[1] += time.process_time() - encoded
    count = len(frames) * frames.shape[1]
    rates = {name: round(count / max(s, 1e-3), 1) for name, s in zip(("encode_fps", "decode_fps"), spent, strict=True)}
    return torch.cat(ids), torch.cat(videos), rates


def quality(clips: Clips, video: UInt8[Tensor, "b t c h w"]) -> Row:
    """Returns the figures of a reconstruction, each pooled over the set."""
    row = {
        "clips": len(video),
        "psnr": _psnr(squared_error(clips.frames, video)),
        "moving_psnr": _psnr(moving_error(clips.frames, video, clips.frames[:, :1])),
    }
    if clips.masks is not None:
        row["object_psnr"] = _psnr(masked_error(clips.frames, video, clips.masks))
    return row


def _psnr(error: SquaredError) -> float | None:
    """None where nothing was compared, or nothing differs: JSON knows no infinity."""
    return round(error.psnr, 2) if error.count and error.total else None


def _probe(learned: Float[Tensor, "n d"], asked: Float[Tensor, "m d"], train: Clips, test: Clips) -> float:
    assert train.actions is not None and test.actions is not None
    return round(probe_r2(learned, train.actions, asked, test.actions), 3)


def _vectors(network: Network, ids: Int[Tensor, "b latent n"]) -> Float[Tensor, "b d"]:
    return network.codebook.lookup(ids).flatten(1)


def _grey(frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b d"]:
    return F.adaptive_avg_pool2d(frames.float().mean(2), 24).flatten(1)


def _arguments() -> Any:
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks/tokenizers"), help="episodes and rows")
    parser.add_argument("--seconds", type=float, help="CPU-seconds of training for each tokenizer, 240 by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
