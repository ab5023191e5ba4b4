"""VPP at a play table, CALVIN's or our own: its policy tried on five tasks in a row."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from ideomotor.evaluation.calvin_results import SequenceSummary
from ideomotor.policies.actions import TemporalEnsemble
from ideomotor.predictors.svd_unet import tap_name
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.quickstarts import command_line
from ideomotor.systems.stages import camera_of
from ideomotor.systems.table_trials import TableTrial, run_in_a_row
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_agent import VPPAgent, acting_by
from ideomotor.systems.vpp_stages import load_agent
from ideomotor.systems.vpp_trials import name_of, refuse_other_cameras, view_of


def evaluate_in_a_row(
    folder: Path, trial: TableTrial, out: Path, device: str | None = None, other_camera: bool = False
) -> SequenceSummary:
    """Runs CALVIN's sequences with the policy of a finished stage 2; see ``table_trials.run_in_a_row``.

    It computes on ``device``, by default CUDA where there is any. The log keeps the sequences under a fingerprint of
    all that decides how they end.

    Raises:
        ValueError: as ``run_in_a_row``; or the cameras named are not those of the demonstrations, and ``other_camera``
            does not say that this is meant; or there is no such device.
    """
    there = chosen_device(device)
    if not other_camera:
        refuse_other_cameras(folder, trial.camera)
    agent = acting_by(load_agent(folder, there), trial.execute, trial.ensemble, trial.temperature, trial.sampling)
    plain = TableTrial(world="calvin" if trial.world == "play_table" else "play_table")  # the world is always named
    more = (["--device", device] if device else []) + ["--other-camera"] * other_camera
    command = f"{command_line('vpp evaluate', out, trial, plain)} {shlex.join([*more, str(folder)])}"
    trial = replace(trial, camera=trial.camera or camera_of(folder))
    decay = agent.config.ensemble
    return run_in_a_row(
        agent,
        view_of(agent.config),
        trial,
        out,
        arm=name_of(agent, trial.camera, trial.world, trial.steps),
        name=_name(agent.config),
        command=command,
        ensemble=None if decay is None else TemporalEnsemble(decay),
        facts=_facts(agent),
    )


def _name(config: VPP) -> str:
    return "VPP" if config.eyes == "foresight" else f"control ({config.eyes})"


def _facts(agent: VPPAgent) -> dict[str, str]:
    config, sampling = agent.config, agent.sampling
    foresight = config.foresight
    seen = {
        "foresight": f"one pass of the video model, told a noise level of {foresight.sigma:g}, up-blocks "
        f"{', '.join(map(tap_name, foresight.layers))}; noise "
        + ("drawn anew at each look" if foresight.seed is None else "the same at each look"),
        "encoder": "the tokens of a frozen image encoder of the newest frame (a control without foresight)",
        "latents": "the latents of the newest frame (a control without foresight)",
        "pixels": "a CNN of the newest frame (a control without foresight)",
    }
    averaged = "none" if config.ensemble is None else f"overlapping chunks averaged, decay {config.ensemble:g}"
    ends = "levels vp" if sampling.levels == "vp" else f"noise levels {sampling.sigma_max:g} to {sampling.sigma_min:g}"
    return {
        "the policy sees": seen[config.eyes],
        "ensemble": averaged,
        "actions are denoised": f"by {sampling.sampler}, {sampling.steps} steps, {ends}",
        "temperature": f"{agent.temperature:g}",
    }
