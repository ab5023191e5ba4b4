"""Options of acting, by the command that tries a policy out: what reaches the agent, and what would do nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")

from test_bad_pairs import ideomotor, said

from ideomotor.diffusion.sigma_samplers import Sampling
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.systems import vpp_tables, vpp_trials
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.vpp import Looking
from ideomotor.systems.vpp_agent import VPPAgent, acting_by
from ideomotor.systems.vpp_presets import looking_with, tiny
from ideomotor.systems.vpp_trials import name_of
from ideomotor.types import Clip

OTHER = ("--sampling.sampler", "heun", "--sampling.steps", 3, "--sampling.sigma-min", 1.0)


def agent(sampling: Sampling | None = None) -> VPPAgent:
    """A policy that looks with a CNN of its own: nothing is trained, and nothing but it is needed."""
    torch.manual_seed(0)
    config = looking_with(tiny(), "pixels")
    config = replace(config, policy=replace(config.policy, action_width=7, sampling=sampling or Sampling(steps=2)))
    return VPPAgent(
        config, Looking(config), EDMTransformer(config.policy), None, lambda sentences: torch.ones(len(sentences), 384)
    )


def test_each_part_of_the_sampling_can_be_otherwise() -> None:
    clip = Clip(frames={"main": torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)}, text=("push",))
    trained = acting_by(agent(), None, None)
    names, chunks = [name_of(trained)], [trained.act(clip)]
    for change in (SamplingChange(sampler="heun"), SamplingChange(steps=3), SamplingChange(sigma_min=1.0)):
        acting = acting_by(agent(), None, None, sampling=change)
        names.append(name_of(acting))
        chunks.append(acting.act(clip))
    assert len(set(names)) == 4  # each begins rows of its own
    assert all(not torch.equal(one, other) for n, one in enumerate(chunks) for other in chunks[:n])
    assert acting.sampling == Sampling(steps=2, sigma_min=1.0) and acting.policy.config.sampling == Sampling(steps=2)
    for same in (SamplingChange(), SamplingChange(sampler="ddim", steps=2, sigma_min=0.001)):
        assert name_of(acting_by(agent(), None, None, sampling=same)) == names[0]  # what was trained with, and its rows


def test_the_commands_set_it_and_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def roll_out(agent: VPPAgent, *rest: object, arm: str, **options: object) -> list[object]:
        tried.append((agent.sampling, arm))
        return []

    def in_a_row(agent: VPPAgent, *rest: object, arm: str, command: str, facts: dict[str, str], **_: object) -> object:
        tried.append((agent.sampling, arm, command, facts["actions are denoised"]))
        raise ValueError("tried")

    for module in (vpp_trials, vpp_tables):
        monkeypatch.setattr(module, "load_agent", lambda folder, device: agent())
    monkeypatch.setattr(vpp_trials, "roll_out", roll_out)
    monkeypatch.setattr(vpp_tables, "run_in_a_row", in_a_row)
    for world in ("metaworld", "play_table"):
        for more in ((), OTHER):
            ideomotor("vpp", "evaluate", tmp_path, "--world", world, *more)
    assert [sampling for sampling, *_ in tried] == [
        Sampling(steps=2), Sampling(sampler="heun", steps=3, sigma_min=1.0)
    ] * 2  # fmt: skip
    assert len({arm for _, arm, *_ in tried}) == 4
    assert " ".join(map(str, OTHER)) in tried[3][2] and "--sampling" not in tried[2][2]
    assert tried[3][3] == "by heun, 3 steps, noise levels 80 to 1"


def test_samplings_that_are_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vpp_trials, "load_agent", lambda folder, device: agent())
    for words, why in [
        (("--sampling.sigma-min", 0), "--sampling.sigma-min 0.0, beside what the policy was trained with: "),
        (("--sampling.sigma-min", 90), "sigma_max 80"),
        (("--sampling.steps", 0), "--sampling.steps 0"),
        (("--sampling.sampler", "lms", "--sampling.sigma-min", 80), "2 steps do not fall from 80 to 80: take fewer"),
    ]:
        assert ideomotor("vpp", "evaluate", tmp_path, *words) == 2
        assert why in said(capsys)
    with pytest.raises(ValueError, match="levels are vp, which have a range of their own"):
        acting_by(agent(Sampling(levels="vp")), None, None, sampling=SamplingChange(sigma_min=0.1))


def test_options_of_the_other_kind_of_world_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(folder: Path, device: object) -> NoReturn:
        raise AssertionError("a policy was loaded")

    for module in (vpp_trials, vpp_tables):
        monkeypatch.setattr(module, "load_agent", loaded)
    for world, words in [
        ("metaworld", ("--sequences", 1000)),  # also where they are what would be taken at the other world
        ("toy", ("--steps", 360)),
        ("metaworld", ("--films", 0)),
        ("toy", ("--look", "fast")),
        ("play_table", ("--episodes", 20)),
        ("calvin", ("--look", "default")),
    ]:
        assert ideomotor("vpp", "evaluate", tmp_path, "--world", world, *words) == 2
        assert said(capsys).startswith(f"error: {words[0]} would do nothing: ")
    assert ideomotor("vpp", "evaluate", tmp_path, "--steps", 5, "--films", 1) == 2
    assert said(capsys).endswith("; leave out --steps, --films")
