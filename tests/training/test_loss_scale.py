"""fp16: the scale, steps that are left out, and what a resumed run needs of them. On a CPU; no GPU was at hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_processes import launch, part
from torch import nn
from toy_stage import Regression, StageConfig, Toy, clip, stage

from ideomotor.training.learner import Learner
from ideomotor.training.loss_scale import MOST_SKIPPED
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Run, Stopped
from ideomotor.types import Clip, Losses

FP16 = OptimConfig(lr=1e-2, warmup=2, weight_decay=0.0, ema=0.9, fp16=True)


class Steep(nn.Module):
    """A line whose gradient is so many times as steep, and infinite in some calls; in others the loss is broken."""

    def __init__(
        self, steep: float = 1.0, overflowing: frozenset[int] = frozenset(), broken: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.calls = nn.Linear(4, 4), 0
        self.steep, self.overflowing, self.broken = steep, overflowing, broken

    def forward(self, batch: Clip) -> Losses:
        y = self.linear(batch.actions[:, 0])
        assert y.dtype == torch.float16
        steep = float("inf") if self.calls in self.overflowing else self.steep
        factor = float("nan") if self.calls in self.broken else 1.0
        self.calls += 1
        return Losses(total=Scaled.apply(y.float().square().mean(), steep) * factor)


class Scaled(torch.autograd.Function):
    """The number itself; its gradient times ``factor``."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Sloping(Regression):
    """A regression whose slope is so many times as steep."""

    def __init__(self, model: nn.Module, steep: float, noise: float = 0.0) -> None:
        super().__init__(model, noise)
        self.steep = steep

    def forward(self, clip: Clip) -> Losses:
        losses = super().forward(clip)
        return Losses(total=Scaled.apply(losses.total, self.steep), terms=losses.terms)


