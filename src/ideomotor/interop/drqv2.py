"""The agent of iVideoGPT's model-based RL: published names to ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_PARTS = (
    ("encoder.convnet.0", "encoder.convs.0"),
    ("encoder.convnet.2", "encoder.convs.1"),
    ("encoder.convnet.4", "encoder.convs.2"),
    ("encoder.convnet.6", "encoder.convs.3"),
    ("actor.trunk", "actor.trunk"),
    ("actor.policy", "actor.head"),
    ("critic.trunk", "critic.trunk"),
    ("critic.Q1", "critic.heads.0"),
    ("critic.Q2", "critic.heads.1"),
    ("critic_target.trunk", "target.trunk"),
    ("critic_target.Q1", "target.heads.0"),
    ("critic_target.Q2", "target.heads.1"),
)


def agent_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of encoder, actor, critic and target under the names of ``policies.actor_critic``.

    Raises:
        ValueError: a name that the published agent does not have.
    """
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    for theirs, ours in _PARTS:
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    raise ValueError(
        f"{name!r} is no weight of a published agent; wanted names below {', '.join(p for p, _ in _PARTS)}"
    )
