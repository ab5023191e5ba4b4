"""What every trial of a VPP policy shares: settings of acting, and a name for all that decides how it acts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from ideomotor.systems.vpp import VPPAgent
from ideomotor.training.checkpoint import fingerprint
from ideomotor.training.config import config_to_json


def acting_by(agent: VPPAgent, execute: int | None, ensemble: float | None) -> VPPAgent:
    """Returns the agent, set to execute and to average chunks otherwise than it was trained, where that is given."""
    config = agent.config
    agent.config = replace(
        config, execute=config.execute if execute is None else execute,
        ensemble=config.ensemble if ensemble is None else ensemble,
    )  # fmt: skip
    return agent


def name_of(agent: VPPAgent, *facts: Any) -> str:
    """Returns a fingerprint of all that decides how the agent acts, and of other facts of a trial."""
    held = () if agent.foreseeing is None else (agent.foreseeing.vae, agent.foreseeing.predictor)
    parts = [fingerprint(part, part.config) for part in (agent.policy, agent.looking, *held) if part is not None]
    known = [parts, *facts, config_to_json(agent.config)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]
