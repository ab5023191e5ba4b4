"""What a step inside the learned world costs: iVideoGPT's transformer at full size, action-conditioned, greedy.

CPU-seconds of one process, random weights (the cost depends on sizes alone). The baseline does as the published code:
for every frame it computes the whole prefix again. It is measured at the first, the middle and the last frame of the
rollout (the middle alone for many rollouts), on the prefix that stepping produced, and has to give the same ids in
float32. "as published" maps by torch's default kernels; "quick kernels" is the same loop with this library's own, so
that what the cache brings can be told from what the kernels bring. "stepped" leaves the first look at the context out
of the comparison, "rollout" spreads it over the frames. The floor of a frame is what it must at least take: for every
pass the longer of reading weights and cache once at the measured bandwidth, and of multiplying at the measured rate.

Errors of reduced weights are over the logits of frame codes in one pass over the rollout of float32: root mean square
over their standard deviation, and how often the likeliest code is the same one (with random weights, codes are nearly
tied, so that it is a lower bound).

Two more tables: the tokenizer's frames a second, in float32 and in bf16, each beside its floor (operations counted
while it runs, over the measured rate); and the whole step of a ``World``, transformer and painting, beside the
published way (prefix again, float32, the context painted once).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import _table  # first of all that is not the standard library: it sets the environment that torch reads

# isort: split
import torch
from torch import Tensor

from ideomotor.layers.llama import LlamaConfig
from ideomotor.predictors.autoregressive import AutoregressiveConfig, AutoregressivePredictor
from world_baseline import Reprefilling
from world_machine import GREEDY, Machine, Row, floor, measure_machine, reduced
from world_tokenizer import tokenizer_rows, whole_rows

FRAMES, FRAMES_OF_MANY = 16, 7
"""Context and future together: of a published clip, and where many rollouts go at once (to take minutes)."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A rollout that was stepped: its ids, and CPU-seconds of the first look and of a frame."""

    ids: Tensor
    observe: float
    frame: float


def roll(predictor: AutoregressivePredictor, context: Tensor, actions: Tensor) -> Rollout:
    """Returns the greedy rollout with those actions."""
    began = time.process_time()
    state = predictor.observe(context, actions.shape[1])
    seen = time.process_time()
    tokens = []
    for frame in range(actions.shape[1]):
        step = predictor.step(state, actions[:, frame], sampling=GREEDY)
        tokens.append(step.tokens)
        state = step.state
    ended = time.process_time()
    ids = predictor.sequence(context, torch.stack(tokens, 1))
    return Rollout(ids=ids, observe=seen - began, frame=(ended - seen) / len(tokens))


def published(baseline: Reprefilling, rollout: Rollout, actions: Tensor, frames: Sequence[int]) -> float:
    """Returns CPU-seconds a frame of the baseline at those frames of the rollout.

    Raises:
        ValueError: it gives other ids than were stepped.
    """
    config, spent = baseline.config, 0.0
    every = config.dynamics_tokens + 1
    for frame in frames:
        end = config.prompt + frame * every
        began = time.process_time()
        tokens = baseline.frame(rollout.ids[:, :end], actions[:, : frame + 1])
        spent += time.process_time() - began
        if not (tokens + config.context_codes).equal(rollout.ids[:, end + 1 : end + every]):
            raise ValueError(f"frame {frame} of the baseline has other ids than the same frame stepped")
    return spent / len(frames)


@torch.no_grad()
def logits_of(predictor: AutoregressivePredictor, ids: Tensor, actions: Tensor) -> Tensor:
    """Returns the logits of all codes of future frames, in one pass."""
    config = predictor.config
    features = predictor.features(ids, actions, last=ids.shape[1] - config.prompt)
    first = config.context_codes
    return predictor.head.rows(features, first, first + config.dynamics_codes).float()


