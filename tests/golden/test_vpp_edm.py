"""Numbers of the published VPP code: schedules, densities and scaling of the action diffusion."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.diffusion import edm
from ideomotor.training.learner import Learner
from ideomotor.training.optim import OptimConfig, learning_rate
from ideomotor.types import Losses

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def data(shared):
    return load_file(shared / "golden" / "vpp" / "action_edm.safetensors")


def close(got, wanted, rtol=1e-5):
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=0, check_dtype=False)


@pytest.mark.parametrize("sigma_min", [0.001, 1.0])
def test_schedules(data, sigma_min):
    schedules = {
        "karras": edm.karras(10, sigma_min, 80.0),
        "exponential": edm.exponential(10, sigma_min, 80.0),
        "linear": edm.linear(10, sigma_min, 80.0),
        "vp": edm.vp(10),
        "ve": edm.ve(10, sigma_min, 80.0),
        "cosine_beta": edm.cosine_beta(10),
        "iddpm": edm.iddpm(10, sigma_min, 80.0),
    }
    assert {f"schedule.sigma_min_{sigma_min}.{name}" for name in schedules} == {
        name for name in data if name.startswith(f"schedule.sigma_min_{sigma_min}.")
    }
    for name, sigmas in schedules.items():
        # The published two take a small difference in float32, which costs their last level digits.
        rtol = 1e-3 if name in ("vp", "iddpm") else 1e-5
        close(sigmas, data[f"schedule.sigma_min_{sigma_min}.{name}"], rtol)


def test_densities(data):
    u = data["uniform"]
    close(edm.log_logistic(u), data["density.loglogistic"])
    close(edm.log_uniform(u), data["density.loguniform"])
    close(edm.uniform(u), data["density.uniform"])
    close(edm.v_diffusion(u), data["density.v_diffusion"])


def test_scaling(data):
    factors = edm.scaling(data["sigmas"], 0.5)
    for name in ("c_skip", "c_out", "c_in"):
        close(factors._asdict()[name], data[name])


# --- the learning rate ------------------------------------------------------------------------------------------------

TRI_STAGE = OptimConfig(lr=1e-4, schedule="tri_stage", final_lr=1e-6, betas=(0.9, 0.9), weight_decay=0.05)


@pytest.mark.parametrize("total", [1000, 50_000])
def test_tri_stage(shared, data, total):
    about = json.loads((shared / "golden" / "vpp" / "action_edm.json").read_text())["lr"]
    assert (TRI_STAGE.lr, TRI_STAGE.final_lr) == (about["peak"], about["final_scale"])
    steps, wanted = data[f"lr.total_{total}.step"].tolist(), data[f"lr.total_{total}.value"]
    close(torch.tensor([learning_rate(TRI_STAGE, step, total) for step in steps], dtype=torch.float64), wanted)


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor

    def __len__(self):
        return len(self.x)

    def to(self, device, non_blocking=False):
        return self


class Square(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, batch):
        return Losses(total=self.linear(batch.x).square().mean())


def test_the_curve_drives_the_optimizer_that_moves_the_weights(data):
    """In the published loop it drives a second one, and training runs at a constant rate."""
    learner = Learner(Square(), TRI_STAGE, steps=1000)
    for step, rate in zip(data["lr.total_1000.step"].tolist(), data["lr.total_1000.value"].tolist(), strict=True):
        before, learner.step = learner.objective.linear.weight.detach().clone(), step
        learner.update(Batch(torch.ones(4, 2)))
        assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([rate] * 2, rel=1e-5)
        moved = (learner.objective.linear.weight - before).abs().max().item()
        assert moved < 3 * rate + 1e-7  # Adam moves by about its rate
        assert moved > 0 or rate < 1e-6
