"""A served policy over recorded episodes: how far from what was done, dimension by dimension, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ideomotor.data.signals import read_actions, read_proprio
from ideomotor.data.windows import read_frames
from ideomotor.evaluation import charts
from ideomotor.serving.client import Client, Contract, Extras, contract_of
from ideomotor.serving.client.messages import OURS
from ideomotor.serving.client.pacing import percentiles
from ideomotor.types import Dataset, Episode

_COLUMNS, _WIDE, _HIGH = 2, 340, 214


@dataclass(frozen=True, kw_only=True)
class DimensionError:
    """How far one dimension of the policy's actions is from the recorded ones.

    Attributes:
        mean: of the distances.
        worst: the greatest of them.
        p95: 95 of 100 distances are below it.
        spread: standard deviation of the recorded values: what always telling their mean would be off by.
    """

    dimension: int
    mean: float
    p95: float
    worst: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a dry run found.

    Attributes:
        system: what is served.
        dataset: where the episodes lie.
        compared: how many actions.
        dimensions: one entry a dimension.
        latency_ms: percentiles of the round trip of a request, of what the network took of it, of waiting for a batch.
        recorded, predicted: the first episode's actions, for a drawing.
    """

    system: str
    dataset: str
    episodes: int
    requests: int
    compared: int
    execute: int
    dimensions: tuple[DimensionError, ...]
    latency_ms: Mapping[str, Mapping[str, float]]
    recorded: Float[np.ndarray, "t action"]
    predicted: Float[np.ndarray, "t action"]

    def as_dict(self) -> dict[str, Any]:
        """Returns it for a JSON file, without the drawn actions."""
        found = {name: value for name, value in vars(self).items() if name not in ("recorded", "predicted")}
        return found | {"dimensions": [asdict(entry) for entry in self.dimensions]}


def dry_run(
    client: Client, dataset: Dataset, *, episodes: int | None = None, cameras: Mapping[str, str] | None = None
) -> DryRun:
    """Returns how a served policy answers to recorded episodes; the robot does nothing, and sees what it saw then.

    The policy looks whenever it would, and the actions that it would carry out until it looks again are compared.

    Args:
        client: connected to a policy.
        dataset: with actions; texts are told as they are recorded, states where the policy reads them.
        episodes: how many of them, by default all.
        cameras: the policy's cameras to the dataset's, where their names do not tell.

    Raises:
        ValueError: the dataset lacks what the policy wants, or has other actions.
    """
    picked = dataset.episodes[:episodes]
    if not picked:
        raise ValueError(f"there are no episodes to try in {dataset.path} (--episodes {episodes})")
    contract = contract_of(client.metadata)
    looker = _Looker(client, contract, matched_cameras(client.metadata, picked[0], cameras or {}))
    pairs = [looker.compare(episode) for episode in picked]
    recorded, predicted = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return DryRun(
        system=str(client.metadata[OURS].get("system", "")),
        dataset=str(dataset.path),
        episodes=len(picked),
        requests=len(looker.times["round trip"]),
        compared=len(recorded),
        execute=looker.contract.execute,
        dimensions=_errors(recorded, predicted),
        latency_ms={name: percentiles(seconds) for name, seconds in looker.times.items()},
        recorded=pairs[0][0],
        predicted=pairs[0][1],
    )


def matched_cameras(metadata: Mapping[str, Any], episode: Episode, told: Mapping[str, str]) -> dict[str, str]:
    """Returns the policy's cameras to the dataset's: as told, else as the policy learned them, else by the same name.

    Raises:
        ValueError: for some camera none of these is there, and there are several to choose from.
    """
    wanted, there = metadata[OURS]["observation"]["images"], list(episode.frames)
    strange = [f"{name}={source}" for name, source in told.items() if name not in wanted or source not in there]
    if strange:
        raise ValueError(
            f"cameras {', '.join(strange)}: the policy has {', '.join(wanted)}, the data {', '.join(there)}"
        )
    found: dict[str, str] = {}
    for name, about in wanted.items():
        options = [told.get(name), (about or {}).get("recorded_as"), name, there[0] if len(there) == 1 else None]
        source = next((option for option in options if option in there), None)
        if source is None or (len(wanted) > 1 and source in found.values()):
            raise ValueError(
                f"which camera is the policy's {name!r}? The data have {', '.join(there)}: --cameras {name}=ONE_OF_THEM"
            )
        found[name] = source
    return found