def transformer_rows(config: AutoregressiveConfig, batch: int, machine: Machine) -> list[Row]:
    """Returns the rows of one context length and number of rollouts."""
    torch.manual_seed(0)
    predictor = AutoregressivePredictor(config).eval()
    assert predictor.action is not None
    torch.nn.init.normal_(predictor.action.weight, std=0.02)
    horizon = (FRAMES if batch == 1 else FRAMES_OF_MANY) - config.context
    every = config.dynamics_tokens + 1
    context = torch.randint(0, config.context_codes, (batch, config.context, config.context_tokens))
    actions = torch.randn(batch, horizon, config.action_width)
    starts = [config.prompt + frame * every for frame in range(horizon)]
    steps = [(1, start + token) for start in starts for token in range(every)]
    again = [(start + 1, 0) for start in starts] + [
        (1, start + token) for start in starts for token in range(1, config.dynamics_tokens)
    ]
    common = {"batch": batch, "context": config.context, "frames": horizon}

    fp32 = roll(predictor, context, actions)
    at = (horizon // 2,) if batch > 1 else (0, horizon // 2, horizon - 1)
    least = floor(predictor, machine, "fp32", batch, again) / horizon
    rows: list[Row] = []
    for name, quick in (("prefix again, as published", False), ("prefix again, quick kernels", True)):
        spent = published(Reprefilling(predictor, quick), fp32, actions, at)
        rows.append(row(name, "fp32", spent, None, least) | common)
    paper = rows[0]["CPU-s a frame"]
    wanted = logits_of(predictor, fp32.ids, actions)
    for weights in ("fp32", "bf16", "int8"):
        used = reduced(predictor, weights)
        rollout = fp32 if weights == "fp32" else roll(used, context, actions)
        least = floor(used, machine, weights, batch, steps) / horizon
        made = row("stepped", weights, rollout.frame, rollout.observe, least) | common
        made["stepped: times faster"] = paper / rollout.frame
        made["rollout: times faster"] = paper / (rollout.frame + rollout.observe / horizon)
        if weights != "fp32":
            got = logits_of(used, fp32.ids, actions)
            made["logit error"] = float((got - wanted).square().mean().sqrt() / wanted.std())
            made["same likeliest"] = float((got.argmax(-1) == wanted.argmax(-1)).float().mean())
        rows.append(made)
    return rows


def row(name: str, weights: str, frame: float, observe: float | None, least: float) -> Row:
    """Returns the columns that every row has."""
    return {
        "transformer": name,
        "weights": weights,
        "CPU-s to observe": observe,
        "CPU-s a frame": frame,
        "frames a CPU-s": 1 / frame,
        "floor, s": least,
        "over floor": frame / least,
    }


def config_of(context: int, tiny: bool) -> AutoregressiveConfig:
    """Returns the published small model with four actions, or one that proves that the benchmark runs."""
    if not tiny:
        return AutoregressiveConfig(context=context, action_width=4)
    trunk = LlamaConfig(width=32, layers=2, heads=2, inner=64)
    return AutoregressiveConfig(context_codes=40, dynamics_codes=30, context=context, action_width=4, trunk=trunk)


def main() -> None:
    """Measures one rollout with one and two context frames, and sixteen rollouts at once."""
    parser = _table.parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = measure_machine(args.tiny)
    rows: list[Row] = []
    for context, batch in ((1, 1), (2, 1), (1, 16)):
        rows += transformer_rows(config_of(context, args.tiny), 2 if args.tiny and batch > 1 else batch, machine)
        print(_table.table(rows[-5:]), flush=True)
    for more in (tokenizer_rows(machine, args.tiny), whole_rows(config_of(2, args.tiny), machine, args.tiny)):
        rows += more
        print(_table.table(more), flush=True)
    facts = {"threads": args.threads, "GB a s": machine.bandwidth / 1e9}
    facts |= {f"{name} Gop a s": rate / 1e9 for name, rate in machine.operations.items() if name != "int8"}
    _table.publish("world_step", [made | facts for made in rows], args)


if __name__ == "__main__":
    main()
