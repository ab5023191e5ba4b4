from pathlib import Path

import pytest
import torch
from torch import nn
from toy_stage import Judging, Regression, Toy, ToyConfig, clip

from ideomotor.training.learner import Learner, check_ownership, seed_of
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Borrowed, Clip, Losses


def toy(**config) -> Toy:
    torch.manual_seed(0)
    return Toy(ToyConfig(**config))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 4))
    learner = Learner(Regression(net, noise=0.0), OptimConfig(lr=1e-2, warmup=5, weight_decay=0.0), 150)
    losses = [learner.update(clip(0))["Regression/loss"] for _ in range(150)]
    assert losses[-1] < 1e-3 * losses[0]


def test_the_schedule_really_drives_the_optimizer() -> None:
    learner = Learner(Regression(toy()), OptimConfig(lr=1.0, warmup=2, clip_norm=None), 10)
    rates = []
    for step in range(4):
        metrics = learner.update(clip(step))
        rates.append(learner.optimizer.param_groups[0]["lr"])
        assert metrics["Regression/lr"] == rates[-1] == learner.optimizer.param_groups[1]["lr"]
    assert rates[0] == 0.5 and rates[2] == 1.0 and rates[3] < 1.0


def test_randomness_of_an_update_is_a_function_of_seed_name_and_step() -> None:
    def losses(seed: int = 0, name: str = "a") -> list[float]:
        learner = Learner(Regression(toy()), OptimConfig(lr=1e-9), 9, name=name, seed=seed)
        torch.manual_seed(torch.seed() % 1000)  # whatever was drawn before does not matter
        return [learner.update(clip(0))[f"{name}/loss"] for _ in range(2)]

    assert losses() == losses()
    assert losses()[0] != losses()[1]
    assert losses() != losses(seed=1)
    assert losses() != losses(name="b")
    assert seed_of(0, "a", 1) != seed_of(0, "a1") and 0 <= seed_of(5) < 2**63


def test_an_update_gives_the_global_random_state_back() -> None:
    learner = Learner(Regression(toy()), OptimConfig(), 9)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    learner.update(clip(0))
    assert torch.equal(torch.rand(3), wanted)


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    def train(accumulate: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        config = OptimConfig(lr=0.1, warmup=0, accumulate=accumulate, clip_norm=0.1)
        Learner(Regression(net, noise=0.0), config, 9).update(clip(0, samples=7))
        return weights(net)

    whole, parts = train(1), train(3)  # 3 + 3 + 1 samples
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=0, atol=1e-6)


def test_borrowed_modules_stay_in_eval_mode_and_are_not_owned() -> None:
    model, judge = toy(), toy()
    seen = []
    model.net.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    judge.net.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    model.train()
    learner = Learner(Judging(judge, model), OptimConfig(warmup=0), 9)
    before, flags = weights(model), [weight.requires_grad for weight in model.parameters()]
    learner.update(clip(0))
    assert seen == [False, True]  # the borrowed model runs first
    assert same(weights(model), before) and flags == [weight.requires_grad for weight in model.parameters()]
    assert all(weight.grad is None for weight in model.parameters())
    assert not judge.training  # outside of an update all is in eval mode
    assert not any("model" in name for name in learner.state().tensors)