def tensors(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.state().tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_forward_is_fp16_and_weights_loss_and_state_are_not() -> None:
    learner = Learner(Steep(), FP16, 50)
    losses = [learner.update(clip(0))["Steep/loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    floating = {value.dtype for name, value in tensors(learner).items() if value.is_floating_point()}
    assert floating == {torch.float32, torch.float64}  # the scale alone is float64
    assert learner.validate([clip(0)])["Steep/validation_loss"] > 0


def test_gradients_that_fp16_loses_without_a_scale_arrive() -> None:
    """Of a loss whose slope at what fp16 computed is below 6e-8: unscaled, the weights' gradient would be zero."""
    faint = Learner(Steep(steep=1e-7), replace(FP16, clip_norm=None), 9)
    seen = []
    faint.optimizer.register_step_pre_hook(lambda *_: seen.append(faint.objective.linear.weight.grad.clone()))
    faint.update(clip(0))
    exact = Steep()
    y = exact.linear(clip(0).actions[:, 0])
    (y.square().mean() * 1e-7).backward()
    torch.testing.assert_close(seen[0], exact.linear.weight.grad, rtol=5e-3, atol=1e-11)


def test_the_norm_is_of_true_gradients_and_is_clipped_unscaled() -> None:
    seen = []
    for optim in (replace(FP16, fp16=False), FP16):
        torch.manual_seed(1)
        net = nn.Linear(4, 4)
        learner = Learner(Sloping(net, 0.05), replace(optim, clip_norm=0.01), 9)
        norms = []
        learner.optimizer.register_step_pre_hook(
            lambda *_, net=net, norms=norms: norms.append(
                torch.nn.utils.get_total_norm([w.grad for w in net.parameters()])
            )
        )
        seen.append((learner.update(clip(0))["Sloping/grad_norm"], float(norms[0])))
    (norm, clipped), (norm16, clipped16) = seen
    assert norm16 == pytest.approx(norm, rel=5e-3) and norm > 0.02
    assert clipped == pytest.approx(0.01, rel=1e-3) and clipped16 == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_overflows_moves_nothing_but_the_step() -> None:
    learner = Learner(Steep(overflowing=frozenset({2})), FP16, 9)
    for step in range(2):
        metrics = learner.update(clip(step))
        assert metrics["Steep/skipped"] == 0.0 and metrics["Steep/loss_scale"] == 2.0**16
    before = tensors(learner)
    metrics = learner.update(clip(2))
    assert metrics["Steep/skipped"] == 1.0 and "Steep/grad_norm" not in metrics
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())  # so the log stays JSON
    after = tensors(learner)
    scale = {name: after[name] for name in after if name.startswith("loss_scale.")}
    assert same({n: v for n, v in before.items() if n not in scale}, {n: v for n, v in after.items() if n not in scale})
    assert {name: value.item() for name, value in scale.items()} == {
        "loss_scale.scale": 2.0**15, "loss_scale.growth": 0, "loss_scale.skipped": 1, "loss_scale.in_a_row": 1,
    }  # fmt: skip
    assert learner.step == 3
    moved = learner.update(clip(3))
    assert moved["Steep/loss_scale"] == 2.0**15 and not torch.equal(
        learner.state().tensors["weights.linear.weight"], before["weights.linear.weight"]
    )


def test_a_run_that_skips_is_the_run_without_those_batches_but_for_the_schedule() -> None:
    """With a constant schedule: the same weights, optimizer state and average, the decay's warm-up too."""
    optim = replace(FP16, warmup=0, schedule="constant")
    skipping, plain = Learner(Steep(overflowing=frozenset({0, 3})), optim, 9), Learner(Steep(), optim, 9)
    for step in range(6):
        skipping.update(clip(step))
        if step not in (0, 3):
            plain.update(clip(step))
    left = ("weights", "optimizer", "average")
    ours, theirs = ({n: v for n, v in tensors(one).items() if n.startswith(left)} for one in (skipping, plain))
    # The scale is a power of two, so that another one gives the same numbers as long as none is too small.
    assert skipping.loss_scale.skipped == 2 and same(ours, theirs)


def test_the_rate_of_a_step_is_that_of_its_number() -> None:
    plain, skipping = Learner(Steep(), FP16, 9), Learner(Steep(overflowing=frozenset({1})), FP16, 9)
    rates = [[one.update(clip(step))["Steep/lr"] for step in range(5)] for one in (plain, skipping)]
    assert rates[0] == rates[1]


def test_a_loss_that_is_not_finite_is_an_error_as_ever() -> None:
    learner = Learner(Steep(broken=frozenset({0})), FP16, 9)
    before = learner.objective.linear.weight.clone()
    with pytest.raises(FloatingPointError, match=r"step 0: loss = nan, grad_norm = nan is not.*bf16 in place of"):
        learner.update(clip(0))
    assert torch.equal(learner.objective.linear.weight, before) and learner.step == 0


def test_too_many_in_a_row_are_an_error_that_names_the_scale() -> None:
    learner = Learner(Steep(overflowing=frozenset(range(1, 100))), FP16, 99)
    learner.update(clip(0))
    before = learner.objective.linear.weight.clone()
    for _ in range(MOST_SKIPPED - 1):
        learner.update(clip(1))
    with pytest.raises(FloatingPointError, match=r"step 20: the gradients of 20 steps in a row .* a loss times 0\.125"):
        learner.update(clip(1))
    assert torch.equal(learner.objective.linear.weight, before)


def test_a_steep_start_finds_its_scale_and_then_learns() -> None:
    learner = Learner(Steep(steep=2.0**12), replace(FP16, lr=1e-2), 99)
    found = [learner.update(clip(step)) for step in range(40)]
    skipped = [metrics["Steep/skipped"] for metrics in found]
    begun = skipped.index(0.0)
    assert begun > 3 and sum(skipped) == learner.loss_scale.skipped < MOST_SKIPPED
    assert found[-1]["Steep/loss"] < 0.5 * found[begun]["Steep/loss"]


@pytest.mark.parametrize("pause", [1, 6])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, pause: int) -> None:
    """Dropout, noise, averages, two parts a batch, and a first scale that overflows: steps are left out before and
    after the first pause, and moved before and after the second."""
    config = StageConfig(optim=OptimConfig(lr=1e-2, warmup=2, ema=0.9, accumulate=2, fp16=True), steps=8)

    def train(folder: Path, **settings) -> dict[str, torch.Tensor]:
        with Run(folder, seed=3, config=config, log_steps=1, **settings) as run:
            learner = run.learner(Sloping(Toy(config.model), 32.0, noise=0.1), config.optim, config.steps)
            run.fit(lambda start: (clip(step) for step in range(start, 99)), learner, steps=config.steps)
            return tensors(learner)

    straight = train(tmp_path / "straight")
    with pytest.raises(Stopped):
        train(tmp_path / "paused", pause_at=pause)
    assert same(train(tmp_path / "paused"), straight)
    assert 2 <= straight["loss_scale.skipped"] <= 6 and straight["loss_scale.scale"] < 2.0**16
    rows = [
        [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in path.read_text().splitlines()]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("straight", "paused"))
    ]
    assert rows[0] == rows[1] and [row["Sloping/skipped"] for row in rows[0]].count(1.0) > 1