class _Looker:
    """Shows a policy what a robot saw, and notes what it would have done and how long it took."""

    def __init__(self, client: Client, contract: Contract, cameras: Mapping[str, str]) -> None:
        self.client, self.contract, self.cameras = client, contract, cameras
        self.wanted = client.metadata[OURS]["observation"]
        self.times: dict[str, list[float]] = {"round trip": [], "network": [], "queue": [], "infer": []}

    def compare(self, episode: Episode) -> tuple[Float[np.ndarray, "t action"], Float[np.ndarray, "t action"]]:
        """Returns what was done, and what the policy would have done."""
        recorded = read_actions(episode)
        parts = []
        for start, observation in self._observations(episode):
            reply = self.client.infer(observation, Extras(step=start, reset=start == 0))
            if reply.actions.shape[1] != recorded.shape[1]:
                raise ValueError(
                    f"the policy's actions have {reply.actions.shape[1]} numbers, those of episode {episode.id!r} "
                    f"{recorded.shape[1]}: try it on data of its own robot"
                )
            parts.append(reply.actions[: self.contract.execute])
            others = reply.queue_ms + reply.infer_ms
            for name, ms in (
                ("round trip", reply.round_trip_ms),
                ("network", reply.round_trip_ms - others),
                ("queue", reply.queue_ms),
                ("infer", reply.infer_ms),
            ):
                self.times[name].append(ms / 1000)
        return recorded, np.concatenate(parts)[: len(recorded)]

    def _observations(self, episode: Episode) -> Iterator[tuple[int, dict[str, Any]]]:
        states = read_proprio(episode) if self.wanted.get("state") else None
        if states is None and self.wanted.get("state_needed"):
            raise ValueError(f"the policy reads the robot's state, and episode {episode.id!r} has none recorded")
        back = self.contract.stride * np.arange(1 - self.contract.context, 1)
        for start in range(0, episode.length, self.contract.execute):
            rows = np.clip(start + back, 0, None).tolist()
            images = {}
            for name, camera in self.cameras.items():
                about = self.wanted["images"][name]
                video = read_frames(episode, camera, rows, (about["height"], about["width"]))
                images[name] = np.ascontiguousarray(video.permute(0, 2, 3, 1).numpy())
            observation: dict[str, Any] = {"images": images, "prompt": episode.text}
            yield start, observation if states is None else observation | {"state": states[start]}


def _errors(
    recorded: Float[np.ndarray, "t action"], predicted: Float[np.ndarray, "t action"]
) -> tuple[DimensionError, ...]:
    off = np.abs(predicted.astype(np.float64) - recorded)
    return tuple(
        DimensionError(
            dimension=number,
            mean=float(off[:, number].mean()),
            p95=float(np.percentile(off[:, number], 95)),
            worst=float(off[:, number].max()),
            spread=float(recorded[:, number].std()),
        )
        for number in range(recorded.shape[1])
    )


def drawing(found: DryRun) -> str:
    """Returns an SVG file of the first episode: recorded and foretold actions, a chart a dimension."""
    steps = list(range(len(found.recorded)))
    parts = []
    for number in range(found.recorded.shape[1]):
        across, down = _WIDE * (number % _COLUMNS), _HIGH * (number // _COLUMNS)
        pair = _pair(steps, found.recorded[:, number], found.predicted[:, number])
        chart = charts.lines(pair, f"dimension {number}: recorded and foretold")
        placed = f'<svg x="{across}" y="{down + 20}" width="{_WIDE}" height="{_HIGH - 24}" '
        parts.append(f'<text class="name" x="{across + 46}" y="{down + 16}">dimension {number}</text>')
        parts.append(chart.replace("<svg ", placed, 1))
    rows = -(-found.recorded.shape[1] // _COLUMNS)
    wide, high = _WIDE * _COLUMNS, _HIGH * rows + 24
    parts.append(f'<text class="name" x="46" y="{high - 8}">black: recorded; blue: the policy</text>')
    whole = f'<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}">{"".join(parts)}</svg>'
    return charts.alone(whole).replace(
        "</style>", ".line{fill:none;stroke-width:1.6}.k0{stroke:#111}.k1{stroke:#0b6bcb}</style>", 1
    )


def _pair(steps: Sequence[int], recorded: np.ndarray, predicted: np.ndarray) -> list[charts.Line]:
    return [charts.Line("recorded", steps, recorded.tolist()), charts.Line("policy", steps, predicted.tolist())]
