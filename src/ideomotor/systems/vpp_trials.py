"""Trying a policy of VPP out: settings of acting, a name for all that decides how it acts, and the trial by task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ideomotor.evaluation.episodes import EpisodeResult
from ideomotor.policies.actions import TemporalEnsemble
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.devices import chosen_device
from ideomotor.systems.sources import read_facts
from ideomotor.systems.stages import camera_of
from ideomotor.systems.trials import View, roll_out
from ideomotor.systems.vpp import VPP, cameras_of
from ideomotor.systems.vpp_agent import VPPAgent, acting_by
from ideomotor.systems.vpp_stages import load_agent
from ideomotor.training.checkpoint import fingerprint
from ideomotor.training.config import config_to_json


def name_of(agent: VPPAgent, *facts: Any) -> str:
    """Returns a fingerprint of all that decides how the agent acts, and of other facts of a trial."""
    held = () if agent.foreseeing is None else agent.foreseeing.parts
    parts = [fingerprint(part, part.config) for part in (agent.policy, agent.looking, *held)]
    # Rows of before there was a temperature, or a sampling other than the trained one, go on.
    other: list[Any] = [] if agent.temperature == 1 else [agent.temperature]
    if agent.sampling != agent.policy.config.sampling:
        other.append(config_to_json(agent.sampling))
    known = [parts, *facts, *other, config_to_json(agent.config)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]


def view_of(config: VPP) -> View:
    """Returns what a policy of that config sees and does.

    Raises:
        ValueError: its actions are not one a step of the world.
    """
    if config.action_stride > 1:
        raise ValueError(
            f"the policy's actions are {config.action_stride} frames apart, and a world takes one a step: train with "
            "--action-stride 1 to try it in one"
        )
    return View(
        cameras=cameras_of(config),
        size=config.size,
        context=1,
        stride=config.window.stride,
        execute=config.execute,
        action_width=config.command_width,
    )


def refuse_other_cameras(folder: Path, named: str | None) -> None:
    """Refuses to look through other cameras than those of the demonstrations, or through them in another order.

    Raises:
        ValueError: naming both.
    """
    known = {facts.camera for facts in read_facts(folder)}
    if named is not None and known and named not in known:
        raise ValueError(
            f"the policy in {folder} was trained on what {' and '.join(sorted(known))} saw, and {named} is to take "
            "that place: name the same cameras in the same order, or add --other-camera where this is meant, or where "
            "the world calls the same camera so"
        )


def evaluate(
    folder: Path,
    tasks: Sequence[str],
    episodes: int,
    log: Path,
    workers: int = 2,
    device: str | torch.device | None = None,
    execute: int | None = None,
    ensemble: float | None = None,
    temperature: float = 1.0,
    sampling: SamplingChange | None = None,
    other_camera: bool = False,
    **options: Any,
) -> list[EpisodeResult]:
    """Rolls a policy out on held-out goals, on ``device`` (by default CUDA where there is any).

    See ``trials.roll_out`` for the other options.

    Unless ``arm`` names it, the log keeps the episodes under a fingerprint of all that decides how they end.

    Raises:
        ValueError: the cameras are not those of the demonstrations (and ``other_camera`` does not say that this is
            meant), the policy's actions are not one a step of the world, or there is no such device.
    """
    device = chosen_device(device)
    options["camera"] = options.get("camera") or camera_of(folder)
    if not other_camera:
        refuse_other_cameras(folder, options["camera"])
    agent = acting_by(load_agent(folder, device), execute, ensemble, temperature, sampling)
    if agent.config.ensemble is not None:
        options["ensemble"] = TemporalEnsemble(agent.config.ensemble)
    if "arm" not in options:
        options["arm"] = name_of(agent, options["camera"], options.get("look", "fast"))
    return roll_out(agent, view_of(agent.config), tasks, episodes, log, workers, **options)
