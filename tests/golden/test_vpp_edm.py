"""Numbers of the published VPP code: schedules, densities and scaling of the action diffusion."""

import pytest
import torch
from safetensors.torch import load_file

from ideomotor.diffusion import edm

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