def test_a_borrowed_module_inside_a_borrowed_module_is_found() -> None:
    class Holder(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = [Borrowed(inner)]

    inner = toy().train()
    learner = Learner(Judging(toy(), Holder(inner)), OptimConfig(), 9)
    assert len(learner.borrowed) == 2 and not inner.training


def test_every_weight_has_one_owner() -> None:
    model = toy()
    one = Learner(Regression(model), OptimConfig(), 9, name="one")
    check_ownership([one, Learner(Judging(toy(), model), OptimConfig(), 9)])
    two = Learner(nn.ModuleDict({"part": model.net[0]}), OptimConfig(), 9, name="two")
    with pytest.raises(
        ValueError,
        match=r"'part\.weight' of learner 'two' also belongs to learner 'one' \(there 'model\.net\.0\.weight'\)",
    ):
        check_ownership([one, two])


class Wrong(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(4, 4), make

    def forward(self, batch: Clip) -> Losses:
        return self.make(self.linear(batch.actions[:, 0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: y.mean(), r"returned a Tensor; wanted ideomotor\.Losses"),
        (lambda y: Losses(total=y.mean(0)), r"shape \(4,\); wanted an fp32 scalar"),
        (lambda y: Losses(total=y.mean()), r"torch\.bfloat16 with shape \(\); wanted an fp32 scalar.*\.float\(\)"),
        (lambda y: Losses(total=torch.zeros(())), "without gradient"),
    ],
)
def test_what_an_objective_returns_is_checked(make, message: str) -> None:
    learner = Learner(Wrong(make), OptimConfig(bf16=True), 9)
    with pytest.raises(TypeError, match=message):
        learner.update(clip(0))


def test_bf16_runs_the_forward_and_keeps_weights_and_loss_in_fp32() -> None:
    seen = []

    def make(y: torch.Tensor) -> Losses:
        seen.append(y.dtype)
        return Losses(total=y.float().square().mean())

    learner = Learner(Wrong(make), OptimConfig(bf16=True, warmup=0), 9)
    first = learner.update(clip(0))["Wrong/loss"]
    assert seen == [torch.bfloat16] and learner.objective.linear.weight.dtype == torch.float32
    assert learner.update(clip(0))["Wrong/loss"] < first


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_names_term_and_step_and_moves_nothing(where: str) -> None:
    def make(y: torch.Tensor) -> Losses:
        if where == "loss":
            return Losses(
                total=y.mean() * float("nan"), terms={"pixels": y.detach().mean(), "motion": torch.tensor(float("inf"))}
            )
        return Losses(total=(y * 0).sum().sqrt())  # 0, with an infinite slope

    learner = Learner(Wrong(make), OptimConfig(warmup=0), 9)
    learner.step = 6
    before = weights(learner.objective)
    wanted = r"step 6: loss = nan, motion = inf" if where == "loss" else r"step 6: grad_norm = nan"
    with pytest.raises(FloatingPointError, match=wanted):
        learner.update(clip(0))
    assert same(weights(learner.objective), before) and learner.step == 6
    assert all(weight.grad is None for weight in learner.objective.parameters())


def test_state_round_trip_is_exact_also_for_other_strides() -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)

        def forward(self, batch: Clip) -> Losses:
            video = batch.frames["main"][:, 0].float() / 255
            return Losses(total=(self.conv(video) - video).square().mean())

    def batch(step: int) -> Clip:
        generator = torch.Generator().manual_seed(step)
        return Clip(
            text=("", ""),
            frames={"main": torch.randint(0, 256, (2, 1, 4, 5, 5), generator=generator, dtype=torch.uint8)},
        )

    config = OptimConfig(lr=1e-2, warmup=0, ema=0.9)
    straight, first, second = (Learner(Conv(), config, 4) for _ in range(3))
    for step in range(4):
        straight.update(batch(step))
    for step in range(2):
        first.update(batch(step))
    state = first.state()
    plain = {name: value.contiguous().clone() for name, value in state.tensors.items()}  # as a file holds them
    second.load_state(state._replace(tensors=plain))
    for step in range(2, 4):
        second.update(batch(step))
    assert second.step == 4 and same(straight.state().tensors, second.state().tensors)


def test_a_state_that_does_not_fit_is_named() -> None:
    state = Learner(Regression(toy(width=8)), OptimConfig(), 9).state()
    with pytest.raises(
        ValueError, match=r"of another shape: model\.net\.0\.weight is \(8, 4\), the model wants \(6, 4\)"
    ):
        Learner(Regression(toy(width=6)), OptimConfig(), 9).load_state(state)


def test_accelerate_moves_a_clip() -> None:
    operations = pytest.importorskip("accelerate.utils.operations")
    frames = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    given = Clip(
        text=("a",), frames={"main": frames}, actions=torch.zeros(1, 2, 3), tokens={"main": torch.zeros(1, 1, 4).long()}
    )
    moved = operations.send_to_device(given, torch.device("meta"), non_blocking=True)
    assert moved.text == ("a",)
    assert {moved.frames["main"].device.type, moved.actions.device.type, moved.tokens["main"].device.type} == {"meta"}


def test_no_module_of_the_engine_imports_an_extra() -> None:
    import subprocess
    import sys

    code = (
        "import sys, ideomotor.training; "
        "print(sorted({'accelerate', 'tensorboard', 'transformers', 'av', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == "[]"