def test_runs_of_before_fp16_go_on(tmp_path: Path) -> None:
    """What such a run left in run.json and in its state names no fp16, and neither does a run that leaves it off."""
    config = StageConfig(steps=4)
    with pytest.raises(Stopped):
        stage(tmp_path, config, pause_at=2)
    written = (tmp_path / "run.json").read_text() + next(tmp_path.glob("state/step-*/state.json")).read_text()
    assert '"bf16": false' in written and "fp16" not in written and "loss_scale" not in written
    stage(tmp_path, config)
    with pytest.raises(ValueError, match=r"optim\.fp16: '\(absent\)' -> True"):
        stage(tmp_path, StageConfig(steps=4, optim=replace(config.optim, fp16=True)))


def test_parts_of_a_batch_share_one_scale() -> None:
    def train(accumulate: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        config = replace(FP16, warmup=0, accumulate=accumulate)
        assert Learner(Sloping(net, 0.05), config, 9).update(clip(0, samples=8))["Sloping/skipped"] == 0.0
        return {name: value.detach().clone() for name, value in net.state_dict().items()}

    whole, parts = train(1), train(4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=0, atol=1e-4)  # of steps of 1e-2


def test_both_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bf16 and fp16 are both on.*optim\.no-bf16"):
        OptimConfig(bf16=True, fp16=True)
    assert [OptimConfig(bf16=a, fp16=b).precision for a, b in ((0, 0), (1, 0), (0, 1))] == ["fp32", "bf16", "fp16"]


@pytest.mark.slow
def test_an_overflow_in_one_process_is_a_step_left_out_in_all(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    for done in launch(tmp_path / "two", 2, "gradient", script=__file__):
        assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / "two" / f"rank-{rank}.safetensors") for rank in range(2))
    assert same(first, second) and first["loss_scale.skipped"] == 1
    train(tmp_path / "one", "gradient", breaking=0)
    one = load_file(tmp_path / "one" / "rank-0.safetensors")
    for name in one:  # sums of fp16 in another order
        torch.testing.assert_close(first[name], one[name], rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_loss_that_breaks_in_one_process_ends_all(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    for done in launch(tmp_path, 2, "loss", script=__file__):
        assert done.returncode == 1 and "FloatingPointError: learner 'Steep', step 1: " in done.stderr


def train(folder: Path, breaks: str, breaking: int = 1) -> None:
    """Three steps on shares of the joint batch; the second breaks in one process, in its loss or its gradient."""
    with Run(folder, log_steps=1, device="cpu") as run:
        rank, world_size = run.processes.rank, run.processes.world_size
        steps = frozenset({1} if rank == breaking else ())
        objective = Steep(**{"overflowing" if breaks == "gradient" else "broken": steps})
        learner = run.learner(objective, FP16, 3)
        run.fit(lambda start: (part(step, rank, world_size) for step in range(start, 9)), learner, steps=3)
        save_file(tensors(learner), folder / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2])
