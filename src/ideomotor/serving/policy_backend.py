"""A policy served: observations of several sessions become one batch, and one call of the policy answers them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ideomotor.serving.contract import Contract, History, Observation
from ideomotor.training.learner import seed_of
from ideomotor.types import Clip, Prefix

Imagine = Callable[[Clip, int], Iterator[Mapping[str, UInt8[Tensor, "t c h w"]]]]
"""What happens next in a context of one sample, by camera and part by part; the number seeds what is drawn."""


class Act(Protocol):
    """What acts: a policy that is handed all that decides its answer, so that a batch's neighbours do not."""

    def __call__(self, context: Clip, prefix: Prefix | None, seeds: Sequence[int]) -> Float[Tensor, "b chunk action"]:
        """Returns a chunk for each sample, in the units of the robot.

        Args:
            context: what is seen.
            prefix: what the chunks begin with.
            seeds: one a sample, of whatever is drawn for it.
        """


@dataclass(frozen=True, kw_only=True)
class Served:
    """A policy, and what is known of it.

    Attributes:
        system: its name.
        contract: what it wants and gives.
        act: what acts.
        imagine: shows the future that it foresees; None for a policy without.
        max_batch: samples of a call; 1 where a sample's answer would depend on its neighbours.
        rate_hz: control steps a second, where it is known.
        notes: for who writes a client.
    """

    system: str
    contract: Contract
    act: Act
    imagine: Imagine | None = None
    max_batch: int = 16
    rate_hz: float | None = None
    notes: str = ""


class Request(NamedTuple):
    """A prepared observation, and the seed of its draws."""

    observation: Observation
    seed: int


class PolicyBackend:
    """A policy behind the server (see ``serving.backend.Backend``).

    What a session gets does not depend on the sessions beside it in a batch but for rounding: sums over another number
    of rows differ in their last bits, and a policy that picks the likeliest of several tokens then picks another one
    where two are just as likely. Draws are seeded request by request, by the backend's seed and the step of the
    episode; the same observations bring the same actions.
    """

    def __init__(self, served: Served, seed: int = 0) -> None:
        self.served, self.seed = served, seed
        self.max_batch = served.max_batch

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What is wanted of an observation, and what comes back."""
        served = self.served
        extensions = ["prefix"] * served.contract.prefix + ["imagine"] * (served.imagine is not None)
        about = {
            "version": 1,
            "kind": "policy",
            "system": served.system,
            "observation": served.contract.observation(),
            "actions": served.contract.actions(served.rate_hz),
            "extensions": extensions,
        }
        return {"ideomotor": about | ({"notes": served.notes} if served.notes else {})}

    def session(self) -> History:
        """Returns the memory of a session that has seen nothing yet."""
        return History(self.served.contract)

    def prepare(self, session: History, message: dict[str, Any]) -> Request | None:
        """Returns the request; see the protocol. None for a message that does nothing but reset.

        Raises:
            ValueError: see ``History.read``.
        """
        op = (message.get("ideomotor") or {}).get("op", "infer")
        if op == "reset":
            return None
        if op != "infer":
            raise ValueError(f'op is {op!r}; this is a policy: wanted "infer" (or none), or "reset"')
        observation = session.read(message)
        assert session.now is not None
        return Request(observation, seed_of(self.seed, session.now))

    def infer(self, batch: Sequence[Request]) -> list[dict[str, Any]]:
        """Returns the chunks, and the steps that they were thought from; requests without a state make a call apart."""
        replies: dict[int, dict[str, Any]] = {}
        for with_state in (False, True):
            rows = [row for row, one in enumerate(batch) if (one.observation.state is not None) == with_state]
            if rows:
                for row, chunk in zip(rows, self._act([batch[row] for row in rows]), strict=True):
                    replies[row] = {"actions": chunk, "ideomotor": {"steps": list(batch[row].observation.steps)}}
        return [replies[row] for row in range(len(batch))]

    def imagine(self, prepared: Request) -> Iterator[Mapping[str, UInt8[np.ndarray, "t h w 3"]]]:
        """Yields the future that the policy foresees, part by part."""
        if self.served.imagine is None:
            raise ValueError("this policy foresees no video")
        for part in self.served.imagine(clip_of([prepared.observation]), prepared.seed):
            yield {name: np.ascontiguousarray(video.permute(0, 2, 3, 1).cpu().numpy()) for name, video in part.items()}

    def _act(self, batch: Sequence[Request]) -> Float[np.ndarray, "b chunk action"]:
        contract, observations = self.served.contract, [one.observation for one in batch]
        prefix = prefix_of(contract, observations)
        with torch.inference_mode():
            actions = self.served.act(clip_of(observations), prefix, [one.seed for one in batch]).float().cpu()
        wanted = (len(batch), contract.chunk, contract.width)
        if tuple(actions.shape) != wanted or not actions.isfinite().all():
            raise RuntimeError(
                f"the policy answered with actions of shape {tuple(actions.shape)}, finite: "
                f"{bool(actions.isfinite().all())}; wanted {wanted}, all finite"
            )
        return actions.numpy()


def clip_of(observations: Sequence[Observation]) -> Clip:
    """Returns the observations as a policy reads them; all have a state or none has."""
    states = [one.state for one in observations if one.state is not None]
    return Clip(
        frames={
            name: torch.from_numpy(np.stack([one.frames[name] for one in observations]))
            .permute(0, 1, 4, 2, 3)
            .contiguous()
            for name in observations[0].frames
        },
        text=tuple(one.text for one in observations),
        proprio=torch.from_numpy(np.stack(states)) if states else None,
    )


def prefix_of(contract: Contract, observations: Sequence[Observation]) -> Prefix | None:
    """Returns the actions under way in each session; None where there are none in any."""
    if all(one.prefix is None for one in observations):
        return None
    actions = torch.zeros(len(observations), contract.chunk, contract.width)
    known = torch.zeros(len(observations), dtype=torch.long)
    for row, one in enumerate(observations):
        if one.prefix is not None:
            known[row] = len(one.prefix)
            actions[row, : len(one.prefix)] = torch.from_numpy(one.prefix)
    return Prefix(actions, known)
